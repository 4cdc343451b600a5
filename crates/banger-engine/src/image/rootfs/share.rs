//! Blocks that a new image has in common with those that are there, kept once: two images of one base have most of their
//! files, and those lie one behind the other in both.
//!
//! Only where the host's file system can, which is tried out; beside each image is then an index of its blocks. Nothing here
//! makes an image fail: what cannot be shared is kept twice.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hostkit::dedupe::{Index, Sharing};
use hostkit::reflink;
use rustix::fs::OFlags;

use super::FILE;
use crate::image::work::{Cancel, Reporter};

/// The name of the index in an image's directory.
const INDEX: &str = "blocks";
/// Images looked at, the newest first: each takes the reading of its index, 2 MiB for a GiB.
const IMAGES: usize = 16;

/// Whether it is worth anything to know the blocks of a file that is made in this directory.
pub(super) fn is_possible(directory: &Path) -> bool {
    reflink::probe(directory).unwrap_or_else(|error| {
        tracing::debug!(%error, "not known whether files can share blocks");
        false
    })
}

/// Shares the blocks of the unpublished image in `new` with those of the images in `images`, and keeps its index. Stage:
/// `share`. The error is a cancellation.
pub(super) fn share(
    new: &Path,
    index: &Index,
    images: &Path,
    cancel: &Cancel,
    progress: &Reporter,
) -> io::Result<()> {
    progress.step("share", "sharing blocks with other images");
    match with_others(new, index, images, cancel) {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(bytes, "shares blocks with other images"),
        Err(error) => {
            cancel.check()?;
            tracing::debug!(%error, "no blocks are shared");
        }
    }
    let kept = File::create_new(new.join(INDEX)).and_then(|file| index.write(BufWriter::new(file)));
    if let Err(error) = kept {
        tracing::debug!(%error, "no index of an image's blocks is kept");
        // Half of one would be of no use.
        fs::remove_file(new.join(INDEX)).ok();
    }
    Ok(())
}

/// How many bytes are shared.
fn with_others(new: &Path, index: &Index, images: &Path, cancel: &Cancel) -> io::Result<u64> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(new.join(FILE))?;
    let mut sharing = Sharing::new(&file, index);
    let mut bytes = 0;
    for other in newest(images)? {
        cancel.check()?;
        let shared = open(&other).and_then(|(file, index)| sharing.with(&file, &index, || cancel.check()));
        match shared {
            Ok(shared) => bytes += shared,
            // It may be removed this very moment.
            Err(error) => {
                cancel.check()?;
                tracing::debug!(image = %other.display(), %error, "no blocks of it are shared");
            }
        }
    }
    Ok(bytes)
}

/// Bytes that the root file system in an image's directory takes and that other files have as well; none where the file
/// system does not share, or it has too many extents to be asked.
pub(in crate::image) fn shared_blocks(image: &Path) -> Option<u64> {
    // Where nothing can be shared there is none.
    fs::symlink_metadata(image.join(INDEX)).ok()?;
    let file = open_rootfs(image).ok()?;
    let taken = file.metadata().ok()?.blocks() * 512;
    Some(taken.saturating_sub(reflink::own_bytes(&file).ok()?))
}

/// Images that have an index.
fn newest(images: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(images)? {
        let path = entry?.path();
        if let Ok(made) = fs::symlink_metadata(path.join(INDEX)).and_then(|index| index.modified()) {
            found.push((made, path));
        }
    }
    found.sort_unstable();
    Ok(found
        .into_iter()
        .rev()
        .take(IMAGES)
        .map(|(_, path)| path)
        .collect())
}

fn open(image: &Path) -> io::Result<(File, Index)> {
    let file = open_rootfs(image)?;
    let limit = file.metadata()?.len();
    let index = Index::read(BufReader::new(File::open(image.join(INDEX))?), limit)?;
    Ok((file, index))
}

/// Of what is the user's there is a link, which is not followed.
fn open_rootfs(image: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(image.join(FILE))
}
