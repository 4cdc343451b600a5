//! The layers of an OCI image, one on top of the other, to a root file system.
//!
//! The files come from the blob directory and have been verified as they are; what they unpack to is verified here,
//! against the digests that the image's configuration gives (`rootfs.diff_ids`). An image of a container may have next to
//! nothing in it, so nothing is demanded of the tree.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hostkit::decompress;
use hostkit::digest::Digest;
use hostkit::ext4::populate::Options;
use hostkit::rootfs_tar::{Layers, Limits, Tree};

use super::tree::{self, Bench};
use super::{LayerError, Paced, Rootfs, RootfsError, new_work};
use crate::image::work::{Cancel, Reporter};

/// A layer in a file: tar, plain or compressed with gzip, zstd or xz, which its first bytes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub packed: u64,
    /// The digest that its archive has to have, uncompressed.
    pub diff_id: Digest,
}

/// Makes the directory `target` from layers, the lowest first. Stages: `unpack`, `make`, `digest`, `share`, `store`; the bytes of
/// the first are those of the layers' files.
pub async fn from_layers(
    target: &Path,
    layers: &[LayerFile],
    limits: Limits,
    tool_dirs: &[PathBuf],
    progress: &Reporter,
) -> Result<Rootfs, RootfsError> {
    let bench = Bench::new(new_work(target)?, target, tool_dirs)?;
    let (layers, report) = (layers.to_vec(), progress.clone());
    let unpacked = bench
        .unpack(move |dir, cancel| apply(&layers, dir, &limits, cancel, &report))
        .await?;
    let options = Options {
        label: "rootfs",
        slack: 0,
    };
    bench
        .make(target, unpacked, &options, "image".to_owned(), progress)
        .await
}

fn apply(
    layers: &[LayerFile],
    dir: &Path,
    limits: &Limits,
    cancel: &Cancel,
    progress: &Reporter,
) -> Result<Tree, RootfsError> {
    let count = layers.len();
    let total = layers.iter().map(|layer| layer.packed).sum();
    let mut tree = Layers::new(dir, limits);
    let mut before = 0;
    progress.step("unpack", "unpacking");
    for (number, layer) in (1..).zip(layers) {
        let mut paced = Paced::default();
        let message = format!("unpacking layer {number} of {count}");
        let report = |read| {
            if paced.is_due(read) {
                progress.bytes("unpack", message.as_str(), before + read, Some(total));
            }
            cancel.check()
        };
        apply_one(&mut tree, layer, report).map_err(|source| RootfsError::Layer {
            number,
            count,
            diff_id: layer.diff_id,
            source: Box::new(source),
        })?;
        before += layer.packed;
    }
    tree.finish().map_err(|source| RootfsError::Archive {
        path: dir.to_owned(),
        source: Box::new(source),
    })
}

/// `report` is told how much of the file was read.
fn apply_one(
    tree: &mut Layers,
    layer: &LayerFile,
    mut report: impl FnMut(u64) -> io::Result<()>,
) -> Result<(), LayerError> {
    let (file, format) = tree::open(&layer.path).map_err(|source| LayerError::Read {
        path: layer.path.clone(),
        source,
    })?;
    let read = AtomicU64::new(0);
    let input = BufReader::with_capacity(tree::READ, Counted { file, read: &read });
    let watch = |_| report(read.load(Ordering::Relaxed));
    let found = match format {
        Some(format) => {
            let reader = decompress::reader(format, input).map_err(LayerError::Compression)?;
            tree.apply(reader, layer.packed, watch)
        }
        None => tree.apply(input, layer.packed, watch),
    }
    .map_err(LayerError::Archive)?;
    if found == layer.diff_id {
        Ok(())
    } else {
        Err(LayerError::Differs { found })
    }
}

/// Counts what is read of a file.
struct Counted<'a> {
    file: File,
    read: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
