//! A tar stream from a guest, unpacked on the host. The guest is hostile: it may send any bytes.
//!
//! What holds whatever it sends:
//! - Everything is made below the top entry's place. Directories are walked by descriptor, one component at a time, and
//!   no symbolic link is followed, neither one of the archive nor one that was there. `..` and absolute names are errors.
//! - Hard links join files of the tree only, and data is never written through an existing file: a file that is
//!   replaced gets a new inode.
//! - Directories that were there keep their mode and owner. Devices are not made. Set-user-id and set-group-id are
//!   dropped unless asked for.
//! - Names, depth, and what the archive may say between two files are bounded; so is memory. How much data comes is the
//!   user's choice, and Ctrl-C ends it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Archive, EntryType};

use super::destination::{Destination, DestinationError, Target};
use super::warnings::Warnings;

/// Most bytes between two entries: headers, long names, extended attributes, maps of holes.
const BETWEEN: u64 = 1 << 20;

/// Most directories above a file; each is an open descriptor.
const DEEPEST: usize = 200;

/// Longest name of a file in bytes, as Linux has it.
const LONGEST_NAME: usize = 255;

/// Longest target of a symbolic link in bytes, as Linux has it.
const LONGEST_TARGET: usize = 4095;

/// Bytes copied at a time; a run of zeros of this length becomes a hole.
const BLOCK: usize = 64 << 10;

/// What to keep of owners and modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Numeric owners; needs root.
    pub(crate) owners: bool,
    /// Set-user-id and set-group-id.
    pub(crate) special_modes: bool,
}

/// Why unpacking failed. Names are the archive's and may hold anything.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("the machine sent no usable archive: {0}")]
    Archive(io::Error),
    #[error("the machine sent an empty archive")]
    Empty,
    #[error("refused what the machine sent: {name:?} {problem}")]
    Refused { name: String, problem: &'static str },
    #[error("failed to write {name:?}: {source}")]
    Write { name: String, source: io::Error },
    #[error(transparent)]
    Destination(#[from] DestinationError),
}

/// Unpacks an archive, to its end.
pub(crate) fn unpack(
    from: impl Read,
    destination: &Destination,
    keep: Keep,
    warnings: &mut Warnings,
) -> Result<(), UnpackError> {
    let budget = Rc::new(Cell::new(Some(BETWEEN)));
    let mut archive = Archive::new(Metered {
        inner: from,
        budget: budget.clone(),
    });
    let mut tree: Option<Tree> = None;
    // The top is the guest's root: names begin with `./`.
    let mut dotted = false;
    let mut entries = archive.entries().map_err(UnpackError::Archive)?;
    loop {
        budget.set(Some(BETWEEN));
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(UnpackError::Archive)?;
        budget.set(None);
        if entry.header().entry_type() != EntryType::XGlobalHeader {
            let is_directory = entry.header().entry_type() == EntryType::Directory;
            dotted |= tree.is_none() && is_directory && is_dot(&entry.path_bytes());
            let name = Name::parse(&entry.path_bytes(), dotted)?;
            let tree = match &mut tree {
                Some(tree) => tree,
                None => {
                    let is_directory = is_directory || name.components.len() > 1;
                    tree.insert(Tree::begin(destination, &name, is_directory, keep)?)
                }
            };
            tree.entry(&name, &mut entry, warnings)?;
        }
        // What an entry of another kind carries is passed over here, and not counted against the next header.
        io::copy(&mut entry, &mut io::sink()).map_err(UnpackError::Archive)?;
    }
    tree.ok_or(UnpackError::Empty)?.finish()?;
    // Padding after the end; the sender waits until it is taken.
    budget.set(Some(BETWEEN));
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(UnpackError::Archive)?;
    Ok(())
}

/// A reader that fails when more than the budget is read: the tar crate reads long names and the like without a bound.
struct Metered<R> {
    inner: R,
    /// Bytes that may still be read; `None`: any number.
    budget: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(left) = self.budget.get() {
            let left = u64::try_from(read).ok().and_then(|read| left.checked_sub(read));
            if left.is_none() {
                return Err(io::Error::other("more than 1 MiB between two files"));
            }
            self.budget.set(left);
        }
        Ok(read)
    }
}

/// An entry's name, taken apart and found harmless.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    /// Neither empty nor `.` nor `..`, but for a first one that stands for the top entry; at least one.
    components: Vec<Vec<u8>>,
}

/// Whether a name stands for the directory that the archive was made in.
fn is_dot(bytes: &[u8]) -> bool {
    bytes == b"." || bytes == b"./"
}

impl Name {
    /// `dotted`: the top entry is `.`, which becomes every name's first component.
    fn parse(bytes: &[u8], dotted: bool) -> Result<Self, UnpackError> {
        let refused = |problem| UnpackError::Refused {
            name: shown(bytes),
            problem,
        };
        if bytes.first() == Some(&b'/') {
            return Err(refused("is an absolute name"));
        }
        if bytes.contains(&0) {
            return Err(refused("holds a NUL character"));
        }
        let mut components = if dotted { vec![b".".to_vec()] } else { Vec::new() };
        for component in bytes
            .split(|b| *b == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
        {
            if component == b".." {
                return Err(refused("points upwards"));
            }
            if component.len() > LONGEST_NAME {
                return Err(refused("is longer than 255 bytes"));
            }
            if components.len() > DEEPEST {
                return Err(refused("is deeper than 200 directories"));
            }
            components.push(component.to_vec());
        }
        if components.is_empty() {
            return Err(refused("is no name"));
        }
        Ok(Self { components })
    }

    fn shown(&self) -> String {
        shown(&self.components.join(&b'/'))
    }
}

fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]).into_owned()
}

/// Mode, owner and time of an entry.
#[derive(Debug, Clone)]
struct Attributes {
    mode: Mode,
    owner: Option<(Uid, Gid)>,
    times: Option<Timestamps>,
}

/// A directory on the way to the entry at work.
#[derive(Debug)]
struct Level {
    name: Vec<u8>,
    fd: OwnedFd,
    /// Set when the directory is left: it must stay writable until then, and its time changes with every file.
    pending: Option<Attributes>,
}

/// The tree being made. Directories stay open while entries below them come; archives are depth first, so that is a
/// path's worth.
#[derive(Debug)]
struct Tree {
    /// The archive's name of the top entry.
    top: Vec<u8>,
    /// Where the top entry goes.
    target: Target,
    /// The directories from the top downwards; the first is the top itself.
    levels: Vec<Level>,
    /// The top entry is a file: nothing may follow.
    complete: bool,
    keep: Keep,
}

impl Tree {
    fn begin(
        destination: &Destination,
        first: &Name,
        is_directory: bool,
        keep: Keep,
    ) -> Result<Self, UnpackError> {
        // The name is the user's; the archive's own counts only where the user's path ends in none.
        let mut destination = destination.clone();
        if destination.name.is_none() && first.components[0] != b"." {
            destination.name = Some(OsStr::from_bytes(&first.components[0]).to_owned());
        }
        let target = destination.resolve(is_directory)?;
        Ok(Self {
            top: first.components[0].clone(),
            target,
            levels: Vec::new(),
            complete: false,
            keep,
        })
    }

    /// Makes one entry.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the tar crate's list of types is open"
    )]
    fn entry(
        &mut self,
        name: &Name,
        entry: &mut tar::Entry<'_, impl Read>,
        warnings: &mut Warnings,
    ) -> Result<(), UnpackError> {
        let refused = |problem| UnpackError::Refused {
            name: name.shown(),
            problem,
        };
        if name.components[0] != self.top || self.complete {
            return Err(refused("is a second top entry"));
        }
        let attributes = self.attributes(entry).map_err(UnpackError::Archive)?;
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory {
            return self.descend(&name.components, Some(&attributes), name);
        }
        let write = |source: io::Error| UnpackError::Write {
            name: name.shown(),
            source,
        };
        let (last, above) = name
            .components
            .split_last()
            .ok_or_else(|| refused("is no name"))?;
        if above.is_empty() && !self.levels.is_empty() {
            return Err(refused("is a second top entry"));
        }
        self.descend(above, None, name)?;
        let (parent, file_name) = match (self.levels.last(), &self.target) {
            (Some(level), _) => (level.fd.as_fd(), OsStr::from_bytes(last)),
            (None, Target::Named { parent, name }) => (parent.as_fd(), name.as_os_str()),
            (None, Target::Contents(_)) => return Err(refused("is not a directory")),
        };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = entry.size();
                place(parent, file_name, |name| {
                    regular(parent, name, entry, size, &attributes)
                })
                .map_err(write)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                if target.is_empty() || target.len() > LONGEST_TARGET || target.contains(&0) {
                    return Err(refused("is a link whose target is no path"));
                }
                place(parent, file_name, |name| {
                    symlink(parent, name, OsStr::from_bytes(&target), &attributes)
                })
                .map_err(write)?;
            }
            EntryType::Link => {
                let target = Name::parse(&entry.link_name_bytes().unwrap_or_default(), self.top == b".")?;
                if target.components[0] != self.top || target.components.len() < 2 {
                    return Err(refused("is a hard link out of the tree"));
                }
                if target == *name {
                    return Err(refused("is a hard link to itself"));
                }
                let (last, above) = target
                    .components
                    .split_last()
                    .ok_or_else(|| refused("is no name"))?;
                let from = self.walk(above).map_err(write)?;
                let last = OsStr::from_bytes(last);
                let there = rustix::fs::statat(&from, last, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| write(e.into()))?;
                // The link itself where it is one: linkat(2) without AT_SYMLINK_FOLLOW does not follow it.
                let kind = FileType::from_raw_mode(there.st_mode);
                if kind != FileType::RegularFile && kind != FileType::Symlink {
                    return Err(refused("is a hard link to something that is no file"));
                }
                place(parent, file_name, |name| {
                    Ok(rustix::fs::linkat(&from, last, parent, name, AtFlags::empty())?)
                })
                .map_err(write)?;
            }
            EntryType::Fifo => {
                place(parent, file_name, |name| fifo(parent, name, &attributes)).map_err(write)?;
            }
            EntryType::Char | EntryType::Block => {
                warnings.add(&format!("{} is a device, left out", name.shown()));
            }
            _ => warnings.add(&format!("{} is of type {kind:?}, left out", name.shown())),
        }
        self.complete = above.is_empty();
        Ok(())
    }

    /// Goes to a directory, making what is missing. With `attributes` the last component is an entry of the archive.
    fn descend(
        &mut self,
        path: &[Vec<u8>],
        attributes: Option<&Attributes>,
        name: &Name,
    ) -> Result<(), UnpackError> {
        let common = self
            .levels
            .iter()
            .zip(path)
            .take_while(|(level, part)| level.name == **part)
            .count();
        self.leave(common)?;
        for (depth, part) in path.iter().enumerate().skip(common) {
            let last = depth + 1 == path.len();
            let (fd, made) = self.enter(part).map_err(|source| UnpackError::Write {
                name: name.shown(),
                source,
            })?;
            let pending = if made && last { attributes.cloned() } else { None };
            self.levels.push(Level {
                name: part.clone(),
                fd,
                pending,
            });
        }
        Ok(())
    }

    /// Opens or makes a directory below the last level (or the top). Says whether it was made.
    fn enter(&self, part: &[u8]) -> io::Result<(OwnedFd, bool)> {
        let (parent, name) = match (self.levels.last(), &self.target) {
            (Some(level), _) => (level.fd.as_fd(), OsStr::from_bytes(part)),
            (None, Target::Named { parent, name }) => (parent.as_fd(), name.as_os_str()),
            (None, Target::Contents(directory)) => return Ok((directory.try_clone()?, false)),
        };
        let made = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno.into()),
        };
        let fd = open_below(parent, name)?;
        if made {
            // One that the archive never names gets a usual mode.
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
        }
        Ok((fd, made))
    }

    /// The directory of a hard link's target, opened afresh from the top, through no link.
    fn walk(&self, path: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let Some(top) = self.levels.first() else {
            return Err(Errno::NOENT.into());
        };
        let mut fd = top.fd.try_clone()?;
        for part in &path[1..] {
            fd = open_below(&fd, OsStr::from_bytes(part))?;
        }
        Ok(fd)
    }

    /// Leaves directories until `depth` are left, setting their attributes.
    fn leave(&mut self, depth: usize) -> Result<(), UnpackError> {
        while self.levels.len() > depth {
            let Some(level) = self.levels.pop() else { break };
            if let Some(attributes) = level.pending {
                apply(&level.fd, &attributes).map_err(|source| UnpackError::Write {
                    name: shown(&level.name),
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), UnpackError> {
        self.leave(0)
    }

    fn attributes(&self, entry: &tar::Entry<'_, impl Read>) -> io::Result<Attributes> {
        let header = entry.header();
        let mask = if self.keep.special_modes { 0o7777 } else { 0o1777 };
        let owner = match self.keep.owners {
            true => Some((
                Uid::from_raw(id(header.uid()?)?),
                Gid::from_raw(id(header.gid()?)?),
            )),
            false => None,
        };
        // A time that the clock cannot hold is not worth a failure.
        let times = i64::try_from(header.mtime()?).ok().map(|seconds| {
            let time = Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            };
            Timestamps {
                last_access: time,
                last_modification: time,
            }
        });
        Ok(Attributes {
            mode: Mode::from_raw_mode(header.mode()? & mask),
            owner,
            times,
        })
    }
}

/// A numeric owner; the largest number means "unchanged" to chown(2) and is nobody's.
fn id(id: u64) -> io::Result<u32> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| io::Error::other("an owner's number is too large"))
}

/// Opens a directory of a directory, never through a link.
fn open_below(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            Err(io::Error::other("a file or a link is in the way of a directory"))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a file under a name, or under a passing name that then takes the place of what is there: whoever reads the old
/// one is not disturbed, and a failure leaves it as it was.
fn place(parent: impl AsFd, name: &OsStr, make: impl FnOnce(&OsStr) -> io::Result<()>) -> io::Result<()> {
    match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => make(name),
        Err(errno) => Err(errno.into()),
        Ok(there) => match FileType::from_raw_mode(there.st_mode) {
            FileType::Directory => Err(io::Error::other("a directory is in the way of a file")),
            FileType::RegularFile | FileType::Symlink => {
                let passing = passing_name();
                make(&passing)?;
                let placed = rustix::fs::renameat(&parent, &*passing, &parent, name);
                // Both names of one file: rename(2) does nothing then, and the passing name stays.
                rustix::fs::unlinkat(&parent, &*passing, AtFlags::empty()).ok();
                Ok(placed?)
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Err(io::Error::other("a device, a pipe or a socket is in the way")),
        },
    }
}

/// A name that nothing else uses: this process's number and a counter.
fn passing_name() -> std::ffi::OsString {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!(".banger-cp-{}-{number}", std::process::id()).into()
}

/// Makes a file that is not there yet; takes it away again when its content does not come whole.
fn regular(
    parent: impl AsFd,
    name: &OsStr,
    from: &mut impl Read,
    size: u64,
    attributes: &Attributes,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(
        &parent,
        name,
        flags,
        Mode::from_raw_mode(0o600),
    )?);
    let written = fill(&file, from, size).and_then(|()| apply(&file, attributes));
    if written.is_err() {
        rustix::fs::unlinkat(&parent, name, AtFlags::empty()).ok();
    }
    written
}

/// Writes what comes, with holes for long runs of zeros.
fn fill(file: &File, from: &mut impl Read, size: u64) -> io::Result<()> {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut buffer = vec![0; BLOCK.min(usize::try_from(size).unwrap_or(BLOCK)).max(1)];
    let mut at: u64 = 0;
    while at < size {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends within the file",
            ));
        }
        let block = &buffer[..filled];
        if filled < BLOCK || block != ZEROS {
            file.write_all_at(block, at)?;
        }
        at = at.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
    }
    // Gives a hole at the end its length.
    file.set_len(size)
}

fn symlink(parent: impl AsFd, name: &OsStr, target: &OsStr, attributes: &Attributes) -> io::Result<()> {
    rustix::fs::symlinkat(target, &parent, name)?;
    let applied = (|| {
        if let Some((uid, gid)) = attributes.owner {
            rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if let Some(times) = &attributes.times {
            rustix::fs::utimensat(&parent, name, times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    })();
    if applied.is_err() {
        rustix::fs::unlinkat(&parent, name, AtFlags::empty()).ok();
    }
    applied
}

fn fifo(parent: impl AsFd, name: &OsStr, attributes: &Attributes) -> io::Result<()> {
    rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    // Opened for the attributes' sake: by descriptor there is no second look-up of the name. Not blocking, because
    // nobody writes.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    apply(&fd, attributes)
}

/// Sets owner, mode and time, in this order: chown(2) clears special modes, and all of them change times.
fn apply(fd: impl AsFd, attributes: &Attributes) -> io::Result<()> {
    if let Some((uid, gid)) = attributes.owner {
        rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(&fd, attributes.mode)?;
    if let Some(times) = &attributes.times {
        rustix::fs::futimens(&fd, times)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
