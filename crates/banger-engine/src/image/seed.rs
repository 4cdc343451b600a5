//! Work seeds: of each image a small file system that new work disks are copies of, so that a home has what its user wants
//! in it from the first boot on, and a machine with a work disk is made in the same time as one without.
//!
//! ```text
//! template, set-up, key ─ Contents ─ fingerprint ─► seeds/IMAGE/FINGERPRINT.ext4, made where it is not there, by rename
//!                                                      └─ FICLONE, or a copy of what is no hole ─► work.img, lengthened
//!                                                           └─ the guest's agent grows the file system and makes the home
//! ```
//!
//! The name is the truth: contents with another fingerprint are another file, so a seed that has become stale is not used
//! any more from that moment on, and nothing has to be told when a key is renewed or somebody edits the template. Making the
//! next one removes the one before. Seeds are a cache: any of them may be removed at any time.
//!
//! The image's own home is not in it. The agent copies that, as it can with any image and with all that files may have, and
//! it comes first (see [`contents`]). A disk smaller than a seed, or very large, is made of the same contents at its size;
//! nothing here touches a work disk that exists.

mod contents;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_store::images;
use hostkit::copy;
use hostkit::ext4::{self, E2fsTools};
use hostkit::rootfs_tar::{self, Limits};
use jiff::Timestamp;
use tokio::sync::Mutex;

use contents::Contents;
pub use contents::Fingerprint;

use super::places::seeds_dir;
use super::registry;
use super::work::{self, WorkDir};
use crate::crash::{self, Moment, Point};
use crate::error::{Error, chain, io};
use crate::held;
use crate::host::Host;
use crate::space;

/// The length of a seed, nearly all of it holes. As large as a journal wants to get, because a copy that is grown keeps its
/// journal.
const SIZE: u64 = 1 << 30;
/// The longest disk that is a copy of one. Emulated, a guest grows it in 8 seconds, which is part of its first start; on the
/// host, `mke2fs` is faster with what is larger.
const LARGEST: u64 = 1 << 40;
const LABEL: &str = "banger-work";
const SUFFIX: &str = ".ext4";

/// One is made at a time. The lock is a leaf, held while `mke2fs` runs.
#[derive(Debug, Default)]
pub(crate) struct Seeds {
    making: Mutex<()>,
}

/// How it stands with an image's seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The image's id.
    pub image: String,
    /// Its names.
    pub names: Vec<String>,
    /// What a seed that is made now is made of; absent: that cannot be told, see `problem`.
    pub wanted: Option<Fingerprint>,
    /// The one that there is.
    pub made: Option<Made>,
    /// Why it will be made anew before it is used next, in words; empty: it is current.
    pub stale: Vec<String>,
    /// The configured template.
    pub template: Option<PathBuf>,
    /// Why none can be made.
    pub problem: Option<String>,
}

/// A seed that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// What it was made of.
    pub fingerprint: Fingerprint,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that it takes on the host.
    pub used: u64,
    /// When it was made.
    pub created: Timestamp,
}

// ---- using ---------------------------------------------------------------------------------------------------------

/// Makes the new file `to` of `size` bytes, a work disk for a machine of an image. After an error, or when the future is
/// dropped, there may be a part of it.
pub(crate) async fn lay(host: &Host, image: &str, to: &Path, size: u64) -> Result<(), Error> {
    let contents = gather(host).await?;
    space::demand(host, space::of_empty_disk(size) + contents.bytes())?;
    if !(SIZE..=LARGEST).contains(&size) {
        let work = new_work(host)?;
        return make_disk(host, &work, &contents, to, size).await;
    }
    let from = ensure(host, image, &contents).await?;
    // Opened here and not in the thread: where nobody waits for it any more, no new name may appear.
    let new = File::options().write(true).create_new(true).mode(0o600).open(to);
    let (new, shown) = (new.map_err(io("create", to))?, to.to_owned());
    work::blocking(move |cancel| {
        let copied = copy::copy(&from, &new, |_| cancel.check());
        copied.map_err(io("copy a seed to", &shown))?;
        new.set_len(size).map_err(io("extend", &shown))
    })
    .await
}

/// Everything that a seed made now is made of.
async fn gather(host: &Host) -> Result<Contents, Error> {
    let key = match host.keys.client().await {
        Ok(key) => Some(key.public),
        // Machines are made without ssh as well.
        Err(e @ Error::Unavailable { .. }) => {
            tracing::warn!(error = chain(&e), "homes are made without the key of ssh");
            None
        }
        Err(e) => return Err(e),
    };
    let template = host.settings.seed_template.clone();
    work::blocking(move |_| Contents::gather(template.as_deref(), key.as_deref())).await
}

/// The image's seed of these contents, which is made where there is none.
async fn ensure(host: &Host, image: &str, contents: &Contents) -> Result<File, Error> {
    let path = path_of(host, image, &contents.fingerprint());
    if let Some(file) = open(&path)? {
        return Ok(file);
    }
    let _making = host.seeds.making.lock().await;
    // Somebody may have made it while we waited.
    if let Some(file) = open(&path)? {
        return Ok(file);
    }
    make(host, image, contents).await
}

fn open(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("open", path)(e)),
    }
}

// ---- making --------------------------------------------------------------------------------------------------------

/// Makes an image's seed, in place of any other. The caller has the lock.
async fn make(host: &Host, image: &str, contents: &Contents) -> Result<File, Error> {
    const NEW: &str = "seed.ext4";
    let target = path_of(host, image, &contents.fingerprint());
    let directory = directory_of(host, image);
    let _held = held::hold(&directory);
    space::demand(host, space::of_empty_disk(SIZE) + contents.bytes())?;
    let work = new_work(host)?;
    let made = work.path().join(NEW);
    make_disk(host, &work, contents, &made, SIZE).await?;
    let file = File::open(&made).map_err(io("open", &made))?;
    std::fs::create_dir_all(&directory).map_err(io("create", &directory))?;
    // One that was asked for anew.
    remove_file(&target)?;
    let published = work::blocking(move |_| {
        let published = work.publish(NEW, &target);
        published.map_err(io("name", target))
    });
    published.await?.keep();
    for other in found(&directory) {
        if other.fingerprint != contents.fingerprint() {
            remove_file(&other.path)?;
            crash::point(Point::Moment(Moment::SeedReplaced));
        }
    }
    Ok(file)
}

/// Makes the new file `to`, a disk of these contents.
async fn make_disk(
    host: &Host,
    work: &WorkDir,
    contents: &Contents,
    to: &Path,
    size: u64,
) -> Result<(), Error> {
    fn failed<E: std::error::Error + Send + Sync + 'static>(e: E) -> Error {
        Error::Host {
            action: "make a work disk",
            source: Box::new(e),
        }
    }
    let tools = E2fsTools::find(&host.settings.tool_dirs()).map_err(failed)?;
    let staging = work.path().join("files");
    let (kept, directory, archive) = (work.clone(), staging.clone(), contents.archive());
    let tree = work::blocking(move |cancel| {
        // So that the directory outlives this thread when nobody waits for it any more.
        let _kept = kept;
        let archive = archive.map_err(failed)?;
        std::fs::create_dir(&directory).map_err(io("create", &directory))?;
        rootfs_tar::unpack(archive.as_slice(), &directory, &Limits::default(), |_| {
            cancel.check()
        })
        .map_err(failed)
    });
    let tree = Arc::new(tree.await?);
    let made = ext4::make_filled(&tools, to, size, LABEL, &tree).await;
    made.map_err(|e| {
        let too_small = matches!(e, ext4::Error::Full { .. });
        if !too_small {
            return failed(e);
        }
        Error::Contradiction {
            problem: format!(
                "a work disk of {} does not hold its template",
                crate::limits::bytes(&size)
            ),
            hint: "make it larger: --work-disk".to_owned(),
        }
    })
}

fn new_work(host: &Host) -> Result<WorkDir, Error> {
    let parent = seeds_dir(&host.settings.state_dir);
    WorkDir::new_in(&parent).map_err(io("create a directory in", &parent))
}

// ---- looking and refreshing ----------------------------------------------------------------------------------------

/// How it stands with the seeds of these images, of all where none is named.
pub(crate) async fn show(host: &Host, references: &[String]) -> Result<Vec<Seed>, Error> {
    let contents = gather(host).await;
    let rows = rows(host, references).await?;
    Ok(rows.into_iter().map(|row| look(host, row, &contents)).collect())
}

/// Makes the seeds of these images anew, of all where none is named.
pub(crate) async fn refresh(host: &Host, references: &[String]) -> Result<Vec<Seed>, Error> {
    let contents = Ok(gather(host).await?);
    let mut seeds = Vec::new();
    for row in rows(host, references).await? {
        let _making = host.seeds.making.lock().await;
        // One that loses its row from now on has its seeds removed once we are through, see `forget`.
        let id = row.id.clone();
        let is_there = host.store.read(move |tx| images::get(tx, &id)).await?;
        if let (Some(row), Ok(contents)) = (is_there, &contents) {
            make(host, &row.id, contents).await?;
        }
        seeds.push(look(host, row, &contents));
    }
    Ok(seeds)
}

async fn rows(host: &Host, references: &[String]) -> Result<Vec<images::ImageRow>, Error> {
    if references.is_empty() {
        return Ok(host.store.read(images::list).await?);
    }
    let mut rows: Vec<images::ImageRow> = Vec::new();
    for reference in references {
        let row = registry::find(host, reference).await?.row;
        if rows.iter().all(|other| other.id != row.id) {
            rows.push(row);
        }
    }
    Ok(rows)
}

fn look(host: &Host, row: images::ImageRow, contents: &Result<Contents, Error>) -> Seed {
    let (wanted, problem) = match contents {
        Ok(contents) => (Some(contents.fingerprint()), None),
        Err(e) => (None, Some(chain(e))),
    };
    let mut made = found(&directory_of(host, &row.id));
    // There are two for a moment, or where the daemon died in it.
    made.sort_by_key(|made| (Some(&made.fingerprint) == wanted.as_ref(), made.created));
    let made = made.pop();
    let stale = match (&made, &wanted) {
        (Some(made), Some(wanted)) => wanted.changes(&made.fingerprint),
        (None, _) | (_, None) => Vec::new(),
    };
    Seed {
        image: row.id,
        names: row.names,
        wanted,
        made,
        stale: stale.into_iter().map(str::to_owned).collect(),
        template: host.settings.seed_template.clone(),
        problem,
    }
}

// ---- on disk -------------------------------------------------------------------------------------------------------

fn directory_of(host: &Host, image: &str) -> PathBuf {
    seeds_dir(&host.settings.state_dir).join(image)
}

fn path_of(host: &Host, image: &str, fingerprint: &Fingerprint) -> PathBuf {
    directory_of(host, image).join(format!("{fingerprint}{SUFFIX}"))
}

/// The seeds in an image's directory.
fn found(directory: &Path) -> Vec<Made> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let made = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let fingerprint = Fingerprint::parse(name.strip_suffix(SUFFIX)?)?;
        let metadata = entry.metadata().ok()?;
        Some(Made {
            fingerprint,
            path: entry.path(),
            used: metadata.blocks() * 512,
            created: metadata.modified().ok()?.try_into().ok()?,
        })
    });
    made.collect()
}

/// What is in an image's directory of seeds and is not its newest one.
pub(crate) fn superseded(directory: &Path) -> Vec<PathBuf> {
    let newest = found(directory).into_iter().max_by_key(|made| made.created);
    let newest = newest.map(|made| made.path);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| Some(path) != newest.as_ref()).collect()
}

/// Removes the seeds of an image that has lost its row.
pub(super) async fn forget(host: &Host, image: &str) {
    let _making = host.seeds.making.lock().await;
    let directory = directory_of(host, image);
    if directory.exists() {
        registry::remove_tree(&directory).await;
    }
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io("remove", path)(e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "seed/tests.rs"]
mod tests;
