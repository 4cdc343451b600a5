//! Manifests and indexes: what an image consists of, and which image of several it is.

use std::collections::BTreeMap;

use hostkit::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::LAYER_LIMIT;
use crate::error::Error;
use crate::media::{self, Document, LayerKind};
use crate::platform::Platform;
use crate::reference::parse_digest;
use crate::text::tame;

/// How many platforms or names an error lists.
pub(crate) const LISTED: usize = 32;

/// A document from below `manifests/`.
#[derive(Debug)]
pub(crate) enum Parsed {
    Index(Index),
    Manifest(Manifest),
}

/// What refers to content (image-spec `descriptor.md`), checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) entries: Vec<IndexEntry>,
}

#[derive(Debug, Clone)]
pub(crate) struct IndexEntry {
    pub(crate) descriptor: Descriptor,
    pub(crate) platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name`: a tag, or a whole name.
    pub(crate) name: Option<String>,
    /// `io.containerd.image.name`: a whole name, beside a tag in the other.
    pub(crate) full_name: Option<String>,
    /// Statements about another entry (SBOM, provenance), which BuildKit keeps among the images.
    pub(crate) is_attestation: bool,
}

pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Reads a document. `reference` is for errors, `said` the Content-Type that it came with.
///
/// What it is, it says itself; else its Content-Type does, else what it has. One that could be taken for both kinds is
/// refused: two readers would see two images under one digest (CVE-2021-41190).
pub(crate) fn parse(bytes: &[u8], said: Option<&str>, reference: &str) -> Result<Parsed, Error> {
    let wire: WireDocument = serde_json::from_slice(bytes)
        .map_err(|error| malformed("manifest", tame(&error.to_string(), 200)))?;
    if wire.schema_version == 1 {
        return Err(Error::Schema1 {
            reference: reference.to_owned(),
        });
    }
    if wire.schema_version != 2 {
        let reason = format!("its schemaVersion is {}, not 2", wire.schema_version);
        return Err(malformed("manifest", reason));
    }
    let document = match wire.media_type.as_deref().filter(|text| !text.is_empty()) {
        Some(own) => media::document(own).ok_or_else(|| not_an_image(reference, own))?,
        None => match said.and_then(media::document) {
            Some(document) => document,
            None if wire.manifests.is_some() => Document::Index,
            None => Document::Manifest,
        },
    };
    match document {
        Document::Schema1 => Err(Error::Schema1 {
            reference: reference.to_owned(),
        }),
        Document::Index if wire.config.is_some() || wire.layers.is_some() => Err(malformed(
            "index",
            "it has a manifest's fields as well".to_owned(),
        )),
        Document::Manifest if wire.manifests.is_some() => Err(malformed(
            "manifest",
            "it has an index's fields as well".to_owned(),
        )),
        Document::Index => index(wire.manifests.unwrap_or_default()).map(Parsed::Index),
        Document::Manifest => {
            let kind = wire.artifact_type.as_deref().filter(|text| !text.is_empty());
            manifest(wire.config, wire.layers.unwrap_or_default(), kind, reference).map(Parsed::Manifest)
        }
    }
}

fn manifest(
    config: Option<WireDescriptor>,
    layers: Vec<WireDescriptor>,
    artifact: Option<&str>,
    reference: &str,
) -> Result<Manifest, Error> {
    let Some(config) = config else {
        return Err(malformed("manifest", "it has no configuration".to_owned()));
    };
    let config = config.check("manifest")?;
    if !media::is_config(&config.media_type) {
        return Err(not_an_image(reference, artifact.unwrap_or(&config.media_type)));
    }
    if layers.len() > LAYER_LIMIT {
        return Err(Error::TooManyLayers {
            count: layers.len(),
            limit: LAYER_LIMIT,
        });
    }
    let mut checked = Vec::with_capacity(layers.len());
    let mut total = 0_u64;
    for layer in layers {
        let layer = layer.check("manifest")?;
        let media_type = || tame(&layer.media_type, 100);
        match media::layer(&layer.media_type) {
            LayerKind::Layer => {}
            LayerKind::Foreign => {
                return Err(Error::ForeignLayer {
                    digest: layer.digest,
                    media_type: media_type(),
                });
            }
            LayerKind::Unknown => {
                return Err(Error::UnknownLayer {
                    digest: layer.digest,
                    media_type: media_type(),
                });
            }
        }
        total = total
            .checked_add(layer.size)
            .ok_or_else(|| malformed("manifest", "its layers' sizes are absurd".to_owned()))?;
        checked.push(layer);
    }
    Ok(Manifest {
        config,
        layers: checked,
    })
}

fn index(entries: Vec<WireEntry>) -> Result<Index, Error> {
    let entries = entries
        .into_iter()
        .map(|entry| {
            let annotation = |name: &str| entry.annotations.as_ref()?.get(name).cloned();
            Ok(IndexEntry {
                name: annotation(REF_NAME),
                full_name: annotation(CONTAINERD_NAME),
                is_attestation: annotation(REFERENCE_TYPE).is_some(),
                platform: entry.platform,
                descriptor: entry.descriptor.check("index")?,
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(Index { entries })
}

impl Index {
    /// The entry for a platform: the first that says so. Where entries say nothing (OCI layouts), it is for the image's
    /// configuration to say, and there can be only one.
    pub(crate) fn select(&self, wanted: &Platform, reference: &str) -> Result<&IndexEntry, Error> {
        let images = || {
            self.entries
                .iter()
                .filter(|entry| !entry.is_attestation && entry.is_document())
        };
        let fits = |entry: &&IndexEntry| entry.platform.as_ref().is_some_and(|there| wanted.takes(there));
        if let Some(entry) = images().find(fits) {
            return Ok(entry);
        }
        let mut silent = images().filter(|entry| entry.platform.is_none());
        if let (Some(entry), None) = (silent.next(), silent.next()) {
            return Ok(entry);
        }
        let mut available = Vec::new();
        for platform in images().filter_map(|entry| entry.platform.as_ref()) {
            let platform = tamed(platform);
            if !available.contains(&platform) && available.len() < LISTED {
                available.push(platform);
            }
        }
        Err(Error::NoPlatform {
            reference: reference.to_owned(),
            wanted: wanted.clone(),
            available,
        })
    }
}

impl IndexEntry {
    fn is_document(&self) -> bool {
        matches!(
            media::document(&self.descriptor.media_type),
            Some(Document::Index | Document::Manifest)
        )
    }
}

pub(crate) fn tamed(platform: &Platform) -> Platform {
    Platform {
        os: tame(&platform.os, 32),
        architecture: tame(&platform.architecture, 32),
        variant: platform.variant.as_ref().map(|variant| tame(variant, 32)),
    }
}

fn malformed(what: &'static str, reason: String) -> Error {
    Error::Malformed { what, reason }
}

fn not_an_image(reference: &str, media_type: &str) -> Error {
    Error::NotAnImage {
        reference: reference.to_owned(),
        media_type: tame(media_type, 100),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDocument {
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireEntry>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
}

impl WireDescriptor {
    fn check(self, what: &'static str) -> Result<Descriptor, Error> {
        let digest = parse_digest(&self.digest).map_err(|reason| malformed(what, reason.to_owned()))?;
        let size = u64::try_from(self.size)
            .map_err(|_| malformed(what, format!("sha256:{digest} has a negative size")))?;
        Ok(Descriptor {
            media_type: self.media_type,
            digest,
            size,
        })
    }
}

impl From<&Descriptor> for WireDescriptor {
    fn from(descriptor: &Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type.clone(),
            digest: format!("sha256:{}", descriptor.digest),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireEntry {
    #[serde(flatten)]
    descriptor: WireDescriptor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

/// A manifest for an image that had none (Docker's archives, images made here). The same parts give the same bytes.
pub(crate) fn write_manifest(config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Out {
        schema_version: u64,
        media_type: &'static str,
        config: WireDescriptor,
        layers: Vec<WireDescriptor>,
    }
    let out = Out {
        schema_version: 2,
        media_type: media::OCI_MANIFEST,
        config: config.into(),
        layers: layers.iter().map(Into::into).collect(),
    };
    serde_json::to_vec(&out).unwrap_or_default()
}

/// A manifest in an `index.json` that we write.
pub(crate) struct Named {
    pub(crate) descriptor: Descriptor,
    pub(crate) platform: Platform,
    pub(crate) annotations: Vec<(&'static str, String)>,
}

/// The `index.json` of an OCI layout: manifests with their names.
pub(crate) fn write_index(entries: &[Named]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Out {
        schema_version: u64,
        media_type: &'static str,
        manifests: Vec<WireEntry>,
    }
    let manifests = entries.iter().map(|entry| {
        let owned = entry.annotations.iter();
        let annotations = owned
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        WireEntry {
            descriptor: (&entry.descriptor).into(),
            platform: Some(entry.platform.clone()),
            annotations: Some(annotations).filter(|annotations: &BTreeMap<_, _>| !annotations.is_empty()),
        }
    });
    let out = Out {
        schema_version: 2,
        media_type: media::OCI_INDEX,
        manifests: manifests.collect(),
    };
    serde_json::to_vec(&out).unwrap_or_default()
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
