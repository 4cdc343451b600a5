//! A selection as a tar stream, and as a digest: of names, kinds, permissions, contents and where links lead; not of owners
//! and times, which differ between two checkouts of the same files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::select::{Entry, EntryKind, Selection};
use super::{ContextError, read_error};

/// What all entries of an archive get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The owner's number.
    pub uid: u64,
    /// The group's number.
    pub gid: u64,
    /// Permissions of files and directories, of 0o7777; as in the context if it is none.
    pub mode: Option<u32>,
}

/// How a file that looks like a tar archive is packed. It may still be something else that is packed so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// By the first 512 bytes.
    fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            head => (head.get(257..262) == Some(b"ustar")).then_some(Self::None),
        }
    }
}

impl Selection<'_> {
    /// Reads everything. Two selections with the same digest are the same files.
    ///
    /// # Errors
    /// [`ContextError::Read`], [`ContextError::Changed`].
    pub fn digest(&self) -> Result<[u8; 32], ContextError> {
        let mut hasher = Sha256::new();
        for entry in &self.entries {
            let mut reader = self.begin(entry, &mut hasher)?;
            if let Some(reader) = &mut reader {
                // Fails as the reader does, and says nothing more.
                let copied = io::copy(reader, &mut io::sink());
                reader.finish(copied.map(|_| ()))?;
            }
        }
        Ok(hasher.finalize().into())
    }

    /// Writes a tar archive of everything, its end included, and gives the digest of what was written: the same as
    /// [`Self::digest`], if nobody worked on the files meanwhile. Names are below `prefix`, a relative path or none; no entry
    /// is made for the prefix itself.
    ///
    /// # Errors
    /// [`ContextError::Read`], [`ContextError::Changed`], [`ContextError::Write`].
    pub fn write_tar(
        &self,
        out: &mut dyn Write,
        prefix: &Path,
        attributes: &Attributes,
    ) -> Result<[u8; 32], ContextError> {
        let mut hasher = Sha256::new();
        let mut builder = tar::Builder::new(out);
        for entry in &self.entries {
            let mut reader = self.begin(entry, &mut hasher)?;
            let name = prefix.join(&entry.name);
            let mut header = Header::new_gnu();
            header.set_uid(attributes.uid);
            header.set_gid(attributes.gid);
            header.set_mtime(entry.modified);
            header.set_mode(attributes.mode.unwrap_or(entry.mode));
            header.set_size(0);
            let written = match (&entry.kind, &mut reader) {
                (EntryKind::File { size }, Some(reader)) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(*size);
                    builder.append_data(&mut header, &name, reader)
                }
                (EntryKind::Symlink { target }, _) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    builder.append_link(&mut header, &name, target)
                }
                (EntryKind::Directory | EntryKind::File { .. }, _) => {
                    header.set_entry_type(EntryType::Directory);
                    builder.append_data(&mut header, &name, io::empty())
                }
            };
            match reader {
                Some(mut reader) => reader.finish(written)?,
                None => written.map_err(ContextError::Write)?,
            }
        }
        let out = builder.into_inner().map_err(ContextError::Write)?;
        out.flush().map_err(ContextError::Write)?;
        Ok(hasher.finalize().into())
    }

    /// Takes the files out of the selection that `ADD` unpacks: those that sources name, and that look like archives.
    ///
    /// # Errors
    /// [`ContextError::Read`], [`ContextError::Changed`].
    pub fn take_archives(&mut self) -> Result<Vec<(Entry, Compression)>, ContextError> {
        let mut archives = Vec::new();
        let mut rest = Vec::with_capacity(self.entries.len());
        for entry in std::mem::take(&mut self.entries) {
            match self.compression(&entry)? {
                Some(compression) => archives.push((entry, compression)),
                None => rest.push(entry),
            }
        }
        self.entries = rest;
        Ok(archives)
    }

    fn compression(&self, entry: &Entry) -> Result<Option<Compression>, ContextError> {
        if !entry.named || !matches!(entry.kind, EntryKind::File { .. }) {
            return Ok(None);
        }
        let mut head = Vec::with_capacity(512);
        let read = self.open(entry)?.take(512).read_to_end(&mut head);
        read.map_err(|source| ContextError::Read {
            path: entry.path.clone(),
            source,
        })?;
        Ok(Compression::of(&head))
    }

    /// Opens a file of the selection for reading.
    ///
    /// # Errors
    /// [`ContextError::Read`]; [`ContextError::Changed`] where it is not a file any more.
    pub fn open(&self, entry: &Entry) -> Result<File, ContextError> {
        let error = read_error(&entry.path);
        let fd = self
            .context
            .open_beneath(&entry.path, OFlags::RDONLY)
            .map_err(&error)?;
        let stat = rustix::fs::fstat(&fd).map_err(&error)?;
        match FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            true => Ok(File::from(fd)),
            false => Err(ContextError::Changed {
                path: entry.path.clone(),
            }),
        }
    }

    /// Feeds the digest with an entry; a file's bytes go through the reader that is returned.
    fn begin<'h>(&self, entry: &Entry, hasher: &'h mut Sha256) -> Result<Option<Watched<'h>>, ContextError> {
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(entry.name.as_os_str().as_bytes());
        match &entry.kind {
            EntryKind::Directory => {
                part(b"directory");
                part(&entry.mode.to_le_bytes());
                Ok(None)
            }
            EntryKind::Symlink { target } => {
                part(b"symlink");
                part(target.as_bytes());
                Ok(None)
            }
            EntryKind::File { size } => {
                part(b"file");
                part(&entry.mode.to_le_bytes());
                hasher.update(size.to_le_bytes());
                Ok(Some(Watched {
                    file: self.open(entry)?,
                    left: *size,
                    hasher,
                    failed: None,
                    path: entry.path.clone(),
                }))
            }
        }
    }
}

/// Exactly the bytes that a file had when it was found.
struct Watched<'h> {
    file: File,
    left: u64,
    hasher: &'h mut Sha256,
    /// What reading failed of: the one who reads has only an I/O error, which may as well be its own.
    failed: Option<ContextError>,
    path: PathBuf,
}

impl Watched<'_> {
    /// What came of it.
    fn finish(&mut self, copied: io::Result<()>) -> Result<(), ContextError> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        copied.map_err(ContextError::Write)
    }

    fn fail(&mut self, error: ContextError) -> io::Error {
        self.failed = Some(error);
        io::Error::other("the file cannot be read")
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let path = || self.path.clone();
        let read = match self.file.read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(source) => {
                let path = path();
                return Err(self.fail(ContextError::Read { path, source }));
            }
        };
        // Shorter or longer than it was.
        if read as u64 > self.left || (read == 0 && self.left > 0 && !buffer.is_empty()) {
            let path = path();
            return Err(self.fail(ContextError::Changed { path }));
        }
        self.left -= read as u64;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
