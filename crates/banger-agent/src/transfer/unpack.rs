//! From a tar stream into the guest's file system.
//!
//! Nothing in the archive can reach outside its destination: names are taken apart strictly ([`super::place`]), and
//! every directory is opened beneath the destination without following any link (`openat2` with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`), so that neither a link in the archive nor one that was there before is ever a way out.
//!
//! Each file is made under a temporary name and renamed, so what it replaces is whole until it is replaced. Directories
//! that exist keep their own owner and mode (copying into `/tmp` must not change `/tmp`); those that are made get
//! theirs when the archive has left them. Runs of zeros become holes.

use super::bridge::{Allowance, ChunkReader};
use super::destination::destination;
use super::io_failure;
use super::place::{self, Mapping, NameError};
use crate::account::Account;
use crate::sparse::{CopyError, write_sparse};
use banger_agent_api::proto::{UploadReply, UploadStart};
use banger_agent_api::{Failure, FailureKind};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    fchmod, fchown, futimens, linkat, mkdirat, mknodat, openat, openat2, renameat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Archive, Entry, EntryType, Header};

/// Bytes which names and extended headers of one entry may take in the archive.
const MAX_METADATA: u64 = 1024 * 1024;

/// Unpacks a whole archive. Blocks.
pub(super) fn unpack(
    start: &UploadStart,
    account: &Account,
    path: &Path,
    reader: ChunkReader,
) -> Result<UploadReply, Failure> {
    let allowance = reader.allowance();
    let mut archive = Archive::new(reader);
    let reply = unpack_entries(start, account, path, &mut archive, &allowance)?;
    allowance.set(u64::MAX);
    archive
        .into_inner()
        .drain()
        .map_err(|error| archive_failure(&error))?;
    Ok(reply)
}

fn unpack_entries(
    start: &UploadStart,
    account: &Account,
    path: &Path,
    archive: &mut Archive<ChunkReader>,
    allowance: &Allowance,
) -> Result<UploadReply, Failure> {
    let mut entries = archive.entries().map_err(|error| archive_failure(&error))?;
    let mut unpacker: Option<Unpacker> = None;
    loop {
        allowance.set(MAX_METADATA);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|error| archive_failure(&error))?;
        allowance.set(u64::MAX);
        let components = names(&entry.path_bytes())?;
        let unpacker = match &mut unpacker {
            Some(unpacker) => unpacker,
            None => {
                let is_dir = entry.header().entry_type().is_dir() || components.len() > 1;
                let owner = (!start.keep_owner).then_some((account.uid, account.gid));
                let slash = start.path.ends_with('/') || start.path.ends_with("/.");
                let top = components.first().cloned();
                let (base, mapping) = destination(path, top, is_dir, start.contents_only, slash)?;
                unpacker.insert(Unpacker::new(base, mapping, owner, path.to_owned()))
            }
        };
        unpacker.entry(&mut entry, &components)?;
    }
    match unpacker {
        Some(unpacker) => unpacker.finish(),
        None => Err(bad_archive("unpack an archive: it has no entries")),
    }
}

/// What an entry's owner, mode and time become.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    modified: Timespec,
}

impl Attributes {
    fn times(&self) -> Timestamps {
        let omitted = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        Timestamps {
            last_access: omitted,
            last_modification: self.modified,
        }
    }
}

/// A directory that was made, and is complete once an entry outside it comes.
#[derive(Debug)]
struct MadeDirectory {
    path: Vec<OsString>,
    attributes: Attributes,
}

#[derive(Debug)]
struct Unpacker {
    base: OwnedFd,
    mapping: Mapping,
    /// Everything becomes theirs; `None` keeps the archive's numbers.
    owner: Option<(u32, u32)>,
    /// For messages.
    destination: PathBuf,
    /// Ancestors of the present entry which were made, outermost first.
    made: Vec<MadeDirectory>,
    /// The directory of the last entry, which most often is that of the next.
    parent: Option<(Vec<OsString>, OwnedFd)>,
    temporary: u64,
    entries: u64,
    bytes: u64,
}

impl Unpacker {
    fn new(base: OwnedFd, mapping: Mapping, owner: Option<(u32, u32)>, destination: PathBuf) -> Self {
        Self {
            base,
            mapping,
            owner,
            destination,
            made: Vec::new(),
            parent: None,
            temporary: 0,
            entries: 0,
            bytes: 0,
        }
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, components: &[OsString]) -> Result<(), Failure> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = self
            .mapping
            .apply(components)
            .map_err(|error| name_failure(components, error))?;
        let attributes = self.attributes(entry.header())?;
        self.leave_directories(&path)?;
        let Some((name, parents)) = path.split_last() else {
            // The destination itself, which exists; it keeps its attributes.
            return if kind.is_dir() {
                Ok(())
            } else {
                Err(bad_archive("unpack an archive: its top is no directory"))
            };
        };
        self.enter(parents)?;
        match kind {
            EntryType::Directory => self.directory(&path, name, attributes)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, &path, name, attributes)?;
            }
            EntryType::Symlink => {
                let target = link_target(entry)?;
                self.replace(&path, name, |parent, temporary| {
                    symlinkat(OsStr::from_bytes(&target), parent, temporary)?;
                    chown_link(parent, temporary, attributes)
                })?;
            }
            EntryType::Link => self.hard_link(entry, &path, name)?,
            EntryType::Char => {
                self.node(entry.header(), &path, name, FileType::CharacterDevice, attributes)?;
            }
            EntryType::Block => self.node(entry.header(), &path, name, FileType::BlockDevice, attributes)?,
            EntryType::Fifo => self.node(entry.header(), &path, name, FileType::Fifo, attributes)?,
            // The reader consumes the long names and the extended headers of entries itself.
            EntryType::GNULongName
            | EntryType::GNULongLink
            | EntryType::XHeader
            | EntryType::XGlobalHeader => {
                return Err(bad_archive(
                    "unpack an archive: an extended header belongs to no entry",
                ));
            }
            _ => {
                let message = format!(
                    "unpack an archive: an entry has the unknown type {}",
                    kind.as_byte()
                );
                return Err(bad_archive(&message));
            }
        }
        self.entries += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<UploadReply, Failure> {
        while let Some(made) = self.made.pop() {
            self.complete(&made)?;
        }
        Ok(UploadReply {
            entries: self.entries,
            bytes: self.bytes,
        })
    }

    fn attributes(&self, header: &Header) -> Result<Attributes, Failure> {
        let unreadable = |error: io::Error| archive_failure(&error);
        let number = |value: u64| {
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| bad_archive("unpack an archive: an owner's number is out of range"))
        };
        let (uid, gid) = match self.owner {
            Some(owner) => owner,
            None => (
                number(header.uid().map_err(unreadable)?)?,
                number(header.gid().map_err(unreadable)?)?,
            ),
        };
        let seconds = header.mtime().map_err(unreadable)?;
        let modified = Timespec {
            tv_sec: i64::try_from(seconds).unwrap_or(0),
            tv_nsec: 0,
        };
        Ok(Attributes {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            mode: Mode::from_raw_mode(header.mode().map_err(unreadable)? & 0o7777),
            modified,
        })
    }

    /// Completes the directories which the entry at `path` is not below.
    fn leave_directories(&mut self, path: &[OsString]) -> Result<(), Failure> {
        while let Some(made) = self.made.pop_if(|made| !path.starts_with(&made.path)) {
            self.complete(&made)?;
        }
        Ok(())
    }

    fn complete(&mut self, made: &MadeDirectory) -> Result<(), Failure> {
        let attributes = made.attributes;
        let result = self.open_below(&made.path, OFlags::RDONLY).and_then(|directory| {
            fchown(&directory, Some(attributes.uid), Some(attributes.gid))?;
            fchmod(&directory, attributes.mode)?;
            Ok(futimens(&directory, &attributes.times())?)
        });
        result.map_err(|error| self.failure("finish", &made.path, &error))
    }

    /// Opens a directory below the base without following links.
    fn open_below(&self, path: &[OsString], flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let relative: PathBuf = if path.is_empty() {
            PathBuf::from(".")
        } else {
            path.iter().collect()
        };
        Ok(openat2(&self.base, relative, flags, Mode::empty(), resolve)?)
    }

    /// Makes `self.parent` the directory at `path`, with any that the archive does not mention.
    fn enter(&mut self, path: &[OsString]) -> Result<(), Failure> {
        if self.parent.as_ref().is_some_and(|(current, _)| current == path) {
            return Ok(());
        }
        let fd = match self.open_below(path, OFlags::PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for depth in 1..=path.len() {
                    let (name, parents) = (&path[depth - 1], &path[..depth - 1]);
                    let made = self.open_below(parents, OFlags::PATH).and_then(|parent| {
                        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                            Ok(()) | Err(Errno::EXIST) => Ok(()),
                            Err(error) => Err(error.into()),
                        }
                    });
                    made.map_err(|error| self.failure("make", &path[..depth], &error))?;
                }
                self.open_below(path, OFlags::PATH)
            }
            result => result,
        };
        let fd = fd.map_err(|error| self.failure("open", path, &error))?;
        self.parent = Some((path.to_vec(), fd));
        Ok(())
    }

    /// The directory which `enter` has opened.
    fn parent(&self) -> &OwnedFd {
        self.parent.as_ref().map_or(&self.base, |(_, fd)| fd)
    }

    fn directory(&mut self, path: &[OsString], name: &OsStr, attributes: Attributes) -> Result<(), Failure> {
        match mkdirat(self.parent(), name, Mode::RWXU) {
            Ok(()) => {
                self.made.push(MadeDirectory {
                    path: path.to_vec(),
                    attributes,
                });
                Ok(())
            }
            Err(Errno::EXIST) => {
                let is_dir = statat(self.parent(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
                if is_dir {
                    Ok(())
                } else {
                    Err(self.failure("make", path, &Errno::NOTDIR.into()))
                }
            }
            Err(error) => Err(self.failure("make", path, &error.into())),
        }
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &[OsString],
        name: &OsStr,
        attributes: Attributes,
    ) -> Result<(), Failure> {
        let size = entry.size();
        let mut archive_error = None;
        self.replace(path, name, |parent, temporary| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = File::from(openat(parent, temporary, flags, Mode::RUSR | Mode::WUSR)?);
            if let Err(error) = write_sparse(entry, &file, size) {
                match error {
                    CopyError::Write(error) => return Err(error),
                    CopyError::Read(error) => archive_error = Some(error),
                }
                return Err(io::ErrorKind::InvalidData.into());
            }
            // Changing the owner takes setuid away, so the mode comes last.
            fchown(&file, Some(attributes.uid), Some(attributes.gid))?;
            fchmod(&file, attributes.mode)?;
            Ok(futimens(&file, &attributes.times())?)
        })
        .map_err(|failure| archive_error.as_ref().map_or(failure, archive_failure))?;
        self.bytes += size;
        Ok(())
    }

    fn node(
        &mut self,
        header: &Header,
        path: &[OsString],
        name: &OsStr,
        file_type: FileType,
        attributes: Attributes,
    ) -> Result<(), Failure> {
        let device = device_number(header)?;
        self.replace(path, name, |parent, temporary| {
            mknodat(parent, temporary, file_type, Mode::empty(), device)?;
            chown_link(parent, temporary, attributes)?;
            // Safe by name: this call has made the file, in a directory that was opened without following links.
            Ok(rustix::fs::chmodat(
                parent,
                temporary,
                attributes.mode,
                AtFlags::empty(),
            )?)
        })
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        path: &[OsString],
        name: &OsStr,
    ) -> Result<(), Failure> {
        let components = names(&link_target(entry)?)?;
        let target = self
            .mapping
            .apply(&components)
            .map_err(|error| name_failure(&components, error))?;
        let Some((target_name, parents)) = target.split_last() else {
            return Err(bad_archive(
                "unpack an archive: a hard link's target is the destination",
            ));
        };
        let source = self
            .open_below(parents, OFlags::PATH)
            .map_err(|error| self.failure("find a hard link's target", &target, &error))?;
        self.replace(path, name, |parent, temporary| {
            Ok(linkat(&source, target_name, parent, temporary, AtFlags::empty())?)
        })
    }

    /// Makes something under a temporary name in the present directory, then gives it its name.
    fn replace(
        &mut self,
        path: &[OsString],
        name: &OsStr,
        make: impl FnOnce(&OwnedFd, &OsStr) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.temporary += 1;
        let temporary = OsString::from(format!(
            ".banger-{}-{:p}-{}",
            std::process::id(),
            self,
            self.temporary
        ));
        let parent = self.parent();
        let result = make(parent, &temporary).and_then(|()| Ok(renameat(parent, &temporary, parent, name)?));
        // Also after success: renaming one hard link of a file over another does nothing (rename(2)).
        let _already_renamed = unlinkat(parent, &temporary, AtFlags::empty());
        result.map_err(|error| self.failure("write", path, &error))
    }

    fn failure(&self, doing: &str, path: &[OsString], error: &io::Error) -> Failure {
        let shown: PathBuf = match &self.mapping.becomes {
            // The first component stands for the destination's last, or comes below it.
            Some(first) if self.destination.file_name() == Some(first.as_os_str()) => self
                .destination
                .iter()
                .map(OsStr::to_owned)
                .chain(path.iter().skip(1).cloned())
                .collect(),
            Some(_) | None => self
                .destination
                .iter()
                .map(OsStr::to_owned)
                .chain(path.iter().cloned())
                .collect(),
        };
        io_failure(doing, &shown, error)
    }
}

fn chown_link(parent: impl AsFd, name: &OsStr, attributes: Attributes) -> io::Result<()> {
    let parent = parent.as_fd();
    chownat(
        parent,
        name,
        Some(attributes.uid),
        Some(attributes.gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(utimensat(
        parent,
        name,
        &attributes.times(),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn device_number(header: &Header) -> Result<u64, Failure> {
    let part = |value: io::Result<Option<u32>>| value.map_err(|error| archive_failure(&error));
    let major = part(header.device_major())?.unwrap_or(0);
    let minor = part(header.device_minor())?.unwrap_or(0);
    Ok(rustix::fs::makedev(major, minor))
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> Result<Vec<u8>, Failure> {
    match entry.link_name_bytes() {
        Some(target) if !target.is_empty() && !target.contains(&0) => Ok(target.into_owned()),
        Some(_) | None => Err(bad_archive("unpack an archive: a link has no target")),
    }
}

fn names(name: &[u8]) -> Result<Vec<OsString>, Failure> {
    place::components(name).map_err(|error| {
        let shown = String::from_utf8_lossy(&name[..name.len().min(256)]).into_owned();
        bad_name(&shown, error)
    })
}

fn name_failure(components: &[OsString], error: NameError) -> Failure {
    let path: PathBuf = components.iter().collect();
    bad_name(&path.to_string_lossy(), error)
}

fn bad_name(name: &str, error: NameError) -> Failure {
    Failure::new(
        FailureKind::BadArchive,
        name,
        format!("unpack an archive's entry {name:?}: {error}"),
    )
}

fn bad_archive(message: &str) -> Failure {
    Failure::new(FailureKind::BadArchive, "archive", message)
}

/// A failure to read the archive: cut off by the client's going away, or malformed.
fn archive_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        let message = "unpack an archive: the client went away before its end";
        return Failure::new(FailureKind::Incomplete, "archive", message);
    }
    bad_archive(&format!("unpack an archive: {error}"))
}
