//! What an archive holds, by name: all that only root could put on a disk is here and not there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its contents are on the disk.
    File {
        /// In bytes.
        size: u64,
        /// What it takes on a disk, in bytes: of a sparse file, less than the size.
        data: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where to, not interpreted.
        target: Vec<u8>,
    },
    /// Another name of an inode that came before.
    Link {
        /// The path of the first name.
        to: Vec<u8>,
    },
    /// A character device; on the disk there is a named pipe in its place.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device; on the disk there is a named pipe in its place.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One name in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The lower twelve bits: permissions, set-uid, set-gid, sticky.
    pub mode: u32,
    /// Seconds since 1970; earlier ones are taken as 0.
    pub mtime: u64,
    /// Names and values of the extended attributes that are kept.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// All names of an unpacked archive. Paths are relative, `a/b/c`; the top is the empty path and always there, and so
/// is every directory on the way to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub(super) nodes: BTreeMap<Vec<u8>, Node>,
    pub(super) bytes: u64,
}

impl Tree {
    /// Every path, parents before children.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_slice(), node))
    }

    /// What is at a path, where none of the directories on the way is a symbolic link.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes a directory below `dir`, where the archive was unpacked, and adds it to the tree, unless there is
    /// something of that name already. For directories at the top, which need no parents.
    pub fn add_directory(&mut self, dir: &Path, name: &str, mode: u32) -> io::Result<()> {
        if name.is_empty() || name.contains('/') || self.nodes.contains_key(name.as_bytes()) {
            return Ok(());
        }
        let disk = dir.join(name);
        fs::create_dir(&disk)?;
        set_mtime(&disk, 0)?;
        let node = Node {
            mode: mode & 0o7777,
            ..Node::implied()
        };
        self.nodes.insert(name.as_bytes().to_vec(), node);
        Ok(())
    }

    /// Follows `path` from the top as the kernel would, symbolic links and all; gives the path it leads to and what is
    /// there.
    #[must_use]
    pub fn lookup(&self, path: &str) -> Option<(Vec<u8>, &Node)> {
        let mut at: Vec<u8> = Vec::new();
        let mut rest: Vec<Vec<u8>> = path
            .bytes()
            .collect::<Vec<_>>()
            .rsplit(|b| *b == b'/')
            .map(<[u8]>::to_vec)
            .collect();
        let mut hops = 0;
        while let Some(part) = rest.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at.truncate(at.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = join(&at, &part);
            match &self.nodes.get(&next)?.kind {
                Kind::Symlink { target } => {
                    hops += 1;
                    if hops > 40 {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    rest.extend(target.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
                }
                Kind::Link { to } => at = to.clone(),
                Kind::File { .. }
                | Kind::Directory
                | Kind::CharDevice { .. }
                | Kind::BlockDevice { .. }
                | Kind::Fifo => at = next,
            }
        }
        let node = self.nodes.get(&at)?;
        Some((at, node))
    }
}

impl Node {
    /// A directory that the archive does not mention itself.
    pub(super) fn implied() -> Self {
        Self {
            kind: Kind::Directory,
            uid: 0,
            gid: 0,
            mode: 0o755,
            mtime: 0,
            xattrs: Vec::new(),
        }
    }

    /// Another name of this inode, whose own name is `owner`.
    pub(super) fn link_to(&self, owner: &[u8]) -> Self {
        Self {
            kind: Kind::Link { to: owner.to_vec() },
            // They are kept once.
            xattrs: Vec::new(),
            ..*self
        }
    }
}

pub(super) fn join(path: &[u8], part: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        part.to_vec()
    } else {
        [path, b"/", part].concat()
    }
}

pub(super) fn times(seconds: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

pub(super) fn set_mtime(path: &Path, seconds: u64) -> io::Result<()> {
    rustix::fs::utimensat(CWD, path, &times(seconds), AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)
}
