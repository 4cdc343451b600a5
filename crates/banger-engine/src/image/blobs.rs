//! What images came as: the directory of blobs (manifests, configurations, layers), and when one of them may go.
//!
//! Blobs have rows of the images that refer to them. What a pull fetches has none until its image is entered, and what it
//! finds may be about to lose its last one; so whoever is at work with blobs holds the directory, and what removes some takes
//! it for itself, looks at the rows once more, and is done in moments. It never waits for those at work: what it leaves is
//! garbage, found by `gc`, `image prune` and the next start ([`collect`](crate::collect)).

use std::collections::BTreeSet;
use std::path::Path;

use banger_oci::{BlobError, Blobs};
use banger_store::images;
use hostkit::digest::Digest;
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::crash::{self, Moment, Point};
use crate::error::Error;
use crate::rows::Rows;

/// How the digest of a blob begins in rows and on the wire.
const SHA256: &str = "sha256:";

/// The directory, and who is at work in it.
pub(crate) struct BlobStore {
    blobs: Blobs,
    at_work: RwLock<()>,
}

/// As long as there is one, no blob is removed.
#[must_use = "blobs are kept until this is dropped"]
pub(crate) struct AtWork<'a> {
    _held: RwLockReadGuard<'a, ()>,
}

impl BlobStore {
    /// Opens it, and makes it where it is not there.
    pub(crate) fn open(state: &Path) -> Result<Self, BlobError> {
        Ok(Self {
            blobs: Blobs::open(super::places::blobs_dir(state))?,
            at_work: RwLock::new(()),
        })
    }

    /// The directory.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Begins to work with blobs.
    pub(crate) async fn at_work(&self) -> AtWork<'_> {
        AtWork {
            _held: self.at_work.read().await,
        }
    }

    /// Whether somebody is at work.
    pub(crate) fn is_in_use(&self) -> bool {
        self.at_work.try_write().is_err()
    }

    /// Removes those of the blobs that no image refers to; none, where somebody is at work. Whether they were looked at.
    pub(crate) async fn remove_unused(&self, rows: &Rows, digests: Vec<Digest>) -> Result<bool, Error> {
        let Ok(_alone) = self.at_work.try_write() else {
            return Ok(false);
        };
        let used = rows.read(images::blobs_in_use).await?;
        let blobs = self.blobs.clone();
        let removing = tokio::task::spawn_blocking(move || {
            let unused = digests.iter().filter(|digest| !is_in(&used, digest));
            unused
                .map(|digest| blobs.remove(digest))
                .collect::<Result<Vec<_>, _>>()
        });
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Host {
            action: "remove blobs",
            source,
        };
        crash::point(Point::Moment(Moment::BlobsRemoving));
        removing
            .await
            .map_err(|e| failed(e.into()))?
            .map_err(|e| failed(e.into()))?;
        crash::point(Point::Moment(Moment::BlobsRemoved));
        Ok(true)
    }
}

/// Whether a blob is among the digests of rows.
pub(crate) fn is_in(digests: &BTreeSet<String>, digest: &Digest) -> bool {
    digests.contains(&text(digest))
}

/// A digest as rows have it.
pub(crate) fn text(digest: &Digest) -> String {
    format!("{SHA256}{digest}")
}

/// The digest of a row; none, where that is unreadable.
pub(crate) fn digest(text: &str) -> Option<Digest> {
    text.strip_prefix(SHA256)?.parse().ok()
}
