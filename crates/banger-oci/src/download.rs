//! Pinned downloads: a file by its URL and its SHA-256, into the directory of blobs.
//!
//! ```text
//! Source: URL ─► GET (Range, where a beginning is there) ─► Blobs ─ verified, fsync ─► sha256/HEX
//!                  ▲                                          │
//!                  └── connection lost: a pause, then the rest ┘
//! ```
//!
//! Place: below the engine, which fetches kernels and runtimes this way. Names, TLS, proxies, redirects, silence and the
//! number of attempts are the registries' ([`crate::registry`]); so are the settings of a host (`plain_http`, `ca`). What
//! the file is for, and when the blob is garbage, is for the caller to know.
//!
//! The server is a stranger: its file is no longer than it says and than the caller allows, and one that is not what its
//! digest stands for leaves nothing. Plain http is for this host and for those that are configured so: what comes is
//! verified either way, but who asks for what is nobody else's business.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use hostkit::digest::Digest;
use hyper::Uri;
use hyper::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};

use crate::blobs::{Begun, BlobError, Blobs, Incoming};
use crate::error::Retry;
use crate::progress::{Event, Progress};
use crate::registry::{
    ConnectError, Http, HttpError, Registries, Reply, begins_at, is_loopback, retry_after,
};

/// After how many failures the pauses grow no more.
const DOUBLINGS: u32 = 4;
/// So much more of the file makes failures count from the beginning.
const ADVANCE: u64 = 1 << 20;
/// A URL is no longer than this, in bytes.
const URL_LIMIT: usize = 2048;

/// Where a file is: `https://HOST[:PORT]/PATH[?QUERY]`, or `http://`. Holds no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(Box<Uri>);

/// A text is no [`Url`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(&'static str);

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_LIMIT {
            return Err(UrlError("it is longer than 2048 bytes"));
        }
        // A fragment says nothing to a server.
        let text = text.split('#').next().unwrap_or(text);
        let uri: Uri = text.parse().map_err(|_| UrlError("it is no URL"))?;
        if !matches!(uri.scheme_str(), Some("https" | "http")) {
            return Err(UrlError("it begins with neither https:// nor http://"));
        }
        let authority = uri.authority().ok_or(UrlError("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(UrlError("it holds a user or a password, which would be shown"));
        }
        if authority.host().is_empty() {
            return Err(UrlError("it names no host"));
        }
        Ok(Self(Box::new(uri)))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Url {
    /// The host, with a port where there is one: as settings are found, and as people know it.
    fn authority(&self) -> &str {
        self.0.authority().map_or("", |authority| authority.as_str())
    }

    fn is_plain(&self) -> bool {
        self.0.scheme_str() == Some("http")
    }
}

/// What to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Where it is.
    pub url: Url,
    /// What it is.
    pub sha256: Digest,
    /// How long it may be, in bytes.
    pub limit: u64,
}

/// Why a file could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Without TLS, from another host, which is not configured so.
    #[error("{url} is plain http, which is for this host alone (127.0.0.1, localhost)")]
    Plain {
        /// What was asked for.
        url: Url,
    },
    /// No connection: unknown host, nobody listens, TLS, a proxy; the source says which.
    #[error("no connection to {host}")]
    Connect {
        /// The host.
        host: String,
        /// The cause.
        source: ConnectError,
    },
    /// The connection was lost in the middle, or what came was no HTTP.
    #[error("{host} broke off")]
    Broken {
        /// The host.
        host: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It stopped sending, or sends next to nothing.
    #[error("{host} was silent for {} s", after.as_secs_f32())]
    Silent {
        /// The host.
        host: String,
        /// For how long.
        after: Duration,
    },
    /// It sent somewhere else too often, to nowhere, or to plain http.
    #[error("{host} redirects: {reason}")]
    Redirect {
        /// The host.
        host: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// It answered with something else than the file.
    #[error("{host} answered with status {status} to {url}")]
    Status {
        /// The host.
        host: String,
        /// The status of HTTP.
        status: u16,
        /// What was asked for.
        url: Url,
        /// When to ask again, where it said so.
        after: Option<Duration>,
    },
    /// It does not say how long the file is.
    #[error("{host} does not say how long {url} is")]
    NoLength {
        /// The host.
        host: String,
        /// What was asked for.
        url: Url,
    },
    /// The file is longer than it may be.
    #[error("{url} has {size} bytes; at most {limit} are taken")]
    TooLong {
        /// What was asked for.
        url: Url,
        /// What was announced.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// The file's length is another one than at the beginning, or than announced.
    #[error("{url} has another length than {expected} bytes by now: {actual}")]
    Size {
        /// What was asked for.
        url: Url,
        /// What was announced first.
        expected: u64,
        /// What came, or was announced then.
        actual: u64,
    },
    /// What came is not what it was to be. Nothing of it is kept.
    #[error("{url} has digest sha256:{actual}, not sha256:{expected}")]
    Digest {
        /// What was asked for.
        url: Url,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The directory did not take it.
    #[error(transparent)]
    Blob(BlobError),
    /// [`crate::Progress`] said so.
    #[error("cancelled")]
    Cancelled,
}

impl DownloadError {
    fn retry(&self) -> Retry {
        match self {
            Self::Connect { source, .. } => source.retry(),
            Self::Broken { .. } | Self::Silent { .. } => Retry::Perhaps,
            Self::Status { status, after, .. } => match (status, after) {
                (429 | 503, Some(after)) => Retry::After(*after),
                (408 | 429 | 500 | 502 | 503 | 504, _) => Retry::Perhaps,
                _ => Retry::No,
            },
            Self::Plain { .. }
            | Self::Redirect { .. }
            | Self::NoLength { .. }
            | Self::TooLong { .. }
            | Self::Size { .. }
            | Self::Digest { .. }
            | Self::Blob(_)
            | Self::Cancelled => Retry::No,
        }
    }

    /// The error and its causes in one line, for progress.
    fn line(&self) -> String {
        let mut line = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            next = cause.source();
        }
        line
    }
}

/// Whether a file may be asked for at all, without asking anybody.
pub fn check(settings: &Registries, url: &Url) -> Result<(), DownloadError> {
    let host = url.0.host().unwrap_or_default();
    let configured = settings.each.get(url.authority());
    let allowed = is_loopback(host) || configured.is_some_and(|registry| registry.plain_http);
    if url.is_plain() && !allowed {
        return Err(DownloadError::Plain { url: url.clone() });
    }
    Ok(())
}

/// Downloads a file into the directory of blobs, where it is under its digest then; one that is there is asked for by
/// nobody. Gives its length in bytes. `progress` gets [`Event::Layers`] with this one file as soon as its length is known,
/// [`Event::Bytes`] and [`Event::Again`].
///
/// What has come stays when it fails or is dropped, for the next attempt, unless it is wrong.
pub async fn download(
    settings: &Registries,
    pinned: &Pinned,
    blobs: &Blobs,
    progress: &Progress<'_>,
) -> Result<u64, DownloadError> {
    let url = &pinned.url;
    check(settings, url)?;
    let ca = settings
        .each
        .get(url.authority())
        .and_then(|host| host.ca.clone());
    let transfer = Transfer {
        http: Http::new(&settings.proxies, ca, &settings.timing).without_plain_elsewhere(),
        pinned,
        blobs,
        progress,
    };
    let timing = &settings.timing;
    let (mut size, mut got) = (None, 0);
    let (mut failures, mut counted, mut reached) = (0_u32, 0_u64, false);
    loop {
        if let Some(size) = blobs.size(&pinned.sha256) {
            transfer.tell_bytes(size, size)?;
            return Ok(size);
        }
        let error = match transfer.attempt(&mut size, &mut got).await {
            Ok(Outcome::Done) => continue,
            // What a crash of the host left of a beginning may be anything. It is gone now.
            Ok(Outcome::BadBeginning) => continue,
            Err(error) => error,
        };
        if got.saturating_sub(counted) >= ADVANCE {
            (failures, counted) = (0, got);
        }
        failures += 1;
        reached |= size.is_some();
        let pause = timing.pause * 2_u32.pow((failures - 1).min(DOUBLINGS));
        // A host that cannot be reached at all is said at once; one that was may come back.
        let hopeless = matches!(error, DownloadError::Connect { .. }) && !reached;
        let after = match error.retry() {
            Retry::Perhaps if !hopeless => pause,
            Retry::After(said) if said <= timing.patience => said.max(timing.pause),
            Retry::Perhaps | Retry::After(_) | Retry::No => return Err(error),
        };
        if failures >= timing.attempts {
            return Err(error);
        }
        transfer.tell(Event::Again {
            registry: url.authority(),
            why: &error.line(),
            after,
        })?;
        tokio::time::sleep(after).await;
    }
}

/// What an attempt came to that did not fail.
enum Outcome {
    /// The file is there.
    Done,
    /// It was gone on with what turned out to be no beginning of it.
    BadBeginning,
}

struct Transfer<'a> {
    http: Http,
    pinned: &'a Pinned,
    blobs: &'a Blobs,
    progress: &'a Progress<'a>,
}

impl Transfer<'_> {
    /// One attempt at what is missing. `size` is what was announced first, `got` how far any attempt came.
    async fn attempt(&self, size: &mut Option<u64>, got: &mut u64) -> Result<Outcome, DownloadError> {
        let digest = self.pinned.sha256;
        // The length is needed to begin, and is not known before the first answer.
        let first = match *size {
            None => {
                let asked = self.blobs.begun(&digest);
                let (from, reply) = self.ask(asked).await?;
                *size = Some(self.length(from, &reply)?);
                Some((asked, from, reply))
            }
            Some(_) => None,
        };
        let total = size.unwrap_or_default();
        if first.is_some() {
            self.tell(Event::Layers(&[(digest, total)]))?;
        }
        let waiting = |done: u64| {
            // A watcher that wants no more is heard at the next piece of ours.
            self.tell_bytes(done.min(total), total).ok();
        };
        let begun = self.blobs.begin(digest, total, waiting).await;
        let mut incoming = match begun.map_err(DownloadError::Blob)? {
            Begun::There => return Ok(Outcome::Done),
            Begun::Incoming(incoming) => incoming,
        };
        let offset = incoming.offset();
        // All of it may be there, of a download that was broken off before it was verified.
        if offset < total {
            let (from, reply) = match first {
                Some((asked, from, reply)) if asked == offset => (from, reply),
                // The first attempt's end was still being written, or somebody has got further.
                Some(_) | None => self.ask(offset).await?,
            };
            let now = self.length(from, &reply)?;
            if now != total {
                return Err(self.other_size(total, now));
            }
            if from != offset {
                incoming.restart().await.map_err(DownloadError::Blob)?;
            }
            self.receive(&mut incoming, reply, total, got).await?;
        }
        match incoming.finish().await {
            Ok(()) => Ok(Outcome::Done),
            Err(BlobError::Digest { resumed: true, .. }) => Ok(Outcome::BadBeginning),
            Err(error) => Err(self.blob_error(error)),
        }
    }

    async fn receive(
        &self,
        incoming: &mut Incoming,
        mut reply: Reply,
        total: u64,
        got: &mut u64,
    ) -> Result<(), DownloadError> {
        while incoming.offset() < total {
            let chunk = reply.body.chunk().await.map_err(|error| self.http_error(error))?;
            let Some(bytes) = chunk else { break };
            incoming
                .write(bytes)
                .await
                .map_err(|error| self.blob_error(error))?;
            *got = (*got).max(incoming.offset());
            self.tell_bytes(incoming.offset(), total)?;
        }
        Ok(())
    }

    /// Asks for the file from an offset on, and for all of it where the server does not do that.
    async fn ask(&self, mut from: u64) -> Result<(u64, Reply), DownloadError> {
        loop {
            let mut headers = HeaderMap::new();
            if from > 0 {
                let range = HeaderValue::try_from(format!("bytes={from}-"));
                headers.extend(range.ok().map(|range| (RANGE, range)));
            }
            let asked = self.http.get(Uri::clone(&self.pinned.url.0), &headers).await;
            let reply = asked.map_err(|error| self.http_error(error))?;
            match reply.status.as_u16() {
                200 => return Ok((0, reply)),
                206 if from > 0 && begins_at(&reply.headers, from) => return Ok((from, reply)),
                206 | 416 if from > 0 => from = 0,
                status => {
                    return Err(DownloadError::Status {
                        host: self.host(),
                        status,
                        url: self.pinned.url.clone(),
                        after: retry_after(&reply.headers, SystemTime::now()),
                    });
                }
            }
        }
    }

    /// How long the file is, as an answer says that begins at `from`.
    fn length(&self, from: u64, reply: &Reply) -> Result<u64, DownloadError> {
        let url = &self.pinned.url;
        let said = match from {
            0 => reply.body.length(),
            from => of_range(&reply.headers).or_else(|| reply.body.length()?.checked_add(from)),
        };
        let size = said.ok_or_else(|| DownloadError::NoLength {
            host: self.host(),
            url: url.clone(),
        })?;
        if size > self.pinned.limit {
            return Err(DownloadError::TooLong {
                url: url.clone(),
                size,
                limit: self.pinned.limit,
            });
        }
        Ok(size)
    }

    fn host(&self) -> String {
        self.pinned.url.authority().to_owned()
    }

    fn tell(&self, event: Event<'_>) -> Result<(), DownloadError> {
        match (self.progress)(event).is_break() {
            true => Err(DownloadError::Cancelled),
            false => Ok(()),
        }
    }

    fn tell_bytes(&self, done: u64, total: u64) -> Result<(), DownloadError> {
        let digest = self.pinned.sha256;
        self.tell(Event::Bytes { digest, done, total })
    }

    fn other_size(&self, expected: u64, actual: u64) -> DownloadError {
        DownloadError::Size {
            url: self.pinned.url.clone(),
            expected,
            actual,
        }
    }

    fn http_error(&self, error: HttpError) -> DownloadError {
        let host = self.host();
        match error {
            HttpError::Connect(source) => DownloadError::Connect { host, source },
            HttpError::Broken(source) => DownloadError::Broken { host, source },
            HttpError::Silent(after) => DownloadError::Silent { host, after },
            HttpError::Redirect(reason) => DownloadError::Redirect { host, reason },
            HttpError::TooLong(limit) => self.other_size(limit, limit.saturating_add(1)),
        }
    }

    fn blob_error(&self, error: BlobError) -> DownloadError {
        match error {
            BlobError::Digest { expected, actual, .. } => DownloadError::Digest {
                url: self.pinned.url.clone(),
                expected,
                actual,
            },
            BlobError::Size { expected, actual } => self.other_size(expected, actual),
            error @ (BlobError::Io { .. }
            | BlobError::Full { .. }
            | BlobError::Missing { .. }
            | BlobError::Lost { .. }
            | BlobError::Stopped { .. }) => DownloadError::Blob(error),
        }
    }
}

/// `Content-Range: bytes FROM-TO/SIZE` (RFC 9110, 14.4): the size of the whole.
fn of_range(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.rsplit_once('/')?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_nobody() {
        for (text, reason) in [
            ("ftp://x/y", "neither"),
            ("/etc/passwd", "neither"),
            ("https:///x", "no URL"),
            ("https://user:secret@host/x", "password"),
            ("https://a b/", "no URL"),
        ] {
            let error = text.parse::<Url>().unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
        let url: Url = "https://host:8443/a?b=c#d".parse().unwrap();
        assert_eq!(url.to_string(), "https://host:8443/a?b=c");
        assert_eq!(url.authority(), "host:8443");
    }

    #[test]
    fn plain_http_is_for_this_host_and_for_who_is_configured_so() {
        let mut settings = Registries::default();
        let url = |text: &str| text.parse::<Url>().unwrap();
        for fine in [
            "https://a/x",
            "http://127.0.0.1:8/x",
            "http://localhost/x",
            "http://[::1]/x",
        ] {
            check(&settings, &url(fine)).unwrap();
        }
        let elsewhere = url("http://files.example:8080/x");
        check(&settings, &elsewhere).unwrap_err();
        settings
            .each
            .entry("files.example:8080".to_owned())
            .or_default()
            .plain_http = true;
        check(&settings, &elsewhere).unwrap();
        check(&settings, &url("http://files.example/x")).unwrap_err();
    }
}
