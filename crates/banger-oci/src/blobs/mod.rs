//! The directory of blobs: files named by their digests.
//!
//! ```text
//! DIR/sha256/HEX     whole and verified: it appears by rename, after fsync
//! DIR/partial/HEX    the beginning of one that is being, or was, downloaded
//! DIR/partial/new-…  something whose digest is not known yet; garbage after a crash
//! ```
//!
//! Place: below [`crate::pull()`] and [`crate::read_archive`], which fill it. Who needs which blob, and when one is
//! garbage, is for the engine to know. One process owns the directory.
//!
//! A blob is downloaded once at a time: others that want it wait, see how far it is, and take over where it stopped if
//! whoever does it gives up or is dropped ([`incoming`]).

mod incoming;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use hostkit::digest::{Digest, Hasher};
use hostkit::space;

use incoming::Flight;
pub(crate) use incoming::{Begun, Incoming};

const CHUNK: usize = 1 << 20;

/// Why the directory did not take or give something.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// A file or directory could not be dealt with.
    #[error("{action} {}", path.display())]
    Io {
        /// `read`, `write`, `remove`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file system is full, or would be.
    #[error("no space for {needed} more bytes in {}: {free} bytes are free", path.display())]
    Full {
        /// The directory of blobs.
        path: PathBuf,
        /// How many bytes were to come; the ones that are there already not counted.
        needed: u64,
        /// How many bytes were free then.
        free: u64,
    },
    /// What came is something else. Nothing of it is kept.
    #[error("sha256:{actual} came for sha256:{expected}")]
    Digest {
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
        /// Whether some of it was there from before, so that the fault may be an old one.
        resumed: bool,
    },
    /// It is longer, or shorter, than it was to be. Nothing of it is kept if it is longer.
    #[error("{actual} bytes came for {expected}")]
    Size {
        /// What it was to be.
        expected: u64,
        /// What came at least.
        actual: u64,
    },
    /// There is no such blob.
    #[error("there is no blob sha256:{digest}")]
    Missing {
        /// Which.
        digest: Digest,
    },
    /// A watcher's error ended it.
    #[error("stopped")]
    Stopped {
        /// What it said.
        source: io::Error,
    },
    /// The thread that was to write it is gone, because the runtime is ending.
    #[error("the writer of sha256:{digest} was lost")]
    Lost {
        /// Which.
        digest: Digest,
    },
}

/// A directory of blobs. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// Downloads, by what they are of; an entry whose flight is gone means nothing.
    flights: Mutex<HashMap<Digest, Weak<Flight>>>,
    /// For names of files whose digest is not known yet.
    next: AtomicU64,
}

/// What is in the directory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Whole blobs and partial ones, by digest.
    pub entries: Vec<Entry>,
    /// Files of no blob: garbage of a crash, and whatever somebody put there. Those that are being written are not
    /// among them.
    pub strays: Vec<PathBuf>,
}

/// One file of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is, or is to become.
    pub digest: Digest,
    /// Bytes that are there.
    pub size: u64,
    /// When it was last written.
    pub modified: SystemTime,
    /// Whether it is not whole.
    pub partial: bool,
    /// Whether somebody is downloading it just now.
    pub in_use: bool,
}

impl Blobs {
    /// Opens a directory, making it (for this user alone) where it is not there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, BlobError> {
        let dir = dir.into();
        for part in ["sha256", "partial"] {
            let path = dir.join(part);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| BlobError::Io {
                    action: "create",
                    path,
                    source,
                })?;
        }
        Ok(Self(Arc::new(Inner {
            dir,
            flights: Mutex::default(),
            next: AtomicU64::new(0),
        })))
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.dir
    }

    /// Where a blob is, or would be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.0.dir.join("sha256").join(digest.to_string())
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.0.dir.join("partial").join(digest.to_string())
    }

    /// How many bytes of a partial one are there.
    pub(crate) fn begun(&self, digest: &Digest) -> u64 {
        fs::symlink_metadata(self.partial(digest)).map_or(0, |found| found.len())
    }

    /// Whether a blob is there whole.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    /// A whole blob's size in bytes.
    #[must_use]
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::symlink_metadata(self.path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Opens a whole blob for reading.
    pub fn reader(&self, digest: &Digest) -> Result<File, BlobError> {
        let path = self.path(digest);
        File::open(&path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                return BlobError::Missing { digest: *digest };
            }
            BlobError::Io {
                action: "read",
                path,
                source,
            }
        })
    }

    /// Reads a small blob into memory, checking its digest.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, BlobError> {
        let mut bytes = Vec::new();
        self.reader(digest)?
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| BlobError::Io {
                action: "read",
                path: self.path(digest),
                source,
            })?;
        if bytes.len() as u64 > limit {
            return Err(BlobError::Size {
                expected: limit,
                actual: bytes.len() as u64,
            });
        }
        let actual = Digest::of_bytes(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            Err(BlobError::Digest {
                expected: *digest,
                actual,
                resumed: false,
            })
        }
    }

    /// Reads a whole blob through, comparing it with its digest; a difference is [`BlobError::Digest`], and the file
    /// stays. `watch` is called with the bytes so far, once a megabyte; its error ends the reading.
    pub fn verify(&self, digest: &Digest, watch: impl FnMut(u64) -> io::Result<()>) -> Result<(), BlobError> {
        let mut stopped = false;
        let mut watch = watch;
        let actual = Digest::of_reader_watched(self.reader(digest)?, |done| {
            watch(done).inspect_err(|_| stopped = true)
        });
        match actual {
            Ok(actual) if actual == *digest => Ok(()),
            Ok(actual) => Err(BlobError::Digest {
                expected: *digest,
                actual,
                resumed: false,
            }),
            Err(source) if stopped => Err(BlobError::Stopped { source }),
            Err(source) => Err(BlobError::Io {
                action: "read",
                path: self.path(digest),
                source,
            }),
        }
    }

    /// Removes a blob, whole or partial. One that is being downloaded is left alone. Whether there is nothing of it now.
    pub fn remove(&self, digest: &Digest) -> Result<bool, BlobError> {
        // A leaf: nothing else is waited for while it is held, and no download begins meanwhile.
        let flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights
            .get(digest)
            .is_some_and(|flight| flight.strong_count() > 0)
        {
            return Ok(false);
        }
        for path in [self.path(digest), self.partial(digest)] {
            remove_file(&path)?;
        }
        drop(flights);
        Ok(true)
    }

    /// What is there.
    pub fn list(&self) -> Result<Listing, BlobError> {
        let mut listing = Listing::default();
        for (part, partial) in [("sha256", false), ("partial", true)] {
            let dir = self.0.dir.join(part);
            let failed = |source| BlobError::Io {
                action: "list",
                path: dir.clone(),
                source,
            };
            for item in fs::read_dir(&dir).map_err(failed)? {
                let item = item.map_err(failed)?;
                let name = item.file_name();
                // What is gone by now was removed or has become whole.
                let Ok(metadata) = item.metadata() else { continue };
                match name.to_str().and_then(|name| name.parse::<Digest>().ok()) {
                    Some(digest) if metadata.is_file() => listing.entries.push(Entry {
                        digest,
                        size: metadata.len(),
                        modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                        partial,
                        in_use: self.in_flight(&digest),
                    }),
                    _ if partial && self.is_new(&name.to_string_lossy()) => {}
                    Some(_) | None => listing.strays.push(item.path()),
                }
            }
        }
        listing.entries.sort_by_key(|entry| (entry.partial, entry.digest));
        listing.strays.sort();
        Ok(listing)
    }

    fn in_flight(&self, digest: &Digest) -> bool {
        let flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights
            .get(digest)
            .is_some_and(|flight| flight.strong_count() > 0)
    }

    /// Takes in what a reader gives, up to `limit` bytes, and returns its digest and size. With `expected`, anything else
    /// is refused. `watch` is called with the bytes so far, about once a megabyte; its error ends the work.
    ///
    /// Blocks; nothing of it is kept on errors.
    pub fn adopt(
        &self,
        mut reader: impl Read,
        expected: Option<&Digest>,
        limit: u64,
        mut watch: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(Digest, u64), BlobError> {
        let mut new = self.new_file()?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; CHUNK];
        let mut done = 0_u64;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(BlobError::Stopped { source }),
            };
            let chunk = buffer.get(..read).unwrap_or_default();
            done += read as u64;
            if done > limit {
                return Err(BlobError::Size {
                    expected: limit,
                    actual: done,
                });
            }
            hasher.update(chunk);
            new.file
                .write_all(chunk)
                .map_err(|source| self.write_failed(&new.path, read as u64, source))?;
            watch(done).map_err(|source| BlobError::Stopped { source })?;
        }
        let digest = hasher.finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(BlobError::Digest {
                expected: *expected,
                actual: digest,
                resumed: false,
            });
        }
        self.put_in_place(&new.file, &new.path, &digest)?;
        Ok((digest, done))
    }

    /// Takes in bytes from memory.
    pub fn adopt_bytes(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of_bytes(bytes);
        if self.size(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        self.adopt(bytes, Some(&digest), u64::MAX, |_| Ok(()))
            .map(|(digest, _)| digest)
    }

    /// A file for something whose name is not known yet; gone with the value, unless it was put in place.
    pub(crate) fn new_file(&self) -> Result<NewFile, BlobError> {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let path = self
            .0
            .dir
            .join("partial")
            .join(format!("{}{number}", self.new_prefix()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| self.write_failed(&path, 0, source))?;
        Ok(NewFile { file, path })
    }

    fn new_prefix(&self) -> String {
        format!("new-{}-", std::process::id())
    }

    /// Whether a file is one of this process's. After a crash another process's id is in the name.
    fn is_new(&self, name: &str) -> bool {
        name.strip_prefix(&self.new_prefix()).is_some_and(|number| {
            number
                .parse::<u64>()
                .is_ok_and(|n| n < self.0.next.load(Ordering::Relaxed))
        })
    }

    /// Makes a verified file durable, and the blob.
    fn put_in_place(&self, file: &File, path: &Path, digest: &Digest) -> Result<(), BlobError> {
        let target = self.path(digest);
        file.sync_all()
            .map_err(|source| self.write_failed(path, 0, source))?;
        fs::rename(path, &target).map_err(|source| self.write_failed(&target, 0, source))?;
        let dir = self.0.dir.join("sha256");
        File::open(&dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| self.write_failed(&dir, 0, source))
    }

    /// Tells a full file system from other failures.
    pub(crate) fn write_failed(&self, path: &Path, needed: u64, source: io::Error) -> BlobError {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return BlobError::Full {
                path: self.0.dir.clone(),
                needed,
                free: space::of(&self.0.dir).map_or(0, |space| space.free),
            };
        }
        BlobError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        }
    }
}

/// See [`Blobs::new_file`].
#[derive(Debug)]
pub(crate) struct NewFile {
    pub(crate) file: File,
    path: PathBuf,
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Where it was put in place there is no such file any more.
        if let Err(error) = remove_file(&self.path) {
            tracing::warn!(%error, "a temporary file stays");
        }
    }
}

fn remove_file(path: &Path) -> Result<(), BlobError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BlobError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
