//! Root file systems: from an ext4 file, an archive, or the layers of an OCI image, to the `rootfs.ext4` of an image.
//!
//! The result is a directory with that one file, whole or not at all. It is read-only from then on and shared by every
//! machine of the image, each of which has a disk of its own for what it changes; so it has no journal and little free
//! space. What is found out about it on the way is returned as [`Rootfs`] for the caller to keep. The bootstraps,
//! [`super::debian`] and [`super::busybox`], make an archive and then go the way of [`from_tar`].

pub(super) mod disk;
mod error;
mod layers;
mod share;
mod tree;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use hostkit::decompress;
use hostkit::dedupe::Indexing;
use hostkit::digest::Digest;
use hostkit::ext4::populate::Options;
use hostkit::ext4::{E2fsTools, superblock};
use hostkit::rootfs_tar::{self, Limits, Tree};

use disk::Form;
pub use disk::{DiskError, QemuError};
pub use error::{LayerError, RootfsError};
pub use layers::{LayerFile, from_layers};
pub(super) use share::shared_blocks;
use tree::Bench;

use super::os_release::OsRelease;
use super::work::{self, Cancel, Reporter, WorkDir};

/// The name of the file in an image's directory.
pub const FILE: &str = "rootfs.ext4";

/// Progress is reported after so many bytes.
const REPORT_EVERY: u64 = 32 << 20;
const OS_RELEASE_LIMIT: usize = 64 << 10;

/// What is known about a root file system that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The file.
    pub path: PathBuf,
    /// The length of the file, in bytes; it is sparse where the file system is free.
    pub size: u64,
    /// What is in use of it, in bytes.
    pub used: u64,
    /// Of the file.
    pub sha256: Digest,
    /// What it says it is.
    pub os: OsRelease,
    /// `/sbin/init`, where it has one; without, the agent stays the first process.
    pub init: Option<String>,
    /// A name for the image, made of lowercase letters, digits and dashes.
    pub suggested_name: String,
}

/// Makes the directory `target` from a file that is an ext4 file system, an archive, or the image of a disk, which its first
/// bytes tell; see [`from_ext4_file`], [`from_tar`] and [`disk`]. A partition is one of a disk.
pub async fn from_file(
    target: &Path,
    source: &Path,
    partition: Option<u32>,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let form = disk::form(source);
    match superblock::check(source) {
        Err(superblock::Error::NotExt4 { .. })
            if matches!(form, Form::Disk | Form::Qcow2) || partition.is_some() =>
        {
            disk::from_disk(target, source, form, partition, tool_dirs, progress).await
        }
        Err(superblock::Error::NotExt4 { .. }) if is_archive(source) => {
            from_tar(target, source, Limits::default(), tool_dirs, progress).await
        }
        Ok(_) | Err(_) => from_ext4_file(target, source, tool_dirs, progress).await,
    }
}

/// Whether a file is compressed, or has the mark of a tar header.
fn is_archive(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(512).read_to_end(&mut head));
    read.is_ok() && (decompress::detect(&head).is_some() || head.get(257..262) == Some(b"ustar"))
}

/// Takes over the ext4 file system in `source` as the directory `target`, by a copy that shares its blocks where the
/// host can. Stages: `check`, `copy`, `digest`, `share`, `store`.
pub async fn from_ext4_file(
    target: &Path,
    source: &Path,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    progress.step("check", format!("checking {}", source.display()));
    superblock::check(source).map_err(|error| RootfsError::Ext4 {
        path: source.to_owned(),
        source: error,
    })?;
    let work = new_work(target)?;
    let new = new_file(&work, target)?;

    let (path, to, progress_) = (source.to_owned(), new.clone(), progress.clone());
    work::blocking(move |cancel| copy(&path, &to, cancel, &progress_)).await?;

    let found = look_into(&new, source, tool_dirs).await?;
    publish(work, target, found, progress).await
}

/// What an ext4 file system says of itself, and what it would be called that came from `source`.
pub(super) async fn look_into(
    file: &Path,
    source: &Path,
    tool_dirs: &[PathBuf],
) -> Result<Found, RootfsError> {
    let tools = find_tools(tool_dirs)?;
    let read = async |path| {
        tools
            .read(file, path, OS_RELEASE_LIMIT)
            .await
            .map_err(RootfsError::Make)
    };
    let text = match read("/usr/lib/os-release").await? {
        Some(text) => Some(text),
        None => read("/etc/os-release").await?,
    };
    let os = text
        .map(|text| OsRelease::parse(&String::from_utf8_lossy(&text)))
        .unwrap_or_default();
    let init = tools
        .exists(file, "/sbin/init")
        .await
        .map_err(RootfsError::Make)?;
    Ok(Found {
        os,
        init,
        fallback_name: stem(source),
    })
}

/// Makes the directory `target` from an archive: tar, plain or compressed with gzip, zstd or xz. Stages: `unpack`,
/// `make`, `digest`, `share`, `store`.
pub async fn from_tar(
    target: &Path,
    archive: &Path,
    limits: Limits,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let work = new_work(target)?;
    let options = Options {
        label: "rootfs",
        slack: 0,
    };
    from_tar_in(work, target, archive, limits, &options, tool_dirs, progress).await
}

/// [`from_tar`] in a work directory that the caller made, for instance to make the archive in.
pub(super) async fn from_tar_in(
    work: WorkDir,
    target: &Path,
    archive: &Path,
    limits: Limits,
    options: &Options<'_>,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let bench = Bench::new(work, target, tool_dirs)?;
    let (path, report) = (archive.to_owned(), progress.clone());
    let unpacked = bench
        .unpack(move |dir, cancel| unpack(&path, dir, &limits, cancel, &report))
        .await?;
    bench
        .make(target, unpacked, options, stem(archive), progress)
        .await
}

/// What was found out before the end.
pub(super) struct Found {
    os: OsRelease,
    init: bool,
    fallback_name: String,
}

pub(super) fn new_work(target: &Path) -> Result<WorkDir, RootfsError> {
    let path = target.to_owned();
    if fs::symlink_metadata(target).is_ok() {
        return Err(RootfsError::Exists { path });
    }
    WorkDir::beside(target).map_err(|source| RootfsError::Store { path, source })
}

pub(super) fn new_file(work: &WorkDir, target: &Path) -> Result<PathBuf, RootfsError> {
    let dir = work.path().join("new");
    fs::create_dir(&dir).map_err(|source| RootfsError::Store {
        path: target.to_owned(),
        source,
    })?;
    Ok(dir.join(FILE))
}

fn find_tools(dirs: &[PathBuf]) -> Result<E2fsTools, RootfsError> {
    E2fsTools::find(dirs).map_err(|source| RootfsError::NoTools(Box::new(source)))
}

fn copy(from: &Path, to: &Path, cancel: &Cancel, progress: &Reporter) -> Result<(), RootfsError> {
    let read_error = |source| RootfsError::Read {
        path: from.to_owned(),
        source,
    };
    let source = File::open(from).map_err(read_error)?;
    let total = source.metadata().map_err(read_error)?.len();
    let new = File::create_new(to).map_err(|source| RootfsError::Store {
        path: to.to_owned(),
        source,
    })?;
    let mut paced = Paced::default();
    hostkit::copy::copy(&source, &new, |done| {
        if paced.is_due(done) {
            progress.bytes("copy", "copying the file system", done, Some(total));
        }
        cancel.check()
    })
    .map_err(|source| RootfsError::Store {
        path: to.to_owned(),
        source,
    })?;
    Ok(())
}

fn unpack(
    archive: &Path,
    dir: &Path,
    limits: &Limits,
    cancel: &Cancel,
    progress: &Reporter,
) -> Result<Tree, RootfsError> {
    let read_error = |source| RootfsError::Read {
        path: archive.to_owned(),
        source,
    };
    let (file, format) = tree::open(archive).map_err(read_error)?;
    let input = BufReader::with_capacity(tree::READ, file);
    let reader: Box<dyn Read + Send> = match format {
        Some(format) => decompress::reader(format, input).map_err(|source| RootfsError::Compression {
            path: archive.to_owned(),
            source,
        })?,
        None => Box::new(input),
    };
    progress.step("unpack", format!("unpacking {}", archive.display()));
    let mut paced = Paced::default();
    let tree = rootfs_tar::unpack(reader, dir, limits, |done| {
        if paced.is_due(done) {
            progress.bytes("unpack", "unpacking", done, None);
        }
        cancel.check()
    })
    .map_err(|source| RootfsError::Archive {
        path: archive.to_owned(),
        source: Box::new(source),
    })?;
    if ["/bin", "/sbin", "/usr", "/etc"]
        .into_iter()
        .any(|path| tree.lookup(path).is_some())
    {
        Ok(tree)
    } else {
        Err(RootfsError::NoRoot {
            path: archive.to_owned(),
        })
    }
}

/// Publishes `new/rootfs.ext4`, which may be a link to the file.
pub(super) async fn publish(
    work: WorkDir,
    target: &Path,
    found: Found,
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let (target, progress) = (target.to_owned(), progress.clone());
    let (rootfs, published) = work::blocking(move |cancel| {
        let store_error = |source: io::Error| {
            let path = target.clone();
            if source.kind() == io::ErrorKind::AlreadyExists {
                RootfsError::Exists { path }
            } else {
                RootfsError::Store { path, source }
            }
        };
        let new = work.path().join("new").join(FILE);
        let superblock = superblock::check(&new).map_err(|source| RootfsError::Ext4 {
            path: new.clone(),
            source,
        })?;
        let file = File::open(&new).map_err(store_error)?;
        let size = file.metadata().map_err(store_error)?.len();
        let mut paced = Paced::default();
        let watch = |done| {
            if paced.is_due(done) {
                progress.bytes("digest", "computing the digest", done, Some(size));
            }
            cancel.check()
        };
        // What is the user's is not touched, not even where its blocks lie; there is only a link to it.
        let is_ours = fs::symlink_metadata(&new).map_err(store_error)?.is_file();
        let images = target
            .parent()
            .filter(|images| is_ours && share::is_possible(images));
        let sha256 = match images {
            None => Digest::of_reader_watched(file, watch).map_err(store_error)?,
            Some(images) => {
                let mut blocks = Indexing::new(file);
                let sha256 = Digest::of_reader_watched(&mut blocks, watch).map_err(store_error)?;
                let directory = new.parent().unwrap_or(&new);
                share::share(directory, &blocks.finish(), images, cancel, &progress).map_err(store_error)?;
                sha256
            }
        };
        progress.step("store", "storing the image");
        let published = work.publish("new", &target).map_err(store_error)?;
        let rootfs = Rootfs {
            path: target.join(FILE),
            size,
            used: superblock.used,
            sha256,
            suggested_name: found.os.suggested_name().unwrap_or(found.fallback_name),
            os: found.os,
            init: found.init.then(|| "/sbin/init".to_owned()),
        };
        Ok::<_, RootfsError>((rootfs, published))
    })
    .await?;
    published.keep();
    Ok(rootfs)
}

/// A file's name up to its first dot, as a name for an image.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = super::os_release::as_name(name.split('.').next().unwrap_or_default());
    name.unwrap_or_else(|| "image".to_owned())
}

/// Lets a report through every so many bytes.
#[derive(Default)]
struct Paced {
    next: u64,
}

impl Paced {
    fn is_due(&mut self, done: u64) -> bool {
        let due = done >= self.next;
        if due {
            self.next = done + REPORT_EVERY;
        }
        due
    }
}

#[cfg(test)]
#[path = "rootfs_tests.rs"]
mod tests;
