//! What may go wrong, told apart as far as people can do different things about it.

use std::path::PathBuf;
use std::time::Duration;

use hostkit::digest::Digest;
use hostkit::exec::ExecError;

use crate::platform::Platform;
use crate::reference::ReferenceError;
use crate::registry::ConnectError;
use crate::{BlobError, SettingError};

/// Why an image could not be pulled, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name is no image's.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// What is configured for a registry cannot be.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The directory of blobs did not take or give something.
    #[error(transparent)]
    Blob(#[from] BlobError),

    /// No connection: unknown host, nobody listens, TLS, a proxy; the source says which.
    #[error("no connection to registry {registry}")]
    Connect {
        /// The registry, or the mirror.
        registry: String,
        /// The cause.
        source: ConnectError,
    },
    /// The connection was lost in the middle, or what came was no HTTP.
    #[error("registry {registry} broke off")]
    Broken {
        /// The registry, or the mirror.
        registry: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry stopped sending, or sends next to nothing.
    #[error("registry {registry} was silent for {} s", after.as_secs_f32())]
    Silent {
        /// The registry, or the mirror.
        registry: String,
        /// For how long.
        after: Duration,
    },
    /// Without credentials, or with these, the registry does not give it.
    #[error("{}", denied(registry, repository, config.as_ref(), *refused, message))]
    Denied {
        /// The registry, or the mirror.
        registry: String,
        /// The repository that was asked for.
        repository: String,
        /// Where Docker's configuration with credentials is looked for.
        config: Option<PathBuf>,
        /// Whether there were credentials, which it refused (or does not find good enough).
        refused: bool,
        /// What the registry said; may be empty.
        message: String,
    },
    /// The registry asks for credentials in a way that nobody here understands, or that would give them away.
    #[error("cannot log in to registry {registry}: {reason}")]
    Login {
        /// The registry, or the mirror.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no such image there.
    #[error("registry {registry} has no image {reference}")]
    NotFound {
        /// The registry, or the mirror.
        registry: String,
        /// What was asked for.
        reference: String,
    },
    /// A manifest names a blob which the registry does not have.
    #[error("registry {registry} lacks a part of the image: blob sha256:{digest} of {repository}")]
    NoBlob {
        /// The registry, or the mirror.
        registry: String,
        /// The repository.
        repository: String,
        /// The part.
        digest: Digest,
    },
    /// Too many requests; it will take some, later.
    #[error("registry {registry} takes no more requests for now{}", later(*after))]
    Busy {
        /// The registry, or the mirror.
        registry: String,
        /// What it said about when (Retry-After).
        after: Option<Duration>,
    },
    /// It answered with an error of its own.
    #[error("registry {registry} answered with status {status}{}", said(message))]
    Status {
        /// The registry, or the mirror.
        registry: String,
        /// The status of HTTP.
        status: u16,
        /// What the registry said; may be empty.
        message: String,
    },
    /// It sent somewhere else too often, to nowhere, or from https to plain http.
    #[error("registry {registry} redirects: {reason}")]
    Redirect {
        /// The registry, or the mirror.
        registry: String,
        /// What is wrong.
        reason: &'static str,
    },

    /// What came is not what its digest stands for. Nothing of it is kept.
    #[error("{what} from {from} has digest sha256:{actual}, not sha256:{expected}")]
    Digest {
        /// A word or two: `manifest`, `layer`.
        what: &'static str,
        /// The registry or archive.
        from: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// More, or less, bytes than were announced.
    #[error("{what} from {from} has {}{actual} bytes, not {expected}", if *more { "at least " } else { "" })]
    Size {
        /// A word or two.
        what: &'static str,
        /// The registry or archive.
        from: String,
        /// What was announced.
        expected: u64,
        /// What came.
        actual: u64,
        /// Whether there was more that was not read.
        more: bool,
    },
    /// A document is longer than [`crate::DOCUMENT_LIMIT`].
    #[error("{what} from {from} is longer than {limit} bytes")]
    TooLong {
        /// A word or two.
        what: &'static str,
        /// The registry or archive.
        from: String,
        /// The bound.
        limit: u64,
    },
    /// A document cannot be understood.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// A word or two.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Docker's format from before 2015, whose digests say nothing about layers.
    #[error(
        "{reference} is in the obsolete format \"schema 1\", which is not supported: push it again with a newer tool"
    )]
    Schema1 {
        /// The image.
        reference: String,
    },
    /// Not an image of a file system: a chart, a signature, a model.
    #[error("{reference} is no image of a file system, but {media_type:?}")]
    NotAnImage {
        /// What was asked for.
        reference: String,
        /// What the registry says it is.
        media_type: String,
    },
    /// A layer whose bytes are not in the registry ("foreign", "nondistributable": Windows has them).
    #[error(
        "layer sha256:{digest} is not distributed by registries ({media_type}): such layers are not supported"
    )]
    ForeignLayer {
        /// Which.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A layer in a format that nobody here knows.
    #[error("layer sha256:{digest} is of the unsupported type {media_type:?}")]
    UnknownLayer {
        /// Which.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// More than [`crate::LAYER_LIMIT`].
    #[error("the image has {count} layers; at most {limit} are supported")]
    TooManyLayers {
        /// How many there are.
        count: usize,
        /// The bound.
        limit: usize,
    },
    /// The image is not made for the platform that was asked for.
    #[error("{reference} is not made for {wanted}, but for {}", list(available))]
    NoPlatform {
        /// What was asked for.
        reference: String,
        /// The platform that was.
        wanted: Platform,
        /// What there is; at most 32 of them.
        available: Vec<Platform>,
    },

    /// Docker's configuration is there and cannot be used.
    #[error("cannot read credentials from {}: {reason}", path.display())]
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A credential helper failed.
    #[error("credential helper {helper} failed for registry {registry}{}", said(message))]
    Helper {
        /// The registry.
        registry: String,
        /// The program's name.
        helper: String,
        /// What it said on its standard output; may be empty.
        message: String,
        /// How it went.
        source: Box<ExecError>,
    },

    /// A file or directory could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// `read`, `write`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// What an archive was written to did not take it.
    #[error("write the archive")]
    Output {
        /// The cause.
        source: std::io::Error,
    },
    /// Neither an OCI layout nor a Docker archive.
    #[error("{} is no image archive: {reason}", path.display())]
    NotAnArchive {
        /// What was to be read.
        path: PathBuf,
        /// What it lacks.
        reason: String,
    },
    /// An archive lacks a file that its own manifest names.
    #[error("{} lacks {name:?}, which it refers to", path.display())]
    Lacking {
        /// The archive.
        path: PathBuf,
        /// The file in it.
        name: String,
    },
    /// An archive does not have the image that was asked for.
    #[error("{} holds no image {wanted:?}, but {}", path.display(), list(there))]
    NotInArchive {
        /// The archive.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is; at most 32 of them.
        there: Vec<String>,
    },
    /// [`crate::Progress`] said so.
    #[error("cancelled")]
    Cancelled,
    /// A thread of ours panicked or the runtime is ending.
    #[error("a worker thread was lost")]
    Worker,
}

/// Whether asking the same source again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No: it will be the same.
    No,
    /// Perhaps, after a pause.
    Perhaps,
    /// When this has passed, it said.
    After(Duration),
}

impl Error {
    /// Whether asking the same source again may help. Within a pull this has been done already, as far as it is bounded.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect { source, .. } => source.retry(),
            Self::Broken { .. } | Self::Silent { .. } => Retry::Perhaps,
            Self::Busy { after, .. } => after.map_or(Retry::Perhaps, Retry::After),
            Self::Status { status, .. } => match status {
                408 | 500 | 502 | 503 | 504 => Retry::Perhaps,
                _ => Retry::No,
            },
            Self::Reference(_)
            | Self::Setting(_)
            | Self::Blob(_)
            | Self::Denied { .. }
            | Self::Login { .. }
            | Self::NotFound { .. }
            | Self::NoBlob { .. }
            | Self::Redirect { .. }
            | Self::Digest { .. }
            | Self::Size { .. }
            | Self::TooLong { .. }
            | Self::Malformed { .. }
            | Self::Schema1 { .. }
            | Self::NotAnImage { .. }
            | Self::ForeignLayer { .. }
            | Self::UnknownLayer { .. }
            | Self::TooManyLayers { .. }
            | Self::NoPlatform { .. }
            | Self::DockerConfig { .. }
            | Self::Helper { .. }
            | Self::File { .. }
            | Self::Output { .. }
            | Self::NotAnArchive { .. }
            | Self::Lacking { .. }
            | Self::NotInArchive { .. }
            | Self::Cancelled
            | Self::Worker => Retry::No,
        }
    }

    /// Whether it is about this host, so that no other source can help.
    pub(crate) fn is_local(&self) -> bool {
        matches!(
            self,
            Self::Blob(BlobError::Full { .. } | BlobError::Io { .. })
                | Self::File { .. }
                | Self::Cancelled
                | Self::Worker
        )
    }

    /// The error and its causes in one line, for progress and logs.
    pub(crate) fn line(&self) -> String {
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

fn denied(
    registry: &str,
    repository: &str,
    config: Option<&PathBuf>,
    refused: bool,
    message: &str,
) -> String {
    let place = match config {
        Some(config) => format!("credentials are read from {}", config.display()),
        None => "no file with credentials is configured".to_owned(),
    };
    let what = if refused {
        format!("registry {registry} does not give {repository} for the credentials that there are")
    } else {
        format!("registry {registry} wants credentials for {repository}, or has no such repository")
    };
    format!(
        "{what}{}; log in with `docker login {registry}` ({place})",
        said(message)
    )
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

fn later(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!(": again in {} s", after.as_secs()))
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
