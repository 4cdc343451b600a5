//! What a disk has that it had not before: the pieces of a file that changed, in a file of their own.
//!
//! A [`Pieces`] knows a file by the digest of each piece of it that is not zero, so that what a disk was like before need not
//! be kept. [`Pieces::difference`] writes what has changed since, [`Pieces::apply`] puts it onto a copy of what there was
//! before. A difference applied to anything else makes something that never was: which one belongs to what is the caller's to
//! know.
//!
//! ```text
//! difference = "bgr-delta 1\n", length of the file: u64, pieces*, end
//! piece      = number: u64, 1: u8, bytes of the piece    (fewer than [`PIECE`] at the file's end)
//!            | number: u64, 0: u8                        (it is zero)
//! end        = u64::MAX                                  (all numbers little-endian)
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use crate::copy::next_data;
use crate::digest::Digest;

/// Bytes of a piece: as ext4 writes, mostly, and few enough to know a disk of terabytes by.
const PIECE: usize = 64 << 10;
const PIECE_BYTES: u64 = PIECE as u64;
const MAGIC: &[u8; 12] = b"bgr-delta 1\n";
const END: u64 = u64::MAX;

/// A file, known by its pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces(BTreeMap<u64, Digest>);

impl Pieces {
    /// Knows a file as it is. `watch` is called with the bytes read so far; its error ends the reading.
    ///
    /// # Errors
    /// The file's, and `watch`'s.
    pub fn of(file: &File, watch: impl FnMut(u64) -> io::Result<()>) -> io::Result<Self> {
        let mut pieces = Self::default();
        each(file, watch, |number, bytes| {
            if let Some(digest) = known_by(bytes) {
                pieces.0.insert(number, digest);
            }
            Ok(())
        })?;
        Ok(pieces)
    }

    /// Writes what `file` has that is not known, and knows it from then on. Returns the bytes written.
    ///
    /// # Errors
    /// The file's, `out`'s and `watch`'s; what is known is undefined then.
    pub fn difference(
        &mut self,
        file: &File,
        out: &mut impl Write,
        watch: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<u64> {
        out.write_all(MAGIC)?;
        let length = file.metadata()?.len();
        out.write_all(&length.to_le_bytes())?;
        let mut written = 20;
        let mut now = BTreeMap::new();
        let before = std::mem::take(&mut self.0);
        each(file, watch, |number, bytes| {
            let Some(digest) = known_by(bytes) else {
                return Ok(());
            };
            if before.get(&number) != Some(&digest) {
                out.write_all(&number.to_le_bytes())?;
                out.write_all(&[1])?;
                out.write_all(bytes)?;
                written += 9 + bytes.len() as u64;
            }
            now.insert(number, digest);
            Ok(())
        })?;
        // What was cut off needs no word.
        let within = before.range(..length.div_ceil(PIECE_BYTES));
        for (number, _) in within.filter(|(number, _)| !now.contains_key(number)) {
            out.write_all(&number.to_le_bytes())?;
            out.write_all(&[0])?;
            written += 9;
        }
        out.write_all(&END.to_le_bytes())?;
        self.0 = now;
        Ok(written + 8)
    }

    /// Makes `to`, which is as what is known, what the difference says, and knows that.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where it is no difference or is cut short; the files'. `to` is to be thrown away then.
    pub fn apply(&mut self, mut difference: impl Read, to: &File) -> io::Result<()> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut magic = [0; 12];
        difference.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(invalid("not a difference of disks"));
        }
        let length = number(&mut difference)?;
        let former = to.metadata()?.len();
        // What is cut off is zero when the file grows again.
        to.set_len(length)?;
        drop(self.0.split_off(&length.div_ceil(PIECE_BYTES)));
        let mut bytes = vec![0; PIECE];
        // The piece at the former end, or at the new one, is of another length, whether or not the difference has it.
        let end = former.min(length);
        if former != length && end % PIECE_BYTES != 0 {
            let at = end - end % PIECE_BYTES;
            let have = usize::try_from((length - at).min(PIECE_BYTES)).unwrap_or(PIECE);
            let bytes = bytes.get_mut(..have).unwrap_or_default();
            to.read_exact_at(bytes, at)?;
            self.know(at / PIECE_BYTES, bytes);
        }
        loop {
            let piece = number(&mut difference)?;
            if piece == END {
                return Ok(());
            }
            let at = piece.checked_mul(PIECE_BYTES).filter(|at| *at < length);
            let at = at.ok_or_else(|| invalid("a piece is beyond the disk's end"))?;
            let have = usize::try_from((length - at).min(PIECE_BYTES)).unwrap_or(PIECE);
            let mut kind = [0];
            difference.read_exact(&mut kind)?;
            let bytes = bytes.get_mut(..have).unwrap_or_default();
            match kind {
                [1] => difference.read_exact(bytes)?,
                [0] => bytes.fill(0),
                _ => return Err(invalid("a piece of an unknown kind")),
            }
            to.write_all_at(bytes, at)?;
            self.know(piece, bytes);
        }
    }

    fn know(&mut self, piece: u64, bytes: &[u8]) {
        match known_by(bytes) {
            Some(digest) => self.0.insert(piece, digest),
            None => self.0.remove(&piece),
        };
    }
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// `None` for zeros.
fn known_by(bytes: &[u8]) -> Option<Digest> {
    bytes
        .iter()
        .any(|byte| *byte != 0)
        .then(|| Digest::of_bytes(bytes))
}

/// Every piece of a file that may hold something, in order.
fn each(
    file: &File,
    mut watch: impl FnMut(u64) -> io::Result<()>,
    mut piece: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut bytes = vec![0; PIECE];
    let (mut at, mut read) = (0, 0);
    while let Some((start, end)) = next_data(file, at, length)? {
        // The whole piece, even where its data begins later; never one twice.
        at = (start - start % PIECE_BYTES).max(at);
        while at < end {
            let have = usize::try_from((length - at).min(PIECE_BYTES)).unwrap_or(PIECE);
            let bytes = bytes.get_mut(..have).unwrap_or_default();
            file.read_exact_at(bytes, at)?;
            piece(at / PIECE_BYTES, bytes)?;
            at += PIECE_BYTES;
            read += have as u64;
            watch(read)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn file(length: u64, writes: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        write(&file, length, writes);
        file
    }

    fn write(file: &File, length: u64, writes: &[(u64, u8)]) {
        for (at, byte) in writes {
            let at = at % length;
            let have = usize::try_from((length - at).min(5000)).unwrap();
            file.write_all_at(&vec![*byte; have], at).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_changed_makes_what_it_became(
            lengths in (1u64..1_000_000, 1u64..1_000_000, 1u64..1_000_000),
            first in proptest::collection::vec((any::<u64>(), 0u8..3), 0..20),
            then in proptest::collection::vec((any::<u64>(), 0u8..3), 0..20),
            last in proptest::collection::vec((any::<u64>(), 0u8..3), 0..20),
        ) {
            let disk = file(lengths.0, &first);
            let copy = file(lengths.0, &first);
            let mut known = Pieces::of(&disk, |_| Ok(())).unwrap();
            let mut copied = known.clone();
            for (length, writes) in [(lengths.1, then), (lengths.2, last)] {
                disk.set_len(length).unwrap();
                write(&disk, length, &writes);
                let mut difference = Vec::new();
                let size = known.difference(&disk, &mut difference, |_| Ok(())).unwrap();
                prop_assert_eq!(size, difference.len() as u64);
                copied.apply(difference.as_slice(), &copy).unwrap();
                prop_assert!(content(&disk) == content(&copy));
                prop_assert_eq!(&known, &Pieces::of(&disk, |_| Ok(())).unwrap());
                let mut nothing = Vec::new();
                known.difference(&disk, &mut nothing, |_| Ok(())).unwrap();
                prop_assert_eq!(nothing.len(), 28);
                for end in 0..difference.len().min(64) {
                    let scratch = tempfile::tempfile().unwrap();
                    let cut = difference.get(..end).unwrap();
                    prop_assert!(Pieces::default().apply(cut, &scratch).is_err());
                }
            }
        }
    }

    /// One that nobody made: its file is longer, or shorter, and it says nothing of the piece at the end.
    #[test]
    fn what_is_known_is_what_is_there_whatever_was_applied() {
        for length in [0u64, 1, 2999, 3001, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES] {
            for from in [3000, PIECE_BYTES, PIECE_BYTES + 3000] {
                let to = file(from, &[(0, 7), (from - 1, 7)]);
                let mut known = Pieces::of(&to, |_| Ok(())).unwrap();
                let mut forged = MAGIC.to_vec();
                forged.extend(length.to_le_bytes());
                forged.extend(END.to_le_bytes());
                known.apply(forged.as_slice(), &to).unwrap();
                assert_eq!(known, Pieces::of(&to, |_| Ok(())).unwrap(), "{from} to {length}");
            }
        }
    }

    #[test]
    fn what_is_no_difference_is_refused() {
        let to = tempfile::tempfile().unwrap();
        let mut known = Pieces::default();
        assert!(known.apply(&b"something else entirely, longer"[..], &to).is_err());
        let mut beyond = MAGIC.to_vec();
        beyond.extend(10u64.to_le_bytes());
        beyond.extend(1u64.to_le_bytes());
        beyond.push(0);
        assert_eq!(
            known.apply(beyond.as_slice(), &to).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
