//! Unpacking the archive of a root file system safely, without privileges, and without losing anything of it.
//!
//! The archive may come from a stranger. Every entry's path is taken apart here and looked up in the tree built so far,
//! so nothing is ever created through a symbolic link, above the top, or in place of something else; numbers of entries
//! and bytes are bounded. Contents go to the disk, below a directory that nobody else writes to; what only root could
//! put there (owners, devices, privileged attributes) is kept in the [`Tree`], for [`crate::ext4::populate`] to write
//! into the image. Formats read: ustar, GNU and pax (POSIX.1-2001, `pax` "Extended Header"); no sparse entries.

mod header;
mod tree;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode};

use header::{Extended, checksum, clean, parse_pax, show, until_nul};
use tree::set_mtime;
pub use tree::{Kind, Node, Tree};

const RECORD: usize = 512;
/// A long name or a set of pax records may take this many bytes; real ones take hundreds.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// All extended attributes of one inode have to fit beside each other into one block of the file system.
const XATTR_LIMIT: usize = 3500;
/// `PATH_MAX`, with room for the directory that all is unpacked in.
const PATH_LIMIT: usize = 3500;
/// All names and attributes together may take this many bytes of memory.
const METADATA_LIMIT: usize = 256 << 20;
/// How many directories deep an entry may be; unpacking and removing hold a descriptor for each.
const DEPTH_LIMIT: usize = 128;
/// Padding after the end of the archive that is read to verify a compressor's checksum.
const PADDING_LIMIT: u64 = 16 << 20;

/// How much an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

impl Default for Limits {
    /// A million entries and 64 GiB: a full desktop has 500 000 files in 20 GiB.
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            bytes: 64 << 30,
        }
    }
}

/// Why an archive was refused. Entries are named as the archive names them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the archive failed, perhaps because it is damaged under its compression.
    #[error("failed to read the archive after {entries} entries")]
    Read {
        /// How many entries came before.
        entries: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ends without its end marker, or in the middle of an entry.
    #[error("archive is cut short after {entries} entries")]
    Truncated {
        /// How many entries came before.
        entries: u64,
    },
    /// A header is not one.
    #[error("malformed archive: {what} in the header of entry {entry:?} (number {number})")]
    Malformed {
        /// The entry's name, as far as it is known.
        entry: String,
        /// Counted from 1.
        number: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The entry's name, or its link's, leads out of the tree or is not a name.
    #[error("refused archive entry {entry:?}: {reason}")]
    Refused {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something of that name came before.
    #[error("duplicate archive entry {entry:?}")]
    Duplicate {
        /// The entry's name.
        entry: String,
    },
    /// A kind of entry that a root file system does not have, or that is not supported (sparse files).
    #[error("unsupported archive entry {entry:?} of type {kind:?}")]
    Unsupported {
        /// The entry's name.
        entry: String,
        /// The type, a letter in the header.
        kind: char,
    },
    /// The archive holds more than [`Limits::entries`].
    #[error("archive has more than {limit} entries")]
    TooManyEntries {
        /// The bound.
        limit: u64,
    },
    /// Names and attributes take more memory than any real archive's.
    #[error("archive has more than {limit} bytes of names and attributes")]
    TooMuchMetadata {
        /// The bound.
        limit: usize,
    },
    /// The archive holds more than [`Limits::bytes`].
    #[error("archive unpacks to more than {limit} bytes (at entry {entry:?})")]
    TooLarge {
        /// The entry that goes beyond.
        entry: String,
        /// The bound.
        limit: u64,
    },
    /// Contents could not be written.
    #[error("failed to unpack {entry:?}")]
    Write {
        /// The entry's name.
        entry: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Unpacks `archive` below the empty directory `dir`, which must belong to this user alone. `watch` is called with the
/// bytes unpacked so far, at least once per megabyte and entry; its error ends the work, which is how a caller cancels.
/// After an error `dir` holds a part of the tree.
pub fn unpack(
    archive: impl Read,
    dir: &Path,
    limits: &Limits,
    watch: impl FnMut(u64) -> io::Result<()>,
) -> Result<Tree, Error> {
    let mut unpacker = Unpacker {
        input: archive,
        dir,
        limits,
        watch,
        tree: Tree::new(),
        entries: 0,
        metadata: 0,
        buffer: vec![0; 1 << 20],
    };
    while unpacker.next_entry()? {}
    unpacker.finish()
}

struct Unpacker<'a, R, W> {
    input: R,
    dir: &'a Path,
    limits: &'a Limits,
    watch: W,
    tree: Tree,
    entries: u64,
    metadata: usize,
    buffer: Vec<u8>,
}

impl<R: Read, W: FnMut(u64) -> io::Result<()>> Unpacker<'_, R, W> {
    /// Reads one entry with the extended headers before it; false at the end of the archive.
    fn next_entry(&mut self) -> Result<bool, Error> {
        let mut extended = Extended::default();
        loop {
            let mut header = tar::Header::new_old();
            self.read_exact(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                // Extended headers must be about something.
                return if extended.seen {
                    Err(Error::Truncated {
                        entries: self.entries,
                    })
                } else {
                    Ok(false)
                };
            }
            self.count()?;
            let name = header.path_bytes().into_owned();
            if header.cksum().ok() != Some(checksum(header.as_bytes())) {
                return Err(self.malformed(&name, "wrong checksum"));
            }
            let size = header
                .entry_size()
                .map_err(|_| self.malformed(&name, "bad size"))?;
            extended.seen = true;
            match header.entry_type().as_byte() {
                b'x' => {
                    let records = self.read_extension(&name, size)?;
                    parse_pax(&records, &mut extended).map_err(|what| self.malformed(&name, what))?;
                }
                // Defaults for all that follows; what writers put there (comments, ids of commits) changes nothing.
                b'g' => drop(self.read_extension(&name, size)?),
                b'L' => extended.path = Some(until_nul(self.read_extension(&name, size)?)),
                b'K' => extended.link = Some(until_nul(self.read_extension(&name, size)?)),
                _ => {
                    self.entry(&header, &extended, size)?;
                    return Ok(true);
                }
            }
        }
    }

    fn count(&mut self) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::TooManyEntries {
                limit: self.limits.entries,
            });
        }
        Ok(())
    }

    fn entry(&mut self, header: &tar::Header, extended: &Extended, size: u64) -> Result<(), Error> {
        let name = match &extended.path {
            Some(path) => path.clone(),
            None => header.path_bytes().into_owned(),
        };
        let shown = show(&name);
        let malformed = |what| Error::Malformed {
            entry: shown.clone(),
            number: self.entries,
            what,
        };
        let refused = |reason| Error::Refused {
            entry: shown.clone(),
            reason,
        };
        let kind = header.entry_type().as_byte();
        if kind == b'S' || extended.sparse {
            return Err(Error::Unsupported {
                entry: shown,
                kind: 'S',
            });
        }
        let path = clean(&name).map_err(refused)?;
        let size = extended.size.unwrap_or(size);
        let device = || {
            let major = header
                .device_major()
                .ok()
                .flatten()
                .ok_or_else(|| malformed("bad device number"))?;
            let minor = header
                .device_minor()
                .ok()
                .flatten()
                .ok_or_else(|| malformed("bad device number"))?;
            // What Linux can encode: 12 bits and 20 bits.
            if major < 1 << 12 && minor < 1 << 20 {
                Ok((major, minor))
            } else {
                Err(malformed("bad device number"))
            }
        };
        let link = || match &extended.link {
            Some(link) => link.clone(),
            None => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let kind = match kind {
            // Before POSIX, a directory was a file whose name ends so.
            b'0' | 0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File { size },
            b'1' => Kind::Link {
                to: clean(&link()).map_err(refused)?,
            },
            b'2' => Kind::Symlink { target: link() },
            b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(Error::Unsupported {
                    entry: shown,
                    kind: other.into(),
                });
            }
        };
        let id = |value: u64| u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        // Writers that have nothing to say leave a field blank.
        let number = |field: std::ops::Range<usize>, value: io::Result<u64>, what| {
            let blank = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, 0 | b' '));
            match value {
                Ok(value) => Ok(value),
                Err(_) if header.as_bytes().get(field).is_some_and(blank) => Ok(0),
                Err(_) => Err(malformed(what)),
            }
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
            uid: id(uid).ok_or_else(|| malformed("bad owner"))?,
            gid: id(gid).ok_or_else(|| malformed("bad group"))?,
            mode: u32::try_from(mode).unwrap_or_default(),
            // Seconds that ext4 cannot hold are no time that anybody meant.
            mtime: mtime.min(u32::MAX.into()),
            xattrs: extended.xattrs.clone(),
            kind,
        };
        self.make_parents(&path, &shown)?;
        // Of other kinds than files the size means nothing, and no contents follow (as Go's archive/tar has it).
        self.make(&path, node, &shown)
    }

    /// Makes the directories on the way to `path` that are not there yet, and insists that the others are directories.
    fn make_parents(&mut self, path: &[u8], shown: &str) -> Result<(), Error> {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = path.get(..at).unwrap_or_default();
            match self.tree.nodes.get(parent).map(|node| &node.kind) {
                Some(Kind::Directory) => {}
                Some(Kind::Symlink { .. }) => {
                    return Err(Error::Refused {
                        entry: shown.to_owned(),
                        reason: "it leads through a symbolic link",
                    });
                }
                Some(_) => {
                    return Err(Error::Refused {
                        entry: shown.to_owned(),
                        reason: "it is below something that is no directory",
                    });
                }
                None => {
                    self.count()?;
                    self.make(parent, Node::implied(), shown)?;
                }
            }
        }
        Ok(())
    }

    fn make(&mut self, path: &[u8], mut node: Node, shown: &str) -> Result<(), Error> {
        let write_error = |source| Error::Write {
            entry: shown.to_owned(),
            source,
        };
        let disk = self.on_disk(path);
        if let Some(found) = self.tree.nodes.get_mut(path) {
            // Directories may be mentioned again, for instance the top as `./`, or after it was implied.
            if found.kind == Kind::Directory && node.kind == Kind::Directory {
                *found = node;
                return Ok(());
            }
            return Err(Error::Duplicate {
                entry: shown.to_owned(),
            });
        }
        self.metadata += path.len()
            + node
                .xattrs
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>();
        if self.metadata > METADATA_LIMIT {
            return Err(Error::TooMuchMetadata {
                limit: METADATA_LIMIT,
            });
        }
        match &mut node.kind {
            Kind::Directory => fs::create_dir(&disk).map_err(write_error)?,
            Kind::File { size } => {
                let size = *size;
                self.write_file(&disk, size, shown)?;
                // The owner must be able to read it for the next step; the rest is kept to the letter.
                fs::set_permissions(&disk, Permissions::from_mode(0o600)).map_err(write_error)?;
            }
            Kind::Symlink { target } => {
                if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                    return Err(Error::Refused {
                        entry: shown.to_owned(),
                        reason: "bad target of a symbolic link",
                    });
                }
                symlink(OsStr::from_bytes(target), &disk).map_err(write_error)?;
            }
            Kind::Link { to } => {
                let reason = match self.tree.nodes.get(to.as_slice()).map(|node| &node.kind) {
                    None => Some("it links to an entry that is not there"),
                    Some(Kind::Directory) => Some("it links to a directory"),
                    Some(Kind::CharDevice { .. } | Kind::BlockDevice { .. }) => Some("it links to a device"),
                    Some(Kind::Link { to: first }) => {
                        *to = first.clone();
                        None
                    }
                    Some(Kind::File { .. } | Kind::Symlink { .. } | Kind::Fifo) => None,
                };
                if let Some(reason) = reason {
                    return Err(Error::Refused {
                        entry: shown.to_owned(),
                        reason,
                    });
                }
                // Does not follow a symbolic link at its end.
                let first = self.on_disk(to);
                fs::hard_link(first, &disk).map_err(write_error)?;
            }
            Kind::Fifo => rustix::fs::mkfifoat(CWD, &disk, Mode::RUSR | Mode::WUSR)
                .map_err(|error| write_error(error.into()))?,
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {}
        }
        if matches!(node.kind, Kind::File { .. } | Kind::Symlink { .. } | Kind::Fifo) {
            set_mtime(&disk, node.mtime).map_err(write_error)?;
        }
        self.tree.nodes.insert(path.to_vec(), node);
        let bytes = self.tree.bytes;
        (self.watch)(bytes).map_err(|source| Error::Read {
            entries: self.entries,
            source,
        })
    }

    fn write_file(&mut self, disk: &Path, size: u64, shown: &str) -> Result<(), Error> {
        let write_error = |source| Error::Write {
            entry: shown.to_owned(),
            source,
        };
        // Before anything is written, so that a header alone cannot fill the disk.
        if self
            .tree
            .bytes
            .checked_add(size)
            .is_none_or(|bytes| bytes > self.limits.bytes)
        {
            return Err(Error::TooLarge {
                entry: shown.to_owned(),
                limit: self.limits.bytes,
            });
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(disk)
            .map_err(write_error)?;
        let mut left = size;
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..want).unwrap_or_default();
            self.read_exact(piece)?;
            file.write_all(piece).map_err(write_error)?;
            left -= want as u64;
            self.tree.bytes += want as u64;
            (self.watch)(self.tree.bytes).map_err(|source| Error::Read {
                entries: self.entries,
                source,
            })?;
        }
        self.buffer = buffer;
        self.skip(0, size)
    }

    /// Directories' times last, since making their entries changes them; then what follows the archive.
    fn finish(mut self) -> Result<Tree, Error> {
        for (path, node) in self.tree.nodes.iter().rev() {
            if node.kind == Kind::Directory {
                set_mtime(&self.on_disk(path), node.mtime).map_err(|source| Error::Write {
                    entry: show(path),
                    source,
                })?;
            }
        }
        let entries = self.entries;
        io::copy(&mut self.input.by_ref().take(PADDING_LIMIT), &mut io::sink())
            .map_err(|source| Error::Read { entries, source })?;
        Ok(self.tree)
    }

    fn read_extension(&mut self, name: &[u8], size: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENSION_LIMIT {
            return Err(self.malformed(name, "extended header of more than a megabyte"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read_exact(&mut bytes)?;
        self.skip(0, size)?;
        Ok(bytes)
    }

    /// Skips `data` bytes, and the padding to a whole record of contents of `size` bytes.
    fn skip(&mut self, data: u64, size: u64) -> Result<(), Error> {
        let padding = size.next_multiple_of(RECORD as u64) - size;
        let entries = self.entries;
        let skipped = io::copy(&mut self.input.by_ref().take(data + padding), &mut io::sink())
            .map_err(|source| Error::Read { entries, source })?;
        if skipped == data + padding {
            Ok(())
        } else {
            Err(Error::Truncated { entries })
        }
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let entries = self.entries;
        self.input.read_exact(buffer).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                Error::Truncated { entries }
            } else {
                Error::Read { entries, source }
            }
        })
    }

    fn on_disk(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() {
            self.dir.to_owned()
        } else {
            self.dir.join(OsStr::from_bytes(path))
        }
    }

    fn malformed(&self, name: &[u8], what: &'static str) -> Error {
        Error::Malformed {
            entry: show(name),
            number: self.entries,
            what,
        }
    }
}

#[cfg(test)]
mod tests;
