//! What a work seed is made of, as one archive: the user's template, the shell's set-up, the daemon's ssh key. And its
//! fingerprint, which says of each of them whether it is still what it was.
//!
//! ```text
//! seed/template/…                  the configured directory, where there is one; else the guest's agent takes /etc/skel
//! seed/setup/.profile, .bashrc     a shell's set-up, for homes without
//! seed/setup/.ssh/authorized_keys  the daemon's key, as clients of `banger ssh` have it
//! ```
//!
//! The guest's agent brings them into the home after the image's own, and in this order; what is there already wins
//! (`banger-agent/src/boot/seed.rs`). So the template's keys, which would hide ours, get ours added here.
//!
//! The template is a directory of this host that its owner chose, yet nothing says that it stays as it is while it is read:
//! links in it are taken as links, never followed; its entries, bytes and depth are bounded; and what is hashed is what is
//! archived. Owners are not taken over: all of it is root's, as the home is.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hostkit::digest::Digest;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};

use crate::error::Error;
use crate::limits::bytes;

/// What a template may have.
const MAX_ENTRIES: usize = 10_000;
const MAX_BYTES: u64 = 32 << 20;
const MAX_DEPTH: usize = 32;

/// Raised when the layout or anything else of a seed changes that is not among its files.
const LAYOUT: &str = "1";

/// For login shells. An image's own comes before it, so it has to do for those without: busybox, mostly.
const PROFILE: &str = include_str!("profile.sh");
const BASHRC: &str = include_str!("bashrc.sh");

/// Where the keys are below a home.
const KEYS: &str = ".ssh/authorized_keys";

/// A file, link or directory of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Below its directory of the seed.
    path: PathBuf,
    /// Permissions.
    mode: u32,
    /// Seconds since 1970.
    modified: u64,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
}

/// Everything that goes into a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    /// Nothing: there is no template.
    template: Option<Vec<Entry>>,
    setup: Vec<Entry>,
    key: Option<String>,
}

/// What a seed was made of: a name for it, whose parts say which of its sources it is that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of the ssh key's public half; absent: there was none.
    pub key: Option<String>,
    /// Of names, kinds, modes and contents of the template; absent: there was none.
    pub template: Option<String>,
    /// Of what Banger itself brings along.
    pub setup: String,
}

impl Fingerprint {
    /// The one that `Display` has made.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = |part: &str| {
            let is_one = part.len() == PART && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            is_one.then(|| part.to_owned())
        };
        let optional = |part: &str| match part {
            NONE => Some(None),
            part => digits(part).map(Some),
        };
        let mut parts = text.split('-');
        let found = Self {
            key: optional(parts.next()?)?,
            template: optional(parts.next()?)?,
            setup: digits(parts.next()?)?,
        };
        parts.next().is_none().then_some(found)
    }

    /// What has changed since `former`, in words.
    pub(super) fn changes(&self, former: &Self) -> Vec<&'static str> {
        let mut changes = Vec::new();
        if self.key != former.key {
            changes.push("the ssh key is another");
        }
        match (&former.template, &self.template) {
            (None, Some(_)) => changes.push("there is a template now"),
            (Some(_), None) => changes.push("there is no template any more"),
            (Some(former), Some(now)) if former != now => changes.push("the template has changed"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if self.setup != former.setup {
            changes.push("it was made by another release");
        }
        changes
    }
}

/// Hexadecimal digits of each part.
const PART: usize = 16;
const NONE: &str = "none";

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |part: &Option<String>| part.clone().unwrap_or_else(|| NONE.to_owned());
        write!(f, "{}-{}-{}", shown(&self.key), shown(&self.template), self.setup)
    }
}

impl Contents {
    /// Reads all that a seed is to hold. Blocks for as long as the template takes to be read.
    pub(super) fn gather(template: Option<&Path>, key: Option<&str>) -> Result<Self, Error> {
        let template = template.map(read_template).transpose()?;
        let mut setup = vec![file(".profile", 0o644, PROFILE), file(".bashrc", 0o644, BASHRC)];
        if let Some(key) = key {
            setup.push(Entry {
                path: ".ssh".into(),
                mode: 0o700,
                modified: 0,
                kind: Kind::Directory,
            });
            setup.push(file(KEYS, 0o600, &line_of(key)));
        }
        Ok(Self {
            template,
            setup,
            key: key.map(str::to_owned),
        })
    }

    /// Of these contents.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let part = |digest: Digest| digest.to_string().chars().take(PART).collect::<String>();
        let setup = [
            file("", 0, LAYOUT),
            file(".profile", 0o644, PROFILE),
            file(".bashrc", 0o644, BASHRC),
        ];
        Fingerprint {
            key: self
                .key
                .as_ref()
                .map(|key| part(Digest::of_bytes(key.as_bytes()))),
            template: self.template.as_deref().map(|entries| part(digest_of(entries))),
            setup: part(digest_of(&setup)),
        }
    }

    /// Bytes of its files.
    pub(super) fn bytes(&self) -> u64 {
        let entries = self.template.iter().flatten().chain(&self.setup);
        entries.map(|entry| 4096 + size_of(entry)).sum()
    }

    /// As an archive.
    pub(super) fn archive(&self) -> io::Result<Vec<u8>> {
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        let mut archive = tar::Builder::new(Vec::new());
        let directory = |path: &str, mode| Entry {
            path: path.into(),
            mode,
            modified: now,
            kind: Kind::Directory,
        };
        // The file system's root, and what the agent looks for in it.
        append(&mut archive, Path::new("./"), &directory("", 0o755))?;
        append(&mut archive, Path::new("seed"), &directory("", 0o700))?;
        if let Some(template) = &self.template {
            append(&mut archive, Path::new("seed/template"), &directory("", 0o700))?;
            for entry in template {
                let with_key = self.with_key(entry);
                let entry = with_key.as_ref().unwrap_or(entry);
                append(&mut archive, &Path::new("seed/template").join(&entry.path), entry)?;
            }
        }
        append(&mut archive, Path::new("seed/setup"), &directory("", 0o700))?;
        for entry in &self.setup {
            let entry = Entry {
                modified: now,
                ..entry.clone()
            };
            append(&mut archive, &Path::new("seed/setup").join(&entry.path), &entry)?;
        }
        archive.into_inner()
    }

    /// The template's list of keys with ours in it; nothing for anything else.
    fn with_key(&self, entry: &Entry) -> Option<Entry> {
        let (Some(key), Kind::File(contents)) = (&self.key, &entry.kind) else {
            return None;
        };
        let has_it = contents
            .split(|byte| *byte == b'\n')
            .any(|line| line.starts_with(key.as_bytes()));
        if entry.path != Path::new(KEYS) || has_it {
            return None;
        }
        let mut contents = contents.clone();
        if contents.last().is_some_and(|byte| *byte != b'\n') {
            contents.push(b'\n');
        }
        contents.extend_from_slice(line_of(key).as_bytes());
        Some(Entry {
            kind: Kind::File(contents),
            ..entry.clone()
        })
    }
}

fn line_of(key: &str) -> String {
    format!("{key} banger\n")
}

fn file(path: &str, mode: u32, contents: &str) -> Entry {
    Entry {
        path: path.into(),
        mode,
        modified: 0,
        kind: Kind::File(contents.as_bytes().to_vec()),
    }
}

fn size_of(entry: &Entry) -> u64 {
    match &entry.kind {
        Kind::File(contents) => u64::try_from(contents.len()).unwrap_or(u64::MAX),
        Kind::Directory | Kind::Link(_) => 0,
    }
}

/// Of names, kinds, modes, contents and targets. Not of times: a template that was checked out again is the same.
fn digest_of(entries: &[Entry]) -> Digest {
    let parts: Vec<(&[u8], [u8; 5], &[u8])> = entries
        .iter()
        .map(|entry| {
            let (kind, contents): (u8, &[u8]) = match &entry.kind {
                Kind::Directory => (b'd', &[]),
                Kind::File(contents) => (b'f', contents),
                Kind::Link(target) => (b'l', target.as_os_str().as_bytes()),
            };
            let [a, b, c, d] = entry.mode.to_be_bytes();
            (entry.path.as_os_str().as_bytes(), [kind, a, b, c, d], contents)
        })
        .collect();
    Digest::of_parts(
        parts
            .iter()
            .flat_map(|(path, kind, contents)| [*path, kind.as_slice(), contents]),
    )
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &Path, entry: &Entry) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(entry.modified);
    header.set_size(size_of(entry));
    match &entry.kind {
        Kind::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, path, io::empty())
        }
        Kind::File(contents) => {
            header.set_entry_type(tar::EntryType::Regular);
            archive.append_data(&mut header, path, contents.as_slice())
        }
        Kind::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, path, target)
        }
    }
}

// ---- the template --------------------------------------------------------------------------------------------------

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Reads a template, its entries by name, directories before what is in them.
fn read_template(top: &Path) -> Result<Vec<Entry>, Error> {
    let mut walk = Walk {
        top,
        entries: Vec::new(),
        bytes: 0,
    };
    // The one link that is followed: the directory may be named by one.
    let directory =
        openat(CWD, top, DIRECTORY, Mode::empty()).map_err(|e| walk.cannot("read", Path::new(""), e))?;
    walk.directory(&directory, Path::new(""), MAX_DEPTH)?;
    Ok(walk.entries)
}

struct Walk<'a> {
    top: &'a Path,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> Result<(), Error> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(|e| self.cannot("read", path, e))? {
            let entry = entry.map_err(|e| self.cannot("read", path, e))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
            self.bound(self.entries.len() + names.len() <= MAX_ENTRIES, || {
                format!("it has more than {MAX_ENTRIES} entries")
            })?;
        }
        names.sort();
        for name in names {
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            self.entry(directory, &name, &path, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: &OwnedFd,
        name: &std::ffi::CStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), Error> {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.cannot("look at", path, e))?;
        let nofollow = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut new = Entry {
            path: path.to_owned(),
            mode: stat.st_mode & 0o7777,
            modified: u64::try_from(stat.st_mtime).unwrap_or_default(),
            kind: Kind::Directory,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.bound(depth > 0, || format!("{} is too deep in it", path.display()))?;
                let below = openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                let below = below.map_err(|e| self.cannot("read", path, e))?;
                self.entries.push(new);
                self.directory(&below, path, depth - 1)
            }
            FileType::RegularFile => {
                // What has become a pipe meanwhile must not hold us up.
                let opened = openat(directory, name, nofollow | OFlags::NONBLOCK, Mode::empty());
                let opened = opened.map_err(|e| self.cannot("read", path, e))?;
                let left = MAX_BYTES - self.bytes;
                let mut contents = Vec::new();
                let read = std::fs::File::from(opened)
                    .take(left + 1)
                    .read_to_end(&mut contents);
                read.map_err(|e| self.cannot("read", path, e))?;
                let size = u64::try_from(contents.len()).unwrap_or(u64::MAX);
                self.bound(size <= left, || {
                    format!("it holds more than {}", bytes(&MAX_BYTES))
                })?;
                self.bytes += size;
                new.kind = Kind::File(contents);
                self.entries.push(new);
                Ok(())
            }
            FileType::Symlink => {
                let target =
                    readlinkat(directory, name, Vec::new()).map_err(|e| self.cannot("read", path, e))?;
                new.mode = 0o777;
                new.kind = Kind::Link(OsStr::from_bytes(target.to_bytes()).into());
                self.entries.push(new);
                Ok(())
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Err(self.bad(format!(
                "{} in it is neither file, directory nor symbolic link",
                path.display()
            ))),
        }
    }

    fn bound(&self, holds: bool, problem: impl FnOnce() -> String) -> Result<(), Error> {
        if holds { Ok(()) } else { Err(self.bad(problem())) }
    }

    fn cannot(&self, verb: &str, path: &Path, e: impl Into<io::Error>) -> Error {
        let what = match path.as_os_str().is_empty() {
            true => "it".to_owned(),
            false => format!("{} in it", path.display()),
        };
        self.bad(format!("failed to {verb} {what}: {}", e.into()))
    }

    fn bad(&self, problem: String) -> Error {
        Error::BadFile {
            what: "template of work disks",
            path: self.top.to_owned(),
            problem,
        }
    }
}

#[cfg(test)]
#[path = "contents_tests.rs"]
mod tests;
