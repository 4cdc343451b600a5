//! Whether images are still what they were made as: their files are read again and compared with the digests in their rows.
//!
//! Nothing is mended here. What is damaged is named, with every image that has it, so that it can be made or pulled anew. A
//! registered file that is another one of the same contents is known by what it is now: that can only be told by reading it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_store::images::{self, ImageRow, RegisteredFile};
use hostkit::digest::Digest;

use super::blobs;
use super::places::rootfs_path;
use super::work::{self, Cancel};
use super::{registered, registry};
use crate::error::Error;
use crate::host::Host;
use crate::limits::bytes;
use crate::operation::{Operation, Progress};

/// A file with what it should be.
#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    /// Hexadecimal.
    digest: String,
    size: u64,
    /// What it is, for people.
    what: String,
    /// The images that have it: ids, and what they are called.
    images: Vec<(String, String)>,
    /// It is the user's: the image's row, and by what the file is known now.
    registered: Option<(ImageRow, RegisteredFile)>,
}

/// Begins to read images again: those named, or all.
pub(crate) async fn begin(host: &Arc<Host>, references: &[String]) -> Result<Operation, Error> {
    let mut rows: Vec<ImageRow> = Vec::new();
    for reference in references {
        let row = registry::find(host, reference).await?.row;
        if rows.iter().all(|other| other.id != row.id) {
            rows.push(row);
        }
    }
    if references.is_empty() {
        rows = host.store.read(images::list).await?;
    }
    let subject = match rows.as_slice() {
        [one] => one.name().to_owned(),
        rows => format!("{} images", rows.len()),
    };
    let verifying = host.clone();
    let work = move |progress: Progress| async move { verify(&verifying, rows, &progress).await };
    host.operations.begin("image.verify", &subject, work).await
}

/// Reads everything, and fails if anything is damaged.
async fn verify(host: &Host, rows: Vec<ImageRow>, progress: &Progress) -> Result<(), Error> {
    let parts = parts(host, rows).await?;
    let total: u64 = parts.iter().map(|part| part.size).sum();
    progress.stage_now("verify");
    let (mut done, mut damaged) = (0, Vec::new());
    for part in &parts {
        let (reading, told) = (part.clone(), progress.clone());
        let read = work::blocking(move |cancel| {
            damage(&reading, cancel, |read| {
                told.message(&format!("{} of {}", bytes(&(done + read)), bytes(&total)));
                told.units(done + read, Some(total));
            })
        });
        // Reading may be dropped anywhere.
        let problem = progress.or_cancelled(async { Ok(read.await) }).await?;
        if let Some(problem) = problem {
            if let Some(images) = who_has(host, part).await? {
                damaged.push(format!("{} of {images}: {problem}", part.what));
            }
        } else if let Some((row, now)) = &part.registered
            && row.registered.as_ref() != Some(now)
            && registered::recognised(host, row, now.clone()).await?
        {
            progress.notice(format!(
                "{} has the contents that were registered: it is taken up again",
                now.path
            ));
        }
        done += part.size;
    }
    match damaged.is_empty() {
        true => Ok(()),
        false => Err(Error::Damaged {
            of: parts.len(),
            damaged,
        }),
    }
}

/// All files of the images, those that several have once.
async fn parts(host: &Host, rows: Vec<ImageRow>) -> Result<Vec<Part>, Error> {
    let state = &host.settings.state_dir;
    let mut parts = Vec::new();
    let mut kept: BTreeMap<Digest, Part> = BTreeMap::new();
    for row in rows {
        let image = (row.id.clone(), row.name().to_owned());
        let (path, what) = match registered::look(state, &row) {
            Some(file) => (file.path.clone(), format!("{}, the file", file.path.display())),
            None => (rootfs_path(state, &row.id), "the root file system".to_owned()),
        };
        parts.push(Part {
            path,
            digest: row.sha256.clone(),
            size: row.size,
            what,
            images: vec![image.clone()],
            registered: registered::identity_now(state, &row).map(|now| (row.clone(), now)),
        });
        let of = row.id.clone();
        for blob in host.store.read(move |tx| images::blobs(tx, &of)).await? {
            // What is no digest is no file's, which then has another.
            let Some(digest) = blobs::digest(&blob.digest) else {
                continue;
            };
            let part = kept.entry(digest).or_insert_with(|| Part {
                path: host.blobs.blobs().path(&digest),
                digest: digest.to_string(),
                size: blob.size,
                what: format!("the blob {}", blob.digest),
                images: Vec::new(),
                registered: None,
            });
            if !part.images.contains(&image) {
                part.images.push(image.clone());
            }
        }
    }
    parts.extend(kept.into_values());
    Ok(parts)
}

/// What is wrong with a file; nothing, if nobody waits for it any more.
fn damage(part: &Part, cancel: &Cancel, told: impl Fn(u64)) -> Option<String> {
    match digest(&part.path, part.size, cancel, told) {
        Ok(found) if found == part.digest => None,
        Ok(found) => Some(format!(
            "its digest is sha256:{found}, not sha256:{}",
            part.digest
        )),
        Err(_) if cancel.check().is_err() => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some(format!("{} is missing", part.path.display())),
        Err(e) => Some(format!("failed to read {}: {e}", part.path.display())),
    }
}

/// A file's digest. One that is longer than it should be is not read to its end.
fn digest(path: &Path, size: u64, cancel: &Cancel, told: impl Fn(u64)) -> io::Result<String> {
    /// Progress is told after so many bytes.
    const EVERY: u64 = 32 << 20;
    let file = File::open(path)?;
    let mut next = 0;
    let limited = io::Read::take(file, size.saturating_add(1));
    let digest = Digest::of_reader_watched(limited, |read| {
        if read >= next {
            next = read + EVERY;
            told(read);
        }
        cancel.check()
    })?;
    Ok(digest.to_string())
}

/// Those of a part's images that are there still: one that was removed meanwhile is not damaged.
async fn who_has(host: &Host, part: &Part) -> Result<Option<String>, Error> {
    let asked = part.images.clone();
    let left = host.store.read(move |tx| {
        let mut left = Vec::new();
        for (id, name) in asked {
            if images::get(tx, &id)?.is_some() {
                left.push(name);
            }
        }
        Ok(left)
    });
    let left = left.await?;
    Ok((!left.is_empty()).then(|| left.join(", ")))
}
