//! Bytes moved for the guest, from Firecracker's metrics file.
//!
//! Source: Firecracker 1.12, src/vmm/src/logger/metrics.rs. Each line is a JSON document with what has happened *since the
//! line before*, so the lines are summed up. Firecracker writes one every minute, and one when told to. The file is this
//! run's: the launch begins it anew. When somebody cuts it short, what we have not read by then is lost to the sum.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::figures::Moved;

/// How much of the file is read at a time. A line has some kilobytes.
const PIECE: u64 = 256 * 1024;
/// Longest line that is waited for; without an end by then it is none.
const LINE_LIMIT: usize = 64 * 1024;

/// The metrics of one machine.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    read: Mutex<Sum>,
}

/// What has been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// End of the last whole line.
    offset: u64,
    pub(super) disk: Moved,
    pub(super) network: Moved,
}

/// Of a line, what is summed up. `block` is all disks together, `net` all cards.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    block: Block,
    #[serde(default)]
    net: Net,
}

#[derive(Default, Deserialize)]
struct Block {
    read_bytes: u64,
    write_bytes: u64,
}

#[derive(Default, Deserialize)]
struct Net {
    rx_bytes_count: u64,
    tx_bytes_count: u64,
}

impl Metrics {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read: Mutex::default(),
        }
    }

    /// Reads what is new. Blocks for as long as the host's disk takes.
    pub(super) fn sum(&self) -> Sum {
        let mut sum = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // A file that cannot be read adds nothing, as a VMM that does not write.
        if let Err(error) = sum.catch_up(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "metrics not read");
        }
        *sum
    }
}

impl Sum {
    fn catch_up(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        if file.metadata()?.len() < self.offset {
            self.offset = 0;
        }
        loop {
            let mut piece = Vec::new();
            file.seek(SeekFrom::Start(self.offset))?;
            (&mut file).take(PIECE).read_to_end(&mut piece)?;
            let whole = match piece.iter().rposition(|&byte| byte == b'\n') {
                Some(end) => end + 1,
                // Not a line of Firecracker's: passed over, or it would be read for ever.
                None if piece.len() > LINE_LIMIT => piece.len(),
                None => return Ok(()),
            };
            for line in piece[..whole].split(|&byte| byte == b'\n') {
                self.add(line);
            }
            self.offset += whole as u64;
        }
    }

    /// A line that cannot be read, as the rest of one that was cut, adds nothing.
    fn add(&mut self, line: &[u8]) {
        if let Ok(Line { block, net }) = serde_json::from_slice(line) {
            self.disk.add(block.read_bytes, block.write_bytes);
            self.network.add(net.rx_bytes_count, net.tx_bytes_count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn line(read: u64, written: u64) -> String {
        format!(
            r#"{{"utc_timestamp_ms":1,"block_root":{{"read_bytes":1,"write_bytes":1}},"block":{{"activate_fails":0,"read_bytes":{read},"write_bytes":{written}}},"net":{{"rx_bytes_count":2,"tx_bytes_count":3}}}}"#
        ) + "\n"
    }

    fn moved(in_bytes: u64, out_bytes: u64) -> Moved {
        Moved { in_bytes, out_bytes }
    }

    #[test]
    fn lines_are_added_up_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let metrics = Metrics::new(file.path());
        assert_eq!(metrics.sum().disk, Moved::default());
        file.write_all((line(10, 1) + &line(5, 2)).as_bytes()).unwrap();
        assert_eq!(metrics.sum().disk, moved(15, 3));
        assert_eq!(metrics.sum().disk, moved(15, 3));
        // Half a line is waited for.
        let whole = line(100, 100);
        let (head, tail) = whole.split_at(40);
        file.write_all(head.as_bytes()).unwrap();
        assert_eq!(metrics.sum().disk, moved(15, 3));
        file.write_all(tail.as_bytes()).unwrap();
        let sum = metrics.sum();
        assert_eq!((sum.disk, sum.network), (moved(115, 103), moved(6, 9)));
    }

    #[test]
    fn a_file_that_was_cut_short_goes_on() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), line(10, 10).repeat(3)).unwrap();
        let metrics = Metrics::new(file.path());
        assert_eq!(metrics.sum().disk, moved(30, 30));
        std::fs::write(file.path(), line(1, 1)).unwrap();
        assert_eq!(metrics.sum().disk, moved(31, 31));
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(metrics.sum().disk, moved(31, 31));
    }

    #[test]
    fn a_file_larger_than_a_piece() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut text = line(1, 0).repeat(3000);
        text += &"x".repeat(2 * usize::try_from(PIECE).unwrap());
        text += "\n";
        text += &line(1, 0);
        assert!(text.len() as u64 > 3 * PIECE);
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(Metrics::new(file.path()).sum().disk, moved(3001, 0));
    }

    proptest! {
        #[test]
        fn hostile_lines_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let metrics = Metrics::new(file.path());
            prop_assert_eq!(metrics.sum(), metrics.sum());
        }

        #[test]
        fn numbers_never_overflow(read in any::<u64>(), times in 1usize..4) {
            let mut sum = Sum::default();
            for _ in 0..times {
                sum.add(line(read, read).trim_end().as_bytes());
            }
            prop_assert!(sum.disk.in_bytes >= read);
        }
    }
}
