//! The registry of images: which there are, how they are found, what they are called, how they go.
//!
//! An image is one root file system with a row; names are beside it, any number of them. A name is what people say and may
//! be another image's tomorrow ([`move_name`]); an image that has lost its last name stays as long as a machine uses it.
//!
//! Row first, files second, when removing: the row's transaction is where "in use" is decided, so that nothing can begin to
//! use what is going. How images come to be is [`make`](super::make).

use std::collections::BTreeMap;
use std::path::Path;

use banger_store::images::{self, BlobRow, ImageRow};
use banger_store::{StoreError, Transaction};

use super::blobs;
use super::config::{self, ImageConfig};
use super::places::image_dir;
use super::registered::{self, Registered};
use super::rootfs;
use super::seed;
use crate::crash::{self, Moment, Point, Write};
use crate::error::{Error, chain};
use crate::held::{self, Held};
use crate::host::Host;
use crate::name;

/// How a digest begins that a reference is looked for by.
const DIGEST: &str = "sha256:";
/// Fewer digits than this are no way to name an image.
const DIGEST_DIGITS: usize = 6;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its row.
    pub row: ImageRow,
    /// What it says of its processes; none where it is not of OCI.
    pub config: Option<ImageConfig>,
    /// Names of the machines that use it.
    pub used_by: Vec<String>,
    /// Bytes of the blobs it refers to.
    pub blobs: u64,
    /// Of these, what other images refer to as well.
    pub shared: u64,
    /// Of the bytes that its root file system takes on the host, those that other files have as well; none where that is not
    /// known.
    pub shared_blocks: Option<u64>,
    /// The user's file that it is, and how it stands with it; none where it is Banger's own.
    pub registered: Option<Registered>,
}

/// An image as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) row: ImageRow,
    /// The name it was asked for by; none where that was an id or a digest.
    pub(crate) by_name: Option<String>,
}

impl Found {
    /// What whoever asked calls it.
    pub(crate) fn name(&self) -> String {
        self.by_name.clone().unwrap_or_else(|| self.row.name().to_owned())
    }
}

/// Which images are wanted: those that meet all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// A name, with `*` for anything and `?` for any character.
    pub pattern: Option<String>,
    /// Labels; one without a value matches any.
    pub labels: BTreeMap<String, String>,
    /// The beginning of a digest, `sha256:…`.
    pub digest: Option<String>,
}

/// What an image that has lost its row leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gone {
    id: String,
    blobs: Vec<BlobRow>,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The name, or the image's where it was asked for by another way.
    pub name: String,
    /// The image, with the names that it still has; none: it is gone.
    pub image: Image,
}

// ---- looking -------------------------------------------------------------------------------------------------------

/// All images, by name.
pub(crate) async fn list(host: &Host) -> Result<Vec<Image>, Error> {
    let images = host.store.read(|tx| {
        let rows = images::list(tx)?;
        rows.into_iter()
            .map(|row| whole(tx, row))
            .collect::<Result<Vec<_>, _>>()
    });
    let images = images.await?.into_iter();
    Ok(images.map(|image| with_file(host, image)).collect())
}

/// With how it stands with the user's file, and what is shared. Not in a transaction: that file may be on a file system that
/// does not answer.
fn with_file(host: &Host, image: Image) -> Image {
    Image {
        registered: registered::look(&host.settings.state_dir, &image.row),
        shared_blocks: rootfs::shared_blocks(&image_dir(&host.settings.state_dir, &image.row.id)),
        ..image
    }
}

/// Those that are searched for, by name.
pub(crate) async fn search(host: &Host, search: &Search) -> Result<Vec<Image>, Error> {
    let with_digest = match &search.digest {
        Some(digest) => {
            let prefix = digest_prefix(digest)?;
            let rows = host.store.read(move |tx| images::by_digest(tx, &prefix)).await?;
            Some(rows.into_iter().map(|row| row.id).collect::<Vec<_>>())
        }
        None => None,
    };
    let mut found = list(host).await?;
    found.retain(|image| {
        let named = |pattern: &String| image.row.names.iter().any(|name| name::matches(pattern, name));
        let labels = image.config.as_ref().map(|config| &config.labels);
        search.pattern.as_ref().is_none_or(named)
            && with_digest.as_ref().is_none_or(|ids| ids.contains(&image.row.id))
            && search.labels.iter().all(|(key, value)| {
                let has = labels.and_then(|labels| labels.get(key));
                has.is_some_and(|has| value.is_empty() || has == value)
            })
    });
    Ok(found)
}

fn whole(tx: &Transaction<'_>, row: ImageRow) -> Result<Image, StoreError> {
    let (blobs, shared) = images::blob_sizes(tx, &row.id)?;
    Ok(Image {
        used_by: images::used_by(tx, &row.id)?,
        config: config::of(&row),
        blobs,
        shared,
        shared_blocks: None,
        registered: None,
        row,
    })
}

/// An image, by name, id, or the beginning of a digest.
pub(crate) async fn find(host: &Host, reference: &str) -> Result<Found, Error> {
    let (wanted, familiar) = (reference.to_owned(), name::familiar(reference));
    let by_name = host.store.read(move |tx| match images::find(tx, &wanted)? {
        Some(row) => Ok(Some((row, wanted))),
        None => Ok(images::find(tx, &familiar)?.map(|row| (row, familiar))),
    });
    if let Some((row, asked)) = by_name.await? {
        return Ok(Found {
            by_name: row.names.contains(&asked).then_some(asked),
            row,
        });
    }
    if let Some(prefix) = as_digest(reference) {
        let prefix = digest_prefix(prefix)?;
        let mut rows = host.store.read(move |tx| images::by_digest(tx, &prefix)).await?;
        if rows.len() > 1 {
            return Err(Error::Ambiguous {
                reference: reference.to_owned(),
                matches: rows.iter().map(shown_with_digest).collect(),
            });
        }
        if let Some(row) = rows.pop() {
            return Ok(Found { row, by_name: None });
        }
    }
    let all = host.store.read(images::list).await?;
    let names = all.iter().flat_map(|row| &row.names).map(String::as_str);
    Err(missing("image", reference, names))
}

/// The digest in a reference: `sha256:…`, or what follows `@`.
fn as_digest(reference: &str) -> Option<&str> {
    match reference.split_once('@') {
        Some((_, digest)) => digest.starts_with(DIGEST).then_some(digest),
        None => reference.starts_with(DIGEST).then_some(reference),
    }
}

fn digest_prefix(digest: &str) -> Result<String, Error> {
    let digits = digest.strip_prefix(DIGEST).unwrap_or(digest);
    let problem = if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        "a digest is `sha256:` and hexadecimal digits"
    } else if digits.len() < DIGEST_DIGITS {
        "the beginning of a digest has at least 6 digits"
    } else if digits.len() > 64 {
        "a digest has 64 digits"
    } else {
        return Ok(format!("{DIGEST}{}", digits.to_ascii_lowercase()));
    };
    Err(Error::BadName {
        what: "image",
        name: digest.chars().take(80).collect(),
        problem,
    })
}

fn shown_with_digest(row: &ImageRow) -> String {
    let digest = match &row.digest {
        Some(digest) => digest.clone(),
        None => format!("{DIGEST}{}", row.sha256),
    };
    format!("{}: {digest}", row.name())
}

/// One image, by name, id, or the beginning of a digest.
pub(crate) async fn show(host: &Host, reference: &str) -> Result<Image, Error> {
    let found = find(host, reference).await?;
    let image = host.store.read(move |tx| whole(tx, found.row)).await?;
    Ok(with_file(host, image))
}

pub(super) fn missing<'a>(
    what: &'static str,
    reference: &str,
    known: impl Iterator<Item = &'a str>,
) -> Error {
    Error::Missing {
        what,
        name: reference.chars().take(80).collect(),
        near: name::nearest(reference, known),
    }
}

// ---- names ---------------------------------------------------------------------------------------------------------

/// Gives an image another name. One that another image has is only taken from it where it may be.
pub(crate) async fn tag(host: &Host, reference: &str, name: &str, replace: bool) -> Result<Image, Error> {
    name::image(name)?;
    let found = find(host, reference).await?;
    name_it(host, &found.row.id, &name::familiar(name), replace).await?;
    let id = found.row.id;
    show(host, &id).await
}

/// Refuses a name that another image has, unless it may be taken from it.
pub(super) async fn refuse_taken(host: &Host, name: &str, replace: bool) -> Result<(), Error> {
    let wanted = name.to_owned();
    let holder = host.store.read(move |tx| images::find(tx, &wanted)).await?;
    let taken = holder.is_some_and(|holder| holder.names.iter().any(|has| has == name));
    if taken && !replace {
        return Err(StoreError::Exists {
            what: "image",
            name: name.to_owned(),
        }
        .into());
    }
    Ok(())
}

/// Gives an image that is there a name, and removes what loses its last one by that.
pub(super) async fn name_it(host: &Host, id: &str, name: &str, replace: bool) -> Result<(), Error> {
    let _former = hold_holder(host, name).await?;
    let (id, name) = (id.to_owned(), name.to_owned());
    let gone = host
        .store
        .write(Write::ImageName, move |tx| move_name(tx, &name, &id, replace))
        .await?;
    clear(host, gone).await;
    Ok(())
}

/// Gives an image a name, which another one loses where `replace` allows it. That one goes with its last name, unless a
/// machine uses it: its row, here; its files are the caller's to remove ([`clear`]).
pub(super) fn move_name(
    tx: &Transaction<'_>,
    name: &str,
    id: &str,
    replace: bool,
) -> Result<Option<Gone>, StoreError> {
    if images::get(tx, id)?.is_none() {
        return Err(StoreError::Missing {
            what: "image",
            name: id.to_owned(),
        });
    }
    let holder = images::find(tx, name)?.filter(|holder| holder.names.iter().any(|has| has == name));
    if holder.is_some_and(|holder| holder.id != id) && !replace {
        return Err(StoreError::Exists {
            what: "image",
            name: name.to_owned(),
        });
    }
    let former = images::give_name(tx, name, id)?.filter(|former| former.names.is_empty());
    match former {
        Some(former) if images::used_by(tx, &former.id)?.is_empty() => strike(tx, &former.id).map(Some),
        Some(_) | None => Ok(None),
    }
}

/// Whoever has the name may be about to lose its row: its files are held until they are gone.
pub(super) async fn hold_holder(host: &Host, name: &str) -> Result<Option<Held>, Error> {
    let name = name.to_owned();
    let holder = host.store.read(move |tx| images::find(tx, &name)).await?;
    Ok(holder.map(|holder| held::hold(&image_dir(&host.settings.state_dir, &holder.id))))
}

// ---- removing ------------------------------------------------------------------------------------------------------

/// Takes a name away from an image. The image goes with its last name, and at once where it was asked for by id or digest;
/// not while a machine uses it.
pub(crate) async fn remove(host: &Host, reference: &str) -> Result<Removed, Error> {
    let found = find(host, reference).await?;
    let (id, by_name, name) = (found.row.id.clone(), found.by_name.clone(), found.name());
    let _held = held::hold(&image_dir(&host.settings.state_dir, &id));
    let (image, gone) = host
        .store
        .write(Write::ImageRemove, move |tx| {
            let Some(row) = images::get(tx, &id)? else {
                let name = by_name.unwrap_or(id);
                return Err(StoreError::Missing { what: "image", name });
            };
            let mut image = whole(tx, row)?;
            let others = by_name.as_ref().filter(|_| image.row.names.len() > 1);
            if let Some(name) = others {
                images::take_name(tx, name)?;
                image.row.names.retain(|has| has != name);
                Ok((image, None))
            } else {
                image.row.names.clear();
                Ok((image, Some(strike(tx, &id)?)))
            }
        })
        .await?;
    clear(host, gone).await;
    Ok(Removed { name, image })
}

/// Strikes the row of an image that no machine uses.
pub(super) fn strike(tx: &Transaction<'_>, id: &str) -> Result<Gone, StoreError> {
    let blobs = images::blobs(tx, id)?;
    let row = images::remove(tx, id)?;
    Ok(Gone { id: row.id, blobs })
}

/// Removes an image that has no name, unless a machine uses it or it has got one meanwhile.
pub(crate) async fn remove_nameless(host: &Host, id: &str) -> Result<(), Error> {
    let _held = held::hold(&image_dir(&host.settings.state_dir, id));
    let id = id.to_owned();
    let gone = host
        .store
        .write(Write::ImageRemove, move |tx| match images::get(tx, &id)? {
            Some(row) if row.names.is_empty() && images::used_by(tx, &id)?.is_empty() => {
                strike(tx, &id).map(Some)
            }
            Some(_) | None => Ok(None),
        })
        .await?;
    clear(host, gone).await;
    Ok(())
}

/// Removes the files of an image that has lost its row.
pub(super) async fn clear(host: &Host, gone: Option<Gone>) {
    let Some(gone) = gone else { return };
    remove_tree(&image_dir(&host.settings.state_dir, &gone.id)).await;
    seed::forget(host, &gone.id).await;
    let digests = gone.blobs.iter().filter_map(|blob| blobs::digest(&blob.digest));
    match host.blobs.remove_unused(&host.store, digests.collect()).await {
        Ok(true) => {}
        Ok(false) => tracing::info!(image = gone.id, "blobs are left: images are being made of some"),
        Err(e) => tracing::warn!(image = gone.id, error = chain(&e), "blobs are left"),
    }
}

/// Without its row a directory is as good as gone; what stays is collected at the next start.
pub(super) async fn remove_tree(path: &Path) {
    crash::point(Point::Moment(Moment::TreeRemoving));
    if let Err(e) = tokio::fs::remove_dir_all(path).await {
        tracing::warn!(path = %path.display(), error = %e, "left until the next start");
    }
    crash::point(Point::Moment(Moment::TreeRemoved));
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
