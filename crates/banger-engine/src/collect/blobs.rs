//! Blobs that no image refers to, and images that have neither a name nor a machine.
//!
//! A blob without an image is what a pull that was broken off leaves, so that the next one goes on with it. It is garbage
//! after a day, which the start of the daemon looks for, and at once for who asks. An image without a name is no garbage: its
//! id still names it. It goes when somebody prunes.

use std::time::{Duration, SystemTime};

use banger_oci::Listing;
use banger_store::images;
use hostkit::digest::Digest;

use super::{BTreeSet, Garbage, GarbageKind, Thing, When, taken_by, who_needs};
use crate::error::Error;
use crate::host::Host;
use crate::image::blobs::{is_in, text};
use crate::image::places;

/// How long a blob that no image refers to waits for the pull that it was fetched for.
const WAITS: Duration = Duration::from_hours(24);

/// What is in the directory of blobs.
pub(super) async fn list(host: &Host) -> Result<Listing, Error> {
    let blobs = host.blobs.blobs().clone();
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Host {
        action: "look at the blobs",
        source,
    };
    let listed = tokio::task::spawn_blocking(move || blobs.list()).await;
    listed
        .map_err(|e| failed(e.into()))?
        .map_err(|e| failed(e.into()))
}

/// Which of them nothing needs. While somebody is at work with blobs, none is garbage: what is fetched has no row yet.
pub(super) fn find(
    host: &Host,
    listed: &Listing,
    needed: &BTreeSet<String>,
    when: When,
    garbage: &mut Vec<Garbage>,
) {
    // After the listing: whoever began to work since then needs nothing that was listed without a row.
    if host.blobs.is_in_use() {
        return;
    }
    for entry in &listed.entries {
        if entry.in_use || is_in(needed, &entry.digest) {
            continue;
        }
        let age = SystemTime::now()
            .duration_since(entry.modified)
            .unwrap_or_default();
        if when == When::Starting && age < WAITS {
            continue;
        }
        garbage.push(Garbage {
            kind: GarbageKind::Blob,
            what: text(&entry.digest),
            why: match entry.partial {
                true => "the beginning of a download that was broken off".to_owned(),
                false => "no image refers to it".to_owned(),
            },
            size: entry.size,
            thing: Thing::Blob(entry.digest),
        });
    }
    for path in &listed.strays {
        garbage.push(Garbage {
            kind: GarbageKind::Blob,
            what: path.display().to_string(),
            why: "left by a daemon that died at work on it".to_owned(),
            size: taken_by(path),
            thing: Thing::Tree(path.clone()),
        });
    }
}

/// Removes a blob, unless an image has come to refer to it.
pub(super) async fn remove(host: &Host, digest: &Digest) -> Result<(), Error> {
    match host.blobs.remove_unused(&host.store, vec![*digest]).await? {
        true => Ok(()),
        false => Err(Error::Contradiction {
            problem: format!("{} may be needed: images are being pulled", text(digest)),
            hint: "try again when that is done".to_owned(),
        }),
    }
}

/// Images that have neither a name nor a machine, and blobs that no image refers to. Touches nothing.
pub(crate) async fn images(host: &Host) -> Result<Vec<Garbage>, Error> {
    let listed = list(host).await?;
    let known = who_needs(host).await?;
    let nameless = host.store.read(|tx| {
        let mut nameless = Vec::new();
        for row in images::list(tx)? {
            if row.names.is_empty() && images::used_by(tx, &row.id)?.is_empty() {
                let (blobs, shared) = images::blob_sizes(tx, &row.id)?;
                nameless.push((row.id, blobs.saturating_sub(shared)));
            }
        }
        Ok(nameless)
    });
    let mut garbage = Vec::new();
    for (id, blobs) in nameless.await? {
        let files = taken_by(&places::images_dir(&host.settings.state_dir).join(&id));
        garbage.push(Garbage {
            kind: GarbageKind::Image,
            what: id.clone(),
            why: "it has no name, and no machine uses it".to_owned(),
            size: files.saturating_add(blobs),
            thing: Thing::Nameless(id),
        });
    }
    find(host, &listed, &known.blobs, When::Running, &mut garbage);
    Ok(garbage)
}
