//! Unpacking the archive of a root file system, or the layers of one, safely, without privileges, and without losing
//! anything of it.
//!
//! Archives may come from strangers. Every entry's path is taken apart here and looked up in the tree built so far
//! ([`names`]), so the kernel never follows a symbolic link of theirs and nothing is made above the top; numbers of
//! entries and bytes are bounded, and so is what a layer may unpack to for its packed size. Contents go to the disk, all
//! into one file ([`spool`]) in a directory that nobody else writes to; everything else is kept in the [`Tree`], for
//! [`crate::ext4::populate`] to write into the image.
//!
//! The way of an entry: [`archive`] reads its [`header`]s and, of a [`sparse`] file, the map; [`layers`] decides what it
//! means for the tree and stores what is in it. [`unpack`] takes a single archive, in which every name is new; [`Layers`]
//! takes those of an OCI image one on top of the other. Formats read: ustar, GNU and pax (POSIX.1-2001, `pax` "Extended
//! Header"), with all their sparse files. [`write`] makes archives.

mod archive;
mod header;
mod layers;
mod names;
mod sparse;
mod spool;
mod tree;
pub mod write;

use std::io::{self, Read};
use std::path::Path;

pub use layers::Layers;
use names::METADATA_LIMIT;
pub(crate) use spool::Stored;
pub use tree::{Kind, Node, Tree};

const RECORD: usize = 512;
/// A long name or a set of pax records may take this many bytes; real ones take hundreds.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// All extended attributes of one inode have to fit beside each other into one block of the file system.
const XATTR_LIMIT: usize = 3500;
/// `PATH_MAX`, with room for the directory that all is unpacked in.
const PATH_LIMIT: usize = 3500;
/// How many directories deep an entry may be; unpacking and removing hold a descriptor for each.
const DEPTH_LIMIT: usize = 128;
/// Padding after the end of the archive that is read to verify a compressor's checksum.
const PADDING_LIMIT: u64 = 16 << 20;

/// How much an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of all files together, holes of sparse ones included.
    pub bytes: u64,
    /// How many times its packed size a layer may unpack to, once that is more than [`Limits::ratio_floor`].
    pub ratio: u64,
    /// A layer may unpack to this many bytes however small it is packed.
    pub ratio_floor: u64,
}

impl Default for Limits {
    /// A million entries and 64 GiB: a full desktop has 500 000 files in 20 GiB. Programs are packed to a third, logs to a
    /// twentieth; what is packed to less than a hundredth is nothing but zeros.
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            bytes: 64 << 30,
            ratio: 100,
            ratio_floor: 4 << 30,
        }
    }
}

/// What entries may do to what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// Nothing: an archive by itself.
    Archive,
    /// What those of an image's layer may: replace and delete.
    Layer,
}

/// Why an archive was refused. Entries are named as the archive names them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the archive failed, perhaps because it is damaged under its compression.
    #[error("failed to read the archive after {entries} entries")]
    Read {
        /// How many entries came before.
        entries: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It ends without its end marker, or in the middle of an entry.
    #[error("archive is cut short after {entries} entries")]
    Truncated {
        /// How many entries came before.
        entries: u64,
    },
    /// A header is not one.
    #[error("malformed archive: {what} in the header of entry {entry:?} (number {number})")]
    Malformed {
        /// The entry's name, as far as it is known.
        entry: String,
        /// Counted from 1.
        number: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The entry's name, or its link's, leads out of the tree or is not a name.
    #[error("refused archive entry {entry:?}: {reason}")]
    Refused {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something of that name came before.
    #[error("duplicate archive entry {entry:?}")]
    Duplicate {
        /// The entry's name.
        entry: String,
    },
    /// A kind of entry that a root file system does not have, or that is not supported.
    #[error("unsupported archive entry {entry:?} of type {kind:?}")]
    Unsupported {
        /// The entry's name.
        entry: String,
        /// The type, a letter in the header.
        kind: char,
    },
    /// The archive holds more than [`Limits::entries`].
    #[error("archive has more than {limit} entries")]
    TooManyEntries {
        /// The bound.
        limit: u64,
    },
    /// Names and attributes take more memory than any real archive's.
    #[error("archive has more than {limit} bytes of names and attributes")]
    TooMuchMetadata {
        /// The bound.
        limit: usize,
    },
    /// The archive holds more than [`Limits::bytes`].
    #[error("archive unpacks to more than {limit} bytes (at entry {entry:?})")]
    TooLarge {
        /// The entry that goes beyond.
        entry: String,
        /// The bound.
        limit: u64,
    },
    /// A layer unpacks to far more than any real one of its packed size.
    #[error("layer of {packed} bytes unpacks to more than {limit} bytes (at entry {entry:?})")]
    Expands {
        /// The entry that goes beyond.
        entry: String,
        /// What it is packed into, in bytes.
        packed: u64,
        /// The bound.
        limit: u64,
    },
    /// Contents could not be written.
    #[error("failed to unpack {entry:?}")]
    Write {
        /// The entry's name.
        entry: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Unpacks `archive`; contents go into the empty directory `dir`, which must belong to this user alone and last as long as the tree. `watch` is called with the
/// bytes unpacked so far, at least once per megabyte and entry; its error ends the work, which is how a caller cancels.
/// After an error `dir` holds a part of them.
pub fn unpack(
    archive: impl Read,
    dir: &Path,
    limits: &Limits,
    watch: impl FnMut(u64) -> io::Result<()>,
) -> Result<Tree, Error> {
    let mut layers = Layers::new(dir, limits);
    layers.unpack(archive, watch)?;
    layers.finish()
}

#[cfg(test)]
mod tests;
