//! What it means that an image could not be had from a registry or an archive, and what may help.

use banger_oci::{BlobError, Error};

use super::Kind;

/// What sort of failure it is.
pub(super) fn kind(error: &Error) -> Kind {
    match error {
        Error::Blob(blob) => match blob {
            BlobError::Full { .. } => Kind::OutOfResources,
            BlobError::Io { .. }
            | BlobError::Digest { .. }
            | BlobError::Size { .. }
            | BlobError::Missing { .. }
            | BlobError::Stopped { .. }
            | BlobError::Lost { .. } => Kind::Internal,
        },
        Error::NotFound { .. } | Error::NotInArchive { .. } | Error::NoPlatform { .. } => Kind::NotFound,
        Error::Denied { .. } | Error::Login { .. } => Kind::PermissionDenied,
        Error::Busy { .. } => Kind::Busy,
        Error::Silent { .. } => Kind::TimedOut,
        Error::Cancelled => Kind::Cancelled,
        Error::Reference(_)
        | Error::Setting(_)
        | Error::NotAnArchive { .. }
        | Error::Lacking { .. }
        | Error::Schema1 { .. }
        | Error::NotAnImage { .. }
        | Error::ForeignLayer { .. }
        | Error::UnknownLayer { .. }
        | Error::TooManyLayers { .. } => Kind::InvalidArgument,
        Error::DockerConfig { .. } | Error::Helper { .. } => Kind::MissingPrerequisite,
        Error::Connect { .. }
        | Error::Broken { .. }
        | Error::NoBlob { .. }
        | Error::Status { .. }
        | Error::Redirect { .. }
        | Error::Digest { .. }
        | Error::Size { .. }
        | Error::TooLong { .. }
        | Error::Malformed { .. }
        | Error::File { .. }
        | Error::Output { .. }
        | Error::Worker => Kind::Internal,
    }
}

/// What to try.
pub(super) fn hint(error: &Error) -> Option<String> {
    let again = "try again: it goes on where it stopped";
    if let Error::Blob(BlobError::Full { .. }) = error {
        return Some(format!(
            "free space on the file system of the state directory, then {again}"
        ));
    }
    if let Error::Connect { registry, .. } = error {
        return Some(format!(
            "the daemon's configuration says how a registry is reached: [registries.{registry:?}] takes mirrors, plain_http and ca"
        ));
    }
    if let Error::Denied { registry, .. } = error {
        return Some(format!("log in as the daemon's user: docker login {registry}"));
    }
    matches!(
        error,
        Error::Broken { .. } | Error::Silent { .. } | Error::Status { .. }
    )
    .then(|| again.to_owned())
}
