//! From a tree in a work directory to an image: what [`super::from_tar`] and [`super::from_layers`] have in common.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostkit::decompress::{self, Format};
use hostkit::ext4::E2fsTools;
use hostkit::ext4::populate::{self, Options};
use hostkit::rootfs_tar::{Kind, Tree};

use super::{Found, OS_RELEASE_LIMIT, Rootfs, RootfsError, find_tools, new_file, publish};
use crate::image::os_release::OsRelease;
use crate::image::work::{self, Cancel, Reporter, WorkDir};

/// Archives are read in pieces of so many bytes.
pub(super) const READ: usize = 1 << 18;

/// A work directory with a place for the tree and one for the file system made of it.
pub(super) struct Bench {
    work: WorkDir,
    tools: E2fsTools,
    new: PathBuf,
    staging: PathBuf,
    scratch: PathBuf,
}

/// A tree that an image can be made of.
pub(super) struct Unpacked {
    tree: Tree,
    os: OsRelease,
}

impl Bench {
    pub(super) fn new(work: WorkDir, target: &Path, tool_dirs: &[PathBuf]) -> Result<Self, RootfsError> {
        let tools = find_tools(tool_dirs)?;
        let new = new_file(&work, target)?;
        let (staging, scratch) = (work.path().join("tree"), work.path().join("scratch"));
        fs::create_dir(&staging)
            .and_then(|()| fs::create_dir(&scratch))
            .map_err(|source| RootfsError::Store {
                path: target.to_owned(),
                source,
            })?;
        Ok(Self {
            work,
            tools,
            new,
            staging,
            scratch,
        })
    }

    /// Has a thread unpack something into the directory that it is given, and completes the tree.
    pub(super) async fn unpack(
        &self,
        unpack: impl FnOnce(&Path, &Cancel) -> Result<Tree, RootfsError> + Send + 'static,
    ) -> Result<Unpacked, RootfsError> {
        let (dir, held) = (self.staging.clone(), self.work.clone());
        work::blocking(move |cancel| {
            // So that the directory outlives this thread when nobody waits for it any more.
            let _held = held;
            let mut tree = unpack(&dir, cancel)?;
            let os = complete(&mut tree, &dir)?;
            Ok(Unpacked { tree, os })
        })
        .await
    }

    /// Makes the file system and publishes it as `target`. Stages: `make`, `digest`, `store`.
    pub(super) async fn make(
        self,
        target: &Path,
        unpacked: Unpacked,
        options: &Options<'_>,
        fallback_name: String,
        progress: &Reporter,
    ) -> Result<Rootfs, RootfsError> {
        let Self {
            work,
            tools,
            new,
            staging,
            scratch,
        } = self;
        let Unpacked { tree, os } = unpacked;
        let init = tree.lookup("/sbin/init").is_some();
        progress.step("make", "making the file system");
        populate::populate(&tools, &new, &staging, &Arc::new(tree), &scratch, options)
            .await
            .map_err(RootfsError::Make)?;
        let found = Found {
            os,
            init,
            fallback_name,
        };
        let held = work.clone();
        work::blocking(move |_| {
            let _held = held;
            // No longer needed, and the digest that follows takes a while; what is left goes with the work directory.
            fs::remove_dir_all(&staging).ok();
        })
        .await;
        publish(work, target, found, progress).await
    }
}

/// Opens an archive and tells what it is compressed with by its first bytes.
pub(super) fn open(archive: &Path) -> io::Result<(File, Option<Format>)> {
    let mut file = File::open(archive)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut head = Vec::new();
    (&file).take(8).read_to_end(&mut head)?;
    file.rewind()?;
    Ok((file, decompress::detect(&head)))
}

/// Adds what every machine mounts on, which archives of containers often lack, and finds out what system it is.
fn complete(tree: &mut Tree, dir: &Path) -> Result<OsRelease, RootfsError> {
    for (name, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
    ] {
        tree.add_directory(dir, name, mode)
            .map_err(|source| RootfsError::Store {
                path: dir.to_owned(),
                source,
            })?;
    }
    let os = tree
        .lookup("/etc/os-release")
        .or_else(|| tree.lookup("/usr/lib/os-release"));
    match os {
        // The path is the one it leads to, without symbolic links in it.
        Some((path, node)) if matches!(node.kind, Kind::File { .. }) => {
            let mut text = Vec::new();
            let path = dir.join(OsStr::from_bytes(&path));
            File::open(&path)
                .and_then(|file| file.take(OS_RELEASE_LIMIT as u64).read_to_end(&mut text))
                .map_err(|source| RootfsError::Read { path, source })?;
            Ok(OsRelease::parse(&String::from_utf8_lossy(&text)))
        }
        Some(_) | None => Ok(OsRelease::default()),
    }
}
