//! Which files the sources of one `COPY` mean: of a directory its content, of anything else itself.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::ignore::Matched;
use super::pattern::{self, Pattern};
use super::{Context, ContextError, read_error};

/// Files of one selection.
const MAX_ENTRIES: usize = 2_000_000;
/// Links that one source may go through, as Linux has it.
const MAX_LINKS: u32 = 40;

/// Files that one `COPY` means, in the order of their names at the destination, directories before what is in them.
#[derive(Debug)]
pub struct Selection<'c> {
    pub(super) context: &'c Context,
    pub(super) entries: Vec<Entry>,
    /// Exactly one source, and not a directory.
    single: bool,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path beneath the destination.
    pub name: PathBuf,
    /// Its path in the context.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions, of 0o7777.
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: u64,
    /// It was named by a source, rather than found in a directory.
    pub named: bool,
}

/// What can be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file and its bytes.
    File {
        /// Bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A link, copied as it is.
    Symlink {
        /// Where it leads.
        target: OsString,
    },
}

impl Selection<'_> {
    /// The files.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// There was one source, and it is a file: it can get the destination's name. Everything else needs a directory as the
    /// destination.
    #[must_use]
    pub fn is_single_file(&self) -> bool {
        self.single
    }

    /// Bytes of all files.
    #[must_use]
    pub fn size(&self) -> u64 {
        let size = |entry: &Entry| match entry.kind {
            EntryKind::File { size } => size,
            EntryKind::Directory | EntryKind::Symlink { .. } => 0,
        };
        self.entries.iter().map(size).fold(0, u64::saturating_add)
    }
}

impl Context {
    /// The files that the sources of the step in `line` mean. Sources are relative to the context, a slash at the beginning
    /// or not; each is a pattern (Go's `filepath.Match`); where several give a name, the last one counts.
    ///
    /// # Errors
    /// All of [`ContextError`] but those of opening and passing on.
    pub fn select(&self, sources: &[String], line: u32) -> Result<Selection<'_>, ContextError> {
        let mut walk = Walk {
            context: self,
            line,
            found: BTreeMap::new(),
        };
        let mut single = sources.len() == 1;
        for source in sources {
            let paths = walk.expand(source)?;
            single &= paths.len() == 1;
            let mut ignored = false;
            let mut any = false;
            for path in paths {
                match walk.source(source, &path)? {
                    Found::File => any = true,
                    Found::Directory => {
                        any = true;
                        single = false;
                    }
                    Found::Ignored => ignored = true,
                    Found::Nothing => {}
                }
            }
            if !any {
                return Err(ContextError::NoMatch {
                    line,
                    pattern: source.clone(),
                    ignored_by: self.ignore_file.clone().filter(|_| ignored),
                });
            }
        }
        Ok(Selection {
            context: self,
            entries: walk.found.into_values().collect(),
            single,
        })
    }
}

/// What a source came to.
enum Found {
    File,
    Directory,
    /// It is there, but left out.
    Ignored,
    Nothing,
}

/// The search for one `COPY`.
struct Walk<'c> {
    context: &'c Context,
    line: u32,
    /// By the components of their names, so that a directory comes right before what is in it.
    found: BTreeMap<Vec<OsString>, Entry>,
}

impl Walk<'_> {
    /// The paths that a source's patterns may mean; those without a pattern need not be there.
    fn expand(&self, source: &str) -> Result<Vec<Vec<OsString>>, ContextError> {
        let mut paths: Vec<Vec<OsString>> = vec![Vec::new()];
        for component in self.components(source)? {
            if !pattern::is_pattern(component) {
                paths.iter_mut().for_each(|path| path.push(component.into()));
                continue;
            }
            let pattern = Pattern::component(component).map_err(|_| ContextError::Pattern {
                line: self.line,
                pattern: source.to_owned(),
            })?;
            let mut matched = Vec::new();
            for path in paths {
                let Some((real, stat)) = self.resolve(source, &path)? else {
                    continue;
                };
                if kind_of(&stat) != FileType::Directory {
                    continue;
                }
                for name in self.context.list(&real)? {
                    if pattern.matches(&name.to_string_lossy()) {
                        matched.push(path.iter().cloned().chain([name]).collect());
                        self.bounded(matched.len())?;
                    }
                }
            }
            paths = matched;
        }
        Ok(paths)
    }

    /// A source's components, `.` and `..` settled.
    fn components<'s>(&self, source: &'s str) -> Result<Vec<&'s str>, ContextError> {
        let mut components = Vec::new();
        for component in source.split('/') {
            match component {
                "" | "." => {}
                ".." => {
                    components.pop().ok_or_else(|| self.outside(source))?;
                }
                component => components.push(component),
            }
        }
        Ok(components)
    }

    /// Follows the links in a path, within the context. None: there is nothing.
    fn resolve(&self, source: &str, path: &[OsString]) -> Result<Option<(PathBuf, Stat)>, ContextError> {
        let mut rest: VecDeque<OsString> = path.iter().cloned().collect();
        let mut real = PathBuf::new();
        let mut links = 0;
        while let Some(component) = rest.pop_front() {
            if component == ".." {
                if !real.pop() {
                    return Err(self.outside(source));
                }
                continue;
            }
            let next = real.join(&component);
            let (fd, stat) = match self.context.stat(&next) {
                Ok(found) => found,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                Err(errno) => return Err(read_error(&next)(errno)),
            };
            if kind_of(&stat) != FileType::Symlink {
                real = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                let path = source.to_owned();
                return Err(ContextError::Links {
                    line: self.line,
                    path,
                });
            }
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(read_error(&next))?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            for component in target.components().rev() {
                match component {
                    Component::Normal(name) => rest.push_front(name.to_owned()),
                    Component::ParentDir => rest.push_front("..".into()),
                    Component::CurDir => {}
                    Component::RootDir | Component::Prefix(_) => {
                        return Err(self.outside(&next.to_string_lossy()));
                    }
                }
            }
        }
        match self.context.stat(&real) {
            Ok((_, stat)) => Ok(Some((real, stat))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(read_error(&real)(errno)),
        }
    }

    /// Adds what a path means.
    fn source(&mut self, source: &str, path: &[OsString]) -> Result<Found, ContextError> {
        let Some((real, stat)) = self.resolve(source, path)? else {
            return Ok(Found::Nothing);
        };
        let (excluded, matched) = self.excludes(&real);
        if kind_of(&stat) == FileType::Directory {
            let before = self.found.len();
            if excluded && self.context.ignore.hides_all(&real.to_string_lossy()) {
                return Ok(Found::Ignored);
            }
            self.directory(real, matched)?;
            return Ok(match excluded && self.found.len() == before {
                true => Found::Ignored,
                false => Found::Directory,
            });
        }
        if excluded {
            return Ok(Found::Ignored);
        }
        // The name that the source has, also where that is a link's.
        let name = path.last().cloned().unwrap_or_default();
        let entry = self.entry(PathBuf::from(&name), real, &stat, true)?;
        self.add(vec![name], entry)?;
        Ok(Found::File)
    }

    /// Adds what is in a directory, to any depth. The stack is explicit: depth is the tree's choice.
    fn directory(&mut self, top: PathBuf, matched: Matched) -> Result<(), ContextError> {
        let mut stack = vec![(top, Vec::new(), matched)];
        while let Some((directory, name, parent)) = stack.pop() {
            for child in self.context.list(&directory)? {
                let path = directory.join(&child);
                let name: Vec<OsString> = name.iter().cloned().chain([child]).collect();
                let text = path.to_string_lossy();
                let (excluded, matched) = self.context.ignore.excludes(&text, &parent);
                if excluded && self.context.ignore.hides_all(&text) {
                    continue;
                }
                let (_, stat) = self.context.stat(&path).map_err(|errno| match errno {
                    Errno::NOENT => ContextError::Changed { path: path.clone() },
                    errno => read_error(&path)(errno),
                })?;
                let is_directory = kind_of(&stat) == FileType::Directory;
                if !excluded {
                    self.parents(&path, &name)?;
                    let entry = self.entry(name.iter().collect(), path.clone(), &stat, false)?;
                    self.add(name.clone(), entry)?;
                }
                if is_directory {
                    stack.push((path, name, matched));
                }
            }
        }
        Ok(())
    }

    /// Adds the directories that are left out, but have something that is not.
    fn parents(&mut self, path: &Path, name: &[OsString]) -> Result<(), ContextError> {
        for (up, path) in path.ancestors().enumerate().skip(1) {
            let Some(name) = name.len().checked_sub(up).and_then(|length| name.get(..length)) else {
                break;
            };
            if name.is_empty() || self.found.contains_key(name) {
                break;
            }
            let (_, stat) = self.context.stat(path).map_err(read_error(path))?;
            let entry = self.entry(name.iter().collect(), path.to_owned(), &stat, false)?;
            self.add(name.to_vec(), entry)?;
        }
        Ok(())
    }

    fn add(&mut self, name: Vec<OsString>, entry: Entry) -> Result<(), ContextError> {
        let is_directory = entry.kind == EntryKind::Directory;
        if let Some(before) = self.found.get(&name)
            && (before.kind == EntryKind::Directory) != is_directory
        {
            let name = entry.name;
            return Err(ContextError::Clash {
                line: self.line,
                name,
            });
        }
        self.bounded(self.found.len())?;
        self.found.insert(name, entry);
        Ok(())
    }

    fn entry(&self, name: PathBuf, path: PathBuf, stat: &Stat, named: bool) -> Result<Entry, ContextError> {
        let special = |kind| ContextError::Special {
            path: path.clone(),
            kind,
        };
        let kind = match kind_of(stat) {
            FileType::RegularFile => EntryKind::File {
                size: u64::try_from(stat.st_size).unwrap_or_default(),
            },
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => {
                let fd = self.context.open_path(&path).map_err(read_error(&path))?;
                let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(read_error(&path))?;
                EntryKind::Symlink {
                    target: OsStr::from_bytes(target.as_bytes()).to_owned(),
                }
            }
            FileType::Socket => return Err(special("a socket")),
            FileType::Fifo => return Err(special("a pipe")),
            FileType::BlockDevice | FileType::CharacterDevice => return Err(special("a device")),
            FileType::Unknown => return Err(special("of no known kind")),
        };
        Ok(Entry {
            name,
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            modified: u64::try_from(stat.st_mtime).unwrap_or_default(),
            named,
        })
    }

    /// Asks the rules about a path, from the top.
    fn excludes(&self, path: &Path) -> (bool, Matched) {
        let mut answer = (false, Matched::default());
        let mut so_far = PathBuf::new();
        for component in path.components() {
            so_far.push(component);
            answer = self.context.ignore.excludes(&so_far.to_string_lossy(), &answer.1);
        }
        answer
    }

    fn outside(&self, path: &str) -> ContextError {
        let path = path.to_owned();
        ContextError::Outside {
            line: self.line,
            path,
        }
    }

    fn bounded(&self, count: usize) -> Result<(), ContextError> {
        match count > MAX_ENTRIES {
            true => Err(ContextError::TooMany {
                line: self.line,
                max: MAX_ENTRIES,
            }),
            false => Ok(()),
        }
    }
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
