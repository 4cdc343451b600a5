//! Layers applied one on top of the other, as the OCI image specification has it (`layer.md`, "Applying Changesets").
//!
//! - An entry replaces whatever has its name, with all below; only a directory on a directory leaves what is in it and
//!   takes the attributes of the later. Within a layer that holds as well: the later of two entries counts.
//! - A whiteout (`.wh.NAME`) hides what lower layers have of that name, an opaque one (`.wh..wh..opq`) what they have in
//!   its directory: never what its own layer has, wherever in the layer it comes. Its kind and contents mean nothing.
//! - A hard link may lead to a file of a lower layer, and outlives the name it was made to.
//! - Directories on the way that no entry mentions are made as root's, mode 0755, time 0.
//!
//! Where the specification is silent this does what `umoci` and containerd do, with the exceptions named:
//!
//! - The directories in an entry's name, and in a hard link's, may be symbolic links. They are followed in the tree, as
//!   the machine will do (its top is where `/` and `..` end), never by the host's kernel.
//! - Names may begin with a slash, which means the top. `..` in them is refused; `umoci` takes it for the top at most, but
//!   no tool writes it.
//! - Whiteouts of no name, `.` or `..` are refused (`umoci` would delete the directory they are in, or the one above), and
//!   so is anything else with a part that begins with `.wh.`: no file system can have that name.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;

use super::archive::{Archive, Contents, Entry};
use super::header::{check_length, clean, clean_in_layer, show};
use super::names::{Layer, Names, TooMuchMetadata, parent};
use super::spool::{Spool, Stored};
use super::tree::{Kind, Node, Tree, join};
use super::{Error, Limits, METADATA_LIMIT, Rules};
use crate::digest::Digest;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Symbolic links followed for one name, as the kernel has it (`MAXSYMLINKS`).
const HOPS_LIMIT: u32 = 40;
/// Parts of names looked up for one name, links' included.
const STEPS_LIMIT: u32 = 1000;
const BUFFER: usize = 1 << 20;
const BELOW_A_FILE: &str = "it is below something that is no directory";

/// A tree that layers are applied to.
#[derive(Debug)]
pub struct Layers {
    spool: Spool,
    limits: Limits,
    names: Names,
    layer: Layer,
    /// Entries of all layers.
    entries: u64,
    /// Bytes of files of all layers, replaced ones included.
    written: u64,
    /// Whiteouts of this layer: a second one finds nothing to hide.
    hidden: HashSet<(Vec<u8>, bool)>,
    /// The bytes of their names.
    hidden_len: usize,
    buffer: Vec<u8>,
}

impl Layers {
    /// An empty tree; contents go into the empty directory `dir`, which must belong to this user alone and last as long as the tree. The limits are for all layers
    /// together, but for the ratio, which is each one's.
    #[must_use]
    pub fn new(dir: &Path, limits: &Limits) -> Self {
        Self {
            spool: Spool::new(dir),
            limits: *limits,
            names: Names::new(),
            layer: 0,
            entries: 0,
            written: 0,
            hidden: HashSet::new(),
            hidden_len: 0,
            buffer: vec![0; BUFFER],
        }
    }

    /// Applies the next layer and returns the digest of its archive, which the caller compares with the image's
    /// `diff_id`. `archive` gives it uncompressed, `packed_size` is how many bytes that is made of. `watch` is called
    /// with the bytes of files unpacked so far, of all layers, at least once per megabyte and entry; its error ends the
    /// work, which is how a caller cancels. After an error what is in the directory is of no use.
    pub fn apply(
        &mut self,
        archive: impl Read,
        packed_size: u64,
        watch: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<Digest, Error> {
        self.run(archive, Rules::Layer, Some(packed_size), watch)
    }

    /// Unpacks an archive that is no layer.
    pub(super) fn unpack(
        &mut self,
        archive: impl Read,
        watch: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.run(archive, Rules::Archive, None, watch)?;
        Ok(())
    }

    /// The tree, once all layers are applied.
    pub fn finish(self) -> Result<Tree, Error> {
        let contents = self.spool.finish().map_err(|source| Error::Write {
            entry: show(b""),
            source,
        })?;
        self.names.into_tree(contents).map_err(too_much)
    }

    fn run<R: Read>(
        &mut self,
        archive: R,
        rules: Rules,
        packed: Option<u64>,
        watch: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<Digest, Error> {
        self.layer += 1;
        self.hidden.clear();
        self.hidden_len = 0;
        let limits = self.limits;
        let mut applier = Applier {
            archive: Archive::new(archive, rules, &limits, packed, self.entries),
            layers: self,
            rules,
            watch,
        };
        while let Some(entry) = applier.archive.next_entry()? {
            applier.entry(entry)?;
            let written = applier.layers.written;
            (applier.watch)(written).map_err(|source| applier.archive.failed(source))?;
        }
        let Applier { archive, layers, .. } = applier;
        layers.entries = archive.entries();
        archive.finish(&mut layers.buffer)
    }
}

/// One layer on its way into the tree.
struct Applier<'a, R, W> {
    layers: &'a mut Layers,
    archive: Archive<'a, R>,
    rules: Rules,
    watch: W,
}

impl<R: Read, W: FnMut(u64) -> io::Result<()>> Applier<'_, R, W> {
    fn entry(&mut self, entry: Entry) -> Result<(), Error> {
        let Entry {
            name,
            shown,
            mut node,
            contents,
        } = entry;
        let path = self.clean(&name, &shown)?;
        let (place, last) = split(&path);
        if self.rules == Rules::Layer
            && let Some(hidden) = last.strip_prefix(WHITEOUT)
        {
            self.white_out(place, hidden, last == OPAQUE, &shown)?;
            return self.skip(contents.stored + contents.padding);
        }
        let path = self.place(&path, &shown)?;
        if let Kind::Link { to } = &mut node.kind {
            let cleaned = self.clean(to, &shown)?;
            *to = self.place(&cleaned, &shown)?;
        }
        self.make_parents(&path, &shown)?;
        self.make(path, node, &contents, &shown)
    }

    fn clean(&self, name: &[u8], shown: &str) -> Result<Vec<u8>, Error> {
        match self.rules {
            Rules::Archive => clean(name),
            Rules::Layer => clean_in_layer(name),
        }
        .map_err(|reason| refused(shown, reason))
    }

    /// Where in the tree a cleaned name leads to, without following a symbolic link at its end.
    fn place(&self, path: &[u8], shown: &str) -> Result<Vec<u8>, Error> {
        let (place, last) = split(path);
        if self.layers.names.is_directory(place) {
            return Ok(path.to_vec());
        }
        let place = self.resolve(place).map_err(|reason| refused(shown, reason))?;
        let path = join(&place, last);
        check_length(&path).map_err(|reason| refused(shown, reason))?;
        Ok(path)
    }

    /// Follows a directory's path from the top as a machine would. What is not there yet is taken for directories.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, &'static str> {
        let parts =
            |path: &[u8]| -> Vec<Vec<u8>> { path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec).collect() };
        let mut at = Vec::new();
        let mut rest = parts(path);
        let (mut hops, mut steps) = (0, 0);
        while let Some(part) = rest.pop() {
            steps += 1;
            if steps > STEPS_LIMIT {
                return Err("it leads through too long symbolic links");
            }
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at.truncate(parent(&at).len());
                    continue;
                }
                _ => {}
            }
            let next = join(&at, &part);
            match self.layers.names.get(&next).map(|node| &node.kind) {
                Some(Kind::Directory) | None => at = next,
                Some(Kind::Symlink { target }) => {
                    if self.rules == Rules::Archive {
                        return Err("it leads through a symbolic link");
                    }
                    hops += 1;
                    if hops > HOPS_LIMIT {
                        return Err("it leads through too many symbolic links");
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    rest.extend(parts(target));
                }
                Some(
                    Kind::File { .. }
                    | Kind::Link { .. }
                    | Kind::CharDevice { .. }
                    | Kind::BlockDevice { .. }
                    | Kind::Fifo,
                ) => return Err(BELOW_A_FILE),
            }
            check_length(&at)?;
        }
        Ok(at)
    }

    /// Hides what lower layers have of the name `hidden` in `place`, or all that they have in it.
    fn white_out(&mut self, place: &[u8], hidden: &[u8], opaque: bool, shown: &str) -> Result<(), Error> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(shown, "it is a whiteout of no name"));
        }
        check_reserved(place).map_err(|reason| refused(shown, reason))?;
        let place = match self.resolve(place) {
            Ok(place) => place,
            // There, nothing is to be hidden.
            Err(BELOW_A_FILE) => return Ok(()),
            Err(reason) => return Err(refused(shown, reason)),
        };
        let path = if opaque { place } else { join(&place, hidden) };
        if self.layers.names.get(&path).is_none() || self.layers.hidden.contains(&(path.clone(), opaque)) {
            return Ok(());
        }
        let layer = self.layers.layer;
        let (hidden, implied) = self.layers.names.hidden_by(&path, !opaque, layer);
        for path in hidden {
            self.remove(&path);
        }
        for path in implied {
            self.layers.names.make_implied(&path);
        }
        self.layers.hidden_len += path.len();
        self.layers.hidden.insert((path, opaque));
        if self.layers.hidden_len > METADATA_LIMIT {
            return Err(too_much(TooMuchMetadata));
        }
        Ok(())
    }

    /// Makes the directories on the way to `path` that are not there yet.
    fn make_parents(&mut self, path: &[u8], shown: &str) -> Result<(), Error> {
        let above = parent(path);
        if !self.layers.names.is_directory(above) {
            for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                let parent = path.get(..at).unwrap_or_default();
                match self.layers.names.get(parent).map(|node| &node.kind) {
                    Some(Kind::Directory) => {}
                    Some(_) => return Err(refused(shown, BELOW_A_FILE)),
                    None => {
                        self.archive.count()?;
                        self.check_name(parent, shown)?;
                        // Touched below, together with what is above it.
                        self.layers
                            .names
                            .insert(parent.to_vec(), Node::implied(), Stored::default(), 0, 0)
                            .map_err(too_much)?;
                    }
                }
            }
        }
        self.layers.names.touch(above, self.layers.layer);
        Ok(())
    }

    fn make(&mut self, path: Vec<u8>, node: Node, contents: &Contents, shown: &str) -> Result<(), Error> {
        let layer = self.layers.layer;
        self.check_name(&path, shown)?;
        if let Some(found) = self.layers.names.get(&path) {
            // In an archive by itself, too, directories may be mentioned again, for instance the top as `./`.
            if found.kind == Kind::Directory && node.kind == Kind::Directory {
                return self
                    .layers
                    .names
                    .replace_attributes(&path, node, layer)
                    .map_err(too_much);
            }
            if self.rules == Rules::Archive {
                return Err(Error::Duplicate {
                    entry: shown.to_owned(),
                });
            }
            if path.is_empty() {
                return Err(refused(shown, "it would replace the top"));
            }
        }
        if let Kind::Link { to } = &node.kind {
            self.check_link(&path, to, shown)?;
        }
        for path in self.layers.names.subtree(&path) {
            self.remove(&path);
        }
        let stored = match &node.kind {
            Kind::File { size, .. } => self.store(*size, contents, shown)?,
            Kind::Symlink { target } => {
                // What the kernel has as well.
                if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                    return Err(refused(shown, "bad target of a symbolic link"));
                }
                Stored::default()
            }
            // What the entry says of owners and times means nothing.
            Kind::Link { to } => return self.layers.names.link(path, to, layer).map_err(too_much),
            Kind::Directory | Kind::Fifo | Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {
                Stored::default()
            }
        };
        self.layers
            .names
            .insert(path, node, stored, layer, layer)
            .map_err(too_much)
    }

    fn check_name(&self, path: &[u8], shown: &str) -> Result<(), Error> {
        match self.rules {
            Rules::Archive => Ok(()),
            Rules::Layer => check_reserved(path).map_err(|reason| refused(shown, reason)),
        }
    }

    fn check_link(&self, path: &[u8], to: &[u8], shown: &str) -> Result<(), Error> {
        let replaced = path == to || to.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        match self.layers.names.get(to).map(|node| &node.kind) {
            None => Err(refused(shown, "it links to an entry that is not there")),
            Some(Kind::Directory) => Err(refused(shown, "it links to a directory")),
            Some(_) if replaced => Err(refused(shown, "it links to what it replaces")),
            Some(_) => Ok(()),
        }
    }

    fn remove(&mut self, path: &[u8]) {
        if let Some(stored) = self.layers.names.remove(path) {
            self.layers.spool.discard(&stored);
        }
    }

    fn store(&mut self, size: u64, contents: &Contents, shown: &str) -> Result<Stored, Error> {
        // Before anything is written, so that a header alone cannot fill the disk.
        let limit = self.layers.limits.bytes;
        if size > limit.saturating_sub(self.layers.names.bytes()) {
            return Err(Error::TooLarge {
                entry: shown.to_owned(),
                limit,
            });
        }
        self.layers.spool.begin();
        match &contents.pieces {
            None => self.copy(0, contents.stored, shown)?,
            Some(pieces) => {
                for piece in pieces {
                    self.copy(piece.offset, piece.len, shown)?;
                }
            }
        }
        self.skip(contents.padding)?;
        Ok(self.layers.spool.finish_file())
    }

    /// Copies the next bytes of the archive to `offset` of the file that was begun last.
    fn copy(&mut self, mut offset: u64, mut left: u64, shown: &str) -> Result<(), Error> {
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            let piece = self.layers.buffer.get_mut(..want).unwrap_or_default();
            self.archive.read_exact(piece)?;
            let stored = self.layers.spool.put(offset, piece);
            stored.map_err(|source| failed(shown, source))?;
            offset += want as u64;
            left -= want as u64;
            self.layers.written += want as u64;
            (self.watch)(self.layers.written).map_err(|source| self.archive.failed(source))?;
        }
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Error> {
        let written = self.layers.written;
        self.archive
            .skip(bytes, &mut self.layers.buffer, || (self.watch)(written))
    }
}

/// A path's directory and its last part.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let above = parent(path);
    let last = path.get(above.len()..).unwrap_or_default();
    (above, last.strip_prefix(b"/").unwrap_or(last))
}

/// Insists that no part of a path is a whiteout's name.
fn check_reserved(path: &[u8]) -> Result<(), &'static str> {
    if path
        .split(|byte| *byte == b'/')
        .any(|part| part.starts_with(WHITEOUT))
    {
        Err("its name is a whiteout's")
    } else {
        Ok(())
    }
}

fn refused(shown: &str, reason: &'static str) -> Error {
    Error::Refused {
        entry: shown.to_owned(),
        reason,
    }
}

fn failed(shown: &str, source: io::Error) -> Error {
    Error::Write {
        entry: shown.to_owned(),
        source,
    }
}

fn too_much(_: TooMuchMetadata) -> Error {
    Error::TooMuchMetadata {
        limit: METADATA_LIMIT,
    }
}
