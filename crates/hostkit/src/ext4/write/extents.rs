//! Where a file's blocks are: extents, in the inode where there are up to four, else in a tree of blocks.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/ifork.rst`.

use super::volume::Blocks;
use super::{BLOCK_LEN, low_high, put};
use crate::ext4::crc32c;

pub(super) const MAGIC: u16 = 0xf30a;
/// In the inode.
pub(super) const ROOT_ENTRIES: usize = 4;
/// In a block, whose last bytes are a checksum.
pub(super) const ENTRIES: usize = (BLOCK_LEN - HEAD - 4) / ENTRY;
const HEAD: usize = 12;
const ENTRY: usize = 12;
/// Blocks of one extent.
const LONGEST: u64 = 32_768;

/// Blocks of a file that are one behind the other on the disk as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) at: u64,
}

/// Adds runs of blocks that hold those from `first` on.
pub(super) fn add(extents: &mut Vec<Extent>, mut first: u32, runs: &[Blocks]) {
    for (start, len) in runs {
        let (mut at, mut left) = (*start, *len);
        while left > 0 {
            let next = |extent: &Extent| {
                extent.first + extent.count == first && extent.at + u64::from(extent.count) == at
            };
            let room = match extents.last() {
                Some(last) if next(last) => LONGEST - u64::from(last.count),
                Some(_) | None => 0,
            };
            let len = left.min(if room > 0 { room } else { LONGEST });
            let count = u32::try_from(len).unwrap_or(0);
            match extents.last_mut().filter(|_| room > 0) {
                Some(last) => last.count += count,
                None => extents.push(Extent { first, count, at }),
            }
            first += count;
            at += len;
            left -= len;
        }
    }
}

/// How many blocks the tree of so many extents takes.
pub(super) fn tree_blocks(extents: usize) -> usize {
    let (mut level, mut blocks) = (extents, 0);
    while level > ROOT_ENTRIES {
        level = level.div_ceil(ENTRIES);
        blocks += level;
    }
    blocks
}

/// The map in the inode, and the blocks of the tree with their places, which are those of `blocks`: as many as
/// [`tree_blocks`] says. `seed` is what the checksums of this inode start with.
pub(super) fn map(extents: &[Extent], blocks: &[u64], seed: u32) -> ([u8; 60], Vec<(u64, Vec<u8>)>) {
    let mut level: Vec<(u32, [u8; ENTRY])> = extents.iter().map(leaf).collect();
    let mut depth = 0_u16;
    let mut places = blocks.iter().copied();
    let mut written = Vec::new();
    while level.len() > ROOT_ENTRIES {
        let mut above = Vec::new();
        for entries in level.chunks(ENTRIES) {
            let Some(place) = places.next() else { break };
            let mut block = vec![0; BLOCK_LEN];
            node(&mut block, entries, ENTRIES, depth);
            let end = HEAD + ENTRIES * ENTRY;
            let sum = crc32c(seed, block.get(..end).unwrap_or_default());
            put(&mut block, end, &sum.to_le_bytes());
            written.push((place, block));
            let first = entries.first().map_or(0, |(first, _)| *first);
            above.push((first, index(first, place)));
        }
        level = above;
        depth += 1;
    }
    let mut root = [0; 60];
    node(&mut root, &level, ROOT_ENTRIES, depth);
    (root, written)
}

fn node(bytes: &mut [u8], entries: &[(u32, [u8; ENTRY])], room: usize, depth: u16) {
    let number = |n: usize| u16::try_from(n).unwrap_or(0).to_le_bytes();
    put(bytes, 0, &MAGIC.to_le_bytes());
    put(bytes, 2, &number(entries.len()));
    put(bytes, 4, &number(room));
    put(bytes, 6, &depth.to_le_bytes());
    for (number, (_, entry)) in entries.iter().enumerate() {
        put(bytes, HEAD + number * ENTRY, entry);
    }
}

fn leaf(extent: &Extent) -> (u32, [u8; ENTRY]) {
    let mut entry = [0; ENTRY];
    let (low, high) = low_high(extent.at);
    put(&mut entry, 0, &extent.first.to_le_bytes());
    // Longer ones than 32768 would be unwritten.
    put(
        &mut entry,
        4,
        &u16::try_from(extent.count).unwrap_or(0).to_le_bytes(),
    );
    put(&mut entry, 6, &high);
    put(&mut entry, 8, &low);
    (extent.first, entry)
}

fn index(first: u32, block: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    let (low, high) = low_high(block);
    put(&mut entry, 0, &first.to_le_bytes());
    put(&mut entry, 4, &low);
    put(&mut entry, 8, &high);
    entry
}
