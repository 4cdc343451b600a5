//! Pinned downloads as part of an operation: what is checked before, progress, the floor of free space, errors.
//!
//! Place: between [`kernels`](crate::image::kernels) and [`runtime`](crate::runtime), which want a file, and
//! `banger_oci::download`, which talks to the server. A download lives among the blobs of images: one that is broken off
//! stays there for a day and is gone on with; one that has served its purpose is removed by [`forget`], or is garbage
//! there like any blob that no image refers to.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use banger_oci::Event;
use banger_oci::download::{self, DownloadError, Pinned, Url};
use hostkit::digest::Digest;

use crate::error::{Error, Kind};
use crate::host::Host;
use crate::image::blobs::AtWork;
use crate::limits::bytes;
use crate::operation::Progress;
use crate::space;

/// A file on a server, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub(crate) url: Url,
    pub(crate) sha256: Digest,
}

impl Pin {
    /// Of what a caller gave: a URL without credentials, and the 64 hexadecimal digits of a SHA-256.
    pub fn parse(url: &str, sha256: &str) -> Result<Self, Error> {
        let bad = |what, text: &str, problem: String| Error::BadSource {
            what,
            text: text.chars().take(200).collect(),
            problem,
        };
        Ok(Self {
            url: Url::from_str(url).map_err(|e| bad("URL", url, e.to_string()))?,
            sha256: digest(sha256)?,
        })
    }
}

/// A SHA-256 as callers give it; `sha256:` may be before it.
pub(crate) fn digest(text: &str) -> Result<Digest, Error> {
    let hex = text.trim().to_ascii_lowercase();
    let hex = hex.strip_prefix("sha256:").unwrap_or(&hex);
    Digest::from_str(hex).map_err(|_| Error::BadSource {
        what: "SHA-256",
        text: text.chars().take(200).collect(),
        problem: "it is not 64 hexadecimal digits".to_owned(),
    })
}

/// What is downloaded, and what it may cost.
pub(crate) struct Wanted<'a> {
    /// `kernel`, `runtime`.
    pub(crate) what: &'static str,
    /// Its name.
    pub(crate) name: &'a str,
    pub(crate) pin: &'a Pin,
    /// How long it may be, in bytes.
    pub(crate) limit: u64,
    /// How many times its length is written besides when something is made of it.
    pub(crate) unpacked: u64,
}

/// A file that came, kept from being garbage until this is dropped.
pub(crate) struct Fetched<'a> {
    pub(crate) path: PathBuf,
    _at_work: AtWork<'a>,
}

/// Refuses what may not be asked for, before anything is begun.
pub(crate) fn check(host: &Host, pin: &Pin) -> Result<(), Error> {
    download::check(&host.settings.registries, &pin.url).map_err(|e| Error::Download {
        what: "file",
        name: pin.url.to_string(),
        source: Box::new(e),
    })
}

/// Downloads a file. Stage: `download`.
pub(crate) async fn fetch<'a>(
    host: &'a Arc<Host>,
    wanted: &Wanted<'_>,
    progress: &Progress,
) -> Result<Fetched<'a>, Error> {
    let at_work = host.blobs.at_work().await;
    let blobs = host.blobs.blobs();
    let Pin { url, sha256 } = wanted.pin;
    progress.stage_now("download");
    progress.message(&format!("asking for {url}"));
    let no_room: Mutex<Option<Error>> = Mutex::default();
    let tell = |event: Event<'_>| {
        match event {
            Event::Layers(files) => {
                let all = files
                    .iter()
                    .fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
                let needed = all.saturating_mul(wanted.unpacked.saturating_add(1));
                if let Err(error) = space::demand(host, needed) {
                    *no_room.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return ControlFlow::Break(());
                }
            }
            Event::Bytes { done, total, .. } => {
                progress.message(&format!("{} of {} of {url}", bytes(&done), bytes(&total)));
                progress.units(done, Some(total));
            }
            Event::Again { registry, why, after } => {
                let seconds = after.as_secs_f32();
                progress.message(&format!("{registry}: {why}; again in {seconds:.1} s"));
            }
            Event::NextSource { .. } | Event::Step { .. } => {}
        }
        match progress.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let pinned = Pinned {
        url: url.clone(),
        sha256: *sha256,
        limit: wanted.limit,
    };
    let downloading = async {
        let downloaded = download::download(&host.settings.registries, &pinned, blobs, &tell).await;
        downloaded.map_err(|error| {
            let no_room = no_room.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (no_room, error) {
                (Some(no_room), _) => no_room,
                (None, DownloadError::Cancelled) => Error::Cancelled,
                (None, error) => Error::Download {
                    what: wanted.what,
                    name: wanted.name.to_owned(),
                    source: Box::new(error),
                },
            }
        })
    };
    // Dropping it keeps what has come.
    progress.or_cancelled(downloading).await?;
    Ok(Fetched {
        path: blobs.path(sha256),
        _at_work: at_work,
    })
}

/// Removes a download that has served its purpose. Where somebody is at work with blobs it stays, and is garbage.
pub(crate) async fn forget(host: &Host, pin: &Pin) {
    if let Err(error) = host.blobs.remove_unused(&host.store, vec![pin.sha256]).await {
        tracing::warn!(digest = %pin.sha256, error = crate::error::chain(&error), "a download stays until it is collected");
    }
}

/// What sort of failure it is.
pub(crate) fn kind(error: &DownloadError) -> Kind {
    use banger_oci::BlobError;
    match error {
        DownloadError::Plain { .. } | DownloadError::Digest { .. } | DownloadError::TooLong { .. } => {
            Kind::InvalidArgument
        }
        DownloadError::Status {
            status: 404 | 410, ..
        } => Kind::NotFound,
        DownloadError::Status {
            status: 401 | 403, ..
        } => Kind::PermissionDenied,
        DownloadError::Silent { .. } => Kind::TimedOut,
        DownloadError::Cancelled => Kind::Cancelled,
        DownloadError::Blob(BlobError::Full { .. }) => Kind::OutOfResources,
        DownloadError::Connect { .. }
        | DownloadError::Broken { .. }
        | DownloadError::Redirect { .. }
        | DownloadError::Status { .. }
        | DownloadError::NoLength { .. }
        | DownloadError::Size { .. }
        | DownloadError::Blob(_) => Kind::Internal,
    }
}

/// What to try.
pub(crate) fn hint(error: &DownloadError) -> Option<String> {
    let text = match error {
        DownloadError::Plain { .. } => {
            "use https, or set `plain_http = true` for the host under [registries.\"HOST:PORT\"] in the configuration"
        }
        DownloadError::Digest { .. } => {
            "nothing was kept; compare the checksum with the one that its maker publishes"
        }
        DownloadError::Broken { .. } | DownloadError::Silent { .. } => {
            "try again: it goes on where it stopped"
        }
        DownloadError::Connect { .. }
        | DownloadError::Redirect { .. }
        | DownloadError::Status { .. }
        | DownloadError::NoLength { .. }
        | DownloadError::TooLong { .. }
        | DownloadError::Size { .. }
        | DownloadError::Blob(_)
        | DownloadError::Cancelled => return None,
    };
    Some(text.to_owned())
}
