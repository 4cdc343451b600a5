//! An image whose parts are all in the directory of blobs.

use std::io::Read as _;

use hostkit::digest::Digest;

use crate::blobs::{BlobError, Blobs};
use crate::config::ImageConfig;
use crate::error::Error;
use crate::manifest::{self, Descriptor, Manifest, Parsed};
use crate::media::Compression;
use crate::platform::Platform;
use crate::{DOCUMENT_LIMIT, Progress};

/// An image: everything it consists of is in [`Blobs`], verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The manifest's digest: what the image is.
    pub manifest: Digest,
    /// Its size in bytes.
    pub manifest_size: u64,
    /// The digest of the index that it was chosen from; what `docker images --digests` shows.
    pub index: Option<Digest>,
    /// The configuration's digest; what Docker calls the image's id.
    pub config: Digest,
    /// Its size in bytes.
    pub config_size: u64,
    /// Lowest first. One may be there more than once.
    pub layers: Vec<Layer>,
    /// The configuration.
    pub image: ImageConfig,
}

/// One layer: an archive of changes to the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Of the blob, compressed as it is.
    pub digest: Digest,
    /// The blob's size in bytes.
    pub size: u64,
    /// As the manifest says it.
    pub media_type: String,
    /// As the blob's first bytes say it.
    pub compression: Compression,
    /// Of the archive, uncompressed: what its contents are to be checked against when it is unpacked.
    pub diff_id: Digest,
}

impl Pulled {
    /// The blobs that the image cannot do without, each once, with their sizes: manifest, configuration, layers.
    #[must_use]
    pub fn blobs(&self) -> Vec<(Digest, u64)> {
        let own = [
            (self.manifest, self.manifest_size),
            (self.config, self.config_size),
        ];
        let layers = self.layers.iter().map(|layer| (layer.digest, layer.size));
        let mut all: Vec<(Digest, u64)> = Vec::new();
        for blob in own.into_iter().chain(layers) {
            if !all.contains(&blob) {
                all.push(blob);
            }
        }
        all
    }
}

/// The image of a manifest in the directory, as [`crate::pull()`] gave it (but for its index). Documents are verified;
/// of layers only that they are there, at their size: [`Blobs::verify`] reads them.
pub fn load(blobs: &Blobs, manifest: &Digest) -> Result<Pulled, Error> {
    let bytes = blobs.read(manifest, DOCUMENT_LIMIT)?;
    let name = format!("sha256:{manifest}");
    match manifest::parse(&bytes, None, &name)? {
        Parsed::Manifest(parsed) => assemble(blobs, *manifest, bytes.len() as u64, None, &parsed),
        Parsed::Index(_) => Err(Error::Malformed {
            what: "manifest",
            reason: "it is an index of several".to_owned(),
        }),
    }
}

/// Puts an image together when everything is there.
pub(crate) fn assemble(
    blobs: &Blobs,
    digest: Digest,
    size: u64,
    index: Option<Digest>,
    manifest: &Manifest,
) -> Result<Pulled, Error> {
    let (image, diff_ids) = ImageConfig::parse(&blobs.read(&manifest.config.digest, DOCUMENT_LIMIT)?)?;
    check_layers(manifest, &diff_ids)?;
    let layers = manifest
        .layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| {
            Ok(Layer {
                digest: layer.digest,
                size: present(blobs, layer)?,
                media_type: layer.media_type.clone(),
                compression: compression(blobs, &layer.digest)?,
                diff_id,
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(Pulled {
        manifest: digest,
        manifest_size: size,
        index,
        config: manifest.config.digest,
        config_size: manifest.config.size,
        layers,
        image,
    })
}

fn present(blobs: &Blobs, layer: &Descriptor) -> Result<u64, BlobError> {
    match blobs.size(&layer.digest) {
        Some(size) if size == layer.size => Ok(size),
        Some(actual) => Err(BlobError::Size {
            expected: layer.size,
            actual,
        }),
        None => Err(BlobError::Missing { digest: layer.digest }),
    }
}

/// A configuration and a manifest that are one image's name the same number of layers.
pub(crate) fn check_layers(manifest: &Manifest, diff_ids: &[Digest]) -> Result<(), Error> {
    if manifest.layers.len() == diff_ids.len() {
        return Ok(());
    }
    Err(Error::Malformed {
        what: "image configuration",
        reason: format!(
            "it has {} layers and the manifest {}",
            diff_ids.len(),
            manifest.layers.len()
        ),
    })
}

/// That the image is made for a platform; for what no index has said it of.
pub(crate) fn check_platform(image: &ImageConfig, wanted: &Platform, reference: &str) -> Result<(), Error> {
    let there = image.platform();
    if wanted.takes(&there) {
        return Ok(());
    }
    Err(Error::NoPlatform {
        reference: reference.to_owned(),
        wanted: wanted.clone(),
        available: vec![manifest::tamed(&there)],
    })
}

pub(crate) fn compression(blobs: &Blobs, digest: &Digest) -> Result<Compression, BlobError> {
    let mut start = Vec::new();
    blobs
        .reader(digest)?
        .take(4)
        .read_to_end(&mut start)
        .map_err(|source| BlobError::Io {
            action: "read",
            path: blobs.path(digest),
            source,
        })?;
    Ok(Compression::detect(&start))
}

/// [`Error::Cancelled`] when a watcher says so.
pub(crate) fn tell(progress: &Progress<'_>, event: crate::Event<'_>) -> Result<(), Error> {
    if progress(event).is_break() {
        Err(Error::Cancelled)
    } else {
        Ok(())
    }
}
