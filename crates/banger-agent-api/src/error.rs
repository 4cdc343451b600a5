//! What can go wrong in a call to an agent, seen from the host.

use crate::dial::DialError;
use crate::failure::{Failure, printable};
use crate::version::Incompatible;
use std::error::Error;
use std::fmt;
use std::time::Duration;
use tonic::{Code, Status};

/// A call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no connection to the guest; [`AgentError::dial_error`] says why.
    #[error(transparent)]
    Unreachable(Unreachable),
    /// The agent refused or could not do it, and named the reason.
    #[error(transparent)]
    Failed(Failure),
    /// The agent did not answer in time.
    #[error("get the agent's answer to {method} within {} ms", after.as_millis())]
    DeadlineExceeded {
        /// The call.
        method: &'static str,
        /// Its deadline.
        after: Duration,
    },
    /// The connection broke during the call, or the agent answered with a status that names no reason.
    #[error("finish {method} with the guest's agent")]
    Broken {
        /// The call.
        method: &'static str,
        /// What the transport said.
        source: TransportError,
    },
    /// The agent sent something the protocol does not allow.
    #[error("understand the agent's answer to {method}: {what}")]
    Protocol {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The agent is too old or too new for this release.
    #[error(transparent)]
    Incompatible(Incompatible),
    /// The agent is of an older release, from before this call. The guest has gone on running under a newer daemon; it
    /// gets this release's agent when its machine is started next.
    #[error("ask for {method}: the guest's agent is of an older release")]
    Unsupported {
        /// The call.
        method: &'static str,
    },
}

/// The connection to the agent could not be made. Its source is a [`DialError`].
#[derive(Debug)]
pub struct Unreachable(Box<Status>);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connect to the guest's agent")
    }
}

impl Error for Unreachable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // tonic's layers in between have nothing to say.
        find_dial_error(&self.0).map(|error| error as _)
    }
}

/// What the transport says of a call: a gRPC status that names no reason of ours.
#[derive(Debug)]
pub struct TransportError(Box<Status>);

impl TransportError {
    /// The status's code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code()
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text may be the guest's.
        match printable(self.0.message()) {
            text if text.is_empty() => write!(f, "{}", self.0.code().description().to_lowercase()),
            text => f.write_str(&text),
        }
    }
}

impl Error for TransportError {}

impl AgentError {
    /// Sorts a status that a call to `method` ended with.
    pub(crate) fn from_status(method: &'static str, status: Status) -> Self {
        if let Some(failure) = Failure::from_status(&status) {
            return Self::Failed(failure);
        }
        if find_dial_error(&status).is_some() {
            return Self::Unreachable(Unreachable(Box::new(status)));
        }
        if status.code() == Code::Unimplemented {
            return Self::Unsupported { method };
        }
        Self::Broken {
            method,
            source: TransportError(Box::new(status)),
        }
    }

    /// Why there is no connection, where that is the reason.
    #[must_use]
    pub fn dial_error(&self) -> Option<&DialError> {
        match self {
            Self::Unreachable(Unreachable(status)) => find_dial_error(status),
            Self::Failed(_)
            | Self::DeadlineExceeded { .. }
            | Self::Broken { .. }
            | Self::Protocol { .. }
            | Self::Unsupported { .. }
            | Self::Incompatible(_) => None,
        }
    }

    /// The agent's named failure, where there is one.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Unreachable(_)
            | Self::DeadlineExceeded { .. }
            | Self::Broken { .. }
            | Self::Protocol { .. }
            | Self::Unsupported { .. }
            | Self::Incompatible(_) => None,
        }
    }

    /// Whether the call never took effect or may be repeated safely, and may succeed a little later. A call whose
    /// connection broke half way may have taken effect: only the caller knows whether repeating it is safe, so that
    /// counts for [`AgentError::is_broken`] instead.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Unreachable(_) => self.dial_error().is_some_and(DialError::is_retriable),
            Self::Failed(failure) => failure.kind == crate::FailureKind::Busy,
            Self::DeadlineExceeded { .. }
            | Self::Broken { .. }
            | Self::Protocol { .. }
            | Self::Unsupported { .. }
            | Self::Incompatible(_) => false,
        }
    }

    /// Whether the connection broke during the call (an agent that was restarted, a guest that was stopped).
    #[must_use]
    pub fn is_broken(&self) -> bool {
        match self {
            Self::Broken { source, .. } => {
                matches!(
                    source.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                )
            }
            Self::Unreachable(_)
            | Self::Failed(_)
            | Self::DeadlineExceeded { .. }
            | Self::Protocol { .. }
            | Self::Unsupported { .. }
            | Self::Incompatible(_) => false,
        }
    }
}

/// The dialer's error below tonic's layers of wrapping.
fn find_dial_error(status: &Status) -> Option<&DialError> {
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(dial) = error.downcast_ref() {
            return Some(dial);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_an_older_agent_does_not_know_has_a_name() {
        let error = AgentError::from_status("stats", Status::unimplemented(""));
        assert!(
            matches!(error, AgentError::Unsupported { method: "stats" }),
            "{error:?}"
        );
        assert!(!error.is_retriable() && !error.is_broken());
        assert_eq!(
            error.to_string(),
            "ask for stats: the guest's agent is of an older release"
        );
    }
}
