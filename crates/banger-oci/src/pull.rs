//! Pulling: from a name to verified files.
//!
//! ```text
//! manifest ─┬─ index ─► (platform) ─► manifest …     at most INDEX_DEPTH deep
//!           └─ manifest ─► config ─► layers, AT_ONCE of them
//! ```
//!
//! Each of these is had from the first source that can give it: mirrors in order, then the registry. A source that failed
//! is not asked again in this pull. What may pass (a lost connection, a server's trouble, too many requests) is tried
//! again at a pace; layers go on where they stopped. Dropping the future ends all of it and keeps what has come.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use futures_util::{TryStreamExt as _, stream};
use hostkit::digest::Digest;

use crate::DOCUMENT_LIMIT;
use crate::blobs::{Begun, BlobError, Blobs, Incoming};
use crate::config::ImageConfig;
use crate::error::{Error, Retry};
use crate::image::{self, Pulled, tell};
use crate::manifest::{self, Descriptor, Manifest, Parsed};
use crate::platform::Platform;
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registry::{Registries, Source, What};

/// Layers at once.
const AT_ONCE: usize = 3;
/// Indexes in indexes.
const INDEX_DEPTH: usize = 3;
/// As much of a blob makes good what failed before: so many bytes for a new series of attempts.
const ADVANCE: u64 = 1 << 20;
/// The pause before another attempt is doubled so often.
const DOUBLINGS: u32 = 4;

/// Gets an image, and all that it consists of, into `blobs`. What is there already is not asked for again.
///
/// Several pulls at once share what they have in common. Needs a Tokio runtime with I/O and time.
pub async fn pull(
    registries: &Registries,
    reference: &Reference,
    platform: &Platform,
    blobs: &Blobs,
    progress: &Progress<'_>,
) -> Result<Pulled, Error> {
    let sources = registries
        .places(reference)?
        .into_iter()
        .map(|place| Source::new(place, registries))
        .collect();
    let pull = Pull {
        sources,
        first: AtomicUsize::new(0),
        reached: AtomicBool::new(false),
        registries,
        name: reference.familiar(),
        blobs,
        progress,
    };
    pull.run(reference, platform).await
}

struct Pull<'a> {
    /// Mirrors, and the registry, which is always the last.
    sources: Vec<Source>,
    /// The first that has not failed.
    first: AtomicUsize,
    /// Whether one of them has given us something.
    reached: AtomicBool,
    registries: &'a Registries,
    name: String,
    blobs: &'a Blobs,
    progress: &'a Progress<'a>,
}

/// A manifest or index, as it came.
struct Found {
    digest: Digest,
    size: u64,
    parsed: Parsed,
}

impl Pull<'_> {
    async fn run(&self, reference: &Reference, platform: &Platform) -> Result<Pulled, Error> {
        let top = self
            .document(&reference.target(), reference.digest().copied())
            .await?;
        let mut index = None;
        let mut found = top;
        let mut depth = 0;
        let manifest = loop {
            match found.parsed {
                Parsed::Manifest(manifest) => break manifest,
                Parsed::Index(list) => {
                    depth += 1;
                    if depth > INDEX_DEPTH {
                        return Err(Error::Malformed {
                            what: "index",
                            reason: format!("it is nested more than {INDEX_DEPTH} deep"),
                        });
                    }
                    index = index.or(Some(found.digest));
                    let chosen = &list.select(platform, &self.name)?.descriptor;
                    found = self
                        .document(&format!("sha256:{}", chosen.digest), Some(chosen.digest))
                        .await?;
                }
            }
        };
        let (image, diff_ids) = ImageConfig::parse(&self.config(&manifest.config).await?)?;
        image::check_platform(&image, platform, &self.name)?;
        image::check_layers(&manifest, &diff_ids)?;
        self.layers(&manifest).await?;
        let (blobs, digest, size) = (self.blobs.clone(), found.digest, found.size);
        tokio::task::spawn_blocking(move || image::assemble(&blobs, digest, size, index, &manifest))
            .await
            .map_err(|_| Error::Worker)?
    }

    /// A manifest or index; by digest also from the directory. It is kept there.
    async fn document(&self, target: &str, expected: Option<Digest>) -> Result<Found, Error> {
        let here = expected.and_then(|digest| self.blobs.read(&digest, DOCUMENT_LIMIT).ok());
        let (bytes, media_type) = match here {
            Some(bytes) => (bytes, None),
            None => {
                let mut tries = Tries::new(self);
                loop {
                    let source = tries.source()?;
                    match self.ask_document(source, target, expected).await {
                        Ok(found) => break tries.succeeded(found),
                        Err(error) => tries.failed(error, 0).await?,
                    }
                }
            }
        };
        // First understood, then kept: what is of no use is not.
        let parsed = manifest::parse(&bytes, media_type.as_deref(), &self.name)?;
        let size = bytes.len() as u64;
        let digest = self.keep(bytes).await?;
        Ok(Found { digest, size, parsed })
    }

    async fn ask_document(
        &self,
        source: &Source,
        target: &str,
        expected: Option<Digest>,
    ) -> Result<(Vec<u8>, Option<String>), Error> {
        let what = What::Manifest {
            target,
            reference: &self.name,
        };
        let answer = source.get(what).await?;
        let bytes = answer.body.collect(DOCUMENT_LIMIT).await;
        let bytes = bytes.map_err(|error| error.of(source.name(), "manifest"))?;
        // Of a tag the registry says which digest it has now.
        match expected.or(answer.digest) {
            Some(expected) => {
                checked("manifest", source, &expected, bytes).map(|bytes| (bytes, answer.media_type))
            }
            None => Ok((bytes, answer.media_type)),
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        if descriptor.size > DOCUMENT_LIMIT {
            return Err(Error::TooLong {
                what: "image configuration",
                from: self.name.clone(),
                limit: DOCUMENT_LIMIT,
            });
        }
        if let Ok(bytes) = self.blobs.read(&descriptor.digest, DOCUMENT_LIMIT)
            && bytes.len() as u64 == descriptor.size
        {
            return Ok(bytes);
        }
        let mut tries = Tries::new(self);
        let bytes = loop {
            let source = tries.source()?;
            match ask_config(source, descriptor).await {
                Ok(bytes) => break tries.succeeded(bytes),
                Err(error) => tries.failed(error, 0).await?,
            }
        };
        self.keep(bytes.clone()).await?;
        Ok(bytes)
    }

    async fn keep(&self, bytes: Vec<u8>) -> Result<Digest, Error> {
        let blobs = self.blobs.clone();
        let kept = tokio::task::spawn_blocking(move || blobs.adopt_bytes(&bytes)).await;
        Ok(kept.map_err(|_| Error::Worker)??)
    }

    async fn layers(&self, manifest: &Manifest) -> Result<(), Error> {
        let mut each: Vec<(Digest, u64)> = Vec::new();
        for layer in &manifest.layers {
            match each.iter().find(|(digest, _)| *digest == layer.digest) {
                None => each.push((layer.digest, layer.size)),
                Some((_, size)) if *size == layer.size => {}
                Some(_) => {
                    return Err(Error::Malformed {
                        what: "manifest",
                        reason: "one layer has two sizes".to_owned(),
                    });
                }
            }
        }
        tell(self.progress, Event::Layers(&each))?;
        stream::iter(
            each.into_iter()
                .map(|(digest, size)| Ok(self.layer(digest, size))),
        )
        .try_buffer_unordered(AT_ONCE)
        .try_for_each(async |()| Ok(()))
        .await
    }

    async fn layer(&self, digest: Digest, size: u64) -> Result<(), Error> {
        self.tell_bytes(digest, 0, size)?;
        if self.blobs.size(&digest) != Some(size) {
            let got = AtomicU64::new(0);
            let mut tries = Tries::new(self);
            loop {
                let source = tries.source()?;
                match self.download(source, digest, size, &got).await {
                    Ok(()) => break tries.succeeded(()),
                    Err(error) => tries.failed(error, got.load(Ordering::Relaxed)).await?,
                }
            }
        }
        self.tell_bytes(digest, size, size)
    }

    fn tell_bytes(&self, digest: Digest, done: u64, total: u64) -> Result<(), Error> {
        tell(self.progress, Event::Bytes { digest, done, total })
    }

    /// One attempt at the rest of a blob. What comes stays, whatever happens.
    async fn download(
        &self,
        source: &Source,
        digest: Digest,
        size: u64,
        got: &AtomicU64,
    ) -> Result<(), Error> {
        loop {
            let waiting = |done: u64| {
                // A watcher that wants no more is heard at the next piece of ours.
                self.tell_bytes(digest, done.min(size), size).ok();
            };
            let mut incoming = match self.blobs.begin(digest, size, waiting).await? {
                Begun::There => return Ok(()),
                Begun::Incoming(incoming) => incoming,
            };
            // An empty blob is one without bytes to ask for.
            if incoming.offset() < size {
                self.transfer(source, &mut incoming, digest, size, got).await?;
            }
            match incoming.finish().await {
                // What a crash of the host left of a beginning may be anything. It is gone now.
                Err(BlobError::Digest { resumed: true, .. }) => {}
                outcome => return outcome.map_err(|error| blob_error(error, source.name())),
            }
        }
    }

    async fn transfer(
        &self,
        source: &Source,
        incoming: &mut Incoming,
        digest: Digest,
        size: u64,
        got: &AtomicU64,
    ) -> Result<(), Error> {
        let what = What::Blob {
            digest: &digest,
            from: incoming.offset(),
        };
        let mut answer = source.get(what).await?;
        if answer.from != incoming.offset() {
            incoming.restart().await?;
        }
        let announced = answer
            .body
            .length()
            .map(|length| length.saturating_add(answer.from));
        if let Some(announced) = announced.filter(|&announced| announced != size) {
            return Err(Error::Size {
                what: "layer",
                from: source.name().to_owned(),
                expected: size,
                actual: announced,
                more: false,
            });
        }
        while let Some(bytes) = answer
            .body
            .chunk()
            .await
            .map_err(|error| error.of(source.name(), "layer"))?
        {
            let written = incoming.write(bytes).await;
            written.map_err(|error| blob_error(error, source.name()))?;
            got.fetch_max(incoming.offset(), Ordering::Relaxed);
            self.tell_bytes(digest, incoming.offset(), size)?;
        }
        Ok(())
    }
}

/// Attempts at one thing: which source is next, and when.
struct Tries<'a> {
    pull: &'a Pull<'a>,
    at: usize,
    failures: u32,
    /// How far a blob was when the failures began to be counted. Bytes that come again count for nothing, or a server
    /// could go on without end.
    got: u64,
}

impl<'a> Tries<'a> {
    fn new(pull: &'a Pull<'a>) -> Self {
        Self {
            pull,
            at: 0,
            failures: 0,
            got: 0,
        }
    }

    /// Whom to ask: the first that has not failed yet. The last one, the registry itself, is never passed.
    fn source(&mut self) -> Result<&'a Source, Error> {
        let first = self.pull.first.load(Ordering::Relaxed);
        if self.at < first {
            self.at = first;
            self.failures = 0;
        }
        self.pull.sources.get(self.at).ok_or(Error::Worker)
    }

    fn succeeded<T>(&self, found: T) -> T {
        self.pull.reached.store(true, Ordering::Relaxed);
        found
    }

    /// An attempt failed, when a blob had been got as far as `got` bytes: waits until it is time for the next one, or says
    /// that there is to be none.
    async fn failed(&mut self, error: Error, got: u64) -> Result<(), Error> {
        let source = self.source()?;
        let timing = &self.pull.registries.timing;
        if got.saturating_sub(self.got) >= ADVANCE {
            self.failures = 0;
            self.got = got;
        }
        self.failures += 1;
        let pause = timing.pause * 2_u32.pow((self.failures - 1).min(DOUBLINGS));
        let attempts = if source.is_mirror() {
            timing.attempts.min(2)
        } else {
            timing.attempts
        };
        // A registry that cannot be reached at all is said at once; one that was may come back.
        let hopeless = matches!(error, Error::Connect { .. }) && !self.pull.reached.load(Ordering::Relaxed);
        let after = match error.retry() {
            Retry::Perhaps if !hopeless => Some(pause),
            Retry::After(said) if said <= timing.patience => Some(said.max(timing.pause)),
            Retry::Perhaps | Retry::After(_) | Retry::No => None,
        };
        match after {
            Some(after) if self.failures < attempts => {
                let event = Event::Again {
                    registry: source.name(),
                    why: &error.line(),
                    after,
                };
                tell(self.pull.progress, event)?;
                tokio::time::sleep(after).await;
                Ok(())
            }
            Some(_) | None => self.give_up(source, error),
        }
    }

    /// On to the next source, if there is one and it can help.
    fn give_up(&mut self, source: &Source, error: Error) -> Result<(), Error> {
        if !source.is_mirror() || error.is_local() {
            return Err(error);
        }
        let why = error.line();
        tracing::info!(mirror = source.name(), why, "a mirror does not help");
        let event = Event::NextSource {
            registry: source.name(),
            why: &why,
        };
        tell(self.pull.progress, event)?;
        // Another layer's attempt may have gone on already.
        self.pull.first.fetch_max(self.at + 1, Ordering::Relaxed);
        Ok(())
    }
}

async fn ask_config(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    const WHAT: &str = "image configuration";
    let blob = What::Blob {
        digest: &descriptor.digest,
        from: 0,
    };
    let bytes = source.get(blob).await?.body.collect(descriptor.size).await;
    let bytes = bytes.map_err(|error| error.of(source.name(), WHAT))?;
    let bytes = checked(WHAT, source, &descriptor.digest, bytes)?;
    if bytes.len() as u64 == descriptor.size {
        return Ok(bytes);
    }
    Err(Error::Size {
        what: WHAT,
        from: source.name().to_owned(),
        expected: descriptor.size,
        actual: bytes.len() as u64,
        more: false,
    })
}

fn checked(what: &'static str, source: &Source, expected: &Digest, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    let actual = Digest::of_bytes(&bytes);
    if actual == *expected {
        return Ok(bytes);
    }
    Err(Error::Digest {
        what,
        from: source.name().to_owned(),
        expected: *expected,
        actual,
    })
}

fn blob_error(error: BlobError, from: &str) -> Error {
    match error {
        BlobError::Digest { expected, actual, .. } => Error::Digest {
            what: "layer",
            from: from.to_owned(),
            expected,
            actual,
        },
        BlobError::Size { expected, actual } => Error::Size {
            what: "layer",
            from: from.to_owned(),
            expected,
            actual,
            more: true,
        },
        error @ (BlobError::Io { .. }
        | BlobError::Full { .. }
        | BlobError::Missing { .. }
        | BlobError::Lost { .. }
        | BlobError::Stopped { .. }) => Error::Blob(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_can_be_spawned() {
        fn is_send<T: Send>(_: &T) {}
        let (registries, platform) = (Registries::default(), Platform::host());
        let reference = "localhost:1/x".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let progress = |_: Event<'_>| std::ops::ControlFlow::Continue(());
        is_send(&pull(&registries, &reference, &platform, &blobs, &progress));
    }
}
