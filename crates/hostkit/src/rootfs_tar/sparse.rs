//! Sparse files: which parts of a file its archive holds, in the four ways of writing that down.
//!
//! The oldest is GNU's own type of entry (`S`): four pieces in the header, more in records after it. In pax archives it
//! is extended header records (0.0: one for each number, 0.1: all in one), or, in 1.0, text before the contents. Source:
//! the manual of GNU tar, "Sparse Formats" (appendix D.2). Whatever says it, a map is checked before anything is written.

use super::RECORD;

/// A map may have this many pieces: a file of a terabyte with a piece in every megabyte.
pub(super) const PIECES_LIMIT: usize = 1 << 20;

const BAD: &str = "bad sparse map";

/// A part of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What pax records say of a sparse file.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
}

/// Where a pax archive has its map.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PaxMap {
    /// In the records (0.0 and 0.1).
    Here(Vec<Piece>),
    /// At the beginning of the contents (1.0).
    InContents,
}

impl PaxSparse {
    /// Takes in the record `GNU.sparse.KEY=VALUE`.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"major" => self.major = Some(number(value)?),
            b"minor" => self.minor = Some(number(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"offset" if self.numbers.len().is_multiple_of(2) => self.numbers.push(number(value)?),
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => self.numbers.push(number(value)?),
            b"offset" | b"numbytes" => return Err(BAD),
            b"map" => {
                self.numbers = match value {
                    b"" => Vec::new(),
                    _ => value
                        .split(|byte| *byte == b',')
                        .map(number)
                        .collect::<Result<_, _>>()?,
                };
            }
            // How many pieces there are is seen when they have been counted.
            _ => {}
        }
        Ok(())
    }

    /// The map, or where it is; `None` for versions that do not exist yet.
    pub(super) fn map(&self) -> Result<Option<PaxMap>, &'static str> {
        match (self.major.unwrap_or(0), self.minor.unwrap_or(0)) {
            (1, 0) => Ok(Some(PaxMap::InContents)),
            (0, 0 | 1) => Ok(Some(PaxMap::Here(pieces(&self.numbers)?))),
            _ => Ok(None),
        }
    }
}

/// A map as it is read from the beginning of contents: decimal numbers, each with a line feed; the first says how many
/// pieces follow. It fills whole records.
#[derive(Debug, Default)]
pub(super) struct MapText {
    numbers: Vec<u64>,
    pending: Option<u64>,
}

impl MapText {
    /// Takes in a record; true when it was the last one.
    pub(super) fn record(&mut self, record: &[u8; RECORD]) -> Result<bool, &'static str> {
        for byte in record {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let number = self.pending.unwrap_or(0).checked_mul(10);
                    self.pending = Some(number.and_then(|number| number.checked_add(digit)).ok_or(BAD)?);
                }
                b'\n' => self.numbers.push(self.pending.take().ok_or(BAD)?),
                _ => return Err(BAD),
            }
            if let Some(count) = self.numbers.first() {
                if *count > PIECES_LIMIT as u64 {
                    return Err(BAD);
                }
                // The rest is padding.
                if self.numbers.len() as u64 == 1 + 2 * count {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    pub(super) fn pieces(&self) -> Result<Vec<Piece>, &'static str> {
        pieces(self.numbers.get(1..).unwrap_or_default())
    }
}

/// Pieces of an entry of GNU's own type, from its header or a record that continues it. Unused ones are at the end.
pub(super) fn gnu_pieces(
    fields: &[tar::GnuSparseHeader],
    pieces: &mut Vec<Piece>,
) -> Result<(), &'static str> {
    for field in fields.iter().take_while(|field| !field.is_empty()) {
        pieces.push(Piece {
            offset: field.offset().map_err(|_| BAD)?,
            len: field.length().map_err(|_| BAD)?,
        });
        if pieces.len() > PIECES_LIMIT {
            return Err(BAD);
        }
    }
    Ok(())
}

/// Insists that the pieces come one after another, are within the file, and are all that is stored.
pub(super) fn check(pieces: &mut Vec<Piece>, size: u64, stored: u64) -> Result<(), &'static str> {
    let (mut at, mut sum) = (0, 0_u64);
    for piece in pieces.iter() {
        let end = piece.offset.checked_add(piece.len).ok_or(BAD)?;
        if piece.offset < at || end > size {
            return Err(BAD);
        }
        // Within the file and apart from each other, so together no more than its size.
        sum += piece.len;
        at = end;
    }
    // GNU tar marks the end of a file that ends with a hole by an empty piece.
    pieces.retain(|piece| piece.len > 0);
    if sum == stored { Ok(()) } else { Err(BAD) }
}

fn pieces(numbers: &[u64]) -> Result<Vec<Piece>, &'static str> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > PIECES_LIMIT {
        return Err(BAD);
    }
    Ok(pairs
        .iter()
        .map(|[offset, len]| Piece {
            offset: *offset,
            len: *len,
        })
        .collect())
}

fn number(text: &[u8]) -> Result<u64, &'static str> {
    std::str::from_utf8(text)
        .ok()
        // Unlike Rust's, tar's numbers have no sign.
        .filter(|text| text.starts_with(|first: char| first.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or(BAD)
}
