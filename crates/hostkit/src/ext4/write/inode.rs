//! The 256 bytes of an inode.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/inodes.rst`.

use super::volume::INODE;
use super::xattrs::IN_INODE;
use super::{directory, halves, low_high, put};
use crate::ext4::crc32c;
use crate::rootfs_tar::{Kind, Node};

/// Bytes in use beyond the first 128.
const EXTRA: u16 = 32;
/// `EXT4_EXTENTS_FL`.
const EXTENTS: u32 = 0x8_0000;
/// A link's target that is in the inode itself is shorter.
pub(super) const SHORT: usize = 60;
/// `EXT4_LINK_MAX`; a directory with more says 1 (`dir_nlink`).
pub(super) const LINKS: u32 = 65_000;

/// What an inode says beside what its node does.
#[derive(Debug)]
pub(super) struct Inode<'a> {
    pub(super) node: &'a Node,
    /// Of what has contents, and of a symbolic link its target's.
    pub(super) size: u64,
    pub(super) links: u32,
    /// Of contents, map and attributes.
    pub(super) blocks: u64,
    /// The map of blocks, unless it is a device or the like.
    pub(super) map: Option<[u8; 60]>,
    pub(super) attributes: Option<[u8; IN_INODE]>,
    /// 0 where there is none.
    pub(super) attributes_block: u64,
}

impl Inode<'_> {
    /// `seed` is of this inode.
    pub(super) fn bytes(&self, seed: u32) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        let node = self.node;
        let (mode, _) = halves(kind(&node.kind) | node.mode & 0o7777);
        put(&mut bytes, 0, &mode);
        for (id, low, high) in [(node.uid, 0x2, 0x78), (node.gid, 0x18, 0x7a)] {
            let id = halves(id);
            put(&mut bytes, low, &id.0);
            put(&mut bytes, high, &id.1);
        }
        let [a, b, c, d, e, f, g, h] = self.size.to_le_bytes();
        put(&mut bytes, 0x4, &[a, b, c, d]);
        put(&mut bytes, 0x6c, &[e, f, g, h]);
        let seconds = u32::try_from(node.mtime).unwrap_or(u32::MAX);
        // Of access, change of the inode, change of the contents, creation.
        for time in [0x8, 0xc, 0x10, 0x90] {
            put(&mut bytes, time, &seconds.to_le_bytes());
        }
        // Those 32 bits are signed; two bits here add multiples of 2^32, the others are nanoseconds.
        let beyond = u32::from(seconds >> 31 == 1);
        for extra in [0x84, 0x88, 0x8c, 0x94] {
            put(&mut bytes, extra, &beyond.to_le_bytes());
        }
        let links = match node.kind {
            Kind::Directory if self.links > LINKS => 1,
            Kind::File { .. }
            | Kind::Directory
            | Kind::Symlink { .. }
            | Kind::Link { .. }
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo => self.links,
        };
        put(&mut bytes, 0x1a, &halves(links).0);
        // In sectors.
        let (sectors, sectors_high) = low_high(self.blocks * 8);
        put(&mut bytes, 0x1c, &sectors);
        put(&mut bytes, 0x74, &sectors_high);
        if let Some(map) = &self.map {
            put(&mut bytes, 0x20, &EXTENTS.to_le_bytes());
            put(&mut bytes, 0x28, map);
        }
        match &node.kind {
            // One of two encodings of a device's number.
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                if *major < 256 && *minor < 256 {
                    put(&mut bytes, 0x28, &(major << 8 | minor).to_le_bytes());
                } else {
                    let number = minor & 0xff | major << 8 | (minor & !0xff) << 12;
                    put(&mut bytes, 0x2c, &number.to_le_bytes());
                }
            }
            Kind::Symlink { target } if target.len() < SHORT => put(&mut bytes, 0x28, target),
            Kind::File { .. } | Kind::Directory | Kind::Symlink { .. } | Kind::Link { .. } | Kind::Fifo => {}
        }
        let (low, high) = low_high(self.attributes_block);
        put(&mut bytes, 0x68, &low);
        put(&mut bytes, 0x76, &high);
        put(&mut bytes, 0x80, &EXTRA.to_le_bytes());
        if let Some(attributes) = &self.attributes {
            put(&mut bytes, INODE - IN_INODE, attributes);
        }
        let sum = halves(crc32c(seed, &bytes));
        put(&mut bytes, 0x7c, &sum.0);
        put(&mut bytes, 0x82, &sum.1);
        bytes
    }
}

/// What the checksums of an inode, and of what is its alone, start with. Its generation is 0.
pub(super) fn seed(volume: u32, ino: u32) -> u32 {
    crc32c(crc32c(volume, &ino.to_le_bytes()), &[0; 4])
}

/// The kind of an inode, in its mode.
fn kind(kind: &Kind) -> u32 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice { .. } => 0o060_000,
        // Another name has no inode of its own.
        Kind::File { .. } | Kind::Link { .. } => 0o100_000,
        Kind::Symlink { .. } => 0o120_000,
    }
}

/// The kind of an inode, in a directory.
pub(super) fn entry_kind(kind: &Kind) -> u8 {
    match kind {
        Kind::Fifo => directory::FIFO,
        Kind::CharDevice { .. } => directory::CHAR_DEVICE,
        Kind::Directory => directory::DIRECTORY,
        Kind::BlockDevice { .. } => directory::BLOCK_DEVICE,
        Kind::File { .. } | Kind::Link { .. } => directory::FILE,
        Kind::Symlink { .. } => directory::SYMLINK,
    }
}
