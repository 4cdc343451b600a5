//! Growing an ext4 file system, while it is mounted, to the size of its device. What resize2fs(8) does, without it: the
//! kernel does the work, and images need no tools.
//!
//! Used twice: by the boot for every disk it mounts to write on (a disk that was grown while the machine was stopped),
//! and by the GrowDisk call (one that was grown under a running machine).

use rustix::fd::{AsFd, AsRawFd};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// `EXT4_IOC_RESIZE_FS`, `_IOW('f', 16, __u64)` of the kernel's fs/ext4/ext4.h: the argument is the new size in blocks.
const RESIZE_FS: libc::c_ulong = (1 << 30) | (8 << 16) | ((b'f' as libc::c_ulong) << 8) | 16;

/// Where the superblock is, and what of it is read (Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_SIZE: usize = 1024;
const BLOCKS_LOW: usize = 0x4;
const LOG_BLOCK_SIZE: usize = 0x18;
const MAGIC: usize = 0x38;
const INCOMPATIBLE: usize = 0x60;
const BLOCKS_HIGH: usize = 0x150;

/// `INCOMPAT_64BIT`: the upper half of the number of blocks counts.
const WIDE: u32 = 0x80;

/// Sizes in bytes after growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Before.
    pub(crate) was: u64,
    /// The file system. Smaller than its device by up to one block group, which has to hold more than its own tables.
    pub(crate) file_system: u64,
    pub(crate) device: u64,
}

/// Why a file system has not grown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrowError {
    #[error("read the superblock of {}", device.display())]
    Read { device: PathBuf, source: io::Error },
    #[error("grow the file system on {}: it is not ext4", device.display())]
    NotExt4 { device: PathBuf },
    #[error("grow the file system on {} to {blocks} blocks", device.display())]
    Resize {
        device: PathBuf,
        blocks: u64,
        source: io::Error,
    },
}

/// Grows the file system on `device`, of which `mounted` is a directory, to all of the device. One that fills it already
/// is left alone.
pub(crate) fn to_device_size(device: &Path, mounted: impl AsFd) -> Result<Sizes, GrowError> {
    let read = |source| GrowError::Read {
        device: device.to_owned(),
        source,
    };
    let mut file = File::open(device).map_err(read)?;
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    // Mounted or not, the device's page cache is where the kernel keeps the superblock.
    let look = || -> Result<Superblock, GrowError> {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        file.read_exact_at(&mut bytes, SUPERBLOCK).map_err(read)?;
        Superblock::parse(&bytes).ok_or_else(|| GrowError::NotExt4 {
            device: device.to_owned(),
        })
    };
    let before = look()?;
    let blocks = size / before.block_size;
    if blocks > before.blocks {
        // SAFETY: an open descriptor, and a number that lives during the call, which reads it.
        let result = unsafe { libc::ioctl(mounted.as_fd().as_raw_fd(), RESIZE_FS, &raw const blocks) };
        if result < 0 {
            return Err(GrowError::Resize {
                device: device.to_owned(),
                blocks,
                source: io::Error::last_os_error(),
            });
        }
    }
    Ok(Sizes {
        was: before.bytes(),
        file_system: look()?.bytes(),
        device: size,
    })
}

/// What is needed of a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Superblock {
    blocks: u64,
    /// 1 KiB to 64 KiB.
    block_size: u64,
}

impl Superblock {
    fn parse(bytes: &[u8; SUPERBLOCK_SIZE]) -> Option<Self> {
        let word = |at: usize| -> Option<u32> {
            let field = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes(field.try_into().ok()?))
        };
        if bytes.get(MAGIC..MAGIC + 2)? != [0x53, 0xef] {
            return None;
        }
        let shift = word(LOG_BLOCK_SIZE).filter(|shift| *shift <= 6)?;
        let high = if word(INCOMPATIBLE)? & WIDE == 0 {
            0
        } else {
            word(BLOCKS_HIGH)?
        };
        Some(Self {
            blocks: (u64::from(high) << 32) | u64::from(word(BLOCKS_LOW)?),
            block_size: 1024 << shift,
        })
    }

    fn bytes(self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock(blocks: u64, shift: u32, incompatible: u32) -> [u8; SUPERBLOCK_SIZE] {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        bytes[MAGIC..MAGIC + 2].copy_from_slice(&[0x53, 0xef]);
        let halves = blocks.to_le_bytes();
        bytes[BLOCKS_LOW..BLOCKS_LOW + 4].copy_from_slice(&halves[..4]);
        bytes[BLOCKS_HIGH..BLOCKS_HIGH + 4].copy_from_slice(&halves[4..]);
        bytes[LOG_BLOCK_SIZE..LOG_BLOCK_SIZE + 4].copy_from_slice(&shift.to_le_bytes());
        bytes[INCOMPATIBLE..INCOMPATIBLE + 4].copy_from_slice(&incompatible.to_le_bytes());
        bytes
    }

    #[test]
    fn the_request_is_the_kernels() {
        assert_eq!(RESIZE_FS, 0x4008_6610);
    }

    #[test]
    fn sizes_are_read() {
        let small = Superblock::parse(&superblock(0x1_0000_1000, 2, 0)).expect("ext4");
        assert_eq!((small.blocks, small.block_size), (0x1000, 4096), "no upper half");
        let large = Superblock::parse(&superblock(0x1_0000_1000, 2, WIDE)).expect("ext4");
        assert_eq!(large.bytes(), 0x1_0000_1000 * 4096);
        assert_eq!(Superblock::parse(&[0; SUPERBLOCK_SIZE]), None, "no magic");
        assert_eq!(
            Superblock::parse(&superblock(1, 7, 0)),
            None,
            "no such block size"
        );
    }

    #[test]
    fn one_that_fills_its_device_is_left_alone_and_others_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let device = dir.path().join("disk");
        let mut image = vec![0; 64 * 1024];
        image[1024..2048].copy_from_slice(&superblock(16, 2, 0));
        std::fs::write(&device, &image).expect("write");
        let directory = File::open(dir.path()).expect("open");
        // A directory of no ext4 mount: any attempt to resize would fail.
        let sizes = to_device_size(&device, &directory).expect("nothing to do");
        assert_eq!(
            (sizes.was, sizes.file_system, sizes.device),
            (65536, 65536, 65536)
        );
        image.resize(128 * 1024, 0);
        std::fs::write(&device, &image).expect("write");
        let error = to_device_size(&device, &directory).expect_err("not what is mounted");
        assert!(matches!(error, GrowError::Resize { blocks: 32, .. }), "{error}");
        std::fs::write(&device, vec![0; 4096]).expect("write");
        assert!(matches!(
            to_device_size(&device, &directory),
            Err(GrowError::NotExt4 { .. })
        ));
        std::fs::write(&device, b"short").expect("write");
        assert!(matches!(
            to_device_size(&device, &directory),
            Err(GrowError::Read { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_superblock_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), SUPERBLOCK_SIZE)) {
            let mut bytes: [u8; SUPERBLOCK_SIZE] = bytes.try_into().expect("as long");
            bytes[MAGIC..MAGIC + 2].copy_from_slice(&[0x53, 0xef]);
            if let Some(found) = Superblock::parse(&bytes) {
                prop_assert!((1024..=65536).contains(&found.block_size));
            }
        }
    }
}
