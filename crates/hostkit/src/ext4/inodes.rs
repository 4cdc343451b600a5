//! Owners, modes, times and numbers of devices, written straight into the inodes of a file system that was just made.
//!
//! `mke2fs -d` copies a tree as it is on the host, where it all belongs to whoever unpacked it. `debugfs` can set an
//! inode's fields, but looks up each path from the top and reads each directory on the way from its beginning, so that
//! time grows with the square of a directory's entries. Here every directory is read once. Only what [`super::populate`]
//! has made is read, with the features that it asks for: 4 KiB blocks, inodes of 256 bytes, extents, checksums, 64 bits,
//! directories without an index. Whatever is otherwise is an error and never a guess.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/` (`super.rst`, `group_descr.rst`, `inodes.rst`, `ifork.rst`,
//! `directory.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Error, crc32c};
use crate::rootfs_tar::{Kind, Node, Tree};

const BLOCK: u64 = 4096;
const INODE: usize = 256;
const ROOT: u32 = 2;
const SUPERBLOCK: u64 = 1024;
const DESCRIPTOR: usize = 64;
const DIRECTORY_TAIL: usize = 12;
const EXTENTS_MAGIC: u16 = 0xf30a;
/// `EXT4_EXTENTS_FL` of an inode's flags.
const EXTENTS_FLAG: u32 = 0x8_0000;
/// Levels of an extent tree; the kernel's own bound.
const EXTENTS_DEPTH: u16 = 5;

const FIFO: u16 = 0o010_000;
const CHAR_DEVICE: u16 = 0o020_000;
const DIRECTORY: u16 = 0o040_000;
const BLOCK_DEVICE: u16 = 0o060_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;

/// An inode that has extended attributes, and the path of its node.
pub(super) type Attributed = (u32, Vec<u8>);

/// Gives every inode of `image`, which was made from `tree`, what the tree says, but for extended attributes: the inodes
/// that have some are returned.
pub(super) fn patch(image: &Path, tree: &Tree) -> Result<Vec<Attributed>, Error> {
    let image = Image::open(image)?;
    let mut attributed = Vec::new();
    let mut found = 0_usize;
    let mut visit = |ino: u32, path: Vec<u8>, node: &Node| {
        found += 1;
        image.patch(ino, node)?;
        if !node.xattrs.is_empty() {
            attributed.push((ino, path));
        }
        Ok(())
    };
    let mut directories = vec![(ROOT, Vec::new())];
    while let Some((directory, path)) = directories.pop() {
        let below = |name: &[u8]| {
            let mut child = path.clone();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(name);
            child
        };
        for (ino, name) in image.entries(directory, |name| entry_type(tree, &below(name)))? {
            let child = below(&name);
            match tree.get(&child) {
                Some(node) if matches!(node.kind, Kind::Directory) => directories.push((ino, child)),
                // Seen to under the inode's own name.
                Some(node) if matches!(node.kind, Kind::Link { .. }) => {}
                Some(node) => visit(ino, child, node)?,
                None if child == b"lost+found" => {}
                None => return Err(image.odd(format!("there is {:?}", String::from_utf8_lossy(&child)))),
            }
        }
        let node = tree.get(&path);
        let node = node.ok_or_else(|| image.odd("there is a directory too many".to_owned()))?;
        visit(directory, path, node)?;
    }
    let wanted = tree
        .iter()
        .filter(|(_, node)| !matches!(node.kind, Kind::Link { .. }))
        .count();
    if found == wanted {
        Ok(attributed)
    } else {
        Err(image.odd(format!("there are {found} inodes and not {wanted}")))
    }
}

/// What a directory says that an entry is, where `mke2fs` has seen something else: a pipe.
fn entry_type(tree: &Tree, path: &[u8]) -> Option<u8> {
    let node = tree.get(path)?;
    let node = match &node.kind {
        Kind::Link { to } => tree.get(to)?,
        Kind::File { .. }
        | Kind::Directory
        | Kind::Symlink { .. }
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. }
        | Kind::Fifo => node,
    };
    match node.kind {
        Kind::CharDevice { .. } => Some(3),
        Kind::BlockDevice { .. } => Some(4),
        Kind::File { .. } | Kind::Directory | Kind::Symlink { .. } | Kind::Link { .. } | Kind::Fifo => None,
    }
}

struct Image {
    file: File,
    path: PathBuf,
    /// What all checksums start with.
    seed: u32,
    inodes_per_group: u32,
    /// The first block of each group's inodes.
    tables: Vec<u64>,
}

impl Image {
    fn open(path: &Path) -> Result<Self, Error> {
        let patch_error = |source| Error::Patch {
            path: path.to_owned(),
            source,
        };
        let odd = |what: &str| Error::Inodes {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(patch_error)?;
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, SUPERBLOCK)
            .map_err(patch_error)?;
        let inodes_per_group = u32_at(&superblock, 0x28);
        let blocks_per_group = u32_at(&superblock, 0x20);
        if u32_at(&superblock, 0x18) != 2
            || usize::from(u16_at(&superblock, 0x58)) != INODE
            || usize::from(u16_at(&superblock, 0xfe)) != DESCRIPTOR
            || inodes_per_group == 0
            || blocks_per_group == 0
        {
            return Err(odd("its layout is another one"));
        }
        let blocks = u64::from(u32_at(&superblock, 0x150)) << 32 | u64::from(u32_at(&superblock, 0x4));
        let groups = blocks.div_ceil(blocks_per_group.into());
        // They begin in the block after the superblock's.
        let mut tables = Vec::new();
        for group in 0..groups {
            let mut descriptor = [0; DESCRIPTOR];
            file.read_exact_at(&mut descriptor, BLOCK + group * DESCRIPTOR as u64)
                .map_err(patch_error)?;
            let table = u64::from(u32_at(&descriptor, 0x28)) << 32 | u64::from(u32_at(&descriptor, 0x8));
            tables.push(table);
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            seed: crc32c(u32::MAX, superblock.get(0x68..0x78).unwrap_or_default()),
            inodes_per_group,
            tables,
        })
    }

    /// Where an inode is in the file.
    fn offset(&self, ino: u32) -> Result<u64, Error> {
        let index = ino
            .checked_sub(1)
            .ok_or_else(|| self.odd("there is no inode 0".to_owned()))?;
        let group = usize::try_from(index / self.inodes_per_group).unwrap_or(usize::MAX);
        let table = self
            .tables
            .get(group)
            .ok_or_else(|| self.odd(format!("there is no inode {ino}")))?;
        Ok(table * BLOCK + u64::from(index % self.inodes_per_group) * INODE as u64)
    }

    fn inode(&self, ino: u32) -> Result<[u8; INODE], Error> {
        let mut inode = [0; INODE];
        self.file
            .read_exact_at(&mut inode, self.offset(ino)?)
            .map_err(|source| self.failed(source))?;
        Ok(inode)
    }

    fn patch(&self, ino: u32, node: &Node) -> Result<(), Error> {
        let mut inode = self.inode(ino)?;
        let (on_host, kind) = match node.kind {
            Kind::File { .. } => (REGULAR, REGULAR),
            Kind::Directory => (DIRECTORY, DIRECTORY),
            Kind::Symlink { .. } => (SYMLINK, SYMLINK),
            Kind::Fifo => (FIFO, FIFO),
            Kind::CharDevice { .. } => (FIFO, CHAR_DEVICE),
            Kind::BlockDevice { .. } => (FIFO, BLOCK_DEVICE),
            // Not an inode of its own; the caller does not ask.
            Kind::Link { .. } => return Ok(()),
        };
        if u16_at(&inode, 0) & 0o170_000 != on_host {
            return Err(self.odd(format!("inode {ino} is of another kind")));
        }
        if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } = node.kind {
            // The device's number takes the place of the map of blocks, in one of two encodings.
            inode[0x28..0x64].fill(0);
            let flags = u32_at(&inode, 0x20) & !EXTENTS_FLAG;
            put_u32(&mut inode, 0x20, flags);
            if major < 256 && minor < 256 {
                put_u32(&mut inode, 0x28, major << 8 | minor);
            } else {
                put_u32(
                    &mut inode,
                    0x2c,
                    minor & 0xff | major << 8 | (minor & !0xff) << 12,
                );
            }
        }
        let [mode_low, mode_high, ..] = node.mode.to_le_bytes();
        put_u16(&mut inode, 0, kind | u16::from_le_bytes([mode_low, mode_high]));
        for (id, low, high) in [(node.uid, 0x2, 0x78), (node.gid, 0x18, 0x7a)] {
            let [a, b, c, d] = id.to_le_bytes();
            put_u16(&mut inode, low, u16::from_le_bytes([a, b]));
            put_u16(&mut inode, high, u16::from_le_bytes([c, d]));
        }
        let extra = u16_at(&inode, 0x80);
        let [a, b, c, d, ..] = node.mtime.to_le_bytes();
        let seconds = u32::from_le_bytes([a, b, c, d]);
        put_u32(&mut inode, 0x10, seconds);
        if extra >= 12 {
            // The low 32 bits are signed; two bits here add multiples of 2^32, the others are nanoseconds.
            put_u32(&mut inode, 0x88, u32::from(seconds >> 31 == 1));
        }
        self.sum(ino, &mut inode, extra >= 4);
        self.file
            .write_all_at(&inode, self.offset(ino)?)
            .map_err(|source| self.failed(source))
    }

    /// Renews an inode's checksum, of which half is in its extra part.
    fn sum(&self, ino: u32, inode: &mut [u8; INODE], extra: bool) {
        put_u16(inode, 0x7c, 0);
        if extra {
            put_u16(inode, 0x82, 0);
        }
        let [a, b, c, d] = crc32c(self.inode_seed(ino, inode), inode).to_le_bytes();
        put_u16(inode, 0x7c, u16::from_le_bytes([a, b]));
        if extra {
            put_u16(inode, 0x82, u16::from_le_bytes([c, d]));
        }
    }

    /// What the checksums of an inode and of its directory blocks start with.
    fn inode_seed(&self, ino: u32, inode: &[u8; INODE]) -> u32 {
        let generation = u32_at(inode, 0x64);
        crc32c(crc32c(self.seed, &ino.to_le_bytes()), &generation.to_le_bytes())
    }

    /// Inodes and names in a directory, but for itself and the one above. Those for which `entry_type` has a type are
    /// given it.
    fn entries(
        &self,
        directory: u32,
        entry_type: impl Fn(&[u8]) -> Option<u8>,
    ) -> Result<Vec<(u32, Vec<u8>)>, Error> {
        let inode = self.inode(directory)?;
        if u32_at(&inode, 0x20) & EXTENTS_FLAG == 0 {
            return Err(self.odd(format!("directory {directory} has no extents")));
        }
        let mut blocks = Vec::new();
        self.extents(&inode[0x28..0x64], EXTENTS_DEPTH, &mut blocks)?;
        let mut entries = Vec::new();
        let mut block = vec![0; 4096];
        for (start, count) in blocks {
            for number in start..start + count {
                self.file
                    .read_exact_at(&mut block, number * BLOCK)
                    .map_err(|source| self.failed(source))?;
                let (mut at, mut changed) = (0, false);
                while at + 8 <= block.len() {
                    let (ino, len) = (u32_at(&block, at), usize::from(u16_at(&block, at + 4)));
                    let name_len = block.get(at + 6).copied().map_or(0, usize::from);
                    let name = block.get(at + 8..at + 8 + name_len).unwrap_or_default();
                    if len < 8 || at + len > block.len() {
                        return Err(self.odd(format!("directory {directory} is damaged")));
                    }
                    if ino != 0 && !matches!(name, b"" | b"." | b"..") {
                        entries.push((ino, name.to_vec()));
                        if let Some(kind) = entry_type(name) {
                            changed = true;
                            if let Some(byte) = block.get_mut(at + 7) {
                                *byte = kind;
                            }
                        }
                    }
                    at += len;
                }
                if changed {
                    // The checksum is at the end, made to look like an entry without a name.
                    let (names, tail) = block.split_at_mut(4096 - DIRECTORY_TAIL);
                    if u16_at(tail, 4) != 12 || u16_at(tail, 6) != 0xde00 {
                        return Err(self.odd(format!("directory {directory} has no checksum")));
                    }
                    let sum = crc32c(self.inode_seed(directory, &inode), names);
                    tail[8..].copy_from_slice(&sum.to_le_bytes());
                    self.file
                        .write_all_at(&block, number * BLOCK)
                        .map_err(|source| self.failed(source))?;
                }
            }
        }
        Ok(entries)
    }

    /// The runs of blocks in a node of an extent tree, as their beginnings and lengths.
    fn extents(&self, node: &[u8], depth: u16, runs: &mut Vec<(u64, u64)>) -> Result<(), Error> {
        let (magic, entries, level) = (u16_at(node, 0), u16_at(node, 2), u16_at(node, 6));
        if magic != EXTENTS_MAGIC || level > depth {
            return Err(self.odd("a directory's map of blocks is damaged".to_owned()));
        }
        for entry in node.chunks_exact(12).skip(1).take(entries.into()) {
            if level == 0 {
                let start = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
                runs.push((start, u16_at(entry, 4).into()));
            } else {
                let block = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                let mut child = vec![0; 4096];
                self.file
                    .read_exact_at(&mut child, block * BLOCK)
                    .map_err(|source| self.failed(source))?;
                self.extents(&child, level - 1, runs)?;
            }
        }
        Ok(())
    }

    fn odd(&self, what: String) -> Error {
        Error::Inodes {
            path: self.path.clone(),
            what,
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Patch {
            path: self.path.clone(),
            source,
        }
    }
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

fn put_u16(inode: &mut [u8; INODE], at: usize, value: u16) {
    inode[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(inode: &mut [u8; INODE], at: usize, value: u32) {
    inode[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
