//! Where a downloaded entry goes, by the rules of cp and docker cp.
//!
//! ```text
//! DST is              the entry is a file              a directory               the content of one (SRC/.)
//! a directory         DST/name                         DST/name                  DST
//! a file              DST, replaced                    refused                   refused
//! not there           DST; refused where DST ends      DST                       DST
//!                     with a slash
//! ```
//!
//! The directory above must exist. DST is the user's own, so its links are followed; nothing below it is.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Where the top entry goes.
#[derive(Debug)]
pub(crate) enum Target {
    /// Into this directory, under this name.
    Named { parent: OwnedFd, name: OsString },
    /// Its content goes into this directory, which exists.
    Contents(OwnedFd),
}

/// Why there is no place for it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DestinationError {
    #[error("failed to use {path}: {source}")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("cannot put a directory in the place of the file {0}")]
    DirectoryOverFile(PathBuf),
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("{0} is a device, a pipe or a socket; it is not replaced")]
    Special(PathBuf),
    #[error("a name for the copy is needed: give a path and not only a directory")]
    NoName,
}

/// What the rules look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// As the user gave it.
    pub(crate) path: PathBuf,
    /// Name of the entry where it goes into a directory; `None` where the source's path ends in none (`/`, `..`).
    pub(crate) name: Option<OsString>,
    /// The content of the directory is meant.
    pub(crate) contents_only: bool,
}

impl Destination {
    /// Looks at what is there now.
    pub(crate) fn resolve(&self, entry_is_directory: bool) -> Result<Target, DestinationError> {
        let path = &self.path;
        let unusable = |source| DestinationError::Unusable {
            path: path.clone(),
            source,
        };
        let wants_directory = path.as_os_str().as_bytes().ends_with(b"/");
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                let directory = open_directory(path)?;
                if self.contents_only && entry_is_directory {
                    return Ok(Target::Contents(directory));
                }
                let name = self.name.clone().ok_or(DestinationError::NoName)?;
                Ok(Target::Named {
                    parent: directory,
                    name,
                })
            }
            Ok(_) if entry_is_directory => Err(DestinationError::DirectoryOverFile(path.clone())),
            Ok(there) if !there.is_file() => Err(DestinationError::Special(path.clone())),
            // The file that a link leads to is replaced, and not the link.
            Ok(_) => beside(&fs::canonicalize(path).map_err(unusable)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match wants_directory && !entry_is_directory {
                    true => Err(DestinationError::NotADirectory(path.clone())),
                    false => beside(path),
                }
            }
            // `file/` and `file/x`.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(DestinationError::NotADirectory(path.clone()))
            }
            Err(error) => Err(unusable(error)),
        }
    }
}

/// The path's last component in the directory above it, which must exist.
fn beside(path: &Path) -> Result<Target, DestinationError> {
    let name: &OsStr = path.file_name().ok_or(DestinationError::NoName)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    Ok(Target::Named {
        parent: open_directory(parent)?,
        name: name.to_owned(),
    })
}

fn open_directory(path: &Path) -> Result<OwnedFd, DestinationError> {
    rustix::fs::open(
        path,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| DestinationError::Unusable {
        path: path.into(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became of it: the name under the parent, `.` for contents, or the error.
    fn resolve(at: &Path, path: &str, contents_only: bool, directory: bool) -> String {
        let destination = Destination {
            path: at.join(path).as_os_str().to_owned().into(),
            name: Some("src".into()),
            contents_only,
        };
        // `join` keeps a trailing slash of its argument.
        match destination.resolve(directory) {
            Ok(Target::Named { name, .. }) => name.into_string().unwrap(),
            Ok(Target::Contents(_)) => ".".into(),
            Err(DestinationError::Unusable { .. }) => "unusable".into(),
            Err(DestinationError::DirectoryOverFile(_)) => "directory over file".into(),
            Err(DestinationError::NotADirectory(_)) => "not a directory".into(),
            Err(DestinationError::Special(_)) => "special".into(),
            Err(DestinationError::NoName) => "no name".into(),
        }
    }

    #[test]
    fn rules() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        fs::create_dir(at.join("dir")).unwrap();
        fs::write(at.join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", at.join("link")).unwrap();
        std::os::unix::fs::symlink("/dev/null", at.join("null")).unwrap();
        for (path, contents_only, is_directory, expected) in [
            ("dir", false, false, "src"),
            ("dir/", false, false, "src"),
            ("dir", false, true, "src"),
            ("dir", true, true, "."),
            ("dir/.", true, true, "."),
            ("file", false, false, "file"),
            ("file", false, true, "directory over file"),
            ("file", true, true, "directory over file"),
            ("file/", false, false, "not a directory"),
            ("file/x", false, false, "not a directory"),
            ("link", false, false, "file"),
            ("null", false, false, "special"),
            ("new", false, false, "new"),
            ("new/", false, false, "not a directory"),
            ("new/", false, true, "new"),
            ("new", true, true, "new"),
            ("no/new", false, false, "unusable"),
            ("no/new", false, true, "unusable"),
        ] {
            assert_eq!(
                resolve(at, path, contents_only, is_directory),
                expected,
                "{path} {contents_only} {is_directory}"
            );
        }
    }
}
