//! Why a file system was not read.

use std::io;
use std::path::PathBuf;

use crate::ext4::superblock;

/// Why a file system, or something in it, was not read. Names are as they are in it, without control characters.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is none, was not unmounted in order, or is beyond what can be looked at.
    #[error(transparent)]
    Superblock(#[from] superblock::Error),
    /// Reading the file failed.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It contradicts itself.
    #[error("the file system in {} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// It is sound, and laid out in a way that is not read here.
    #[error("the file system in {} cannot be read: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it uses.
        what: String,
    },
    /// There is more in it than may be read.
    #[error("the file system in {} has more than {limit} {what}", path.display())]
    TooMuch {
        /// The file.
        path: PathBuf,
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A path goes on behind what is no directory.
    #[error("{path:?} is no directory")]
    NotADirectory {
        /// The path in the file system.
        path: String,
    },
    /// Following symbolic links does not end.
    #[error("too many symbolic links on the way to {path:?}")]
    TooManyLinks {
        /// The path in the file system.
        path: String,
    },
}
