//! The work disk: what survives a new system disk. Its `home` lies over the user's home from before init starts.
//!
//! ```text
//! /banger/work        the work disk: home/ (filled once, see `seed`), before that seed/ (what it is filled with)
//! ROOT/home/dir       the image's home directory; `home` is bound over it
//! ```
//!
//! The disk itself is hidden with the other layers; the bind mount keeps it. To systemd it is a mount like those of
//! fstab(5): it is there before the first service and is unmounted after the last.

use super::BootError;
use super::cmdline::Work;
use super::mounts::{self, ROOT};
use super::seed;
use crate::log;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::mount_bind;
use std::io;
use std::path::{Path, PathBuf};

pub(super) const WORK: &str = "/banger/work";

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Mounts the disk, fills it on its first boot, and lays it over the home. Gives the disk's file system, so that it can
/// be made read-only last.
pub(super) fn mount(work: &Work) -> Result<OwnedFd, BootError> {
    mounts::wait_for_disk(&work.device)?;
    mounts::make_dir(Path::new(WORK))?;
    let disk = mounts::mount_to_write(&work.device, WORK)?;
    let root = open(Path::new(ROOT))?;
    let home = home_in(&root, &work.home).map_err(|source| BootError::Io {
        doing: "find the home directory",
        path: work.home.clone(),
        source,
    })?;
    let skeleton = skeleton_in(&root);
    let filled =
        seed::fill(&home, skeleton.as_ref(), Path::new(WORK)).map_err(|source| BootError::WorkDisk {
            device: work.device.clone(),
            source,
        })?;
    if filled {
        log::line(format_args!(
            "filled the work disk from the image's {} and its seed",
            work.home.display()
        ));
    }
    let users = openat(&disk, seed::HOME, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let users = users.map_err(|errno| BootError::Io {
        doing: "open",
        path: Path::new(WORK).join(seed::HOME),
        source: errno.into(),
    })?;
    mount_bind(path_of(&users), path_of(&home)).map_err(|errno| BootError::Mount {
        what: WORK.to_owned(),
        kind: "bind".to_owned(),
        target: work.home.clone(),
        source: errno.into(),
    })?;
    Ok(disk)
}

fn open(path: &Path) -> Result<OwnedFd, BootError> {
    openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|errno| BootError::Io {
        doing: "open",
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// An open directory as a path, which mount(2) wants.
fn path_of(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Opens a directory of the image; links on the way are followed as they will be once the root is `/`. What is missing
/// is made: an empty home, root's.
fn home_in(root: &OwnedFd, home: &Path) -> io::Result<OwnedFd> {
    let find = |path: &Path| {
        // A link in /proc of the initramfs would lead out of the image.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(root, path, DIRECTORY, Mode::empty(), resolve)
    };
    match find(home) {
        Err(Errno::NOENT) => {}
        found => return Ok(found?),
    }
    let mut directory = find(Path::new("/"))?;
    let mut path = PathBuf::from("/");
    for part in home.iter().skip(1) {
        path.push(part);
        directory = match find(&path) {
            Err(Errno::NOENT) => {
                let mode = if path == home { 0o700 } else { 0o755 };
                mkdirat(&directory, part, Mode::from_raw_mode(mode))?;
                openat(&directory, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?
            }
            found => found?,
        };
    }
    Ok(directory)
}

/// What the image has for new homes (useradd(8)); nothing where there is none that can be read.
fn skeleton_in(root: &OwnedFd) -> Option<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, "/etc/skel", DIRECTORY, Mode::empty(), resolve).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = open(dir.path()).expect("open");
        (dir, root)
    }

    fn inode(directory: &OwnedFd) -> u64 {
        rustix::fs::fstat(directory).expect("metadata").st_ino
    }

    #[test]
    fn a_home_is_found_within_the_image_whatever_its_links_say() {
        let (dir, root) = root();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("data/dev")).expect("directories");
        symlink("/data", at("home")).expect("link");
        let found = home_in(&root, Path::new("/home/dev")).expect("found");
        assert_eq!(
            inode(&found),
            fs::metadata(at("data/dev")).expect("metadata").ino()
        );
        symlink("../../../../../../etc", at("up")).expect("link");
        let error = home_in(&root, Path::new("/up/ssl")).expect_err("a dangling link cannot be made");
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        fs::write(at("file"), "").expect("file");
        let error = home_in(&root, Path::new("/file")).expect_err("no directory");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    }

    #[test]
    fn a_missing_home_is_made() {
        let (dir, root) = root();
        let made = home_in(&root, Path::new("/home/dev")).expect("made");
        let metadata = fs::metadata(dir.path().join("home/dev")).expect("there");
        assert_eq!((inode(&made), metadata.mode() & 0o777), (metadata.ino(), 0o700));
        let above = fs::metadata(dir.path().join("home")).expect("there");
        assert_eq!(above.mode() & 0o777, 0o755);
    }
}
