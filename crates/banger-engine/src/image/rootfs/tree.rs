//! From a tree in a work directory to an image: what [`super::from_tar`] and [`super::from_layers`] have in common.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostkit::decompress::{self, Format};
use hostkit::ext4::E2fsTools;
use hostkit::ext4::populate::{self, Options};
use hostkit::rootfs_tar::Tree;

use super::{Found, OS_RELEASE_LIMIT, Paced, Rootfs, RootfsError, find_tools, new_file, publish};
use crate::image::os_release::OsRelease;
use crate::image::work::{self, Cancel, Reporter, WorkDir};

/// Archives are read in pieces of so many bytes.
pub(super) const READ: usize = 1 << 18;

/// A work directory with a place for the tree and one for the file system made of it.
pub(super) struct Bench {
    work: WorkDir,
    tools: E2fsTools,
    new: PathBuf,
    /// Where the contents of the tree are.
    staging: PathBuf,
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
        let staging = work.path().join("tree");
        fs::create_dir(&staging).map_err(|source| RootfsError::Store {
            path: target.to_owned(),
            source,
        })?;
        Ok(Self {
            work,
            tools,
            new,
            staging,
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
            let os = complete(&mut tree).map_err(|source| RootfsError::Read { path: dir, source })?;
            Ok(Unpacked { tree, os })
        })
        .await
    }

    /// Makes the file system and publishes it as `target`. Stages: `make`, `digest`, `share`, `store`.
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
        } = self;
        let Unpacked { tree, os } = unpacked;
        let init = tree.lookup("/sbin/init").is_some();
        progress.step("make", "making the file system");
        let (total, report, mut paced) = (tree.bytes(), progress.clone(), Paced::default());
        let watch = move |done| {
            if paced.is_due(done) {
                report.bytes("make", "making the file system", done, Some(total.max(done)));
            }
            Ok(())
        };
        let tree = Arc::new(tree);
        populate::populate(&tools, &new, &tree, options, watch)
            .await
            .map_err(RootfsError::Make)?;
        drop(tree);
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
fn complete(tree: &mut Tree) -> io::Result<OsRelease> {
    for (name, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
    ] {
        tree.add_directory(name, mode);
    }
    let os = tree
        .lookup("/etc/os-release")
        .or_else(|| tree.lookup("/usr/lib/os-release"));
    let text = match os {
        // The path is the one it leads to, without symbolic links in it.
        Some((path, _)) => tree.read(&path, OS_RELEASE_LIMIT)?,
        None => None,
    };
    Ok(text
        .map(|text| OsRelease::parse(&String::from_utf8_lossy(&text)))
        .unwrap_or_default())
}
