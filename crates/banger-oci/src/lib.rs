//! Container images outside of machines: names, registries, the directory of their blobs, and archives of them.
//!
//! Place: below the engine, which asks for an image and gets it as verified files; unpacking layers is
//! `hostkit::rootfs_tar`'s. It knows nothing of machines, the store or the daemon, and reads no environment: where
//! credentials, proxies and programs are looked for comes in through [`Registries`].
//!
//! The way of a pull:
//!
//! ```text
//! Reference ─► mirrors in order, then the registry (registry/) ─► index ─► manifest ─► config, layers
//!                                                                     every byte through Blobs (blobs/), verified
//! ```
//!
//! Beside it, [`download`](mod@download) fetches a single file by its URL and digest, over the same connections.
//!
//! Registries and archives are strangers: everything they say is bounded, parsed strictly and checked against digests;
//! text of theirs that ends up in errors is stripped of control characters and cut.
//!
//! Sources of facts: the OCI image and distribution specifications 1.1, Docker's "Image Manifest V2, Schema 2", "Token
//! Authentication" and "docker-credential" protocols.
//!
//! Long-lived tasks: none. Each blob that is downloaded has a thread of the runtime's blocking pool which writes it, fed
//! by a bounded channel; it ends with the download's future. Connections end with the pull that made them.

mod archive;
mod blobs;
mod config;
pub mod download;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod image;
mod manifest;
mod media;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod text;

pub use archive::{Export, Imported, compose, read_archive, write_archive};
pub use blobs::{BlobError, Blobs, Entry, Listing};
pub use config::ImageConfig;
pub use error::{Error, Retry};
pub use image::{Layer, Pulled, load};
pub use media::Compression;
pub use platform::Platform;
pub use progress::{Event, Progress};
pub use pull::pull;
pub use reference::{Reference, ReferenceError};
pub use registry::{ConnectError, Proxies, Registries, Registry, SettingError, Timing};

/// A manifest, an index or a configuration may be this long, in bytes. The distribution specification asks registries
/// to take manifests of at least this size, and none has reason to be longer.
pub const DOCUMENT_LIMIT: u64 = 4 << 20;
/// As many layers as Docker takes.
pub const LAYER_LIMIT: usize = 127;
