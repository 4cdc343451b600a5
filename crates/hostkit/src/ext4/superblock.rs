//! The superblock of an ext4 file system, read without trusting it.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/super.rst`. This tells a file system from other files, a whole
//! one from one that was cut short or not unmounted, and one that a kernel can mount from one that needs features it
//! does not have. It is no `e2fsck`: the rest of the file system is not looked at.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

const OFFSET: u64 = 1024;
const LEN: usize = 1024;
const MAGIC: u16 = 0xef53;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

/// The incompatible features that a common kernel mounts: filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg,
/// ea_inode, csum_seed, largedir, inline_data. Left out are those that need more than the file system itself: a journal
/// on another device, encryption keys, Unicode tables.
const INCOMPAT_KNOWN: u32 =
    0x2 | INCOMPAT_RECOVER | 0x10 | 0x40 | INCOMPAT_64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000;

/// What is wrong with a file that should be an ext4 file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A directory, fifo or other thing without contents.
    #[error("{} is neither a file nor a block device", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Something else is in it.
    #[error("{} is not an ext4 file system", path.display())]
    NotExt4 {
        /// The file.
        path: PathBuf,
    },
    /// The superblock contradicts itself or its checksum.
    #[error("{} has a damaged superblock: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The file ends before the file system does.
    #[error("{} is cut short: {len} bytes of a file system of {size}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The length that the file system has, in bytes.
        size: u64,
    },
    /// Mounting it read-only would not show what is in it, or show damage.
    #[error("{} was not unmounted cleanly or has errors (run `e2fsck -f` on it)", path.display())]
    Unclean {
        /// The file.
        path: PathBuf,
    },
    /// It uses features that guests' kernels lack.
    #[error("{} uses ext4 features that are not supported (incompatible feature bits {bits:#x})", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The bits of `s_feature_incompat` that are not known.
        bits: u32,
    },
}

/// What a sound superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The file system's length in bytes; the file may be longer.
    pub size: u64,
    /// How much of it is in use, in bytes, metadata included.
    pub used: u64,
    /// Its label.
    pub label: String,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Has a journal, so that a kernel can mend by itself what an interruption left.
    pub journal: bool,
    /// How it was left.
    pub state: State,
}

/// How a file system was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Unmounted in order.
    Clean,
    /// In use when its machine ended.
    InUse,
    /// A kernel found errors in it.
    Errors,
}

/// Reads the superblock of a file (or block device) and checks that the file system is sound and was left in order.
pub fn check(path: &Path) -> Result<Superblock, Error> {
    let found = check_writable(path)?;
    match found.state {
        State::Clean => Ok(found),
        State::InUse | State::Errors => Err(Error::Unclean {
            path: path.to_owned(),
        }),
    }
}

/// As [`check`], of a file system that is a part of a file: `length` bytes from `start` on. The errors name the file.
pub fn check_part(path: &Path, file: &File, start: u64, length: u64) -> Result<Superblock, Error> {
    let mut bytes = [0; LEN];
    let not_ext4 = || Error::NotExt4 {
        path: path.to_owned(),
    };
    if length < OFFSET + LEN as u64 {
        return Err(not_ext4());
    }
    match file.read_exact_at(&mut bytes, start.saturating_add(OFFSET)) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(not_ext4()),
        result => result.map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?,
    }
    let found = parse(path, &bytes, Some(length))?;
    match found.state {
        State::Clean => Ok(found),
        State::InUse | State::Errors => Err(Error::Unclean {
            path: path.to_owned(),
        }),
    }
}

/// As [`check`], for a disk that will be mounted for writing, and mended before where its state asks for it.
pub fn check_writable(path: &Path) -> Result<Superblock, Error> {
    let read_error = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    // A fifo would block the open, so look first.
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::NotAFile {
            path: path.to_owned(),
        });
    }
    let file = File::open(path).map_err(read_error)?;
    let mut bytes = [0; LEN];
    match file.read_exact_at(&mut bytes, OFFSET) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Error::NotExt4 {
                path: path.to_owned(),
            });
        }
        result => result.map_err(read_error)?,
    }
    let len = if kind.is_file() {
        Some(metadata.len())
    } else {
        None
    };
    parse(path, &bytes, len)
}

fn parse(path: &Path, bytes: &[u8; LEN], len: Option<u64>) -> Result<Superblock, Error> {
    let path = || path.to_owned();
    let damaged = |what| Error::Damaged { path: path(), what };
    let raw = Raw(bytes);
    if raw.u16(0x38) != MAGIC {
        return Err(Error::NotExt4 { path: path() });
    }
    let (incompat, ro_compat) = (raw.u32(0x60), raw.u32(0x64));
    if incompat & INCOMPAT_JOURNAL_DEV != 0 {
        return Err(Error::NotExt4 { path: path() });
    }
    if ro_compat & RO_COMPAT_METADATA_CSUM != 0 && crc32c(&bytes[..0x3fc]) != raw.u32(0x3fc) {
        return Err(damaged("wrong checksum"));
    }
    let shift = raw.u32(0x18);
    if shift > 6 {
        return Err(damaged("impossible block size"));
    }
    let count = |low, high| {
        let high = if incompat & INCOMPAT_64BIT != 0 {
            raw.u32(high)
        } else {
            0
        };
        u64::from(high) << 32 | u64::from(raw.u32(low))
    };
    let (blocks, free) = (count(0x4, 0x150), count(0xc, 0x158));
    let used = blocks
        .checked_sub(free)
        .ok_or_else(|| damaged("more free blocks than blocks"))?;
    let bytes_of = |blocks: u64| {
        blocks
            .checked_mul(1024 << shift)
            .ok_or_else(|| damaged("impossible size"))
    };
    let size = bytes_of(blocks)?;
    if size == 0 {
        return Err(damaged("no blocks"));
    }
    let unknown = incompat & !INCOMPAT_KNOWN;
    if unknown != 0 {
        return Err(Error::Unsupported {
            path: path(),
            bits: unknown,
        });
    }
    if let Some(len) = len.filter(|len| *len < size) {
        return Err(Error::Truncated {
            path: path(),
            len,
            size,
        });
    }
    let state = raw.u16(0x3a);
    let state = if state & STATE_ERRORS != 0 {
        State::Errors
    } else if incompat & INCOMPAT_RECOVER != 0 || state & STATE_CLEAN == 0 {
        State::InUse
    } else {
        State::Clean
    };
    let label: Vec<u8> = bytes[0x78..0x88]
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[0x68..0x78]);
    Ok(Superblock {
        size,
        used: bytes_of(used)?,
        label: String::from_utf8_lossy(&label).into_owned(),
        uuid,
        journal: raw.u32(0x5c) & COMPAT_HAS_JOURNAL != 0,
        state,
    })
}

/// Little-endian fields at fixed offsets, all within the 1024 bytes.
struct Raw<'a>(&'a [u8; LEN]);

impl Raw<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

/// CRC-32C (RFC 3720, appendix B.4) as ext4 uses it: started with all ones and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    super::crc32c(u32::MAX, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ext4::tests::tools;
    use crate::ext4::{MIN_SIZE, make_empty};

    #[test]
    fn checksum_has_the_known_answer() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[tokio::test]
    async fn damage_of_every_kind_is_told_apart() {
        let Some(tools) = tools() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make_empty(&tools, &path, MIN_SIZE, "label").await.unwrap();
        let found = check(&path).unwrap();
        assert_eq!(found.size, MIN_SIZE);
        assert!(found.used > 0 && found.used < MIN_SIZE);

        let mut good = [0; LEN];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut good, OFFSET)
            .unwrap();
        let with = |at: usize, value: &[u8]| {
            let mut bytes = good;
            bytes[at..at + value.len()].copy_from_slice(value);
            let sum = crc32c(&bytes[..0x3fc]);
            bytes[0x3fc..].copy_from_slice(&sum.to_le_bytes());
            parse(&path, &bytes, Some(MIN_SIZE))
        };
        let state = |found: Result<Superblock, Error>| found.unwrap().state;
        assert!(found.journal);
        assert_eq!(found.state, State::Clean);
        assert!(matches!(with(0x38, &[0, 0]), Err(Error::NotExt4 { .. })));
        assert!(matches!(
            with(0x18, &[7]),
            Err(Error::Damaged {
                what: "impossible block size",
                ..
            })
        ));
        assert!(matches!(
            with(0x4, &[0; 4]),
            Err(Error::Damaged {
                what: "more free blocks than blocks",
                ..
            })
        ));
        assert_eq!(state(with(0x3a, &[0, 0])), State::InUse);
        assert_eq!(state(with(0x3a, &[3, 0])), State::Errors);
        let incompat = u32::from_le_bytes(good[0x60..0x64].try_into().unwrap());
        assert_eq!(state(with(0x60, &(incompat | 4).to_le_bytes())), State::InUse);
        assert!(matches!(
            with(0x60, &(incompat | 0x10000).to_le_bytes()),
            Err(Error::Unsupported { bits: 0x10000, .. })
        ));
        let mut flipped = good;
        flipped[0x78] ^= 1;
        assert!(matches!(
            parse(&path, &flipped, None).unwrap_err(),
            Error::Damaged {
                what: "wrong checksum",
                ..
            }
        ));

        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MIN_SIZE - 1)
            .unwrap();
        let error = check(&path).unwrap_err();
        assert!(
            matches!(error, Error::Truncated { size: MIN_SIZE, .. }),
            "{error}"
        );
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(matches!(check(&path), Err(Error::Read { .. })));
        assert!(matches!(check(dir.path()), Err(Error::NotAFile { .. })));
        for contents in [vec![], vec![b'x'; 2047], vec![0; 1 << 20]] {
            std::fs::write(&path, contents).unwrap();
            assert!(matches!(check(&path), Err(Error::NotExt4 { .. })));
        }
    }

    proptest! {
        #[test]
        fn any_superblock_is_survived(mut bytes in prop::collection::vec(any::<u8>(), LEN), plausible: bool) {
            bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
            if plausible {
                bytes[0x18..0x1c].copy_from_slice(&[2, 0, 0, 0]);
                bytes[0x65] &= !4;
            }
            let bytes: &[u8; LEN] = bytes.as_slice().try_into().unwrap();
            drop(parse(Path::new("x"), bytes, Some(1 << 30)));
        }
    }
}
