//! Finding the directory which an archive is unpacked below, by [`place`]'s rules.

use super::io_failure;
use super::place::{self, Found, Mapping, Place};
use banger_agent_api::{Failure, FailureKind};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, statat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io;
use std::path::Path;

/// Finds (or makes) the directory that everything goes below, and what the archive's names mean there.
pub(super) fn destination(
    path: &Path,
    top: Option<OsString>,
    is_dir: bool,
    contents_only: bool,
    slash: bool,
) -> Result<(OwnedFd, Mapping), Failure> {
    let found = match statat(CWD, path, AtFlags::empty()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => Found::Directory,
        Ok(_) => Found::Other,
        Err(Errno::NOENT) => Found::Nothing,
        Err(error) => return Err(io_failure("look at", path, &error.into())),
    };
    let place = place::decide(found, is_dir, contents_only, slash).map_err(|kind| {
        let what = if is_dir { "a directory" } else { "a file" };
        let why = match found {
            Found::Nothing => "there is no such directory",
            Found::Directory => "it is a directory",
            Found::Other => "it is not a directory",
        };
        let shown = path.display();
        Failure::new(
            kind,
            path.to_string_lossy(),
            format!("copy {what} to {shown} in the guest: {why}"),
        )
    })?;
    let straight = Mapping {
        top: top.clone(),
        becomes: None,
    };
    match place {
        Place::Inside => {
            let inside = Mapping {
                becomes: top.clone(),
                top,
            };
            open_base(path)
                .map(|base| (base, inside))
                .map_err(|e| io_failure("open", path, &e))
        }
        Place::Merge => open_base(path)
            .map(|base| (base, straight))
            .map_err(|e| io_failure("open", path, &e)),
        Place::Becomes => {
            // A link to a file stands for the file.
            let real = if found == Found::Other {
                path.canonicalize()
            } else {
                Ok(path.to_owned())
            };
            let real = real.map_err(|error| io_failure("resolve", path, &error))?;
            let (parent, name) = open_parent(&real)?;
            Ok((
                parent,
                Mapping {
                    top,
                    becomes: Some(name),
                },
            ))
        }
        Place::MakeAndMerge => {
            let (parent, name) = open_parent(path)?;
            mkdirat(&parent, &name, Mode::from_raw_mode(0o755))
                .map_err(|error| io_failure("make", path, &error.into()))?;
            let base = openat(&parent, &name, base_flags() | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|error| io_failure("open", path, &error.into()))?;
            Ok((base, straight))
        }
    }
}

fn base_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

fn open_base(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, base_flags(), Mode::empty())?)
}

fn open_parent(path: &Path) -> Result<(OwnedFd, OsString), Failure> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let message = format!("copy to {}: it names no file", path.display());
        return Err(Failure::new(
            FailureKind::InvalidRequest,
            path.to_string_lossy(),
            message,
        ));
    };
    match open_base(parent) {
        Ok(fd) => Ok((fd, name.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let shown = parent.display();
            let message = format!("copy to {} in the guest: {shown} does not exist", path.display());
            Err(Failure::new(
                FailureKind::ParentNotFound,
                parent.to_string_lossy(),
                message,
            ))
        }
        Err(error) => Err(io_failure("open", parent, &error)),
    }
}
