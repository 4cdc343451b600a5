//! The contents of a tree's files, one behind the other in a single file.
//!
//! A file each would cost most of an import: a directory entry, an inode, a block and their journal for each of two hundred
//! thousand, and all of it again when they are removed. Here everything that is stored begins at a block's boundary, and what
//! a file's last block has left is zeros, so that [`crate::ext4::populate`] can take over whole blocks, many files at a time,
//! and by sharing them where the file system can. What a file does not store (holes, and long zeros) takes nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

/// Contents are kept in blocks of so many bytes.
pub(crate) const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;
/// Zeros are left out where so many blocks in a row, at a multiple of that, are nothing else.
const GRANULE: usize = 16 * BLOCK_LEN;
const BUFFER: usize = 1 << 20;
/// The name of the file in its directory.
const NAME: &str = "contents";

/// A run of blocks of a file that are stored one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The number of its first block, counted from the file's beginning.
    pub(crate) first: u32,
    /// How many blocks.
    pub(crate) count: u32,
}

/// What is stored of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The number of its first block in the spool; the others follow it without a gap.
    pub(crate) at: u64,
    /// Ascending, neither overlapping nor touching. Where there is none is a hole.
    pub(crate) runs: Box<[Run]>,
}

impl Stored {
    /// How many blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Bytes of memory.
    pub(super) fn metadata(&self) -> usize {
        size_of_val(&*self.runs)
    }
}

/// What has been written, for reading.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents(Option<Arc<File>>);

impl Contents {
    /// The file, unless nothing was ever stored.
    pub(crate) fn file(&self) -> Option<&File> {
        self.0.as_deref()
    }

    /// The first bytes of a file of `size` bytes, at most `limit`.
    pub(super) fn read(&self, stored: &Stored, size: u64, limit: usize) -> io::Result<Vec<u8>> {
        let len = usize::try_from(size).unwrap_or(usize::MAX).min(limit);
        let mut bytes = vec![0; len];
        let mut at = stored.at * BLOCK;
        for run in &stored.runs {
            let start = usize::try_from(u64::from(run.first) * BLOCK).unwrap_or(usize::MAX);
            let count = usize::try_from(u64::from(run.count) * BLOCK).unwrap_or(usize::MAX);
            let end = start.saturating_add(count).min(len);
            let (Some(piece), Some(file)) = (bytes.get_mut(start.min(end)..end), self.file()) else {
                break;
            };
            file.read_exact_at(piece, at)?;
            at += u64::from(run.count) * BLOCK;
        }
        Ok(bytes)
    }
}

/// What is being written.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    file: Option<Arc<File>>,
    /// What comes next.
    buffer: Vec<u8>,
    /// Bytes in the file, without the buffer.
    flushed: u64,
    /// The file that is at work: where it begins, and its blocks.
    at: u64,
    runs: Vec<Run>,
}

impl Spool {
    /// In the directory `dir`, which nobody else writes to. The file is made when there is something to store.
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            path: dir.join(NAME),
            file: None,
            buffer: Vec::new(),
            flushed: 0,
            at: 0,
            runs: Vec::new(),
        }
    }

    /// Begins with the next file.
    pub(super) fn begin(&mut self) {
        self.pad_to(self.end().next_multiple_of(BLOCK));
        self.at = self.end() / BLOCK;
        self.runs.clear();
    }

    /// Stores a piece of the file at `offset`, which is not before the end of the piece before. Offsets are below 2³² blocks.
    pub(super) fn put(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let within = usize::try_from(offset % BLOCK).unwrap_or(0);
            let granule = usize::try_from(offset % GRANULE as u64).unwrap_or(0);
            let is_zero = granule == 0 && bytes.get(..GRANULE).is_some_and(zeros);
            let (piece, rest) = bytes.split_at_checked(GRANULE - granule).unwrap_or((bytes, &[]));
            if !is_zero {
                self.place(offset, within)?;
                self.append(piece)?;
                let blocks = (within + piece.len()).div_ceil(BLOCK_LEN) - 1;
                if let Some(run) = self.runs.last_mut() {
                    run.count += u32::try_from(blocks).unwrap_or(0);
                }
            }
            offset += piece.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Has the stream stand where `offset` belongs, in the file's last block or in a new one.
    fn place(&mut self, offset: u64, within: usize) -> io::Result<()> {
        let block = u32::try_from(offset / BLOCK).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let next = self.runs.last().map(|run| run.first + run.count);
        if next.is_none_or(|next| next <= block) {
            self.pad_to(self.end().next_multiple_of(BLOCK));
            match self.runs.last_mut() {
                Some(run) if run.first + run.count == block => run.count += 1,
                Some(_) | None => self.runs.push(Run {
                    first: block,
                    count: 1,
                }),
            }
            self.pad_to(self.end() + within as u64);
        } else {
            // In the block that the piece before ends in.
            self.pad_to(self.end() / BLOCK * BLOCK + within as u64);
        }
        Ok(())
    }

    /// What is stored of the file that was begun last.
    pub(super) fn finish_file(&mut self) -> Stored {
        Stored {
            at: self.at,
            runs: self.runs.as_slice().into(),
        }
    }

    /// Gives back what a file has taken that is gone from the tree.
    pub(super) fn discard(&mut self, stored: &Stored) {
        let (start, len) = (stored.at * BLOCK, stored.blocks() * BLOCK);
        let flushed = self.flushed.saturating_sub(start).min(len);
        if let Some(file) = &self.file
            && flushed > 0
        {
            // A file system that cannot gives it back with the rest.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, flags, start, flushed).ok();
        }
    }

    /// Everything, once all is stored.
    pub(super) fn finish(mut self) -> io::Result<Contents> {
        self.pad_to(self.end().next_multiple_of(BLOCK));
        self.flush()?;
        Ok(Contents(self.file))
    }

    fn end(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Zeros up to a position less than two blocks ahead.
    fn pad_to(&mut self, position: u64) {
        let len = usize::try_from(position - self.flushed).unwrap_or(0);
        if len > self.buffer.len() {
            self.buffer.resize(len, 0);
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create_new(true).mode(0o600);
                self.file.insert(Arc::new(options.open(&self.path)?))
            }
        };
        file.write_all_at(&self.buffer, self.flushed)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn zeros(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
