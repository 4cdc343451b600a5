//! Filling a work disk: the image's own home directory and what the host has put on the disk for it, copied once, whole or
//! not at all.
//!
//! ```text
//! no `home` on the disk:  remove `home.new` (a crash left it) → copy into `home.new` → sync → rename to `home` → sync
//!                         → remove `seed`
//! `home` on the disk:     nothing to do, whatever the image has; but remove a `seed` that a crash left
//! ```
//!
//! What comes first wins, name by name; directories that several have are one, with the attributes of the first:
//!
//! ```text
//! the image's home  →  seed/template, or where there is none the image's /etc/skel  →  seed/setup
//! ```
//!
//! A disk without `seed` (made by a release before there were any) gets the image's home alone.
//!
//! Owners, modes, times, extended attributes (capabilities and ACLs among them), symbolic links, hard links, devices and
//! holes are kept. Sockets are left out: nobody listens any more.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fsync, lgetxattr, linkat, llistxattr, lsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    syncfs, utimensat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sparse::{CopyError, write_sparse};

/// The user's files on the work disk.
pub(super) const HOME: &str = "home";
const FRESH: &str = "home.new";

/// What the host has put there (`banger-engine/src/image/seed/contents.rs`), and its parts: the user's, and Banger's own.
const SEED: &str = "seed";
const TEMPLATE: &str = "seed/template";
const SETUP: &str = "seed/setup";

/// Directories within directories; each level keeps two open.
const MAX_DEPTH: usize = 256;

/// Files with several names that are remembered. Beyond that, each name becomes a file of its own.
const MAX_HARD_LINKS: usize = 65536;

/// The kernel's bounds on one file's attribute names and on one value (xattr(7)).
const MAX_NAMES: usize = 64 * 1024;
const MAX_VALUE: usize = 64 * 1024;

/// Why a work disk could not be filled.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub(super) struct SeedError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> SeedError {
    let path = path.to_owned();
    move |error| SeedError {
        doing,
        path,
        source: error.into(),
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes sure that the disk mounted at `disk` has a `home`; where it has none, it becomes a copy of the directory
/// `source`, with what the disk's seed adds, or `skeleton`, the image's own, where the seed says nothing of that. Tells
/// whether it was made.
pub(super) fn fill(source: &OwnedFd, skeleton: Option<&OwnedFd>, disk: &Path) -> Result<bool, SeedError> {
    let (home, seed) = (disk.join(HOME), disk.join(SEED));
    match fs::symlink_metadata(&home) {
        Ok(_) => return remove(&seed).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", &home)(error)),
    }
    let fresh = disk.join(FRESH);
    remove(&fresh)?;
    let top = openat(CWD, disk, DIRECTORY, Mode::empty()).map_err(failed("open", disk))?;
    let stat = rustix::fs::fstat(source).map_err(failed("look at", &home))?;
    let name = CString::new(FRESH).unwrap_or_default();
    mkdirat(&top, &name, Mode::RWXU).map_err(failed("make", &fresh))?;
    let mut copy = Copy {
        top: openat(&top, &name, DIRECTORY, Mode::empty()).map_err(failed("open", &fresh))?,
        links: HashMap::new(),
    };
    let into = copy.top.try_clone().map_err(failed("open", &fresh))?;
    copy.contents(source, &into, Path::new(""), MAX_DEPTH)?;
    if seed.exists() {
        let template = below(&top, TEMPLATE)?;
        let setup = below(&top, SETUP)?;
        for more in [template.as_ref().or(skeleton), setup.as_ref()]
            .into_iter()
            .flatten()
        {
            copy.contents(more, &into, Path::new(""), MAX_DEPTH)?;
        }
    }
    // The directory itself last, as every directory: what is made in it changes its times.
    attributes(&opened(source), &opened(&into), &stat, Path::new("."))?;
    // What the name `home` stands for has to be on the disk before the name is.
    syncfs(&top).map_err(failed("sync", disk))?;
    fs::rename(&fresh, &home).map_err(failed("make", &home))?;
    fsync(&top).map_err(failed("sync", disk))?;
    remove(&seed)?;
    Ok(true)
}

/// Removes a directory with all in it; one that is gone already is fine.
fn remove(path: &Path) -> Result<(), SeedError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Opens a directory of the disk, which nobody but the host and this has written to so far.
fn below(top: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, SeedError> {
    match openat(top, path, DIRECTORY, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(failed("open", Path::new(path))(error)),
    }
}

/// A directory, or an entry of one, as a path that no link can lead astray.
fn opened(directory: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/.", directory.as_fd().as_raw_fd()))
}

struct Copy {
    top: OwnedFd,
    /// Inodes of files with several names, and the path below `top` of the first.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    /// Copies everything in a directory into another, where it is not there yet; `path` is where both are below their tops.
    fn contents(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path, depth: usize) -> Result<(), SeedError> {
        let entries = Dir::read_from(from).map_err(failed("read", path))?;
        for entry in entries {
            let entry = entry.map_err(failed("read", path))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", &path))?;
            self.entry(from, to, name, &stat, &path, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        stat: &Stat,
        path: &Path,
        depth: usize,
    ) -> Result<(), SeedError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        match statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("look at", path)(error)),
            Ok(there) => {
                let both = [kind, FileType::from_raw_mode(there.st_mode)];
                if both == [FileType::Directory; 2] {
                    return self.directory(from, to, name, path, depth);
                }
                return Ok(());
            }
        }
        if stat.st_nlink > 1 && kind != FileType::Directory {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                return linkat(&self.top, first, to, name, AtFlags::empty()).map_err(failed("link", path));
            }
            if self.links.len() < MAX_HARD_LINKS {
                self.links.insert(inode, path.to_owned());
            }
        }
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU).map_err(failed("make", path))?;
                self.directory(from, to, name, path, depth)?;
            }
            FileType::RegularFile => file(from, to, name, stat, path)?,
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new()).map_err(failed("read", path))?;
                symlinkat(target, to, name).map_err(failed("make", path))?;
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)
                    .map_err(failed("make", path))?;
            }
            FileType::Socket | FileType::Unknown => return Ok(()),
        }
        let name = OsStr::from_bytes(name.to_bytes());
        attributes(&opened(from).join(name), &opened(to).join(name), stat, path)
    }

    /// Copies what is in a directory into one of that name that is there.
    fn directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), SeedError> {
        if depth == 0 {
            let error = io::Error::other("directories are too deep within directories");
            return Err(failed("copy", path)(error));
        }
        let below = openat(from, name, DIRECTORY, Mode::empty()).map_err(failed("open", path))?;
        let there = openat(to, name, DIRECTORY, Mode::empty()).map_err(failed("open", path))?;
        self.contents(&below, &there, path, depth - 1)
    }
}

/// Copies a file's contents into a new one.
fn file(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat, path: &Path) -> Result<(), SeedError> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(from, name, read, Mode::empty()).map_err(failed("open", path))?;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let made = openat(to, name, write, Mode::RUSR | Mode::WUSR).map_err(failed("make", path))?;
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    write_sparse(File::from(source), &File::from(made), size).map_err(|error| match error {
        CopyError::Read(error) => failed("read", path)(error),
        CopyError::Write(error) => failed("write", path)(error),
    })
}

/// Gives `to` what `from` has beside its contents. The order matters: a change of owner takes the set-id bits and file
/// capabilities away.
fn attributes(from: &Path, to: &Path, stat: &Stat, path: &Path) -> Result<(), SeedError> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(CWD, to, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the owner of", path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmod(to, mode).map_err(failed("set the mode of", path))?;
    }
    extended(from, to, path)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: i64::try_from(stat.st_atime_nsec).unwrap_or_default(),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        },
    };
    utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the times of", path))
}

fn extended(from: &Path, to: &Path, path: &Path) -> Result<(), SeedError> {
    let mut names = vec![0; MAX_NAMES];
    let length = match llistxattr(from, &mut names) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(length) => length,
        Err(error) => return Err(failed("read the attributes of", path)(error)),
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let mut value = vec![0; MAX_VALUE];
        let length = match lgetxattr(from, name, &mut value) {
            Ok(length) => length,
            // Gone, or one that is listed and cannot be read (an overlay's own).
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(error) => return Err(failed("read the attributes of", path)(error)),
        };
        match lsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // A kind that the kernel does not know on this file system: nothing would read it either.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(failed("set the attributes of", path)(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "seed_tests.rs"]
mod tests;
