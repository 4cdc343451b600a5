//! The entries of one archive, one after another: headers taken apart and checked, contents left in the stream.
//!
//! Everything read goes through here, so this is where the stream's digest is computed and where its length is bounded
//! by what it was packed into. What an entry means for the tree is none of its business.

use std::io::{self, Read};
use std::ops::Range;

use super::header::{Extended, checksum, parse_pax, show, until_nul};
use super::sparse::{self, MapText, PaxMap, Piece};
use super::{EXTENSION_LIMIT, Error, Kind, Limits, Node, PADDING_LIMIT, RECORD, Rules};
use crate::digest::{Digest, Hasher};

/// One entry; of a link, `to` is as the archive has it.
#[derive(Debug)]
pub(super) struct Entry {
    /// As the archive has it.
    pub(super) name: Vec<u8>,
    /// The same for people.
    pub(super) shown: String,
    pub(super) node: Node,
    pub(super) contents: Contents,
}

/// What follows an entry's headers. It has to be read or skipped before the next entry.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The parts of a sparse file that are stored; `None` where all of it is.
    pub(super) pieces: Option<Vec<Piece>>,
    /// In bytes, without the padding.
    pub(super) stored: u64,
    pub(super) padding: u64,
}

pub(super) struct Archive<'a, R> {
    input: R,
    rules: Rules,
    limits: &'a Limits,
    hasher: Hasher,
    read: u64,
    /// How much may be read, and of how much packed data that is.
    bound: Option<(u64, u64)>,
    /// Counted on from the archives before.
    entries: u64,
    /// The last one begun.
    entry: String,
}

impl<'a, R: Read> Archive<'a, R> {
    /// `packed` is the length of what `input` is unpacked from, where that is known.
    pub(super) fn new(input: R, rules: Rules, limits: &'a Limits, packed: Option<u64>, entries: u64) -> Self {
        Self {
            input,
            rules,
            limits,
            hasher: Hasher::default(),
            read: 0,
            bound: packed.map(|packed| {
                let limit = packed.saturating_mul(limits.ratio).max(limits.ratio_floor);
                (limit, packed)
            }),
            entries,
            entry: show(b""),
        }
    }

    /// How many entries there were so far, archives before this one included.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Counts something that is made though no entry says so.
    pub(super) fn count(&mut self) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::TooManyEntries {
                limit: self.limits.entries,
            });
        }
        Ok(())
    }

    /// Reads the headers of the next entry; `None` at the end of the archive.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extended = Extended::default();
        loop {
            let mut header = tar::Header::new_old();
            // Some tools leave the end mark out. The digest of a layer tells that from one that was cut short.
            if self.rules == Rules::Layer && !extended.seen {
                if !self.read_record_or_end(header.as_mut_bytes())? {
                    return Ok(None);
                }
            } else {
                self.read_exact(header.as_mut_bytes())?;
            }
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                // Extended headers must be about something.
                return if extended.seen {
                    Err(self.truncated())
                } else {
                    Ok(None)
                };
            }
            self.count()?;
            let name = header.path_bytes().into_owned();
            self.entry = show(&name);
            if header.cksum().ok() != Some(checksum(header.as_bytes())) {
                return Err(self.malformed("wrong checksum"));
            }
            let size = header.entry_size().map_err(|_| self.malformed("bad size"))?;
            extended.seen = true;
            match header.entry_type().as_byte() {
                b'x' => {
                    let records = self.read_extension(size)?;
                    parse_pax(&records, &mut extended).map_err(|what| self.malformed(what))?;
                }
                // Defaults for all that follows; what writers put there (comments, ids of commits) changes nothing.
                b'g' => drop(self.read_extension(size)?),
                b'L' => extended.path = Some(until_nul(self.read_extension(size)?)),
                b'K' => extended.link = Some(until_nul(self.read_extension(size)?)),
                _ => return self.entry(&header, extended, name, size).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        mut extended: Extended,
        name: Vec<u8>,
        size: u64,
    ) -> Result<Entry, Error> {
        let sparse_name = extended.sparse.as_mut().and_then(|sparse| sparse.name.take());
        let name = sparse_name.or(extended.path.take()).unwrap_or(name);
        self.entry = show(&name);
        let mut contents = Contents::default();
        let kind = match header.entry_type().as_byte() {
            // Before POSIX, a directory was a file whose name ends so.
            b'0' | 0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => {
                contents.stored = extended.size.unwrap_or(size);
                contents.padding = contents.stored.next_multiple_of(RECORD as u64) - contents.stored;
                let size = self.sparse(header, &extended, &mut contents)?;
                let data = contents.pieces.as_ref().map_or(size, |pieces| data(pieces));
                Kind::File { size, data }
            }
            b'1' => Kind::Link {
                to: link(header, &mut extended),
            },
            b'2' => Kind::Symlink {
                target: link(header, &mut extended),
            },
            b'3' => {
                let (major, minor) = self.device(header)?;
                Kind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = self.device(header)?;
                Kind::BlockDevice { major, minor }
            }
            // Of other kinds than files the size means nothing, and no contents follow (as Go's archive/tar has it).
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(Error::Unsupported {
                    entry: self.entry.clone(),
                    kind: other.into(),
                });
            }
        };
        // Writers that have nothing to say leave a field blank.
        let number = |field: Range<usize>, value: io::Result<u64>, what| {
            let blank = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, 0 | b' '));
            match value {
                Ok(value) => Ok(value),
                Err(_) if header.as_bytes().get(field).is_some_and(blank) => Ok(0),
                Err(_) => Err(self.malformed(what)),
            }
        };
        let id = |value: u64, what| {
            let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| self.malformed(what))
        };
        let uid = extended
            .uid
            .map_or_else(|| number(108..116, header.uid(), "bad owner"), Ok)?;
        let gid = extended
            .gid
            .map_or_else(|| number(116..124, header.gid(), "bad group"), Ok)?;
        let mtime = extended
            .mtime
            .map_or_else(|| number(136..148, header.mtime(), "bad time"), Ok)?;
        let mode = number(100..108, header.mode().map(u64::from), "bad mode")? & 0o7777;
        let node = Node {
            kind,
            uid: id(uid, "bad owner")?,
            gid: id(gid, "bad group")?,
            mode: u32::try_from(mode).unwrap_or_default(),
            // Seconds that ext4 cannot hold are no time that anybody meant.
            mtime: mtime.min(u32::MAX.into()),
            xattrs: extended.xattrs,
        };
        Ok(Entry {
            name,
            shown: self.entry.clone(),
            node,
            contents,
        })
    }

    /// Finds out which parts of a file are stored, if not all are, and how large it is.
    fn sparse(
        &mut self,
        header: &tar::Header,
        extended: &Extended,
        contents: &mut Contents,
    ) -> Result<u64, Error> {
        let bad = "bad sparse map";
        let (size, mut pieces) = if header.entry_type().as_byte() == b'S' {
            let gnu = header.as_gnu().ok_or_else(|| self.malformed(bad))?;
            let size = gnu.real_size().map_err(|_| self.malformed(bad))?;
            let mut pieces = Vec::new();
            sparse::gnu_pieces(&gnu.sparse, &mut pieces).map_err(|what| self.malformed(what))?;
            let mut more = gnu.is_extended();
            while more {
                let mut record = tar::GnuExtSparseHeader::new();
                self.read_exact(record.as_mut_bytes())?;
                let before = pieces.len();
                sparse::gnu_pieces(record.sparse(), &mut pieces).map_err(|what| self.malformed(what))?;
                // Records that say nothing could go on for ever.
                if pieces.len() == before {
                    return Err(self.malformed(bad));
                }
                more = record.is_extended();
            }
            (size, pieces)
        } else if let Some(sparse) = &extended.sparse {
            let pieces = match sparse.map().map_err(|what| self.malformed(what))? {
                Some(PaxMap::Here(pieces)) => pieces,
                Some(PaxMap::InContents) => self.read_map(contents)?,
                None => {
                    return Err(Error::Unsupported {
                        entry: self.entry.clone(),
                        kind: 'S',
                    });
                }
            };
            (sparse.size.ok_or_else(|| self.malformed(bad))?, pieces)
        } else {
            return Ok(contents.stored);
        };
        sparse::check(&mut pieces, size, contents.stored).map_err(|what| self.malformed(what))?;
        contents.pieces = Some(pieces);
        Ok(size)
    }

    /// Reads the map at the beginning of the contents.
    fn read_map(&mut self, contents: &mut Contents) -> Result<Vec<Piece>, Error> {
        let mut text = MapText::default();
        loop {
            let left = contents.stored.checked_sub(RECORD as u64);
            contents.stored = left.ok_or_else(|| self.malformed("bad sparse map"))?;
            let mut record = [0; RECORD];
            self.read_exact(&mut record)?;
            if text.record(&record).map_err(|what| self.malformed(what))? {
                return text.pieces().map_err(|what| self.malformed(what));
            }
        }
    }

    fn device(&self, header: &tar::Header) -> Result<(u32, u32), Error> {
        let number = |value: io::Result<Option<u32>>| value.ok().flatten();
        match (number(header.device_major()), number(header.device_minor())) {
            // What Linux can encode: 12 bits and 20 bits.
            (Some(major), Some(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
            _ => Err(self.malformed("bad device number")),
        }
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENSION_LIMIT {
            return Err(self.malformed("extended header of more than a megabyte"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read_exact(&mut bytes)?;
        let mut padding = [0; RECORD];
        let len = bytes.len().next_multiple_of(RECORD) - bytes.len();
        self.read_exact(padding.get_mut(..len).unwrap_or_default())?;
        Ok(bytes)
    }

    /// Skips what is left of an entry, in pieces as large as `buffer`, calling `watch` between them.
    pub(super) fn skip(
        &mut self,
        mut bytes: u64,
        buffer: &mut [u8],
        mut watch: impl FnMut() -> io::Result<()>,
    ) -> Result<(), Error> {
        while bytes > 0 {
            let want = usize::try_from(bytes).unwrap_or(usize::MAX).min(buffer.len());
            self.read_exact(buffer.get_mut(..want).unwrap_or_default())?;
            bytes -= want as u64;
            watch().map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// Reads what follows the end mark, so that a compressor's checksum is verified and the digest is of everything.
    pub(super) fn finish(mut self, buffer: &mut [u8]) -> Result<Digest, Error> {
        let end = self.read.saturating_add(PADDING_LIMIT);
        loop {
            match self.input.read(buffer) {
                Ok(0) => return Ok(self.hasher.finish()),
                Ok(read) => self.account(buffer.get(..read).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
            if self.read > end {
                return Err(self.malformed("more than 16 MiB after the end of the archive"));
            }
        }
    }

    /// Reads a record; false where there is nothing left at all.
    fn read_record_or_end(&mut self, record: &mut [u8; RECORD]) -> Result<bool, Error> {
        let (first, rest) = record.split_at_mut(1);
        loop {
            match self.input.read(first) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        self.account(first)?;
        self.read_exact(rest)?;
        Ok(true)
    }

    pub(super) fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        match self.input.read_exact(buffer) {
            Ok(()) => self.account(buffer),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.truncated()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn account(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // Nobody asks for the digest of an archive that is no layer.
        if self.rules == Rules::Layer {
            self.hasher.update(bytes);
        }
        self.read += bytes.len() as u64;
        match self.bound {
            Some((limit, packed)) if self.read > limit => Err(Error::Expands {
                entry: self.entry.clone(),
                packed,
                limit,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Reading, or whoever watches it, failed.
    pub(super) fn failed(&self, source: io::Error) -> Error {
        Error::Read {
            entries: self.entries,
            source,
        }
    }

    fn truncated(&self) -> Error {
        Error::Truncated {
            entries: self.entries,
        }
    }

    fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed {
            entry: self.entry.clone(),
            number: self.entries,
            what,
        }
    }
}

/// Where a link leads to, as the headers say it.
fn link(header: &tar::Header, extended: &mut Extended) -> Vec<u8> {
    extended
        .link
        .take()
        .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned())
}

/// What the pieces of a file take, in whole blocks of a file system.
fn data(pieces: &[Piece]) -> u64 {
    const BLOCK: u64 = 4096;
    let mut next = 0;
    let mut blocks = 0;
    for piece in pieces {
        let first = (piece.offset / BLOCK).max(next);
        // Pieces are within the file, so their ends are numbers.
        next = (piece.offset + piece.len).div_ceil(BLOCK);
        blocks += next.saturating_sub(first);
    }
    blocks.saturating_mul(BLOCK)
}
