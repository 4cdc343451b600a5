//! A tree written into an empty file system, without mounting it, without privileges, and in about the time that its blocks
//! take to be copied.
//!
//! `mke2fs -d` copies file by file, and so whoever calls it has to have every file on a disk before. Here `mke2fs` makes the
//! file system with all that is general about it (superblocks, descriptors, the journal, room to grow); what is a
//! file's is written by us: first everything is given its place ([`volume`], an allocator over the bitmaps; nothing is
//! written while it may still turn out to be too much), then directories ([`directory`]), attributes ([`xattrs`]), contents,
//! maps of blocks ([`extents`]), inodes ([`inode`]), and at last bitmaps, descriptors and superblock. Contents are taken over in
//! the order in which they are stored, so that one copy takes many files, or shares their blocks where the host can.
//!
//! Inodes get the numbers of their paths' order, all times are those of the tree: the same tree gives the same inodes.
//! Only a file system as [`super`] asks for it is written to: 4 KiB blocks, inodes of 256 bytes, extents, checksums,
//! 64 bits. Whatever is otherwise is an error and never a guess; the tests have `e2fsck` look at what comes out.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/`.

mod copy;
mod directory;
mod extents;
mod inode;
mod plan;
mod volume;
mod xattrs;

use std::io;
use std::path::Path;

use super::Error;
use crate::rootfs_tar::Tree;
use plan::Plan;
use volume::Volume;

pub(super) use plan::blocks;

const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;
const ROOT: u32 = 2;
const LOST_AND_FOUND: u32 = 11;

/// Writes `tree` into the empty file system in `image`, that `mke2fs` has just made. Where it does not fit, which is
/// [`Error::Full`], nothing has been written. `watch` is called with the bytes of contents written so far, at least once in
/// 16 MiB and every second; its error ends the work.
pub(super) fn fill(
    image: &Path,
    tree: &Tree,
    watch: &mut dyn FnMut(u64) -> io::Result<()>,
) -> Result<(), Error> {
    let mut volume = Volume::open(image)?;
    let plan = Plan::new(tree, &mut volume)?;
    plan.write(tree, &mut volume, watch)?;
    let directories = plan.directories_by_group(&volume);
    volume.finish(plan.inodes(), &directories)
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

/// Writes into a field at a place that is within `bytes`.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

/// The lower and the upper half of a number.
fn halves(value: u32) -> ([u8; 2], [u8; 2]) {
    let [a, b, c, d] = value.to_le_bytes();
    ([a, b], [c, d])
}

/// The lower 32 bits and the 16 bits above them: how a block's number is kept in most places.
fn low_high(block: u64) -> ([u8; 4], [u8; 2]) {
    let [a, b, c, d, e, f, ..] = block.to_le_bytes();
    ([a, b, c, d], [e, f])
}

#[cfg(test)]
mod tests;
