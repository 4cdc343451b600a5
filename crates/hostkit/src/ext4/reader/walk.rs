//! Finding things by their names: one by its path, or all below one.

use std::collections::{HashMap, HashSet};

use super::{
    Entry, Inode, LINK_COUNT, LINKS, Last, Name, PATH_LIMIT, ROOT, ReadError, Reader, shown, u16_at,
};
use crate::rootfs_tar::{Kind, Limits, Node};

/// Memory that names and attributes may take, in bytes.
const METADATA_LIMIT: usize = 256 << 20;

impl Reader {
    /// What is at a path, which is taken from the top with or without a slash. Symbolic links are followed within the file
    /// system alone, and `..` does not leave it; nothing, where something on the way is not there.
    pub fn lookup(&self, path: &[u8], last: Last) -> Result<Option<Entry>, ReadError> {
        let too_many = || ReadError::TooManyLinks { path: shown(path) };
        if path.len() > PATH_LIMIT {
            return Err(self.too_much("bytes in a path", PATH_LIMIT as u64));
        }
        let parts =
            |path: &[u8]| -> Vec<Vec<u8>> { path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec).collect() };
        let mut rest = parts(path);
        // From the top to where it has come; the top has no name.
        let mut way: Vec<(Vec<u8>, Inode)> = Vec::new();
        let root = self.inode(ROOT)?;
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => {}
            }
            let at = way.last().map_or(&root, |(_, inode)| inode);
            if !at.is_directory() {
                let path = join(&way);
                return Err(ReadError::NotADirectory { path: shown(&path) });
            }
            let (names, _) = self.directory(at)?;
            let found = names.into_iter().find(|(name, _)| *name == part);
            let Some((name, ino)) = found else {
                return Ok(None);
            };
            let inode = self.inode(ino)?;
            let is_link = inode.mode() & 0o170_000 == 0o120_000;
            let is_last = rest.iter().all(Vec::is_empty);
            // A slash at the end asks for what it points to.
            if is_link && (last == Last::Follow || !is_last || !rest.is_empty()) {
                links += 1;
                if links > LINKS {
                    return Err(too_many());
                }
                let target = self.target(&inode)?;
                if target.starts_with(b"/") {
                    way.clear();
                }
                rest.extend(parts(&target));
            } else {
                way.push((name, inode));
            }
        }
        let path = join(&way);
        let inode = way.last().map_or(&root, |(_, inode)| inode);
        Ok(self.describe(inode, path)?.map(|(entry, _)| entry))
    }

    /// Everything from an entry down: itself, then, of a directory, what is in it by name, each directory before what is in
    /// it. `lost+found` at the top is the file system's and not of its contents. After an error it is at its end.
    #[must_use]
    pub fn walk(&self, from: Entry, limits: &Limits) -> Walk<'_> {
        Walk {
            reader: self,
            limits: *limits,
            next: Some(from),
            pending: Vec::new(),
            seen: HashSet::new(),
            firsts: HashMap::new(),
            entries: 0,
            data: 0,
            blocks: 0,
            metadata: 0,
        }
    }
}

fn join(way: &[(Vec<u8>, Inode)]) -> Vec<u8> {
    let names: Vec<&[u8]> = way.iter().map(|(name, _)| name.as_slice()).collect();
    names.join(&b'/')
}

/// Gives entries: see [`Reader::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    reader: &'a Reader,
    limits: Limits,
    /// The first, until it was given.
    next: Option<Entry>,
    /// Paths that are still to be given, the next one last.
    pending: Vec<Name>,
    seen: HashSet<u32>,
    /// Of inodes with several names: what further ones are.
    firsts: HashMap<u32, Node>,
    entries: u64,
    /// Bytes of all files, holes not counted.
    data: u64,
    /// Blocks of all files and directories.
    blocks: u64,
    metadata: usize,
}

impl Walk<'_> {
    fn step(&mut self) -> Result<Option<Entry>, ReadError> {
        if let Some(first) = self.next.take() {
            self.seen.insert(first.inode);
            let inode = self.reader.inode(first.inode)?;
            return self.give(first, 0, &inode).map(Some);
        }
        while let Some((path, ino)) = self.pending.pop() {
            if let Some(node) = self.firsts.get(&ino) {
                let node = node.clone();
                self.count(&path, 0)?;
                return Ok(Some(Entry {
                    path,
                    inode: ino,
                    node,
                }));
            }
            if !self.seen.insert(ino) {
                let what = format!("inode {ino} has more names than it says");
                return Err(self.reader.damaged(what));
            }
            let inode = self.reader.inode(ino)?;
            if let Some((entry, blocks)) = self.reader.describe(&inode, path)? {
                return self.give(entry, blocks, &inode).map(Some);
            }
            // A socket may have other names.
            self.seen.remove(&ino);
        }
        Ok(None)
    }

    /// Takes an entry into account that is the first of its inode, and what is in it.
    fn give(&mut self, entry: Entry, blocks: u64, inode: &Inode) -> Result<Entry, ReadError> {
        let attributes = entry
            .node
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        self.count(&entry.path, attributes.sum())?;
        self.claim(blocks)?;
        if let Kind::File { data, .. } = entry.node.kind {
            self.data = self.data.saturating_add(data);
            if self.data > self.limits.bytes {
                return Err(self.reader.too_much("bytes of files", self.limits.bytes));
            }
        }
        if matches!(entry.node.kind, Kind::Directory) {
            self.enter(&entry, inode)?;
        } else if u16_at(&inode.bytes, LINK_COUNT) > 1 {
            self.grow(entry.path.len())?;
            let node = Node {
                kind: Kind::Link {
                    to: entry.path.clone(),
                },
                xattrs: Vec::new(),
                uid: entry.node.uid,
                gid: entry.node.gid,
                mode: entry.node.mode,
                mtime: entry.node.mtime,
            };
            self.firsts.insert(entry.inode, node);
        }
        Ok(entry)
    }

    /// Blocks that several files claim would make more of the file system than there is.
    fn claim(&mut self, blocks: u64) -> Result<(), ReadError> {
        self.blocks = self.blocks.saturating_add(blocks);
        match self.blocks > self.reader.blocks {
            true => Err(self
                .reader
                .damaged("its files have more blocks than there are".to_owned())),
            false => Ok(()),
        }
    }

    fn enter(&mut self, directory: &Entry, inode: &Inode) -> Result<(), ReadError> {
        let ino = directory.inode;
        let (mut found, blocks) = self.reader.directory(inode)?;
        self.claim(blocks)?;
        found.sort_unstable_by(|a, b| b.cmp(a));
        if found.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
            let what = format!("directory {ino} has a name twice");
            return Err(self.reader.damaged(what));
        }
        for (name, child) in found {
            let path = match directory.path.is_empty() {
                true if name == b"lost+found" => continue,
                true => name,
                false => [directory.path.as_slice(), b"/", &name].concat(),
            };
            if path.len() > PATH_LIMIT {
                return Err(self.reader.too_much("bytes in a path", PATH_LIMIT as u64));
            }
            self.grow(path.len() + size_of::<Name>())?;
            self.pending.push((path, child));
        }
        Ok(())
    }

    fn count(&mut self, path: &[u8], attributes: usize) -> Result<(), ReadError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.reader.too_much("entries", self.limits.entries));
        }
        self.grow(path.len() + attributes)
    }

    /// What was given counts as well: who collects it is spared more than this.
    fn grow(&mut self, by: usize) -> Result<(), ReadError> {
        self.metadata = self.metadata.saturating_add(by);
        match self.metadata > METADATA_LIMIT {
            true => Err(self
                .reader
                .too_much("bytes of names and attributes", METADATA_LIMIT as u64)),
            false => Ok(()),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.pending.clear();
        }
        step.transpose()
    }
}
