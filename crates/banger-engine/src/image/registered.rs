//! Registered files: images whose root file system is a file of the user's, where the user has it.
//!
//! `images/ID/rootfs.ext4` is a symbolic link to it, so that whoever reads an image finds it at the same place as any. Banger
//! never writes, moves or removes the file; what it takes away with an image is the link.
//!
//! What machines, builds and archives are made of must be what was registered. So each use first looks whether the file is
//! the same still ([`usable`]): its inode, length and time of change are compared with the row's, which costs nothing. The
//! number of its file system is not: many have another after each boot. A file that was put back as a copy has the contents and
//! not the identity; [`verify`](super::verify) reads it, and then takes it up again ([`recognised`]).
//!
//! While a machine runs nothing keeps the user from changing what is below it; that shows at the next use. Who does not want to
//! mind it makes the image Banger's own: [`promote`](super::promote).

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use banger_store::images::{self, ImageRow, RegisteredFile};
use hostkit::ext4::superblock;

use super::places::rootfs_path;
use super::rootfs::{self, Rootfs, RootfsError};
use super::work::Reporter;
use crate::crash::Write;
use crate::error::Error;
use crate::host::Host;
use crate::limits::bytes;
use crate::vm::lifecycle::taken;

/// The user's file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Absolute.
    pub path: PathBuf,
    /// Why the image cannot be used, in words that follow the path.
    pub problem: Option<String>,
}

/// How it stands with the user's file of an image; none where the root file system is Banger's own.
pub(crate) fn look(state: &Path, row: &ImageRow) -> Option<Registered> {
    let file = still_registered(state, row)?;
    Some(Registered {
        path: PathBuf::from(&file.path),
        problem: problem(file, row.size),
    })
}

/// An image's root file system, once it is known to be the one that was registered.
pub(crate) async fn usable(host: &Host, row: &ImageRow) -> Result<PathBuf, Error> {
    let state = &host.settings.state_dir;
    match look(state, row) {
        Some(Registered {
            path,
            problem: Some(problem),
        }) => {
            let id = row.id.clone();
            Err(Error::Registered {
                image: row.name().to_owned(),
                path,
                problem,
                machines: host.store.read(move |tx| images::used_by(tx, &id)).await?,
            })
        }
        Some(Registered { problem: None, .. }) | None => Ok(rootfs_path(state, &row.id)),
    }
}

/// The row's file, unless a promotion has put a file of our own in the link's place and died before its row said so.
fn still_registered<'a>(state: &Path, row: &'a ImageRow) -> Option<&'a RegisteredFile> {
    let file = row.registered.as_ref()?;
    let ours = rootfs_path(state, &row.id).symlink_metadata();
    (!ours.is_ok_and(|found| found.is_file())).then_some(file)
}

fn problem(file: &RegisteredFile, size: u64) -> Option<String> {
    // Links are followed where the path led through none: then somebody has put one there, and it is not the file.
    let found = match Path::new(&file.path).symlink_metadata() {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Some("is missing".to_owned()),
        Err(e) => return Some(format!("cannot be looked at: {e}")),
    };
    if !found.is_file() {
        return Some("is no regular file any more".to_owned());
    }
    if found.len() != size {
        let (now, before) = (bytes(&found.len()), bytes(&size));
        return Some(match now == before {
            true => format!("was changed: {} bytes, not {size}", found.len()),
            false => format!("was changed: {now}, not {before}"),
        });
    }
    if found.ino() != file.inode {
        return Some("was replaced by another file".to_owned());
    }
    (modified(&found) != file.modified).then(|| "was written to since it was registered".to_owned())
}

fn modified(found: &Metadata) -> i64 {
    // Wide enough until the year 2262; what is not is some other time, which compares as well.
    found
        .mtime()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(found.mtime_nsec())
}

/// By what a file will be known.
fn identity(path: &Path, found: &Metadata) -> io::Result<RegisteredFile> {
    let path = path
        .to_str()
        .ok_or_else(|| io::Error::other("its path is not UTF-8"))?;
    Ok(RegisteredFile {
        path: path.to_owned(),
        inode: found.ino(),
        modified: modified(found),
    })
}

/// Whether a file is a usable ext4 file system by itself, so that it can stay where it is.
pub(super) fn can_stay(path: &Path) -> bool {
    superblock::check(path).is_ok()
}

/// Makes the directory `target` with a link to the ext4 file system at `path`, which is absolute and leads through no
/// links. Stages: `check`, `digest`, `store`.
pub(super) async fn link(
    target: &Path,
    path: &Path,
    tools: &[PathBuf],
    progress: &Reporter,
) -> Result<(Rootfs, RegisteredFile), RootfsError> {
    let read = |source| RootfsError::Read {
        path: path.to_owned(),
        source,
    };
    progress.step("check", format!("checking {}", path.display()));
    let before = path
        .symlink_metadata()
        .and_then(|found| identity(path, &found))
        .map_err(read)?;
    let work = rootfs::new_work(target)?;
    let new = rootfs::new_file(&work, target)?;
    symlink(path, &new).map_err(|source| RootfsError::Store {
        path: target.to_owned(),
        source,
    })?;
    let found = rootfs::look_into(&new, path, tools).await?;
    let made = rootfs::publish(work, target, found, progress).await?;
    // Its digest is of what it was all the time that it was read.
    if problem(&before, made.size).is_some() {
        let changed = io::Error::other("it was changed while it was read");
        drop(std::fs::remove_dir_all(target));
        return Err(read(changed));
    }
    Ok((made, before))
}

/// A file whose contents were found to be those that were registered is taken up as it is by now: its identity before it was
/// read, which it must have still.
pub(super) async fn recognised(host: &Host, row: &ImageRow, now: RegisteredFile) -> Result<bool, Error> {
    if problem(&now, row.size).is_some() {
        return Ok(false);
    }
    let id = row.id.clone();
    let setting = host
        .store
        .write(Write::ImageRecognised, move |tx| match images::get(tx, &id)? {
            // Nothing, where it went or was promoted meanwhile.
            Some(ImageRow {
                registered: Some(_), ..
            }) => images::set_registered(tx, &id, &now).map(|()| true),
            Some(_) | None => Ok(false),
        });
    Ok(setting.await?)
}

/// What the row's file is known by now, if it is there.
pub(super) fn identity_now(state: &Path, row: &ImageRow) -> Option<RegisteredFile> {
    let path = Path::new(&still_registered(state, row)?.path);
    let found = path.symlink_metadata().ok()?;
    identity(path, &found).ok().filter(|_| found.is_file())
}

/// Opens the user's file, which is what was registered.
pub(super) fn open(row: &ImageRow, file: &RegisteredFile) -> io::Result<File> {
    let opened = File::open(&file.path)?;
    let found = opened.metadata()?;
    let same = found.is_file()
        && (found.ino(), modified(&found), found.len()) == (file.inode, file.modified, row.size);
    match same {
        true => Ok(opened),
        false => Err(io::Error::other("it is not what was registered any more")),
    }
}

/// Finishes the promotions that a daemon died in: the file is Banger's own, and its row does not say so yet.
pub(crate) async fn settle(host: &Host) -> Result<(), Error> {
    let state = &host.settings.state_dir;
    for row in host.store.read(images::list).await? {
        if row.registered.is_some() && still_registered(state, &row).is_none() {
            own(host, &row).await?;
            tracing::info!(image = row.name(), "its promotion was finished");
        }
    }
    Ok(())
}

/// Enters that an image's file is Banger's own.
pub(super) async fn own(host: &Host, row: &ImageRow) -> Result<(), Error> {
    let used = taken(&rootfs_path(&host.settings.state_dir, &row.id));
    let id = row.id.clone();
    let entering = host
        .store
        .write(Write::ImagePromote, move |tx| images::set_managed(tx, &id, used));
    Ok(entering.await?)
}

/// What is said of the image before a start: nothing where it can be used.
pub(crate) fn obstacle(state: &Path, row: &ImageRow) -> Option<crate::error::Problem> {
    let Registered { path, problem } = look(state, row)?;
    Some(crate::error::Problem {
        message: format!(
            "{} {}, the file of image {:?}",
            path.display(),
            problem?,
            row.name()
        ),
        fix: Some(way_out(row.name())),
    })
}

/// What helps where a registered file is not what it was.
pub(crate) fn way_out(image: &str) -> String {
    format!(
        "put it back as it was (a copy is taken up by `banger image verify {image}`), or register another one under the \
         name and reset the machines to it: `banger image register {image} PATH --replace`, `banger vm reset VM --image {image}`"
    )
}

#[cfg(test)]
#[path = "registered_tests.rs"]
mod tests;
