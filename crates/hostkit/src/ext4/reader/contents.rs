//! What is in a regular file.

use std::io::{self, Read};
use std::ops::Range;

use super::Reader;
use super::extents::Run;
use crate::rootfs_tar::write::Source;

/// The contents of a regular file; reading gives zeros where it has holes.
#[derive(Debug)]
pub struct Contents<'a> {
    pub(super) reader: &'a Reader,
    pub(super) runs: Vec<Run>,
    /// Blocks of the map itself.
    pub(super) nodes: u64,
    pub(super) size: u64,
    pub(super) at: u64,
}

impl Contents<'_> {
    /// In bytes, holes included.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is no hole, in order, as offsets in the file; neighbours are one.
    #[must_use]
    pub fn data(&self) -> Vec<Range<u64>> {
        let mut data: Vec<Range<u64>> = Vec::new();
        for run in &self.runs {
            let range = self.range(run);
            match data.last_mut() {
                _ if range.is_empty() => {}
                Some(last) if last.end == range.start => last.end = range.end,
                Some(_) | None => data.push(range),
            }
        }
        data
    }

    /// Blocks that nothing else may have: of the contents, also behind its end, and of the map.
    pub(super) fn blocks(&self) -> u64 {
        let add = |sum: u64, run: &Run| sum.saturating_add(run.blocks);
        self.runs.iter().fold(self.nodes, add)
    }

    /// Reads at an offset, as much as there is beside each other; nothing is the end of the file.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let index = self.runs.partition_point(|run| self.range(run).end <= at);
        let (end, from) = match self.runs.get(index) {
            Some(run) if self.range(run).start <= at => {
                let start = run.start * self.reader.block_size;
                (self.range(run).end, Some(start + (at - self.range(run).start)))
            }
            Some(run) => (self.range(run).start, None),
            None => (self.size, None),
        };
        let here = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let buffer = buffer.get_mut(..want.min(here)).unwrap_or_default();
        match from {
            Some(from) => self.reader.read_at(buffer, from)?,
            None => buffer.fill(0),
        }
        Ok(buffer.len())
    }

    /// A run's bytes, as far as the file has them.
    fn range(&self, run: &Run) -> Range<u64> {
        let size = self.reader.block_size;
        let start = (run.at * size).min(self.size);
        start..((run.at + run.blocks) * size).min(self.size)
    }
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Source for Contents<'_> {
    fn data(&self) -> Vec<Range<u64>> {
        self.data()
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.read_at(buffer, at)
    }
}
