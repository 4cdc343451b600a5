//! What an archive holds, by name: everything but the contents of files, and where those are.

use std::collections::BTreeMap;
use std::io;

use super::spool::{Contents, Stored};

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
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
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
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
#[derive(Debug)]
pub struct Tree {
    pub(super) nodes: BTreeMap<Vec<u8>, Leaf>,
    pub(super) bytes: u64,
    pub(super) contents: Contents,
}

/// A name, and what is stored of it where it is a file's own.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) node: Node,
    pub(super) stored: Stored,
}

impl Tree {
    /// Every path, parents before children.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.nodes
            .iter()
            .map(|(path, leaf)| (path.as_slice(), &leaf.node))
    }

    /// Every path, parents before children, with what is stored of it.
    pub(crate) fn iter_stored(&self) -> impl Iterator<Item = (&[u8], &Node, &Stored)> {
        let leaves = self.nodes.iter();
        leaves.map(|(path, leaf)| (path.as_slice(), &leaf.node, &leaf.stored))
    }

    /// Where that is.
    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// What is in a file, at most `limit` bytes from its beginning; `None` where there is no file of that path. Paths are as in
    /// [`Tree::get`].
    pub fn read(&self, path: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(leaf) = self.nodes.get(path) else {
            return Ok(None);
        };
        match &leaf.node.kind {
            Kind::File { size, .. } => self.contents.read(&leaf.stored, *size, limit).map(Some),
            Kind::Link { to } if to.as_slice() != path => self.read(to, limit),
            Kind::Link { .. }
            | Kind::Directory
            | Kind::Symlink { .. }
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo => Ok(None),
        }
    }

    /// What is at a path, where none of the directories on the way is a symbolic link.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path).map(|leaf| &leaf.node)
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds an empty directory of root's, of the time 0, unless there is something of that name already. For directories at the
    /// top, which need no parents.
    pub fn add_directory(&mut self, name: &str, mode: u32) {
        if name.is_empty() || name.contains('/') || self.nodes.contains_key(name.as_bytes()) {
            return;
        }
        let node = Node {
            mode: mode & 0o7777,
            ..Node::implied()
        };
        let stored = Stored::default();
        self.nodes.insert(name.as_bytes().to_vec(), Leaf { node, stored });
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
            match &self.get(&next)?.kind {
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
        let node = self.get(&at)?;
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
