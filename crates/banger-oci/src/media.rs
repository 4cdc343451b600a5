//! Media types: OCI's and Docker's (image-spec `media-types.md`, Docker's "Image Manifest V2, Schema 2").

use serde::{Deserialize, Serialize};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const SCHEMA_1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// What we ask for below `manifests/`.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// How a layer's archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// By the first bytes of a file: what the media type says is not always so, and containerd does not believe it
    /// either.
    #[must_use]
    pub fn detect(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else {
            Self::None
        }
    }

    /// The media type of a layer packed so, for manifests that we write.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => OCI_LAYER,
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// What a document below `manifests/` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Document {
    Index,
    Manifest,
    Schema1,
}

/// None for a type that is nothing of that kind, such as `application/json`.
pub(crate) fn document(media_type: &str) -> Option<Document> {
    match essence(media_type) {
        OCI_INDEX | DOCKER_INDEX => Some(Document::Index),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(Document::Manifest),
        SCHEMA_1 | SCHEMA_1_SIGNED => Some(Document::Schema1),
        _ => None,
    }
}

pub(crate) fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// What a layer's media type says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerKind {
    Layer,
    /// To be had from somewhere else than the registry ("nondistributable").
    Foreign,
    Unknown,
}

pub(crate) fn layer(media_type: &str) -> LayerKind {
    let packed = |base: &str, suffixes: &[&str]| {
        media_type
            .strip_prefix(base)
            .is_some_and(|suffix| suffix.is_empty() || suffixes.contains(&suffix))
    };
    if packed(OCI_LAYER, &["+gzip", "+zstd"]) || packed(DOCKER_LAYER, &[".gzip", ".zstd"]) {
        LayerKind::Layer
    } else if packed(OCI_FOREIGN, &["+gzip", "+zstd"]) || packed(DOCKER_FOREIGN, &[".gzip", ".zstd"]) {
        LayerKind::Foreign
    } else {
        LayerKind::Unknown
    }
}

/// A media type without its parameters (RFC 9110, 8.3.1).
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_told_apart() {
        assert_eq!(
            document(&format!("{OCI_INDEX}; charset=utf-8")),
            Some(Document::Index)
        );
        assert_eq!(document(SCHEMA_1_SIGNED), Some(Document::Schema1));
        assert_eq!(document("application/json"), None);
        for (media_type, kind) in [
            ("application/vnd.oci.image.layer.v1.tar", LayerKind::Layer),
            ("application/vnd.oci.image.layer.v1.tar+zstd", LayerKind::Layer),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                LayerKind::Layer,
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                LayerKind::Foreign,
            ),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                LayerKind::Foreign,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                LayerKind::Unknown,
            ),
            ("application/vnd.in-toto+json", LayerKind::Unknown),
        ] {
            assert_eq!(layer(media_type), kind, "{media_type}");
        }
        assert_eq!(Compression::detect(&[0x1f, 0x8b, 8]), Compression::Gzip);
        assert_eq!(Compression::detect(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::detect(b""), Compression::None);
    }
}
