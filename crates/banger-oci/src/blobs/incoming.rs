//! A blob on its way in, from pieces that come over a network.
//!
//! ```text
//! begin ─► whole ──────────────────────────────► There
//!    └───► somebody has the flight: wait ─► (again)
//!    └───► Incoming ─ write… ─ finish ─► verified, fsync, rename
//!              └─ dropped at any point: what was written stays in partial/ for the next
//! ```
//!
//! Writing, hashing and fsync are done by a thread of the runtime's blocking pool, fed by a channel of few pieces. The
//! thread holds the flight's lock, so that nobody goes on with a file that is still being written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};

use bytes::Bytes;
use hostkit::digest::{Digest, Hasher};
use hostkit::space;
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio::task::JoinHandle;

use super::{BlobError, Blobs, CHUNK, remove_file};

/// Pieces (of some tens of KiB) that may wait for the disk.
const QUEUE: usize = 16;

/// One download that several may want.
#[derive(Debug)]
pub(super) struct Flight {
    /// Held by the writer's thread.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Bytes that are there.
    done: watch::Sender<u64>,
}

/// What [`Blobs::begin`] found.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is whole.
    There,
    /// It is the caller's to download.
    Incoming(Incoming),
}

/// See the module. The bytes from [`Incoming::offset`] on are wanted.
#[derive(Debug)]
pub(crate) struct Incoming {
    digest: Digest,
    size: u64,
    offset: u64,
    flight: Arc<Flight>,
    pieces: mpsc::Sender<Piece>,
    writer: JoinHandle<Result<(), BlobError>>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// What is there is worth nothing.
    Restart,
    /// That was all; verify it.
    Finish,
}

impl Blobs {
    /// Begins, or goes on with, the download of a blob. Waits while another does it, telling `watch` how far that is.
    pub(crate) async fn begin(
        &self,
        digest: Digest,
        size: u64,
        watch: impl Fn(u64),
    ) -> Result<Begun, BlobError> {
        let flight = self.flight(digest);
        let mut done = flight.done.subscribe();
        // So that who waits is told at once how far it is.
        done.mark_changed();
        let turn = flight.turn.clone().lock_owned();
        tokio::pin!(turn);
        let guard = loop {
            tokio::select! {
                // Cancel-safe: pinned outside of the loop, so the place in the queue is kept.
                guard = &mut turn => break guard,
                // Cancel-safe: a change that is not seen now is seen at the next look. The sender is in `flight`.
                Ok(()) = done.changed() => watch(*done.borrow_and_update()),
            }
        };
        if self.size(&digest) == Some(size) {
            // It may have come another way, from an archive.
            remove_file(&self.partial(&digest))?;
            return Ok(Begun::There);
        }
        let (blobs, held) = (self.clone(), flight.clone());
        let opened = tokio::task::spawn_blocking(move || {
            // The turn is given back with an error, and kept otherwise. The flight is the same one as long as this runs,
            // also when nobody waits for it any more.
            blobs
                .open_partial(&digest, size)
                .map(|opened| (opened, guard, held))
        });
        let ((file, offset), guard, held) = opened.await.map_err(|_| BlobError::Lost { digest })??;
        let (pieces, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            blobs: self.clone(),
            path: self.partial(&digest),
            digest,
            size,
            file,
            offset,
            flight: held,
            _turn: guard,
        };
        Ok(Begun::Incoming(Incoming {
            digest,
            size,
            offset,
            flight,
            pieces,
            writer: tokio::task::spawn_blocking(move || writer.run(queue)),
        }))
    }

    fn flight(&self, digest: Digest) -> Arc<Flight> {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(&digest).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(Flight {
            turn: Arc::default(),
            done: watch::Sender::new(0),
        });
        flights.insert(digest, Arc::downgrade(&flight));
        flight
    }

    /// The partial file and its length. One that cannot be a beginning is emptied.
    fn open_partial(&self, digest: &Digest, size: u64) -> Result<(File, u64), BlobError> {
        let path = self.partial(digest);
        let failed = |source| self.write_failed(&path, size, source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let mut offset = file.metadata().map_err(failed)?.len();
        if offset > size {
            file.set_len(0).map_err(failed)?;
            offset = 0;
        }
        let needed = size - offset;
        let free = space::of(self.directory()).map_err(failed)?.free;
        if free < needed {
            return Err(BlobError::Full {
                path: self.directory().to_owned(),
                needed,
                free,
            });
        }
        Ok((file, offset))
    }
}

impl Incoming {
    /// How many bytes are there: where to go on.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes. More than there are to be are an error, and then nothing is kept.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        let after = self.offset + bytes.len() as u64;
        if after > self.size {
            self.restart().await?;
            return Err(BlobError::Size {
                expected: self.size,
                actual: after,
            });
        }
        self.send(Piece::Bytes(bytes)).await?;
        self.offset = after;
        self.flight.done.send_replace(after);
        Ok(())
    }

    /// Forgets what is there: the source begins anew.
    pub(crate) async fn restart(&mut self) -> Result<(), BlobError> {
        self.send(Piece::Restart).await?;
        self.offset = 0;
        self.flight.done.send_replace(0);
        Ok(())
    }

    /// All bytes are there: verifies them and makes them the blob. What is wrong is thrown away, what is not whole kept.
    pub(crate) async fn finish(mut self) -> Result<(), BlobError> {
        if self.offset < self.size {
            return Err(BlobError::Size {
                expected: self.size,
                actual: self.offset,
            });
        }
        self.send(Piece::Finish).await?;
        self.outcome().await
    }

    async fn send(&mut self, piece: Piece) -> Result<(), BlobError> {
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        // The thread ends before it is told to because of an error only.
        match self.outcome().await {
            Err(error) => Err(error),
            Ok(()) => Err(BlobError::Lost { digest: self.digest }),
        }
    }

    async fn outcome(&mut self) -> Result<(), BlobError> {
        match (&mut self.writer).await {
            Ok(outcome) => outcome,
            Err(_) => Err(BlobError::Lost { digest: self.digest }),
        }
    }
}

/// The thread's side.
struct Writer {
    blobs: Blobs,
    path: PathBuf,
    digest: Digest,
    size: u64,
    file: File,
    offset: u64,
    /// Keeps the flight, and so the blob `in_use`, until the thread has ended.
    flight: Arc<Flight>,
    _turn: OwnedMutexGuard<()>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Piece>) -> Result<(), BlobError> {
        let resumed = self.offset > 0;
        self.flight.done.send_replace(self.offset);
        let mut hasher = self.hash_what_is_there()?;
        let mut resumed = resumed;
        while let Some(piece) = queue.blocking_recv() {
            match piece {
                Piece::Bytes(bytes) => {
                    hasher.update(&bytes);
                    self.write(&bytes)?;
                }
                Piece::Restart => {
                    self.empty()?;
                    hasher = Hasher::default();
                    resumed = false;
                }
                Piece::Finish => return self.finish(hasher, resumed),
            }
        }
        // Given up: what is there is for the next, and nothing is nothing.
        if self.offset == 0 {
            remove_file(&self.path)
        } else {
            Ok(())
        }
    }

    fn hash_what_is_there(&mut self) -> Result<Hasher, BlobError> {
        let mut hasher = Hasher::default();
        let mut rest = self.offset;
        let mut buffer = vec![0; CHUNK];
        let path = self.path.clone();
        let failed = |source| BlobError::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        while rest > 0 {
            let want = usize::try_from(rest).unwrap_or(CHUNK).min(CHUNK);
            let chunk = buffer.get_mut(..want).unwrap_or_default();
            self.file.read_exact(chunk).map_err(failed)?;
            hasher.update(chunk);
            rest -= want as u64;
        }
        Ok(hasher)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let needed = self.size - self.offset;
        if let Err(source) = self.file.write_all(bytes) {
            // A partial write would make the file's length lie about what is good in it.
            self.file.set_len(self.offset).unwrap_or_else(|error| {
                tracing::warn!(path = %self.path.display(), %error, "cannot shorten a partial blob");
            });
            return Err(self.blobs.write_failed(&self.path, needed, source));
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn empty(&mut self) -> Result<(), BlobError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        self.offset = 0;
        emptied.map_err(|source: io::Error| self.blobs.write_failed(&self.path, 0, source))
    }

    fn finish(self, hasher: Hasher, resumed: bool) -> Result<(), BlobError> {
        let actual = hasher.finish();
        if actual == self.digest {
            return self.blobs.put_in_place(&self.file, &self.path, &self.digest);
        }
        remove_file(&self.path)?;
        Err(BlobError::Digest {
            expected: self.digest,
            actual,
            resumed,
        })
    }
}
