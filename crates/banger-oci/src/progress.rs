//! What a caller is told while an image comes or goes, and its one word back.

use std::ops::ControlFlow;
use std::time::Duration;

use hostkit::digest::Digest;

/// Something has happened. Digests are those of blobs as they are stored and sent (compressed).
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// What the image consists of is known: its layers, each once, with their sizes in bytes.
    Layers(&'a [(Digest, u64)]),
    /// A layer is being had: so many of its bytes are there, the ones of an earlier attempt included. Comes with
    /// `done == total` once for each layer, when it is verified and in place; also for those that were there.
    Bytes {
        /// Which.
        digest: Digest,
        /// How many bytes are there. May go down, when what was there turns out to be worth nothing.
        done: u64,
        /// How many there will be.
        total: u64,
    },
    /// Something failed that may pass; it is tried again.
    Again {
        /// From whom it was to be had.
        registry: &'a str,
        /// What was wrong, in one line.
        why: &'a str,
        /// How long until then.
        after: Duration,
    },
    /// A mirror did not help; the next source is asked.
    NextSource {
        /// The mirror.
        registry: &'a str,
        /// What was wrong, in one line.
        why: &'a str,
    },
    /// A step without a size of its own: an archive is unpacked, verified, written.
    Step {
        /// Bytes so far.
        done: u64,
    },
}

/// Called for each [`Event`], from any thread, often; it should return at once. `Break` ends the work with
/// [`crate::Error::Cancelled`]; what is asynchronous ends when its future is dropped as well.
pub type Progress<'a> = dyn Fn(Event<'_>) -> ControlFlow<()> + Send + Sync + 'a;
