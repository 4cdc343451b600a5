//! What a session has written and nobody may have fetched yet: pieces in order, bounded; the oldest make room.
//!
//! The host keeps the log. This only bridges the time between two of its connections, so it is in memory: on a disk of the
//! guest it would be in the way of the guest's own shutdown, and of who looks at that disk.

use bytes::Bytes;
use std::collections::VecDeque;

/// Bytes of a session that are kept, those of the pieces themselves counted.
const LIMIT: usize = 1024 * 1024;

/// What a piece takes beside its bytes, about.
const OVERHEAD: usize = 96;

/// What was read from the command at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes of the session before it.
    pub(super) offset: u64,
    /// Milliseconds since 1970.
    pub(super) time_ms: u64,
    /// Of standard error.
    pub(super) error: bool,
    pub(super) data: Bytes,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn cost(&self) -> usize {
        self.data.len() + OVERHEAD
    }
}

/// The pieces that are kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pieces: VecDeque<Piece>,
    cost: usize,
    /// Bytes that were ever written.
    written: u64,
}

impl Kept {
    pub(super) fn push(&mut self, time_ms: u64, error: bool, data: &[u8]) {
        let piece = Piece {
            offset: self.written,
            time_ms,
            error,
            // A copy: the original shares a buffer with what was read after it, and would hold on to all of it.
            data: Bytes::copy_from_slice(data),
        };
        self.written = piece.end();
        self.cost += piece.cost();
        self.pieces.push_back(piece);
        while self.cost > LIMIT {
            let Some(oldest) = self.pieces.pop_front() else {
                return;
            };
            self.cost -= oldest.cost();
        }
    }

    /// What comes after `offset` bytes, or the first that is left after them.
    pub(super) fn after(&self, offset: u64) -> Option<Piece> {
        let at = self.pieces.partition_point(|piece| piece.end() <= offset);
        let mut piece = self.pieces.get(at)?.clone();
        let skip = usize::try_from(offset.saturating_sub(piece.offset)).ok()?;
        piece.offset += skip as u64;
        piece.data = piece.data.slice(skip..);
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_too_much_goes_from_the_front() {
        let mut kept = Kept::default();
        let chunk = [7; 64 * 1024];
        for _ in 0..40 {
            kept.push(1, false, &chunk);
        }
        assert!(kept.cost <= LIMIT && kept.cost > LIMIT - 2 * chunk.len());
        let first = kept.after(0).unwrap();
        assert!(first.offset > 0 && first.data.len() == chunk.len());
        assert_eq!(kept.after(40 * chunk.len() as u64), None);
        // One byte at a time costs more than a byte.
        for _ in 0..100_000 {
            kept.push(1, true, b"x");
        }
        assert!(kept.cost <= LIMIT && kept.pieces.len() < LIMIT / OVERHEAD);
    }

    proptest! {
        #[test]
        fn from_anywhere_the_rest_follows(writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..40), from in 0u64..2500) {
            let mut kept = Kept::default();
            for (at, write) in (0..).zip(&writes) {
                kept.push(at, at % 2 == 1, write);
            }
            let whole: Vec<u8> = writes.concat();
            let mut offset = from;
            let mut read = Vec::new();
            while let Some(piece) = kept.after(offset) {
                prop_assert_eq!(piece.offset, offset);
                prop_assert_eq!(piece.error, piece.time_ms % 2 == 1);
                offset = piece.end();
                read.extend_from_slice(&piece.data);
            }
            let skip = usize::try_from(from).unwrap().min(whole.len());
            prop_assert_eq!(read, &whole[skip..]);
        }
    }
}
