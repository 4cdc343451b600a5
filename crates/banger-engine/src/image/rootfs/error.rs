//! Why there is no root file system.

use std::io;
use std::path::PathBuf;

use hostkit::decompress;
use hostkit::digest::Digest;
use hostkit::exec::ExecError;
use hostkit::ext4::{self, superblock};
use hostkit::partitions;
use hostkit::qcow2;
use hostkit::rootfs_tar;

use super::disk::{DiskError, QemuError};
use crate::error::chain;
use crate::image::busybox::BusyboxError;
use crate::image::debian::DebianError;

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The source cannot be opened or read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The source is no sound ext4 file system.
    #[error("{} is neither a tar archive (plain, gzip, xz, zstd) nor a usable ext4 file system", path.display())]
    Ext4 {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: superblock::Error,
    },
    /// The source is compressed in a way that is not read.
    #[error("failed to decompress {}", path.display())]
    Compression {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: decompress::Error,
    },
    /// The archive is damaged, hostile or too large.
    #[error("failed to unpack {}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<rootfs_tar::Error>,
    },
    /// A layer of an image is damaged, hostile, too large, or another than the image says.
    #[error("failed to unpack layer {number} of {count} (sha256:{diff_id} unpacked)")]
    Layer {
        /// Which, counted from 1 at the bottom.
        number: usize,
        /// How many there are.
        count: usize,
        /// What the image says its digest is, unpacked.
        diff_id: Digest,
        /// The cause.
        #[source]
        source: Box<LayerError>,
    },
    /// There is nothing in the archive that could be run.
    #[error("{} holds no root file system (it has no directory bin, sbin, usr or etc)", path.display())]
    NoRoot {
        /// The file.
        path: PathBuf,
    },
    /// The disk image holds none, or it is not clear which.
    #[error("{} holds no root file system", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<DiskError>,
    },
    /// A qcow2 could not be read.
    #[error("failed to read {}", path.display())]
    Qemu {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<QemuError>,
    },
    /// e2fsprogs is not installed.
    #[error("e2fsprogs is needed to make file systems (package e2fsprogs)")]
    NoTools(#[source] Box<ExecError>),
    /// The file system could not be made or looked into.
    #[error("failed to make the root file system")]
    Make(#[source] ext4::Error),
    /// Debian could not be installed.
    #[error(transparent)]
    Debian(Box<DebianError>),
    /// There is no busybox to make an image of.
    #[error(transparent)]
    Busybox(Box<BusyboxError>),
    /// The target exists.
    #[error("image {} exists already", path.display())]
    Exists {
        /// The target directory.
        path: PathBuf,
    },
    /// The result cannot be stored.
    #[error("failed to store image {}", path.display())]
    Store {
        /// The target directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is compressed in a way that is not read.
    #[error(transparent)]
    Compression(decompress::Error),
    /// It is damaged, hostile or too large.
    #[error(transparent)]
    Archive(rootfs_tar::Error),
    /// It is sound, but another one.
    #[error("its contents have the digest sha256:{found}")]
    Differs {
        /// What it has.
        found: Digest,
    },
}

impl LayerError {
    /// Whether another layer would do, rather than another disk.
    fn is_unusable_input(&self) -> bool {
        match self {
            Self::Compression(_) | Self::Differs { .. } => true,
            // Half of unpacking is writing.
            Self::Archive(error) => !matches!(error, rootfs_tar::Error::Write { .. }),
            Self::Read { .. } => false,
        }
    }
}

impl RootfsError {
    /// Whether the source is not what it should be, so that only another source can help.
    #[must_use]
    pub fn is_unusable_input(&self) -> bool {
        match self {
            Self::Ext4 { .. } | Self::Compression { .. } | Self::Archive { .. } | Self::NoRoot { .. } => {
                // Half of unpacking is writing.
                !matches!(self, Self::Archive { source, .. } if matches!(**source, rootfs_tar::Error::Write { .. }))
            }
            Self::Layer { source, .. } => source.is_unusable_input(),
            Self::Disk { source, .. } => !matches!(
                **source,
                DiskError::Table(partitions::Error::Read(_)) | DiskError::Qcow2(qcow2::Error::Read(_))
            ),
            Self::Make(error) => matches!(error, ext4::Error::Name { .. }),
            Self::Read { .. }
            | Self::Qemu { .. }
            | Self::NoTools(_)
            | Self::Debian(_)
            | Self::Busybox(_)
            | Self::Exists { .. }
            | Self::Store { .. } => false,
        }
    }
}

impl RootfsError {
    /// What is wrong with an unusable input, for who has named the file already.
    pub(crate) fn problem(&self) -> String {
        match self {
            Self::Ext4 { source, .. } => superblock_problem(source),
            Self::Compression { source, .. } => format!("it cannot be decompressed: {}", chain(source)),
            Self::Archive { source, .. } => format!("it cannot be unpacked: {}", chain(source.as_ref())),
            Self::NoRoot { .. } => {
                "it holds no root file system (it has no directory bin, sbin, usr or etc)".to_owned()
            }
            Self::Read { source, .. } => format!("it cannot be read: {source}"),
            Self::Disk { source, .. } => match source.as_ref() {
                DiskError::NotUsable {
                    number,
                    source: superblock::Error::NotExt4 { .. },
                } => format!("its partition {number} is no ext4 file system"),
                DiskError::NotUsable { number, source } => {
                    format!("its partition {number}: {}", superblock_problem(source))
                }
                DiskError::Qcow2(_)
                | DiskError::Table(_)
                | DiskError::TooLarge(_)
                | DiskError::NoPartition { .. }
                | DiskError::NoneUsable(_)
                | DiskError::Several(_)
                | DiskError::NoTable => chain(source.as_ref()),
            },
            Self::Layer { .. }
            | Self::Qemu { .. }
            | Self::NoTools(_)
            | Self::Make(_)
            | Self::Debian(_)
            | Self::Busybox(_)
            | Self::Exists { .. }
            | Self::Store { .. } => chain(self),
        }
    }
}

/// What is wrong with a file system, of a file that was named already.
fn superblock_problem(error: &superblock::Error) -> String {
    match error {
        superblock::Error::NotExt4 { .. } => {
            "it is neither a tar archive (plain, gzip, xz, zstd), nor an ext4 file system, nor a disk with partitions, nor a qcow2"
                .to_owned()
        }
        superblock::Error::NotAFile { .. } => "it is neither a file nor a block device".to_owned(),
        superblock::Error::Damaged { what, .. } => format!("its superblock is damaged: {what}"),
        superblock::Error::Truncated { len, size, .. } => {
            format!("it is cut short: {len} bytes of a file system of {size}")
        }
        superblock::Error::Unclean { .. } => {
            "it was not unmounted cleanly or has errors (run `e2fsck -f` on it)".to_owned()
        }
        superblock::Error::Unsupported { bits, .. } => {
            format!(
                "it uses ext4 features that are not supported (incompatible feature bits {bits:#x})"
            )
        }
        superblock::Error::Read { source, .. } => format!("it cannot be read: {source}"),
    }
}

impl From<DebianError> for RootfsError {
    fn from(error: DebianError) -> Self {
        Self::Debian(Box::new(error))
    }
}

impl From<BusyboxError> for RootfsError {
    fn from(error: BusyboxError) -> Self {
        Self::Busybox(Box::new(error))
    }
}
