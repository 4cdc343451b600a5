//! A host file or tree as a tar stream with one top entry, in GNU format.
//!
//! Kept: modes, numeric owners, modification times (whole seconds), symbolic links as they are, hard links within the
//! tree, holes. Left out with a warning: sockets, devices, and files that vanish while the tree is read.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header, HeaderMode};

use super::warnings::Warnings;

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error("failed to read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// The stream is closed: the other side has failed, and knows why.
    #[error("failed to send: {0}")]
    Send(io::Error),
    #[error("{0} changed while it was read")]
    Changed(PathBuf),
    #[error("{0} is neither a file nor a directory nor a link")]
    Special(PathBuf),
}

/// What to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The file or tree.
    pub(crate) path: PathBuf,
    /// Name of the top entry.
    pub(crate) name: OsString,
    /// The content of the directory is meant, not the directory (`DIR/.`).
    pub(crate) contents_only: bool,
    /// Follow the path's last component where it is a link.
    pub(crate) follow: bool,
}

impl Source {
    /// What a path on the command line means.
    pub(crate) fn new(path: &Path, follow: bool) -> Result<Self, PackError> {
        let bytes = path.as_os_str().as_bytes();
        let contents_only = bytes == b"." || bytes.ends_with(b"/.");
        // `..`, `/` and `x/..` have their name in the real path only. `path.file_name()` overlooks a last `/.`.
        let name = match path.file_name() {
            Some(name) => name.to_owned(),
            None => {
                let real = fs::canonicalize(path).map_err(|source| PackError::Read {
                    path: path.into(),
                    source,
                })?;
                real.file_name().unwrap_or(OsStr::new("root")).to_owned()
            }
        };
        Ok(Self {
            path: path.into(),
            name,
            contents_only,
            follow: follow || contents_only,
        })
    }

    /// The top entry's metadata: read before anything is asked of the daemon, so that a wrong path is the first error.
    pub(crate) fn check(&self) -> Result<Metadata, PackError> {
        let metadata = match self.follow {
            true => fs::metadata(&self.path),
            false => fs::symlink_metadata(&self.path),
        };
        let metadata = metadata.map_err(|source| PackError::Read {
            path: self.path.clone(),
            source,
        })?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_dir() && !kind.is_symlink() {
            return Err(PackError::Special(self.path.clone()));
        }
        Ok(metadata)
    }

    /// Writes the archive.
    pub(crate) fn pack(&self, to: impl Write, warnings: &mut Warnings) -> Result<(), PackError> {
        let metadata = self.check()?;
        let mut builder = Builder::new(to);
        builder.mode(HeaderMode::Complete);
        let mut packer = Packer {
            builder,
            links: HashMap::new(),
            warnings,
        };
        let path = match self.follow {
            true => fs::canonicalize(&self.path).map_err(|source| PackError::Read {
                path: self.path.clone(),
                source,
            })?,
            false => self.path.clone(),
        };
        packer.entry(&path, Path::new(&self.name), &metadata)?;
        if metadata.is_dir() {
            packer.tree(&path, Path::new(&self.name))?;
        }
        let mut to = packer.builder.into_inner().map_err(PackError::Send)?;
        to.flush().map_err(PackError::Send)
    }
}

struct Packer<'a, W: Write> {
    builder: Builder<W>,
    /// Where a file with several names was packed, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    warnings: &'a mut Warnings,
}

impl<W: Write> Packer<'_, W> {
    /// Packs what is below a directory, depth first, names in order. The stack is explicit: depth is the tree's choice.
    fn tree(&mut self, path: &Path, name: &Path) -> Result<(), PackError> {
        let mut stack = vec![(path.to_owned(), name.to_owned(), list(path)?)];
        while let Some((path, name, entries)) = stack.last_mut() {
            let Some(entry) = entries.pop() else {
                stack.pop();
                continue;
            };
            let (path, name) = (path.join(&entry), name.join(&entry));
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.warnings
                        .add(&format!("{} vanished, left out", path.display()));
                    continue;
                }
                Err(source) => return Err(PackError::Read { path, source }),
            };
            self.entry(&path, &name, &metadata)?;
            if metadata.is_dir() {
                let entries = list(&path)?;
                stack.push((path, name, entries));
            }
        }
        Ok(())
    }

    /// Packs one file.
    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), PackError> {
        let kind = metadata.file_type();
        if kind.is_file() && metadata.nlink() > 1 {
            match self.links.entry((metadata.dev(), metadata.ino())) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    let first = first.get().clone();
                    return self.link(EntryType::Link, name, first.as_os_str(), metadata);
                }
                std::collections::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(name.to_owned());
                }
            }
        }
        if kind.is_file() {
            self.file(path, name)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|source| PackError::Read {
                path: path.into(),
                source,
            })?;
            self.link(EntryType::Symlink, name, target.as_os_str(), metadata)
        } else if kind.is_dir() || kind.is_fifo() {
            let mut header = header(metadata);
            header.set_size(0);
            self.builder
                .append_data(&mut header, name, io::empty())
                .map_err(PackError::Send)
        } else {
            self.warnings
                .add(&format!("{} is a socket or a device, left out", path.display()));
            Ok(())
        }
    }

    fn file(&mut self, path: &Path, name: &Path) -> Result<(), PackError> {
        let read = |source| PackError::Read {
            path: path.into(),
            source,
        };
        // The file may have become a pipe or a link since it was looked at.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let mut file = match File::options().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.warnings
                    .add(&format!("{} vanished, left out", path.display()));
                return Ok(());
            }
            Err(source) => return Err(read(source)),
        };
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(PackError::Changed(path.into()));
        }
        if metadata.blocks().saturating_mul(512) < metadata.len() {
            return self.sparse(path, name, &mut file, &metadata);
        }
        let mut header = header(&metadata);
        // Exactly as many bytes as the header says, whatever happens to the file meanwhile.
        let mut data = Exactly {
            file,
            left: metadata.len(),
            failed: None,
        };
        let sent = self.builder.append_data(&mut header, name, &mut data);
        match data.failed {
            Some(source) => Err(read(source)),
            None if data.left > 0 && sent.is_ok() => Err(PackError::Changed(path.into())),
            None => sent.map_err(PackError::Send),
        }
    }

    /// A file with holes: only its data is sent.
    fn sparse(
        &mut self,
        path: &Path,
        name: &Path,
        file: &mut File,
        before: &Metadata,
    ) -> Result<(), PackError> {
        self.builder.append_file(name, file).map_err(PackError::Send)?;
        let after = file.metadata().map_err(|source| PackError::Read {
            path: path.into(),
            source,
        })?;
        // The map of holes was made first and the data read after it.
        match (before.len(), before.mtime(), before.mtime_nsec())
            == (after.len(), after.mtime(), after.mtime_nsec())
        {
            true => Ok(()),
            false => Err(PackError::Changed(path.into())),
        }
    }

    fn link(
        &mut self,
        kind: EntryType,
        name: &Path,
        target: &OsStr,
        metadata: &Metadata,
    ) -> Result<(), PackError> {
        let mut header = header(metadata);
        append_link(&mut self.builder, &mut header, kind, name, target.as_bytes()).map_err(PackError::Send)
    }
}

/// A header with everything but name and target.
fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    header.set_mode(metadata.mode() & 0o7777);
    header
}

/// Appends a link whose target is kept byte for byte; the tar crate's own function would tidy it up.
pub(super) fn append_link<W: Write>(
    builder: &mut Builder<W>,
    header: &mut Header,
    kind: EntryType,
    name: &Path,
    target: &[u8],
) -> io::Result<()> {
    header.set_entry_type(kind);
    header.set_size(0);
    // A target that does not fit goes ahead in an entry of its own, as GNU tar does it.
    if header.set_link_name_literal(target).is_err() {
        let mut long = Header::new_gnu();
        long.set_path("././@LongLink")?;
        long.set_entry_type(EntryType::GNULongLink);
        long.set_mode(0o644);
        long.set_uid(0);
        long.set_gid(0);
        long.set_mtime(0);
        long.set_size(
            u64::try_from(target.len())
                .map_err(io::Error::other)?
                .saturating_add(1),
        );
        long.set_cksum();
        builder.append(&long, target.chain(&b"\0"[..]))?;
    }
    builder.append_data(header, name, io::empty())
}

/// Names in a directory, last first, so that popping gives them in order.
fn list(path: &Path) -> Result<Vec<OsString>, PackError> {
    let read = |source| PackError::Read {
        path: path.into(),
        source,
    };
    let mut names = fs::read_dir(path)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(read)?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// Reads a number of bytes from a file; a shorter file ends early, and keeps the error apart from the writer's.
struct Exactly {
    file: File,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        match self.file.read(&mut buffer[..most]) {
            Ok(n) => {
                self.left -= u64::try_from(n).unwrap_or(0);
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.failed = Some(error);
                Err(told)
            }
        }
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
