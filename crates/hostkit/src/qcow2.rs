//! QEMU's disk images (qcow2), as far as they are looked at here: whether a file is one, and whether it is one by itself. What
//! is in it is read by `qemu-img`, which is only let at files that this has found to name no others.
//!
//! Source of the format: `docs/interop/qcow2.txt` of QEMU.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// The header of version 2; that of version 3 goes on with its features.
const SHORT: usize = 72;
const LONG: usize = 104;
const EXTERNAL_DATA: u64 = 1 << 2;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The disk's bytes.
    pub size: u64,
    /// Bytes of a cluster, of which space is taken.
    pub cluster: u64,
}

/// Why an image is none that is read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("failed to read it")]
    Read(#[source] io::Error),
    /// The file ends in its header.
    #[error("it is cut short")]
    Truncated,
    /// It is of a version that is not known.
    #[error("it is of version {0}, and 2 and 3 are known")]
    Version(u32),
    /// Its clusters are of no length that there is.
    #[error("its header is damaged")]
    Damaged,
    /// It is what differs from another file.
    #[error(
        "it has a backing file, and what it holds is only what differs from that (`qemu-img convert` makes one of both)"
    )]
    Backing,
    /// Its contents are in another file.
    #[error("its contents are in another file (`qemu-img convert` makes one of both)")]
    ExternalData,
    /// It is encrypted.
    #[error("it is encrypted")]
    Encrypted,
}

/// Looks at a file; none where it is no qcow2.
pub fn look(path: &Path) -> Result<Option<Header>, Error> {
    let file = File::open(path).map_err(Error::Read)?;
    let length = file.metadata().map_err(Error::Read)?.len();
    let mut raw = [0; LONG];
    let there = usize::try_from(length).unwrap_or(LONG).min(LONG);
    let head = raw.get_mut(..there).unwrap_or_default();
    file.read_exact_at(head, 0).map_err(Error::Read)?;
    if !raw.starts_with(MAGIC) {
        return Ok(None);
    }
    parse(&raw, there).map(Some)
}

fn parse(raw: &[u8; LONG], there: usize) -> Result<Header, Error> {
    if there < SHORT {
        return Err(Error::Truncated);
    }
    let features = match u32_at(raw, 4) {
        2 => 0,
        3 if there < LONG => return Err(Error::Truncated),
        3 => u64_at(raw, 72),
        other => return Err(Error::Version(other)),
    };
    // An offset and a length: either is enough for a reader that looks at one of them.
    if u64_at(raw, 8) != 0 || u32_at(raw, 16) != 0 {
        return Err(Error::Backing);
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(Error::ExternalData);
    }
    if u32_at(raw, 32) != 0 {
        return Err(Error::Encrypted);
    }
    let bits = u32_at(raw, 20);
    if !(9..=21).contains(&bits) {
        return Err(Error::Damaged);
    }
    Ok(Header {
        cluster: 1 << bits,
        size: u64_at(raw, 24),
    })
}

fn u32_at(raw: &[u8; LONG], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(raw.get(at..at + 4).unwrap_or(&[0; 4]));
    u32::from_be_bytes(bytes)
}

fn u64_at(raw: &[u8; LONG], at: usize) -> u64 {
    u64::from(u32_at(raw, at)) << 32 | u64::from(u32_at(raw, at + 4))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_qemu_makes_is_known_for_what_it_is() {
        let Some(qemu_img) = testkit::program("BANGER_TEST_QEMU_IMG", "qemu-img") else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(&qemu_img);
            let path = directory.path().join(name);
            command
                .current_dir(&directory)
                .args(["create", "-q", "-f", "qcow2"]);
            let options = arguments.iter().take_while(|word| !word.ends_with('M'));
            let sizes = arguments.iter().filter(|word| word.ends_with('M'));
            let made = command.args(options).arg(&path).args(sizes).status().unwrap();
            assert!(made.success(), "{name}");
            look(&path)
        };
        let size = |found: Result<Option<Header>, Error>| found.unwrap().unwrap().size;
        assert_eq!(size(make("new", &["64M"])), 64 << 20);
        assert_eq!(size(make("old", &["-o", "compat=0.10", "3M"])), 3 << 20);
        let over = make("over", &["-b", "/etc/shadow", "-F", "raw", "-u", "64M"]);
        assert!(matches!(over, Err(Error::Backing)), "{over:?}");
        let beside = make("beside", &["-o", "data_file=raw,data_file_raw=on", "8M"]);
        assert!(matches!(beside, Err(Error::ExternalData)), "{beside:?}");
    }

    #[test]
    fn what_is_none_and_what_is_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let look = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            super::look(&path)
        };
        for other in [&b""[..], b"QFI", b"\0\0\0\0", &[0; 4096]] {
            assert_eq!(look(other).unwrap(), None);
        }
        let mut header = [0; LONG];
        header[..4].copy_from_slice(MAGIC);
        header[7] = 3;
        header[24..32].fill(0xff);
        for (bits, damaged) in [(8, true), (9, false), (22, true), (255, true), (21, false)] {
            header[23] = bits;
            assert_eq!(matches!(look(&header), Err(Error::Damaged)), damaged);
        }
        let (size, cluster) = (u64::MAX, 2 << 20);
        assert_eq!(look(&header).unwrap(), Some(Header { size, cluster }));
        for cut in 4..LONG {
            assert!(matches!(look(&header[..cut]), Err(Error::Truncated)), "{cut}");
        }
        header[7] = 4;
        assert!(matches!(look(&header), Err(Error::Version(4))));
        header[7] = 3;
        header[35] = 1;
        assert!(matches!(look(&header), Err(Error::Encrypted)));
        header[19] = 1;
        assert!(matches!(look(&header), Err(Error::Backing)));
    }
}
