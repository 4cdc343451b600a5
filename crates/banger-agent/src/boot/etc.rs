//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of a machine whose disk becomes an image: files in memory, mounted over
//! those of the image.
//!
//! Nothing of them is on the disk. Where the image has no such file, an empty one is the mount's place; [`hide`] removes it
//! with the mount, before the disk is copied, and [`show`] makes it again. [`super::identity`] is what other machines have.

use crate::log;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// On the tmpfs at `/run`.
const FILES: &str = "/run/banger-etc";

/// Beside a file of [`FILES`]: where its mount is, when that place was made for it.
const MADE: &str = ".made";

/// Keeps what a file of `/etc` is to say. `run` is where `/run` is by now.
pub(super) fn keep(run: &Path, name: &str, text: &str) {
    let directory = run.join(FILES.trim_start_matches("/run/"));
    let kept = fs::create_dir_all(&directory).and_then(|()| fs::write(directory.join(name), text));
    said(kept, "keep", name);
}

/// Mounts what was kept over the image's files. The root is the guest's already.
pub(crate) fn show() {
    for (name, kept) in files() {
        said(mount_over(&kept, &Path::new("/etc").join(&name)), "mount", &name);
    }
}

/// Takes the mounts away, and what was made for them. Somebody may use them still, so they may be shown again at once.
pub(crate) fn hide() {
    for (name, kept) in files() {
        let place = Path::new("/etc").join(&name);
        let hidden = match unmount(&place, UnmountFlags::DETACH) {
            // Not mounted.
            Err(rustix::io::Errno::INVAL) => continue,
            other => other.map_err(io::Error::from),
        };
        let hidden = hidden.and_then(|()| match fs::remove_file(beside(&kept)) {
            Ok(()) => fs::remove_file(&place),
            // The place is the image's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        });
        said(hidden, "hide", &name);
    }
}

fn files() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(FILES).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    named.filter(|(name, _)| !name.ends_with(MADE)).collect()
}

fn beside(kept: &Path) -> PathBuf {
    let mut name = kept.as_os_str().to_owned();
    name.push(MADE);
    name.into()
}

fn mount_over(kept: &Path, place: &Path) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_symlink() => {
            // Links lead to files that a service of the image would make in /run, which is memory; any other is the image's.
            let target = place.parent().unwrap_or(place).join(fs::read_link(place)?);
            if !place.exists() && target.components().any(|part| part.as_os_str() == "run") {
                fs::create_dir_all(target.parent().unwrap_or(&target))?;
                fs::write(&target, "")?;
            }
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !place.parent().is_some_and(Path::is_dir) {
                return Ok(());
            }
            fs::write(place, "")?;
            fs::write(beside(kept), "")?;
        }
        Err(error) => return Err(error),
    }
    Ok(mount_bind(kept, place)?)
}

fn said(result: io::Result<()>, doing: &str, name: &str) {
    if let Err(error) = result {
        log::line(format_args!("failed to {doing} /etc/{name}: {error}"));
    }
}
