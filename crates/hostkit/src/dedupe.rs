//! Blocks that two files have in common, kept once: `FIDEDUPERANGE` (ioctl_fideduperange(2)), which XFS and btrfs know.
//!
//! A file's [`Index`] has a hash of each of its blocks; two of them say which runs of blocks the files may have in common, at
//! whatever places. The kernel compares the bytes itself before it shares them, so a hash that is wrong, by chance or because
//! somebody meant it, costs time and nothing else; that is why a fast one of 64 bits does. Runs shorter than [`SHORTEST`]
//! are left alone: each run is an extent more, and takes a call.
//!
//! Not done here: finding out whether a file system can ([`crate::reflink::probe`]), and choosing the files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

/// Blocks that are hashed, and shared, are of so many bytes: those of most file systems.
pub const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;
/// Blocks of the shortest run that is shared.
pub const SHORTEST: usize = 16;
/// One block in so many is looked up; in every run of [`SHORTEST`] there is one.
const ANCHORS: usize = 8;
/// Bytes asked for at once: what btrfs takes, and compared in a moment.
const PIECE: u64 = 16 << 20;
/// A block of zeros, which is most likely a hole.
const ZERO: u64 = 0;
/// What the file of an index begins with.
const MAGIC: [u8; 8] = *b"bgrblk\x00\x01";

/// Hashes of a file's blocks, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index(Vec<u64>);

/// Makes an [`Index`] of what is read through it.
#[derive(Debug)]
pub struct Indexing<R> {
    input: R,
    hashes: Vec<u64>,
    /// The beginning of a block.
    block: Vec<u8>,
}

impl<R: Read> Indexing<R> {
    /// Of what `input` gives from now on.
    pub fn new(input: R) -> Self {
        Self {
            input,
            hashes: Vec::new(),
            block: Vec::with_capacity(BLOCK_LEN),
        }
    }

    /// The index, once all is read. What is less than a block at the end is not in it.
    #[must_use]
    pub fn finish(self) -> Index {
        Index(self.hashes)
    }
}

impl<R: Read> Read for Indexing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let mut bytes = buffer.get(..read).unwrap_or_default();
        if !self.block.is_empty() {
            let missing = BLOCK_LEN - self.block.len();
            let (begin, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
            self.block.extend_from_slice(begin);
            bytes = rest;
            if self.block.len() == BLOCK_LEN {
                self.hashes.push(hash(&self.block));
                self.block.clear();
            }
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK_LEN>();
        self.hashes.extend(blocks.iter().map(|block| hash(block)));
        self.block.extend_from_slice(rest);
        Ok(read)
    }
}

impl Index {
    /// Writes it, 8 bytes a block.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        out.write_all(&MAGIC)?;
        for hash in &self.0 {
            out.write_all(&hash.to_le_bytes())?;
        }
        out.flush()
    }

    /// Reads one that [`Index::write`] wrote, of a file of at most `limit` bytes; anything else is an error.
    pub fn read(input: impl Read, limit: u64) -> io::Result<Self> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "not an index of blocks");
        let len = (limit / BLOCK)
            .saturating_mul(8)
            .saturating_add(MAGIC.len() as u64);
        let mut bytes = Vec::new();
        input.take(len.saturating_add(1)).read_to_end(&mut bytes)?;
        let hashes = bytes.strip_prefix(&MAGIC).ok_or_else(damaged)?;
        match hashes.as_chunks::<8>() {
            (hashes, []) if bytes.len() as u64 <= len => {
                Ok(Self(hashes.iter().copied().map(u64::from_le_bytes).collect()))
            }
            _ => Err(damaged()),
        }
    }
}

/// A file whose blocks are to be shared with those of others.
#[derive(Debug)]
pub struct Sharing<'a> {
    file: &'a File,
    index: &'a Index,
    /// Places of some blocks, by their hashes.
    anchors: HashMap<u64, usize>,
    /// Which blocks are shared already.
    shared: Vec<bool>,
}

/// Blocks that two files seem to have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    from: usize,
    to: usize,
    count: usize,
}

impl<'a> Sharing<'a> {
    /// `file` is open for writing, its bytes are those of `index`, and nobody else writes to it.
    #[must_use]
    pub fn new(file: &'a File, index: &'a Index) -> Self {
        let places = index.0.iter().copied().enumerate().step_by(ANCHORS).rev();
        let anchors = places
            .filter(|(_, hash)| *hash != ZERO)
            .map(|(place, hash)| (hash, place))
            .collect();
        Self {
            file,
            index,
            anchors,
            shared: vec![false; index.0.len()],
        }
    }

    /// Shares what this file and `other`, on the same file system and with that index, have in common and is not shared
    /// already; returns how many bytes that is. `watch` is called a few times a second; its error ends the work.
    pub fn with(
        &mut self,
        other: &File,
        index: &Index,
        mut watch: impl FnMut() -> io::Result<()>,
    ) -> io::Result<u64> {
        let mut bytes = 0;
        let mut at = 0;
        while let Some(run) = self.next_run(index, at) {
            at = run.from + run.count;
            let (mut from, mut to) = (run.from as u64 * BLOCK, run.to as u64 * BLOCK);
            let mut left = run.count as u64 * BLOCK;
            while left > 0 {
                watch()?;
                let done = match share(other, from, self.file, to, left.min(PIECE))? {
                    // They differ somewhere in it, or it was changed meanwhile.
                    0 => break,
                    done => done.min(left),
                };
                bytes += done;
                from += done;
                to += done;
                left -= done;
            }
            let shared = run.count - usize::try_from(left / BLOCK).unwrap_or(0);
            for block in self.shared.iter_mut().skip(run.to).take(shared) {
                *block = true;
            }
        }
        Ok(bytes)
    }

    /// The next run, in the order of the other file, at or after block `at` of that.
    fn next_run(&self, other: &Index, at: usize) -> Option<Run> {
        let same = |from: usize, to: usize| {
            let hash = other.0.get(from).copied();
            hash.is_some_and(|hash| hash != ZERO)
                && hash == self.index.0.get(to).copied()
                && self.shared.get(to) == Some(&false)
        };
        let mut from = at;
        while from < other.0.len() {
            let anchor = other.0.get(from).and_then(|hash| self.anchors.get(hash));
            if let Some(&to) = anchor.filter(|to| same(from, **to)) {
                let before = (1..=to.min(from - at))
                    .take_while(|n| same(from - n, to - n))
                    .count();
                let after = (1..).take_while(|n| same(from + n, to + n)).count();
                let count = before + 1 + after;
                if count >= SHORTEST {
                    return Some(Run {
                        from: from - before,
                        to: to - before,
                        count,
                    });
                }
                from += after;
            }
            from += 1;
        }
        None
    }
}

/// Has `to` share blocks of `from` where they are the same; how many bytes, 0 where they are not.
fn share(from: &File, start: u64, to: &File, dest: u64, len: u64) -> io::Result<u64> {
    let mut range = DedupeRange {
        start,
        length: len,
        count: 1,
        reserved1: 0,
        reserved2: 0,
        to: i64::from(to.as_raw_fd()),
        dest,
        done: 0,
        status: 0,
        reserved: 0,
    };
    // SAFETY: `range` is a whole `struct file_dedupe_range` with the one `struct file_dedupe_range_info` that it says.
    let outcome = unsafe { libc::ioctl(from.as_raw_fd(), FIDEDUPERANGE, &raw mut range) };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    match range.status {
        0 => Ok(range.done),
        // FILE_DEDUPE_RANGE_DIFFERS.
        1 => Ok(0),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    }
}

/// `_IOWR(0x94, 54, struct file_dedupe_range)`.
const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[repr(C)]
struct DedupeRange {
    start: u64,
    length: u64,
    count: u16,
    reserved1: u16,
    reserved2: u32,
    to: i64,
    dest: u64,
    done: u64,
    status: i32,
    reserved: u32,
}

const _: () = assert!(size_of::<DedupeRange>() == 24 + 32);

/// Of a block; [`ZERO`] for zeros alone. Words are mixed in as `wyhash` does, by the halves of a product.
fn hash(block: &[u8]) -> u64 {
    const SECRET: [u64; 4] = [
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
        0x8ebc_6af0_9c88_c6e3,
        0x5899_65cc_7537_4cc3,
    ];
    let mix = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        let [low, high] = [product, product >> 64].map(|half| {
            let [a, b, c, d, e, f, g, h, ..] = half.to_le_bytes();
            u64::from_le_bytes([a, b, c, d, e, f, g, h])
        });
        low ^ high
    };
    let (mut lanes, mut any) = ([SECRET[3]; 2], 0);
    for words in block.as_chunks::<32>().0 {
        let (words, _) = words.as_chunks::<8>();
        let [a, b, c, d] = [0, 1, 2, 3].map(|at| words.get(at).map_or(0, |word| u64::from_le_bytes(*word)));
        any |= a | b | c | d;
        lanes = [mix(a ^ SECRET[0], b ^ lanes[0]), mix(c ^ SECRET[1], d ^ lanes[1])];
    }
    match any {
        0 => ZERO,
        _ => mix(lanes[0] ^ SECRET[2], lanes[1] ^ SECRET[3]).max(1),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;
    use crate::reflink::{self, own_bytes};

    const MIB: usize = 1 << 20;

    fn index(bytes: &[u8]) -> Index {
        let mut reader = Indexing::new(bytes);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        reader.finish()
    }

    /// Bytes that are the same each time, and no two blocks alike.
    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&state.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn an_index_is_the_same_however_it_is_read_and_survives_a_file() {
        let mut bytes = noise(MIB, 1);
        bytes[8192..16384].fill(0);
        let whole = index(&bytes);
        assert_eq!(whole.0.len(), 256);
        assert_eq!(whole.0.iter().filter(|hash| **hash == ZERO).count(), 2);
        let mut slow = Indexing::new(bytes.as_slice());
        let mut piece = [0; 1000];
        while slow.read(&mut piece).unwrap() > 0 {}
        assert_eq!(slow.finish(), whole);
        // Less than a block at the end is left out.
        assert_eq!(index(&bytes[..MIB - 1]).0.len(), 255);

        let mut file = Vec::new();
        whole.write(&mut file).unwrap();
        assert_eq!(Index::read(file.as_slice(), 1 << 20).unwrap(), whole);
        for damaged in [&file[..file.len() - 1], &file[1..], &b""[..]] {
            assert!(Index::read(damaged, 1 << 20).is_err());
        }
        assert!(
            Index::read(file.as_slice(), (1 << 20) - 4096).is_err(),
            "too large"
        );
    }

    #[test]
    fn runs_are_found_at_whatever_place_they_are() {
        let base = noise(100 * BLOCK_LEN, 1);
        let other = index(&base);
        let file = tempfile::tempfile().unwrap();
        for shift in 0..20 {
            let mut new = noise(shift * BLOCK_LEN, 7);
            new.extend_from_slice(&base[10 * BLOCK_LEN..60 * BLOCK_LEN]);
            new.extend(noise(5 * BLOCK_LEN, 9));
            new.extend_from_slice(&base[60 * BLOCK_LEN..75 * BLOCK_LEN]);
            let new = index(&new);
            let sharing = Sharing::new(&file, &new);
            let run = sharing.next_run(&other, 0).unwrap();
            let wanted = Run {
                from: 10,
                to: shift,
                count: 50,
            };
            assert_eq!(run, wanted);
            // 15 blocks are too few.
            assert_eq!(sharing.next_run(&other, 60), None);
        }
    }

    #[test]
    fn where_the_file_system_cannot_it_is_an_error_and_nothing_is_lost() {
        let bytes = noise(MIB, 3);
        let (one, other) = (
            tempfile::tempfile_in("/dev/shm"),
            tempfile::tempfile_in("/dev/shm"),
        );
        let (Ok(one), Ok(other)) = (one, other) else {
            return;
        };
        one.write_all_at(&bytes, 0).unwrap();
        other.write_all_at(&bytes, 0).unwrap();
        let index = index(&bytes);
        assert!(
            Sharing::new(&one, &index)
                .with(&other, &index, || Ok(()))
                .is_err()
        );
        let mut found = vec![0; MIB];
        one.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes);
    }

    fn shares(place: &Path) {
        let make = |name: &str, bytes: &[u8]| {
            let options = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(place.join(name));
            let file = options.unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file.sync_all().unwrap();
            file
        };
        let base = noise(40 * MIB, 1);
        let mut bytes = noise(3 * BLOCK_LEN, 2);
        bytes.extend_from_slice(&base[MIB..30 * MIB]);
        bytes.extend(noise(MIB, 4));
        let (one, other) = (make("one", &base), make("other", &bytes));
        // XFS takes more than it needs at first.
        let before = own_bytes(&other).unwrap();
        let (base_index, index) = (index(&base), index(&bytes));
        let mut sharing = Sharing::new(&other, &index);
        let shared = sharing.with(&one, &base_index, || Ok(())).unwrap();
        assert_eq!(shared, 29 * MIB as u64);
        assert_eq!(sharing.with(&one, &base_index, || Ok(())).unwrap(), 0, "once");
        other.sync_all().unwrap();
        assert!(own_bytes(&other).unwrap() <= before - shared);
        let mut found = vec![0; bytes.len()];
        other.read_exact_at(&mut found, 0).unwrap();
        assert!(found == bytes);

        // An index that lies: the kernel looks at the bytes.
        let mut lies = base.clone();
        lies[..10 * MIB].copy_from_slice(&noise(10 * MIB, 8));
        let third = make("third", &lies);
        let shared = Sharing::new(&third, &base_index)
            .with(&one, &base_index, || Ok(()))
            .unwrap();
        assert!(shared <= 30 * MIB as u64, "{shared}");
        let mut found = vec![0; lies.len()];
        third.read_exact_at(&mut found, 0).unwrap();
        assert!(found == lies);

        let stopped =
            Sharing::new(&third, &base_index).with(&one, &base_index, || Err(io::Error::other("stop")));
        assert!(stopped.is_err());
    }

    #[test]
    fn xfs_keeps_them_once() {
        reflink::tests::in_a_file_system("xfs", "dedupe::tests::xfs_keeps_them_once", shares);
    }

    #[test]
    fn btrfs_keeps_them_once() {
        reflink::tests::in_a_file_system("btrfs", "dedupe::tests::btrfs_keeps_them_once", shares);
    }
}
