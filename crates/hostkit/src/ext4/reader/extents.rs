//! Where a file's contents are: its tree of extents, as runs of blocks in the order of the file.
//!
//! Every extent must begin behind the one before it and within what its index entry says, and no node but the top one may
//! be empty. So a tree that refers to itself is found out at once, and no more nodes are read than there are runs.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/ifork.rst`.

use super::{Inode, ReadError, Reader, u16_at, u32_at};

const MAGIC: u16 = 0xf30a;
/// Levels of a tree; the kernel's own bound.
const DEPTH: u16 = 5;
/// Runs of one file. One of 64 GiB has as many where no two of its pieces of 64 KiB are beside each other.
const RUNS: usize = 1 << 20;
/// Longer extents are allocated and not written: zeros.
const WRITTEN: u16 = 32_768;

/// Blocks that are beside each other in the file and on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first one's number in the file.
    pub(super) at: u64,
    pub(super) blocks: u64,
    /// The first one's number in the file system.
    pub(super) start: u64,
}

/// The runs of an inode, and how many blocks the tree itself takes. What is between runs is holes, as is what was allocated
/// and never written.
pub(super) fn runs(reader: &Reader, inode: &Inode) -> Result<(Vec<Run>, u64), ReadError> {
    let mut runs = Runs {
        reader,
        ino: inode.ino,
        next: 0,
        nodes: 0,
        found: Vec::new(),
    };
    let node = inode.bytes.get(0x28..0x64).unwrap_or_default();
    runs.node(node, DEPTH, 0, u64::from(u32::MAX) + 1, true)?;
    Ok((runs.found, runs.nodes))
}

struct Runs<'a> {
    reader: &'a Reader,
    ino: u32,
    /// Where the next extent may begin.
    next: u64,
    nodes: u64,
    found: Vec<Run>,
}

impl Runs<'_> {
    fn damaged(&self) -> ReadError {
        let ino = self.ino;
        self.reader
            .damaged(format!("the map of blocks of inode {ino} contradicts itself"))
    }

    /// All below a node, which is to be within the blocks `from..to` of the file.
    fn node(&mut self, node: &[u8], above: u16, from: u64, to: u64, top: bool) -> Result<(), ReadError> {
        let (entries, depth) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
        // Every level is one lower than the one above, the first as low as it says.
        let sound = u16_at(node, 0) == MAGIC
            && entries <= (node.len() / 12).saturating_sub(1)
            && if top { depth <= above } else { depth == above }
            && (top || entries > 0);
        if !sound {
            return Err(self.damaged());
        }
        let entries: Vec<&[u8]> = node.chunks_exact(12).skip(1).take(entries).collect();
        for (number, entry) in entries.iter().enumerate() {
            let first = u64::from(u32_at(entry, 0));
            if first < from || first >= to || first < self.next {
                return Err(self.damaged());
            }
            if depth == 0 {
                self.extent(entry, first, to)?;
                continue;
            }
            let end = entries
                .get(number + 1)
                .map_or(to, |next| u64::from(u32_at(next, 0)));
            let block = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
            let child = self.reader.block(block)?;
            self.nodes += 1;
            self.node(&child, depth - 1, first, end.min(to), false)?;
        }
        Ok(())
    }

    fn extent(&mut self, entry: &[u8], at: u64, to: u64) -> Result<(), ReadError> {
        let len = u16_at(entry, 4);
        let start = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
        let (blocks, written) = match len {
            0..=WRITTEN => (u64::from(len), true),
            longer => (u64::from(longer - WRITTEN), false),
        };
        self.next = at + blocks;
        if blocks == 0 || self.next > to {
            return Err(self.damaged());
        }
        if !written {
            return Ok(());
        }
        self.reader.check_blocks(start, blocks)?;
        if self.found.len() >= RUNS {
            return Err(self.reader.too_much("pieces of one file", RUNS as u64));
        }
        match self.found.last_mut() {
            Some(last) if last.at + last.blocks == at && last.start + last.blocks == start => {
                last.blocks += blocks;
            }
            Some(_) | None => self.found.push(Run { at, blocks, start }),
        }
        Ok(())
    }
}
