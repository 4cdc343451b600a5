//! The context: the directory that a recipe's `COPY` takes files from.
//!
//! Nothing outside of it can be reached: every file is opened beneath the directory without following a link (`openat2` with
//! `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`), and a link that a source goes through is followed by hand, within. Files that
//! `.dockerignore` leaves out are not there at all.
//!
//! Not here: what is already at the destination, and whose the files will be by name; that is known in the machine.

mod archive;
mod ignore;
mod pattern;
mod select;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

pub use archive::{Attributes, Compression};
pub use select::{Entry, EntryKind, Selection};

use ignore::Ignore;

/// Bytes of `.dockerignore`.
const MAX_IGNORE: u64 = 1 << 20;

/// A directory to copy from.
#[derive(Debug)]
pub struct Context {
    root: OwnedFd,
    path: PathBuf,
    ignore: Ignore,
    /// The file that the rules are in, if there is one.
    ignore_file: Option<String>,
}

/// Why files cannot be had from a context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// There is no such directory, or it cannot be read.
    #[error("cannot open the context directory {path}")]
    Open {
        /// As it was given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line of `.dockerignore` that is no pattern, or one line too many.
    #[error("{file}:{line}: `{pattern}` is not a pattern that can be used")]
    IgnorePattern {
        /// The file.
        file: String,
        /// Counted from 1.
        line: u32,
        /// The line.
        pattern: String,
    },
    /// A source that is no pattern.
    #[error("line {line}: `{pattern}` is not a pattern that can be used")]
    Pattern {
        /// The step's.
        line: u32,
        /// The source.
        pattern: String,
    },
    /// A source, or a link that it goes through, leads out of the context.
    #[error("line {line}: `{path}` leads out of the context directory")]
    Outside {
        /// The step's.
        line: u32,
        /// The source, or the link.
        path: String,
    },
    /// Links that lead to links without end.
    #[error("line {line}: `{path}` leads through too many symbolic links")]
    Links {
        /// The step's.
        line: u32,
        /// The source.
        path: String,
    },
    /// Nothing has this name.
    #[error("line {line}: nothing in the context directory is `{pattern}`{}", left_out(.ignored_by.as_deref()))]
    NoMatch {
        /// The step's.
        line: u32,
        /// The source.
        pattern: String,
        /// There is something, but this file leaves it out.
        ignored_by: Option<String>,
    },
    /// Two sources that cannot be in one place.
    #[error("line {line}: the sources have both a directory and a file {name}")]
    Clash {
        /// The step's.
        line: u32,
        /// The name at the destination.
        name: PathBuf,
    },
    /// A socket, a device, a pipe.
    #[error("cannot copy {path} out of the context: it is {kind}")]
    Special {
        /// In the context.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// More than can be meant.
    #[error("line {line}: more than {max} files")]
    TooMany {
        /// The step's.
        line: u32,
        /// The bound.
        max: usize,
    },
    /// Reading failed.
    #[error("cannot read {path} in the context")]
    Read {
        /// In the context.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody works on the files.
    #[error("{path} in the context changed while it was read")]
    Changed {
        /// In the context.
        path: PathBuf,
    },
    /// What takes the archive fails; it knows why.
    #[error("cannot pass on the files of the context")]
    Write(#[source] io::Error),
}

fn left_out(file: Option<&str>) -> String {
    file.map_or_else(String::new, |file| format!(" ({file} leaves it out)"))
}

impl Context {
    /// Opens a directory. With the recipe's file, `FILE.dockerignore` beside that file has the rules, if it is there;
    /// otherwise `.dockerignore` in the directory has them, if that is there.
    ///
    /// # Errors
    /// [`ContextError::Open`], [`ContextError::Read`] and [`ContextError::IgnorePattern`].
    pub fn open(directory: &Path, recipe: Option<&Path>) -> Result<Self, ContextError> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory, flags, Mode::empty()).map_err(|errno| ContextError::Open {
            path: directory.to_owned(),
            source: errno.into(),
        })?;
        let mut context = Self {
            root,
            path: directory.to_owned(),
            ignore: Ignore::default(),
            ignore_file: None,
        };
        let beside = recipe.map(|recipe| {
            let mut name = recipe.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let found = match beside {
            Some(path) => match File::open(&path) {
                Ok(file) => Some((file, path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => return Err(ContextError::Read { path, source }),
            },
            None => None,
        };
        let found = match found {
            Some(found) => Some(found),
            None => {
                let path = PathBuf::from(".dockerignore");
                match context.open_beneath(&path, OFlags::RDONLY) {
                    Ok(file) => Some((File::from(file), path)),
                    Err(Errno::NOENT) => None,
                    Err(errno) => return Err(read_error(&path)(errno)),
                }
            }
        };
        if let Some((file, path)) = found {
            let read = |source| ContextError::Read {
                path: path.clone(),
                source,
            };
            if !file.metadata().map_err(read)?.is_file() {
                return Err(read(io::Error::other("it is not a regular file")));
            }
            let mut text = String::new();
            file.take(MAX_IGNORE + 1)
                .read_to_string(&mut text)
                .map_err(read)?;
            if text.len() as u64 > MAX_IGNORE {
                return Err(read(io::Error::other(format!(
                    "it has more than {MAX_IGNORE} bytes"
                ))));
            }
            let name = path
                .file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned();
            context.ignore = Ignore::parse(&name, &text)?;
            context.ignore_file = Some(name);
        }
        Ok(context)
    }

    /// The directory, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens beneath the context, following no link. The empty path is the context itself.
    fn open_beneath(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Opening a pipe waits for its other end, but for this; with O_PATH nothing waits, and the kernel refuses it.
        let wait = if flags.contains(OFlags::PATH) {
            OFlags::empty()
        } else {
            OFlags::NONBLOCK
        };
        let flags = flags | wait | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // EAGAIN: something was renamed meanwhile, somewhere in the system, and the kernel cannot tell.
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < 128 => tries += 1,
                done => return done,
            }
        }
    }

    /// What is at a path; links are not followed.
    fn stat(&self, path: &Path) -> rustix::io::Result<(OwnedFd, Stat)> {
        let fd = self.open_path(path)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok((fd, stat))
    }

    /// Opens whatever it is, a last link itself as well: with `O_PATH` and `O_NOFOLLOW` the link is what is opened, but
    /// `RESOLVE_NO_SYMLINKS` refuses that, so the directory is resolved first.
    fn open_path(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let Some(name) = path.file_name() else {
            return self.open_beneath(path, OFlags::PATH);
        };
        let parent = self.open_beneath(
            path.parent().unwrap_or(Path::new("")),
            OFlags::PATH | OFlags::DIRECTORY,
        )?;
        rustix::fs::openat(
            &parent,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    /// The names in a directory, sorted by their bytes.
    fn list(&self, path: &Path) -> Result<Vec<OsString>, ContextError> {
        let error = read_error(path);
        let fd = self
            .open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(&error)?;
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(&error)? {
            let entry = entry.map_err(&error)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        Ok(names)
    }
}

fn read_error(path: &Path) -> impl Fn(Errno) -> ContextError {
    move |errno| ContextError::Read {
        path: path.to_owned(),
        source: errno.into(),
    }
}
