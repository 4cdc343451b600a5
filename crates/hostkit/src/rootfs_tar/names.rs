//! The names of a tree while it is put together, and the inodes behind them.
//!
//! A layer may delete or replace the first name of an inode that has others, so names refer to inodes here; only at the
//! end, in a [`Tree`], one of the names becomes the inode's own and the others links to it.

use std::collections::BTreeMap;
use std::mem;

use super::spool::{Contents, Stored};
use super::tree::{Kind, Leaf, Node, Tree};

/// All names and attributes together may take this many bytes of memory.
pub(super) const METADATA_LIMIT: usize = 256 << 20;

/// Counted from 1; what is there before the first layer is of 0.
pub(super) type Layer = u32;

#[derive(Debug)]
pub(super) struct Names {
    names: BTreeMap<Vec<u8>, Name>,
    /// Those without names are gone.
    inodes: Vec<Option<Inode>>,
    made: u64,
    /// Of all files.
    bytes: u64,
    /// Of names and attributes.
    metadata: usize,
}

#[derive(Debug)]
struct Name {
    inode: usize,
    /// Counts up: of an inode's names the one made first is its own.
    made: u64,
    /// The last layer that has an entry of this name or of one below.
    touched: Layer,
    /// The last layer that has an entry of this very name.
    mentioned: Layer,
}

#[derive(Debug)]
struct Inode {
    node: Node,
    /// Of a file.
    stored: Stored,
    names: u64,
}

/// Names and attributes take more than [`METADATA_LIMIT`].
#[derive(Debug)]
pub(super) struct TooMuchMetadata;

impl Names {
    /// Of a tree that has only its top.
    pub(super) fn new() -> Self {
        Self {
            names: BTreeMap::from([(
                Vec::new(),
                Name {
                    inode: 0,
                    made: 0,
                    touched: 0,
                    mentioned: 0,
                },
            )]),
            inodes: vec![Some(Inode {
                node: Node::implied(),
                stored: Stored::default(),
                names: 1,
            })],
            made: 0,
            bytes: 0,
            metadata: 0,
        }
    }

    /// The bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Node> {
        let name = self.names.get(path)?;
        self.inodes.get(name.inode)?.as_ref().map(|inode| &inode.node)
    }

    pub(super) fn is_directory(&self, path: &[u8]) -> bool {
        self.get(path).is_some_and(|node| node.kind == Kind::Directory)
    }

    /// Adds a name and its inode. Where the layer mentions it, rather than implying it, `mentioned` is the layer.
    pub(super) fn insert(
        &mut self,
        path: Vec<u8>,
        node: Node,
        stored: Stored,
        touched: Layer,
        mentioned: Layer,
    ) -> Result<(), TooMuchMetadata> {
        self.bytes += size(&node);
        self.metadata += metadata(&node) + stored.metadata();
        let inode = self.inodes.len();
        self.inodes.push(Some(Inode {
            node,
            stored,
            names: 0,
        }));
        self.name(path, inode, touched, mentioned)
    }

    /// Adds another name of the inode that `to` is a name of; what there is at `to` must not be a directory.
    pub(super) fn link(&mut self, path: Vec<u8>, to: &[u8], layer: Layer) -> Result<(), TooMuchMetadata> {
        let inode = self.names.get(to).map_or(0, |name| name.inode);
        self.name(path, inode, layer, layer)
    }

    fn name(
        &mut self,
        path: Vec<u8>,
        inode: usize,
        touched: Layer,
        mentioned: Layer,
    ) -> Result<(), TooMuchMetadata> {
        self.metadata += path.len();
        self.made += 1;
        if let Some(Some(inode)) = self.inodes.get_mut(inode) {
            inode.names += 1;
        }
        self.names.insert(
            path,
            Name {
                inode,
                made: self.made,
                touched,
                mentioned,
            },
        );
        if self.metadata > METADATA_LIMIT {
            Err(TooMuchMetadata)
        } else {
            Ok(())
        }
    }

    /// Gives a directory the attributes that a later entry says.
    pub(super) fn replace_attributes(
        &mut self,
        path: &[u8],
        node: Node,
        layer: Layer,
    ) -> Result<(), TooMuchMetadata> {
        let Some(name) = self.names.get_mut(path) else {
            return Ok(());
        };
        name.touched = layer;
        name.mentioned = layer;
        if let Some(Some(inode)) = self.inodes.get_mut(name.inode) {
            self.metadata += metadata(&node);
            self.metadata -= metadata(&mem::replace(&mut inode.node, node));
        }
        if self.metadata > METADATA_LIMIT {
            Err(TooMuchMetadata)
        } else {
            Ok(())
        }
    }

    /// Notes that a layer has an entry below the directory `path`.
    pub(super) fn touch(&mut self, mut path: &[u8], layer: Layer) {
        loop {
            match self.names.get_mut(path) {
                // What is above was touched together with it.
                Some(name) if name.touched == layer => return,
                Some(name) => name.touched = layer,
                None => {}
            }
            if path.is_empty() {
                return;
            }
            path = parent(path);
        }
    }

    /// Removes a name, and the inode with its last one; then returns what was stored of it.
    pub(super) fn remove(&mut self, path: &[u8]) -> Option<Stored> {
        let name = self.names.remove(path)?;
        self.metadata = self.metadata.saturating_sub(path.len());
        let slot = self.inodes.get_mut(name.inode)?;
        let inode = slot.as_mut()?;
        inode.names -= 1;
        if inode.names > 0 {
            return None;
        }
        let gone = slot.take()?;
        self.bytes -= size(&gone.node);
        let metadata = metadata(&gone.node) + gone.stored.metadata();
        self.metadata = self.metadata.saturating_sub(metadata);
        Some(gone.stored)
    }

    /// `path` and all below it, children before parents.
    pub(super) fn subtree(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let mut found: Vec<_> = self.at_and_below(path).map(|(path, _)| path.clone()).collect();
        found.reverse();
        found
    }

    /// Of what is below `path`, and `path` itself where `inclusive`: what no entry of `layer` has made, children before
    /// parents; and the directories that are there only because of what the layer has below them.
    pub(super) fn hidden_by(
        &self,
        path: &[u8],
        inclusive: bool,
        layer: Layer,
    ) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let mut hidden = Vec::new();
        let mut implied = Vec::new();
        for (found, name) in self.at_and_below(path) {
            if !inclusive && found == path {
                continue;
            }
            if name.touched != layer {
                hidden.push(found.clone());
            } else if name.mentioned != layer {
                implied.push(found.clone());
            }
        }
        hidden.reverse();
        (hidden, implied)
    }

    /// Forgets what lower layers said of a directory.
    pub(super) fn make_implied(&mut self, path: &[u8]) {
        let Some(name) = self.names.get(path) else { return };
        if let Some(Some(inode)) = self.inodes.get_mut(name.inode) {
            let old = mem::replace(&mut inode.node, Node::implied());
            self.metadata = self.metadata.saturating_sub(metadata(&old));
        }
    }

    fn at_and_below<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Name)> {
        // Of the top, everything else is below.
        let mut prefix = path.to_vec();
        if !path.is_empty() {
            prefix.push(b'/');
        }
        let below = self
            .names
            .range(prefix.clone()..)
            .take_while(move |(found, _)| found.starts_with(&prefix))
            // Where the prefix is empty, the top begins with it as well.
            .filter(|(found, _)| !found.is_empty());
        self.names.get_key_value(path).into_iter().chain(below)
    }

    /// Gives every inode one name of its own, the one that was made first, and makes the others links to it.
    pub(super) fn into_tree(mut self, contents: Contents) -> Result<Tree, TooMuchMetadata> {
        let mut owners: BTreeMap<usize, (u64, Vec<u8>)> = BTreeMap::new();
        for (path, name) in &self.names {
            let shared = self
                .inodes
                .get(name.inode)
                .and_then(Option::as_ref)
                .is_some_and(|inode| inode.names > 1);
            if !shared {
                continue;
            }
            let owner = owners
                .entry(name.inode)
                .or_insert_with(|| (name.made, path.clone()));
            if name.made < owner.0 {
                *owner = (name.made, path.clone());
            }
        }
        let mut nodes = BTreeMap::new();
        // A short name may have gone, and a long one is spelled out for each of the others.
        let mut spelled = self.metadata;
        for (path, name) in mem::take(&mut self.names) {
            let Some(slot) = self.inodes.get_mut(name.inode) else {
                continue;
            };
            let leaf = match owners.get(&name.inode) {
                None => slot.take().map(|inode| (inode.node, inode.stored)),
                Some((_, owner)) if *owner == path => slot
                    .as_mut()
                    .map(|inode| (inode.node.clone(), mem::take(&mut inode.stored))),
                Some((_, owner)) => {
                    spelled += owner.len();
                    slot.as_ref()
                        .map(|inode| (inode.node.link_to(owner), Stored::default()))
                }
            };
            if spelled > METADATA_LIMIT {
                return Err(TooMuchMetadata);
            }
            if let Some((node, stored)) = leaf {
                nodes.insert(path, Leaf { node, stored });
            }
        }
        Ok(Tree {
            nodes,
            bytes: self.bytes,
            contents,
        })
    }
}

/// The directory that a path is in; of the top, the top.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

fn size(node: &Node) -> u64 {
    match &node.kind {
        Kind::File { size, .. } => *size,
        Kind::Directory
        | Kind::Symlink { .. }
        | Kind::Link { .. }
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. }
        | Kind::Fifo => 0,
    }
}

fn metadata(node: &Node) -> usize {
    let target = match &node.kind {
        Kind::Symlink { target } => target.len(),
        Kind::File { .. }
        | Kind::Directory
        | Kind::Link { .. }
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. }
        | Kind::Fifo => 0,
    };
    let xattrs = node.xattrs.iter().map(|(name, value)| name.len() + value.len());
    target + xattrs.sum::<usize>()
}
