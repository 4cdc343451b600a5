//! Reading an ext4 file system in a file: without mounting it, without privileges, and without trusting it.
//!
//! What is read may have been written by a guest. So every number is checked before it is used, every directory is entered
//! once, all files together have no more blocks than the file system, and names and attributes have a bound; whatever
//! contradicts itself is an error. Checksums are not verified: somebody who means harm makes them right.
//!
//! [`Reader::walk`] gives everything, in an order that depends on the names alone; [`Reader::lookup`] follows a path, and
//! symbolic links on it, as a process would that has the file system as its root. [`Entry::node`] is what an archive has
//! of an entry as well ([`crate::rootfs_tar`]).
//!
//! Not read, and said: file systems that were not unmounted in order (their journal has what is missing here; see
//! [`super::mend`]), files that are mapped by blocks (those of ext2 and ext3), inline data, encryption, `meta_bg`, attributes in
//! inodes of their own. Sockets are left out: nobody listens on them.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/` (`super.rst`, `group_descr.rst`, `inodes.rst`, `ifork.rst`,
//! `directory.rst`).

mod contents;
mod error;
mod extents;
mod walk;
mod xattrs;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use contents::Contents;
pub use error::ReadError;
pub use walk::Walk;

use super::superblock;
use crate::rootfs_tar::{Kind, Node};

const ROOT: u32 = 2;
/// Where `i_links_count` is in an inode.
const LINK_COUNT: usize = 0x1a;
const SUPERBLOCK: u64 = 1024;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
/// Flags of an inode: compressed, encrypted, extents, attribute's value, inline data.
const COMPRESSED: u32 = 0x4;
const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;
/// `PATH_MAX`: the kernel has no longer paths, and an archive has no use for one.
const PATH_LIMIT: usize = 4096;
/// A symbolic link's target, with the byte that ends it in memory.
const TARGET_LIMIT: u64 = 4096;
/// Bytes of one directory; one with a million long names has as many.
const DIRECTORY_LIMIT: u64 = 256 << 20;
/// As many as the kernel follows.
const LINKS: usize = 40;

/// An ext4 file system in a file.
#[derive(Debug)]
pub struct Reader {
    file: File,
    /// Where in the file the file system begins.
    start: u64,
    path: PathBuf,
    block_size: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: usize,
    /// Bytes from the beginning of the file.
    descriptors: u64,
    descriptor_size: u64,
    /// Inodes' tables may be above 2³² blocks.
    wide: bool,
}

/// Something in a file system, by one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the top, `a/b/c`, with no symbolic link on the way; the top itself is empty.
    pub path: Vec<u8>,
    /// The inode's number; the names of one inode have the same.
    pub inode: u32,
    /// What it is. A walk gives every further name of an inode that is no directory as a link to the first, without attributes.
    pub node: Node,
}

/// What a path's last part is when it is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// What it points to.
    Follow,
    /// The link itself.
    Keep,
}

/// A name in a directory, and its inode's number.
type Name = (Vec<u8>, u32);

/// An inode as it is on the disk.
#[derive(Debug)]
struct Inode {
    ino: u32,
    bytes: Vec<u8>,
}

impl Inode {
    fn mode(&self) -> u16 {
        u16_at(&self.bytes, 0)
    }

    fn is_directory(&self) -> bool {
        self.mode() & 0o170_000 == 0o040_000
    }

    fn flags(&self) -> u32 {
        u32_at(&self.bytes, 0x20)
    }

    fn size(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 0x6c)) << 32 | u64::from(u32_at(&self.bytes, 0x4))
    }

    fn owner(&self, low: usize, high: usize) -> u32 {
        u32::from(u16_at(&self.bytes, high)) << 16 | u32::from(u16_at(&self.bytes, low))
    }

    /// Seconds since 1970, two bits beyond 32 in the extra field; earlier ones are 0, as in a [`Node`].
    fn mtime(&self) -> u64 {
        let low = i64::from(u32_at(&self.bytes, 0x10).cast_signed());
        // i_extra_isize says whether the field is there.
        let epoch = match self.bytes.len() > 128 && u16_at(&self.bytes, 0x80) >= 12 {
            true => i64::from(u32_at(&self.bytes, 0x88) & 3),
            false => 0,
        };
        u64::try_from(low + (epoch << 32)).unwrap_or(0)
    }

    /// Numbers of a device, as `new_decode_dev` and `old_decode_dev` have them.
    fn device(&self) -> (u32, u32) {
        let (old, new) = (u32_at(&self.bytes, 0x28), u32_at(&self.bytes, 0x2c));
        match old {
            0 => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xf_ff00)),
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }
}

impl Reader {
    /// Opens the file system in a file or block device, which must have been unmounted in order and stay as it is.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        superblock::check(path)?;
        let file = File::open(path).map_err(|source| ReadError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::opened(path, file, 0)
    }

    /// As [`Reader::open`], of a file system that is a part of a file: `length` bytes from `start` on.
    pub fn open_part(path: &Path, file: File, start: u64, length: u64) -> Result<Self, ReadError> {
        superblock::check_part(path, &file, start, length)?;
        Self::opened(path, file, start)
    }

    fn opened(path: &Path, file: File, start: u64) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Read {
            path: path.to_owned(),
            source,
        };
        let mut raw = [0; 1024];
        file.read_exact_at(&mut raw, start.saturating_add(SUPERBLOCK))
            .map_err(failed)?;
        let incompat = u32_at(&raw, 0x60);
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(u32_at(&raw, 0x150)) } else { 0 };
        let shift = u32_at(&raw, 0x18).min(6);
        let reader = Self {
            file,
            start,
            path: path.to_owned(),
            block_size: 1024 << shift,
            blocks: high << 32 | u64::from(u32_at(&raw, 0x4)),
            inodes: u32_at(&raw, 0),
            inodes_per_group: u32_at(&raw, 0x28),
            // Revision 0 has no field.
            inode_size: match u32_at(&raw, 0x4c) {
                0 => 128,
                _ => u16_at(&raw, 0x58).into(),
            },
            // In the block after the superblock's, which is 1 where blocks are as short as it is.
            descriptors: (1024 / (1024 << shift) + 1) * (1024 << shift),
            descriptor_size: if wide { u16_at(&raw, 0xfe).into() } else { 32 },
            wide,
        };
        if incompat & INCOMPAT_META_BG != 0 {
            return Err(reader.unsupported("it has meta block groups".to_owned()));
        }
        let inode_fits = reader.inode_size.is_power_of_two()
            && (128..=4096).contains(&reader.inode_size)
            && reader.inode_size as u64 <= reader.block_size;
        let descriptor_fits = match wide {
            true => (64..=1024).contains(&reader.descriptor_size),
            false => true,
        };
        if reader.inodes_per_group == 0 || u32_at(&raw, 0x14) > 1 || !inode_fits || !descriptor_fits {
            return Err(reader.damaged("its superblock contradicts itself".to_owned()));
        }
        Ok(reader)
    }

    /// The file that it is in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system's own length, in bytes: more than all its files together take.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size)
    }

    /// What is in a regular file.
    pub fn contents(&self, entry: &Entry) -> Result<Contents<'_>, ReadError> {
        let inode = self.inode(entry.inode)?;
        if inode.mode() & 0o170_000 != 0o100_000 {
            return Err(self.damaged(format!("inode {} is no file", inode.ino)));
        }
        self.mapped(&inode)
    }

    /// What a link to an inode is a name of: what the walk gave under its first name.
    pub fn entry(&self, inode: u32, path: Vec<u8>) -> Result<Option<Entry>, ReadError> {
        let inode = self.inode(inode)?;
        Ok(self.describe(&inode, path)?.map(|(entry, _)| entry))
    }

    /// An inode as an entry, and how many blocks a file has; none, for a socket.
    fn describe(&self, inode: &Inode, path: Vec<u8>) -> Result<Option<(Entry, u64)>, ReadError> {
        let ino = inode.ino;
        let mut blocks = 0;
        let kind = match inode.mode() & 0o170_000 {
            0o010_000 => Kind::Fifo,
            0o020_000 => {
                let (major, minor) = inode.device();
                Kind::CharDevice { major, minor }
            }
            0o040_000 => Kind::Directory,
            0o060_000 => {
                let (major, minor) = inode.device();
                Kind::BlockDevice { major, minor }
            }
            0o100_000 => {
                let contents = self.mapped(inode)?;
                blocks = contents.blocks();
                let data = contents.data().iter().map(|range| range.end - range.start).sum();
                Kind::File {
                    size: contents.size(),
                    data,
                }
            }
            0o120_000 => Kind::Symlink {
                target: self.target(inode)?,
            },
            0o140_000 => return Ok(None),
            _ => return Err(self.damaged(format!("inode {ino} is of no kind"))),
        };
        let node = Node {
            kind,
            uid: inode.owner(0x2, 0x78),
            gid: inode.owner(0x18, 0x7a),
            mode: u32::from(inode.mode() & 0o7777),
            mtime: inode.mtime(),
            xattrs: xattrs::read(self, inode)?,
        };
        let entry = Entry {
            path,
            inode: ino,
            node,
        };
        Ok(Some((entry, blocks)))
    }

    /// The contents of what has some: a file, a directory, a long symbolic link.
    fn mapped(&self, inode: &Inode) -> Result<Contents<'_>, ReadError> {
        let (ino, flags) = (inode.ino, inode.flags());
        let unsupported = |what: &str| self.unsupported(format!("inode {ino} {what}"));
        if flags & ENCRYPTED != 0 {
            return Err(unsupported("is encrypted"));
        }
        if flags & COMPRESSED != 0 {
            return Err(unsupported("is compressed"));
        }
        if flags & INLINE != 0 {
            return Err(unsupported("has its contents inline"));
        }
        let size = inode.size();
        // The kernel's own bound for mapping by extents.
        if size > self.block_size << 32 {
            return Err(self.damaged(format!("inode {ino} has an impossible size")));
        }
        let (runs, nodes) = if flags & EXTENTS != 0 {
            extents::runs(self, inode)?
        } else if inode
            .bytes
            .get(0x28..0x64)
            .is_some_and(|map| map.iter().all(|byte| *byte == 0))
        {
            // Whatever it is mapped by, it is a hole.
            (Vec::new(), 0)
        } else {
            return Err(unsupported(
                "is mapped by blocks, as ext2 and ext3 do, and not by extents",
            ));
        };
        Ok(Contents {
            reader: self,
            runs,
            nodes,
            size,
            at: 0,
        })
    }

    fn target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let ino = inode.ino;
        let damaged = || self.damaged(format!("the symbolic link in inode {ino} is none"));
        let size = inode.size();
        if size == 0 || size >= TARGET_LIMIT {
            return Err(damaged());
        }
        let len = usize::try_from(size).map_err(|_| damaged())?;
        let fast = inode.flags() & (EXTENTS | INLINE | ENCRYPTED) == 0 && len < 60;
        let target = if fast {
            inode.bytes.get(0x28..0x28 + len).ok_or_else(damaged)?.to_vec()
        } else {
            self.whole(&self.mapped(inode)?)?
        };
        match target.contains(&0) {
            true => Err(damaged()),
            false => Ok(target),
        }
    }

    /// All of something whose size is bounded.
    fn whole(&self, contents: &Contents<'_>) -> Result<Vec<u8>, ReadError> {
        let size = usize::try_from(contents.size()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size];
        let mut at = 0;
        while at < size {
            let rest = bytes.get_mut(at..).unwrap_or_default();
            match contents.read_at(rest, at as u64) {
                Ok(0) => break,
                Ok(read) => at += read,
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(bytes)
    }

    /// A directory's entries in their order on the disk, and how many blocks it has, without `.` and `..`. What an index of it (`dir_index`) takes looks
    /// like entries that are not in use, so it is read like any other.
    fn directory(&self, inode: &Inode) -> Result<(Vec<Name>, u64), ReadError> {
        let ino = inode.ino;
        let damaged = || self.damaged(format!("directory {ino} contradicts itself"));
        let contents = self.mapped(inode)?;
        let data: u64 = contents.data().iter().map(|range| range.end - range.start).sum();
        if contents.size() > DIRECTORY_LIMIT {
            return Err(self.too_much("bytes in one directory", DIRECTORY_LIMIT));
        }
        // A directory has no holes, and is whole blocks.
        if data != contents.size() || !contents.size().is_multiple_of(self.block_size) {
            return Err(damaged());
        }
        let block_len = usize::try_from(self.block_size).map_err(|_| damaged())?;
        let mut found = Vec::new();
        for block in self.whole(&contents)?.chunks_exact(block_len) {
            let mut rest = block;
            while !rest.is_empty() {
                let len = match u16_at(rest, 4) {
                    // What 16 bits cannot say.
                    0 | u16::MAX if block_len == 65_536 => block_len,
                    len => len.into(),
                };
                let (child, name_len) = (u32_at(rest, 0), usize::from(rest.get(6).copied().unwrap_or(0)));
                if len < 8 || !len.is_multiple_of(4) || len > rest.len() || 8 + name_len > len {
                    return Err(damaged());
                }
                let name = rest.get(8..8 + name_len).ok_or_else(damaged)?;
                rest = rest.get(len..).unwrap_or_default();
                if child == 0 || matches!(name, b"." | b"..") {
                    continue;
                }
                if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                    return Err(damaged());
                }
                found.push((name.to_vec(), child));
            }
        }
        Ok((found, contents.blocks()))
    }

    fn inode(&self, ino: u32) -> Result<Inode, ReadError> {
        let missing = || self.damaged(format!("there is no inode {ino}"));
        let index = ino
            .checked_sub(1)
            .filter(|index| *index < self.inodes)
            .ok_or_else(missing)?;
        let (group, index) = (index / self.inodes_per_group, index % self.inodes_per_group);
        let mut descriptor = [0; 64];
        let size = if self.wide { 64 } else { 32 };
        let at = self.descriptors + u64::from(group) * self.descriptor_size;
        self.read(descriptor.get_mut(..size).unwrap_or_default(), at)?;
        let table = u64::from(u32_at(&descriptor, 0x28)) << 32 | u64::from(u32_at(&descriptor, 0x8));
        let offset = u64::from(index) * self.inode_size as u64;
        self.check_blocks(table, offset / self.block_size + 1)?;
        let mut bytes = vec![0; self.inode_size];
        self.read(&mut bytes, table * self.block_size + offset)?;
        // Names of what was deleted are damage.
        match u16_at(&bytes, LINK_COUNT) {
            0 => Err(missing()),
            _ => Ok(Inode { ino, bytes }),
        }
    }

    fn block(&self, number: u64) -> Result<Vec<u8>, ReadError> {
        self.check_blocks(number, 1)?;
        let mut block = vec![0; usize::try_from(self.block_size).unwrap_or(1024)];
        self.read(&mut block, number * self.block_size)?;
        Ok(block)
    }

    /// Whether there are such blocks; after that, no number of a byte in them overflows.
    fn check_blocks(&self, start: u64, count: u64) -> Result<(), ReadError> {
        match start.checked_add(count) {
            Some(end) if start > 0 && end <= self.blocks => Ok(()),
            Some(_) | None => Err(self.damaged(format!("there is no block {start}"))),
        }
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), ReadError> {
        self.read_at(buffer, at).map_err(|source| self.failed(source))
    }

    /// Reads of the file system, whatever is before it in the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, self.start.saturating_add(at))
    }

    fn failed(&self, source: std::io::Error) -> ReadError {
        ReadError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn damaged(&self, what: String) -> ReadError {
        ReadError::Damaged {
            path: self.path.clone(),
            what,
        }
    }

    fn unsupported(&self, what: String) -> ReadError {
        ReadError::Unsupported {
            path: self.path.clone(),
            what,
        }
    }

    fn too_much(&self, what: &'static str, limit: u64) -> ReadError {
        ReadError::TooMuch {
            path: self.path.clone(),
            what,
            limit,
        }
    }
}

/// A path of the file system for people.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .take(200)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Little-endian, 0 beyond the end.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.copied().map_or(0, u16::from_le_bytes)
}

/// Little-endian, 0 beyond the end.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.copied().map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
