//! Bytes through one connection to a guest, timed from where the guest's side is at work until all have arrived. What serves
//! in the guest is a shell and `dd` on the connection itself, so that nothing but the kernel and the way is measured.

use std::io::{Read, Write};
use std::time::Instant;

/// Bytes in each `read` and `write`, here and in the guest.
const BLOCK: usize = 64 << 10;
/// Blocks of a transfer; the shell scripts below have both numbers.
const BLOCKS: usize = 128;

/// Sends a transfer on its standard output.
pub(crate) const SOURCE: &str = "exec dd if=/dev/zero bs=64k count=129 2>/dev/null";
/// Takes a transfer on its standard input: says when it is ready, and when it has all.
pub(crate) const SINK: &str = "echo; dd of=/dev/null bs=64k count=128 iflag=fullblock 2>/dev/null; echo";

/// MiB a second from a [`SOURCE`]. Its first block is not measured: a process has to be started for it.
pub(crate) fn take(stream: &mut impl Read) -> f64 {
    let mut buffer = vec![0; BLOCK];
    stream.read_exact(&mut buffer).expect("a first block");
    let began = Instant::now();
    for _ in 0..BLOCKS {
        stream.read_exact(&mut buffer).expect("a block");
    }
    rate(began)
}

/// MiB a second into a [`SINK`], until it says that it has them.
pub(crate) fn give(stream: &mut (impl Read + Write)) -> f64 {
    let (block, mut word) = (vec![0; BLOCK], [0]);
    stream.read_exact(&mut word).expect("a word that it is ready");
    let began = Instant::now();
    for _ in 0..BLOCKS {
        stream.write_all(&block).expect("a block taken");
    }
    stream.read_exact(&mut word).expect("a word that it has all");
    rate(began)
}

#[expect(clippy::cast_precision_loss, reason = "some MiB")]
fn rate(began: Instant) -> f64 {
    (BLOCKS * BLOCK) as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64()
}
