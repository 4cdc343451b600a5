//! Images in files: OCI layouts (a directory or a tar archive of one; image-spec `image-layout.md`) and Docker's archives
//! (`docker save`; moby `image/spec/v1.2.md`, "Combined Image JSON + Filesystem Changeset Format").
//!
//! Place: beside [`crate::pull()`], with the same outcome: everything verified in [`Blobs`]. All of it blocks; callers have
//! a thread for it. An archive that is packed as a whole (gzip, zstd, xz) is unpacked into a file without a name first,
//! because what says what is in it may come last.

mod container;
mod docker;
mod layout;
mod write;

use std::fs::File;
use std::io;
use std::path::Path;

use hostkit::digest::Digest;

use crate::blobs::{BlobError, Blobs};
use crate::error::Error;
use crate::image::{Pulled, tell};
use crate::manifest::LISTED;
use crate::platform::Platform;
use crate::progress::{Event, Progress};
use crate::reference::{Reference, parse_digest};
use crate::text::tame;
use container::Container;
pub use write::{Export, compose, write_archive};

/// Images that one archive may hold.
const IMAGE_LIMIT: usize = 1000;

/// An image from an archive, and what it is called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image.
    pub image: Pulled,
    /// Whole names.
    pub names: Vec<Reference>,
    /// Names that are no more than a tag (`12`), which is what some tools put into OCI layouts.
    pub tags: Vec<String>,
}

/// Reads the images of an archive into `blobs`: those for `platform`, and of them with `select` only those of that name,
/// tag or digest (`sha256:…` of manifest, index or configuration).
///
/// Several may come, also of one name. At least one does: none is an error that says what there is.
pub fn read_archive(
    path: &Path,
    blobs: &Blobs,
    platform: &Platform,
    select: Option<&str>,
    progress: &Progress<'_>,
) -> Result<Vec<Imported>, Error> {
    let container = Container::open(path, blobs, progress)?;
    let task = Task {
        path,
        container: &container,
        blobs,
        platform,
        select: select.map(Select::new),
        progress,
    };
    // Docker's newer archives are both; the layout has the digests of the registry.
    let there = if container.has("index.json") {
        task.layout()?
    } else if container.has("manifest.json") {
        task.docker()?
    } else {
        return Err(Error::NotAnArchive {
            path: path.to_owned(),
            reason: "it has neither index.json (OCI) nor manifest.json (Docker)".to_owned(),
        });
    };
    match there {
        Outcome::Images(images) => Ok(images),
        Outcome::Others(there) => Err(Error::NotInArchive {
            path: path.to_owned(),
            wanted: select.unwrap_or_default().to_owned(),
            there,
        }),
    }
}

/// One archive being read.
struct Task<'a> {
    path: &'a Path,
    container: &'a Container,
    blobs: &'a Blobs,
    platform: &'a Platform,
    select: Option<Select>,
    progress: &'a Progress<'a>,
}

/// What was found.
enum Outcome {
    /// At least one.
    Images(Vec<Imported>),
    /// None that was asked for, but these.
    Others(Vec<String>),
}

/// Which image somebody wants.
struct Select {
    text: String,
    name: Option<Reference>,
    digest: Option<Digest>,
}

impl Select {
    fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            name: Reference::parse(text).ok(),
            digest: parse_digest(text).ok(),
        }
    }
}

impl Task<'_> {
    /// What has come of looking through it: the images that fit, else why one that was wanted does not, else which others
    /// there are.
    fn outcome(
        &self,
        images: Vec<Imported>,
        others: Vec<String>,
        unfit: Option<Error>,
    ) -> Result<Outcome, Error> {
        match (images.is_empty(), unfit) {
            (false, _) => Ok(Outcome::Images(images)),
            (true, Some(error)) => Err(error),
            (true, None) if self.select.is_some() => Ok(Outcome::Others(others)),
            (true, None) => Err(Error::NotAnArchive {
                path: self.path.to_owned(),
                reason: "it holds no image".to_owned(),
            }),
        }
    }

    /// Whether an image is wanted, by what is known of it without reading it.
    fn wants(&self, names: &[Reference], tags: &[String], digests: &[Digest]) -> bool {
        self.select.as_ref().is_none_or(|select| {
            select
                .digest
                .as_ref()
                .is_some_and(|digest| digests.contains(digest))
                || select.name.as_ref().is_some_and(|name| names.contains(name))
                || tags.contains(&select.text)
        })
    }

    /// A file of the archive as a blob. What it is to be is known beforehand (`expected`), or not.
    fn adopt(
        &self,
        name: &str,
        size: Option<u64>,
        expected: Option<&Digest>,
    ) -> Result<(Digest, u64), Error> {
        let Some((reader, actual)) = self.container.reader(name)? else {
            return Err(self.lacking(name));
        };
        let size = size.unwrap_or(actual);
        if size != actual {
            return Err(Error::Size {
                what: "blob",
                from: self.shown(),
                expected: size,
                actual,
                more: false,
            });
        }
        let mut cancelled = false;
        let watch = |done| {
            let event = match expected {
                Some(&digest) => Event::Bytes {
                    digest,
                    done,
                    total: size,
                },
                None => Event::Step { done },
            };
            tell(self.progress, event).map_err(|_| {
                cancelled = true;
                io::Error::from(io::ErrorKind::Interrupted)
            })
        };
        let adopted = self.blobs.adopt(reader, expected, size, watch);
        adopted.map_err(|error| match error {
            BlobError::Stopped { .. } if cancelled => Error::Cancelled,
            BlobError::Stopped { source } => Error::File {
                action: "read",
                path: self.path.to_owned(),
                source,
            },
            BlobError::Digest { expected, actual, .. } => Error::Digest {
                what: "blob",
                from: self.shown(),
                expected,
                actual,
            },
            error @ (BlobError::Io { .. }
            | BlobError::Full { .. }
            | BlobError::Missing { .. }
            | BlobError::Lost { .. }
            | BlobError::Size { .. }) => Error::Blob(error),
        })
    }

    fn lacking(&self, name: &str) -> Error {
        Error::Lacking {
            path: self.path.to_owned(),
            name: tame(name, 200),
        }
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }
}

/// What a list of what there is shows of one image.
fn shown(names: &[Reference], tags: &[String]) -> String {
    let names = names.iter().map(Reference::familiar);
    let all: Vec<_> = names.chain(tags.iter().map(|tag| tame(tag, 100))).collect();
    if all.is_empty() {
        "one without a name".to_owned()
    } else {
        all.join(" = ")
    }
}

/// Adds to a list of what there is, which is bounded.
fn note(list: &mut Vec<String>, item: String) {
    if list.len() < LISTED && !list.contains(&item) {
        list.push(item);
    }
}

fn open(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |source| Error::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    // Without waiting for a pipe's other end.
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        return Ok(file);
    }
    Err(failed(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is no regular file",
    )))
}

#[cfg(test)]
mod tests;
