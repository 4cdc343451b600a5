//! Writing archives: an OCI layout as one tar file, which also has what `docker load` of older versions reads.

use std::collections::HashSet;
use std::io::{self, Read, Write};

use hostkit::digest::Digest;

use crate::DOCUMENT_LIMIT;
use crate::blobs::Blobs;
use crate::config::ImageConfig;
use crate::error::Error;
use crate::image::{Layer, Pulled, assemble, load, tell};
use crate::manifest::{CONTAINERD_NAME, Descriptor, Manifest, Named, REF_NAME, write_index, write_manifest};
use crate::media;
use crate::progress::{Event, Progress};
use crate::reference::Reference;

/// An image to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its manifest's digest; all of it is in the directory of blobs.
    pub manifest: Digest,
    /// What it is to be called. It may have no name.
    pub names: Vec<Reference>,
}

/// Makes an image of layers that are in `blobs`, for what did not come from a registry: writes its configuration and its
/// manifest there. The same input gives the same digests. Of layers `media_type` is not looked at.
pub fn compose(blobs: &Blobs, image: &ImageConfig, layers: &[Layer]) -> Result<Pulled, Error> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let config = image.document(&diff_ids);
    let manifest = Manifest {
        config: Descriptor {
            media_type: media::OCI_CONFIG.to_owned(),
            digest: blobs.adopt_bytes(&config)?,
            size: config.len() as u64,
        },
        layers: layers
            .iter()
            .map(|layer| Descriptor {
                media_type: layer.compression.media_type().to_owned(),
                digest: layer.digest,
                size: layer.size,
            })
            .collect(),
    };
    let bytes = write_manifest(&manifest.config, &manifest.layers);
    let digest = blobs.adopt_bytes(&bytes)?;
    assemble(blobs, digest, bytes.len() as u64, None, &manifest)
}

/// Writes an OCI archive of some images. The same images give the same bytes. Blobs are written as they are, not read for
/// verification. Blocks; what is written to is the caller's, also after an error.
pub fn write_archive(
    to: &mut dyn Write,
    images: &[Export],
    blobs: &Blobs,
    progress: &Progress<'_>,
) -> Result<(), Error> {
    let mut entries = Vec::new();
    let mut docker = Vec::new();
    let mut order: Vec<(Digest, u64)> = Vec::new();
    let mut seen = HashSet::new();
    for export in images {
        let image = load(blobs, &export.manifest)?;
        let bytes = blobs.read(&export.manifest, DOCUMENT_LIMIT)?;
        let descriptor = Descriptor {
            media_type: own_media_type(&bytes),
            digest: export.manifest,
            size: bytes.len() as u64,
        };
        let named = |annotations| Named {
            descriptor: descriptor.clone(),
            platform: image.image.platform(),
            annotations,
        };
        if export.names.is_empty() {
            entries.push(named(Vec::new()));
        }
        for name in &export.names {
            // As containerd and Docker write it: the whole name, and the tag where tools look for one.
            let mut annotations = vec![(CONTAINERD_NAME, name.to_string())];
            annotations.extend(name.tag().map(|tag| (REF_NAME, tag.to_owned())));
            entries.push(named(annotations));
        }
        let path = |digest: &Digest| format!("blobs/sha256/{digest}");
        let tagged = export.names.iter().filter(|name| name.tag().is_some());
        docker.push(serde_json::json!({
            "Config": path(&image.config),
            "RepoTags": tagged.map(Reference::familiar_tagged).collect::<Vec<_>>(),
            "Layers": image.layers.iter().map(|layer| path(&layer.digest)).collect::<Vec<_>>(),
        }));
        order.extend(
            image
                .blobs()
                .into_iter()
                .filter(|(digest, _)| seen.insert(*digest)),
        );
    }
    tell(progress, Event::Layers(&order))?;
    let mut out = Out {
        tar: tar::Builder::new(to),
        progress,
        cancelled: false,
    };
    out.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    out.bytes("index.json", &write_index(&entries))?;
    out.bytes(
        "manifest.json",
        serde_json::Value::from(docker).to_string().as_bytes(),
    )?;
    for (digest, size) in order {
        out.blob(blobs, digest, size)?;
    }
    let finished = out.tar.into_inner().and_then(|to| to.flush());
    finished.map_err(|source| Error::Output { source })
}

/// The archive being written.
struct Out<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    progress: &'a Progress<'a>,
    cancelled: bool,
}

impl Out<'_> {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut header = header(bytes.len() as u64);
        let written = self.tar.append_data(&mut header, name, bytes);
        written.map_err(|source| Error::Output { source })
    }

    fn blob(&mut self, blobs: &Blobs, digest: Digest, size: u64) -> Result<(), Error> {
        let file = blobs.reader(&digest)?;
        let (progress, cancelled) = (self.progress, &mut self.cancelled);
        let watched = Watched {
            inner: file.take(size),
            done: 0,
            tell: |done| {
                let event = Event::Bytes {
                    digest,
                    done,
                    total: size,
                };
                tell(progress, event).map_err(|_| {
                    *cancelled = true;
                    io::Error::other("cancelled")
                })
            },
        };
        let mut header = header(size);
        let written = self
            .tar
            .append_data(&mut header, format!("blobs/sha256/{digest}"), watched);
        match written {
            Err(_) if self.cancelled => Err(Error::Cancelled),
            Err(source) => Err(Error::Output { source }),
            Ok(()) => Ok(()),
        }
    }
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A reader that says how far it is.
struct Watched<R, F> {
    inner: R,
    done: u64,
    tell: F,
}

impl<R: Read, F: FnMut(u64) -> io::Result<()>> Read for Watched<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.done += read as u64;
        (self.tell)(self.done)?;
        Ok(read)
    }
}

/// A manifest's own word for what it is.
fn own_media_type(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let own = serde_json::from_slice::<Typed>(bytes)
        .ok()
        .and_then(|typed| typed.media_type);
    own.filter(|own| !own.is_empty())
        .unwrap_or_else(|| media::OCI_MANIFEST.to_owned())
}
