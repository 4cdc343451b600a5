//! From the guest's file system into a tar stream with one top entry.
//!
//! What cannot be in an archive (sockets) is left out. A file which changes while it is read is cut or padded with zeros
//! to the size its header has promised, as GNU tar does.

use super::bridge::ChunkWriter;
use super::io_failure;
use banger_agent_api::proto::DownloadStarted;
use banger_agent_api::{Failure, FailureKind};
use rustix::fs::{OFlags, major, minor};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, ReadDir};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Directories within directories; each level keeps one open.
const MAX_DEPTH: usize = 512;

/// Files with several names that are remembered. Beyond that, each name becomes a file of its own.
const MAX_HARD_LINKS: usize = 65536;

/// What is to be packed.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    name: OsString,
    metadata: Metadata,
}

impl Source {
    /// Looks at `path`.
    pub(super) fn open(path: &Path, follow_link: bool) -> Result<Self, Failure> {
        // The name is the request's; only what it stands for is looked up elsewhere.
        let name = match path.file_name() {
            Some(name) => name.to_owned(),
            // "/", or a path that ends in "..": the directory's real name.
            None => path
                .canonicalize()
                .map_err(|error| io_failure("find", path, &error))?
                .file_name()
                .unwrap_or(OsStr::new("."))
                .to_owned(),
        };
        let path = if follow_link {
            path.canonicalize()
        } else {
            Ok(path.to_owned())
        };
        let path = path.map_err(|error| io_failure("find", Path::new(&name), &error))?;
        let metadata = path
            .symlink_metadata()
            .map_err(|error| io_failure("find", &path, &error))?;
        if metadata.file_type().is_socket() {
            let message = format!("copy {} from the guest: it is a socket", path.display());
            return Err(Failure::new(
                FailureKind::InvalidRequest,
                path.to_string_lossy(),
                message,
            ));
        }
        Ok(Self { path, name, metadata })
    }

    /// The first message of the reply.
    pub(super) fn describe(&self) -> DownloadStarted {
        DownloadStarted {
            name: self.name.to_string_lossy().into_owned(),
            is_dir: self.metadata.is_dir(),
        }
    }
}

/// Writes the whole archive. Blocks.
pub(super) fn pack(source: &Source, writer: ChunkWriter) -> Result<(), Failure> {
    let mut packer = Packer {
        builder: Builder::new(writer),
        links: HashMap::new(),
    };
    packer.tree(source)?;
    let written = packer.builder.into_inner().and_then(|mut writer| writer.flush());
    written.map_err(|error| io_failure("send", &source.path, &error))
}

struct Packer {
    builder: Builder<ChunkWriter>,
    /// Device and inode of files with several names, and the name each was packed under.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Packer {
    fn tree(&mut self, source: &Source) -> Result<(), Failure> {
        let top = PathBuf::from(&source.name);
        self.entry(&source.path, &top, &source.metadata)?;
        if !source.metadata.is_dir() {
            return Ok(());
        }
        let mut open: Vec<(PathBuf, PathBuf, ReadDir)> = Vec::new();
        open.push(read_dir(source.path.clone(), top)?);
        while let Some((path, name, directory)) = open.last_mut() {
            let entry = match directory.next() {
                Some(entry) => entry.map_err(|error| io_failure("read", path, &error))?,
                None => {
                    open.pop();
                    continue;
                }
            };
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since its directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(io_failure("look at", &path, &error)),
            };
            self.entry(&path, &name, &metadata)?;
            if metadata.is_dir() {
                if open.len() >= MAX_DEPTH {
                    let message = format!("copy {} from the guest: it is too deep", path.display());
                    return Err(Failure::new(FailureKind::System, path.to_string_lossy(), message));
                }
                open.push(read_dir(path, name)?);
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), Failure> {
        let kind = metadata.file_type();
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        let failure = |error: io::Error| io_failure("pack", path, &error);

        if metadata.nlink() > 1 && !kind.is_dir() {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode) {
                header.set_entry_type(EntryType::Link);
                return self
                    .builder
                    .append_link(&mut header, name, first)
                    .map_err(failure);
            }
            if self.links.len() < MAX_HARD_LINKS {
                self.links.insert(inode, name.to_owned());
            }
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            // The slash at the end is what older readers know a directory by.
            self.builder
                .append_data(&mut header, name.join(""), io::empty())
                .map_err(failure)
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(path).map_err(failure)?;
            self.builder
                .append_link(&mut header, name, target)
                .map_err(failure)
        } else if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            // Should the file have become a pipe or a link meanwhile: neither hang on it nor follow it.
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let flags = i32::try_from(flags.bits()).unwrap_or_default();
            let file = File::options()
                .read(true)
                .custom_flags(flags)
                .open(path)
                .map_err(failure)?;
            let contents = file.chain(io::repeat(0)).take(metadata.len());
            self.builder
                .append_data(&mut header, name, contents)
                .map_err(failure)
        } else if kind.is_socket() {
            Ok(())
        } else {
            header.set_entry_type(if kind.is_char_device() {
                EntryType::Char
            } else if kind.is_block_device() {
                EntryType::Block
            } else {
                EntryType::Fifo
            });
            if !kind.is_fifo() {
                header.set_device_major(major(metadata.rdev())).map_err(failure)?;
                header.set_device_minor(minor(metadata.rdev())).map_err(failure)?;
            }
            self.builder
                .append_data(&mut header, name, io::empty())
                .map_err(failure)
        }
    }
}

fn read_dir(path: PathBuf, name: PathBuf) -> Result<(PathBuf, PathBuf, ReadDir), Failure> {
    match fs::read_dir(&path) {
        Ok(directory) => Ok((path, name, directory)),
        Err(error) => Err(io_failure("read", &path, &error)),
    }
}
