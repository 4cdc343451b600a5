//! What of a tree goes where in a file system: decided before anything is written.

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::copy::{Copy, copy};
use super::directory::{self, Measure, Name};
use super::extents::{self, Extent};
use super::inode::{self, Inode, entry_kind};
use super::volume::Volume;
use super::xattrs::{self, Place};
use super::{BLOCK, BLOCK_LEN, LOST_AND_FOUND, ROOT};
use crate::ext4::Error;
use crate::rootfs_tar::{Kind, Node, Stored, Tree};

/// So that a repair has room for what it finds, as `mke2fs` has it.
const LOST_AND_FOUND_BLOCKS: u64 = 4;
const LOST_AND_FOUND_NAME: &[u8] = b"lost+found";
static LOST_AND_FOUND_NODE: Node = Node {
    kind: Kind::Directory,
    uid: 0,
    gid: 0,
    mode: 0o700,
    mtime: 0,
    xattrs: Vec::new(),
};

pub(super) struct Plan<'a> {
    /// The top, `lost+found`, and the others by their numbers, which have no gaps.
    items: Vec<Item<'a>>,
    directories: Vec<Directory<'a>>,
    copies: Vec<Copy>,
}

struct Item<'a> {
    ino: u32,
    node: &'a Node,
    stored: Option<&'a Stored>,
    links: u32,
    size: u64,
    extents: Vec<Extent>,
    /// The blocks that the extents' tree takes.
    map: Vec<u64>,
    attributes: Place,
    /// 0 where there is none.
    attributes_block: u64,
}

struct Directory<'a> {
    item: usize,
    above: u32,
    names: Vec<Name<'a>>,
}

impl<'a> Plan<'a> {
    /// Gives everything its place.
    pub(super) fn new(tree: &'a Tree, volume: &mut Volume) -> Result<Self, Error> {
        let mut plan = Self {
            items: Vec::new(),
            directories: Vec::new(),
            copies: Vec::new(),
        };
        plan.number(tree, volume)?;
        plan.allocate(volume)?;
        Ok(plan)
    }

    /// The last inode that is in use.
    pub(super) fn inodes(&self) -> u32 {
        self.items.last().map_or(LOST_AND_FOUND, |item| item.ino)
    }

    pub(super) fn directories_by_group(&self, volume: &Volume) -> BTreeMap<u32, u32> {
        let mut count = BTreeMap::new();
        for item in self
            .directories
            .iter()
            .filter_map(|found| self.items.get(found.item))
        {
            *count.entry(volume.group_of(item.ino)).or_insert(0) += 1;
        }
        count
    }

    /// Gives every inode its number and every directory its names.
    fn number(&mut self, tree: &'a Tree, volume: &Volume) -> Result<(), Error> {
        let mut found: HashMap<&[u8], usize> = HashMap::new();
        let mut directories: HashMap<&[u8], usize> = HashMap::new();
        self.item(ROOT, tree.get(b"").unwrap_or(&LOST_AND_FOUND_NODE), None)?;
        let lost_and_found = tree.get(LOST_AND_FOUND_NAME).unwrap_or(&LOST_AND_FOUND_NODE);
        if lost_and_found.kind != Kind::Directory {
            return Err(unfit(
                LOST_AND_FOUND_NAME,
                "it is a directory of the file system's own",
            ));
        }
        self.item(LOST_AND_FOUND, lost_and_found, None)?;
        for (path, item) in [(b"".as_slice(), 0), (LOST_AND_FOUND_NAME, 1)] {
            found.insert(path, item);
            directories.insert(path, item);
            self.directories.push(Directory {
                item,
                above: ROOT,
                names: Vec::new(),
            });
        }
        for (path, node, stored) in tree.iter_stored() {
            if matches!(node.kind, Kind::Link { .. }) || found.contains_key(path) {
                continue;
            }
            let ino = self.inodes() + 1;
            if ino > volume.inodes() {
                return Err(volume.full());
            }
            let item = self.item(ino, node, Some(stored))?;
            found.insert(path, item);
            if node.kind == Kind::Directory {
                directories.insert(path, self.directories.len());
                self.directories.push(Directory {
                    item,
                    above: ROOT,
                    names: Vec::new(),
                });
            }
        }
        let added = tree.get(LOST_AND_FOUND_NAME).is_none();
        let added = added.then_some((LOST_AND_FOUND_NAME, &LOST_AND_FOUND_NODE));
        for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()).chain(added) {
            let (above, name) = split(path);
            if name.len() > 255 {
                return Err(unfit(path, "it is longer than 255 bytes"));
            }
            let owner = match &node.kind {
                Kind::Link { to } => to.as_slice(),
                Kind::File { .. }
                | Kind::Directory
                | Kind::Symlink { .. }
                | Kind::CharDevice { .. }
                | Kind::BlockDevice { .. }
                | Kind::Fifo => path,
            };
            let homeless = || unfit(path, "there is nothing that it is a name of");
            let item = *found.get(owner).ok_or_else(homeless)?;
            let item = self.items.get_mut(item).ok_or_else(homeless)?;
            if owner != path {
                item.links += 1;
                if item.links > inode::LINKS {
                    return Err(unfit(path, "a file has no more than 65000 names"));
                }
            }
            let name = Name {
                name,
                ino: item.ino,
                kind: entry_kind(&item.node.kind),
            };
            let directory = *directories.get(above).ok_or_else(homeless)?;
            let directory = self.directories.get_mut(directory).ok_or_else(homeless)?;
            directory.names.push(name);
            let above = self.items.get_mut(directory.item).ok_or_else(homeless)?;
            let above_ino = above.ino;
            if node.kind == Kind::Directory {
                above.links += 1;
                let own = directories
                    .get(path)
                    .and_then(|own| self.directories.get_mut(*own));
                own.ok_or_else(homeless)?.above = above_ino;
            }
        }
        Ok(())
    }

    fn item(&mut self, ino: u32, node: &'a Node, stored: Option<&'a Stored>) -> Result<usize, Error> {
        let attributes = xattrs::place(&node.xattrs)
            .map_err(|name| unfit(name, "such an extended attribute cannot be stored"))?;
        let size = match &node.kind {
            Kind::File { size, .. } => *size,
            Kind::Symlink { target } => target.len() as u64,
            // Comes with its blocks.
            Kind::Directory => 0,
            Kind::Link { .. } | Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => 0,
        };
        self.items.push(Item {
            ino,
            node,
            stored,
            links: if node.kind == Kind::Directory { 2 } else { 1 },
            size,
            extents: Vec::new(),
            map: Vec::new(),
            attributes,
            attributes_block: 0,
        });
        Ok(self.items.len() - 1)
    }

    /// Gives everything its blocks: what a walk reads first, then contents in the order in which they are stored.
    fn allocate(&mut self, volume: &mut Volume) -> Result<(), Error> {
        for directory in &self.directories {
            let Some(item) = self.items.get_mut(directory.item) else {
                continue;
            };
            let mut measure = Measure::new();
            directory.names.iter().for_each(|name| measure.add(name.name));
            let blocks = at_least(item.ino).max(measure.blocks());
            item.size = blocks * BLOCK;
            extents::add(&mut item.extents, 0, &volume.allocate(blocks)?);
        }
        for item in &mut self.items {
            if has_long_target(item.node) {
                extents::add(&mut item.extents, 0, &volume.allocate(1)?);
            }
            if item.attributes == Place::Block {
                item.attributes_block = one(volume)?;
            }
        }
        let mut stored: Vec<(&Stored, &mut Item<'_>)> = self
            .items
            .iter_mut()
            .filter_map(|item| Some((item.stored?, item)))
            .filter(|(stored, _)| !stored.runs.is_empty())
            .collect();
        stored.sort_unstable_by_key(|(stored, _)| stored.at);
        for (stored, item) in stored {
            let mut from = stored.at;
            for run in &stored.runs {
                let runs = volume.allocate(run.count.into())?;
                extents::add(&mut item.extents, run.first, &runs);
                for (to, count) in runs {
                    match self.copies.last_mut() {
                        Some(last) if last.continues(from, to) => last.count += count,
                        Some(_) | None => self.copies.push(Copy { from, to, count }),
                    }
                    from += count;
                }
            }
        }
        for item in &mut self.items {
            for _ in 0..extents::tree_blocks(item.extents.len()) {
                item.map.push(one(volume)?);
            }
        }
        Ok(())
    }

    /// Writes everything but what is of the whole file system.
    pub(super) fn write(
        &self,
        tree: &Tree,
        volume: &mut Volume,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Result<(), Error> {
        for directory in &self.directories {
            let Some(item) = self.items.get(directory.item) else {
                continue;
            };
            let seed = inode::seed(volume.seed(), item.ino);
            let bytes = directory::build(
                item.ino,
                directory.above,
                &directory.names,
                at_least(item.ino),
                seed,
            );
            let mut rest = bytes.as_slice();
            for extent in &item.extents {
                let len = usize::try_from(u64::from(extent.count) * BLOCK).unwrap_or(usize::MAX);
                let (piece, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
                volume.write(extent.at * BLOCK, piece)?;
                rest = after;
            }
        }
        for item in &self.items {
            if let (Kind::Symlink { target }, [extent]) = (&item.node.kind, item.extents.as_slice()) {
                let mut block = target.clone();
                block.resize(BLOCK_LEN, 0);
                volume.write(extent.at * BLOCK, &block)?;
            }
            if item.attributes == Place::Block {
                let at = item.attributes_block;
                let block = xattrs::block(&item.node.xattrs, at, volume.seed());
                volume.write(at * BLOCK, &block)?;
            }
        }
        if let Some(contents) = tree.contents().file() {
            copy(contents, volume.file(), &self.copies, watch).map_err(|source| volume.failed(source))?;
        }
        for item in &self.items {
            Self::write_inode(item, volume)?;
        }
        Ok(())
    }

    fn write_inode(item: &Item<'_>, volume: &mut Volume) -> Result<(), Error> {
        let seed = inode::seed(volume.seed(), item.ino);
        let mapped = match &item.node.kind {
            Kind::File { .. } | Kind::Directory => true,
            Kind::Symlink { .. } => has_long_target(item.node),
            Kind::Link { .. } | Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => false,
        };
        let (map, tree) = extents::map(&item.extents, &item.map, seed);
        for (at, block) in tree {
            volume.write(at * BLOCK, &block)?;
        }
        let contents: u64 = item.extents.iter().map(|extent| u64::from(extent.count)).sum();
        let inode = Inode {
            node: item.node,
            size: item.size,
            links: item.links,
            blocks: contents + item.map.len() as u64 + u64::from(item.attributes == Place::Block),
            map: mapped.then_some(map),
            attributes: (item.attributes == Place::Inode).then(|| xattrs::in_inode(&item.node.xattrs)),
            attributes_block: item.attributes_block,
        };
        let at = volume.inode_at(item.ino)?;
        volume.write(at, &inode.bytes(seed))
    }
}

/// How many blocks a tree takes by itself, and how many inodes. Contents that lie in several pieces may need a few more for
/// their maps.
pub(in crate::ext4) fn blocks(tree: &Tree) -> (u64, u64) {
    let mut directories: HashMap<&[u8], Measure> = HashMap::new();
    let mut blocks = LOST_AND_FOUND_BLOCKS;
    let mut inodes = u64::from(LOST_AND_FOUND);
    for (path, node, stored) in tree.iter_stored() {
        if !path.is_empty() {
            let (above, name) = split(path);
            directories.entry(above).or_insert_with(Measure::new).add(name);
        }
        if matches!(node.kind, Kind::Link { .. }) {
            continue;
        }
        inodes += 1;
        blocks += u64::from(has_long_target(node));
        blocks += u64::from(xattrs::place(&node.xattrs) == Ok(Place::Block));
        if node.kind == Kind::Directory {
            directories.entry(path).or_insert_with(Measure::new);
        }
        let contents = stored.blocks();
        // What is of the file system itself is in the way every 32768 blocks, and so is an extent's end.
        let extents = stored.runs.len() + usize::try_from(contents >> 14).unwrap_or(usize::MAX);
        blocks += contents + extents::tree_blocks(extents) as u64;
    }
    blocks += directories.values().map(Measure::blocks).sum::<u64>();
    (blocks, inodes)
}

fn one(volume: &mut Volume) -> Result<u64, Error> {
    match volume.allocate(1)?.as_slice() {
        [(at, 1)] => Ok(*at),
        _ => Err(volume.full()),
    }
}

fn at_least(ino: u32) -> u64 {
    if ino == LOST_AND_FOUND {
        LOST_AND_FOUND_BLOCKS
    } else {
        1
    }
}

fn has_long_target(node: &Node) -> bool {
    matches!(&node.kind, Kind::Symlink { target } if target.len() >= inode::SHORT)
}

/// A path's directory and its last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

fn unfit(name: &[u8], reason: &'static str) -> Error {
    Error::Name {
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    }
}
