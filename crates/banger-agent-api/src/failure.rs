//! Named failures: what a gRPC status says beyond its code.
//!
//! gRPC's codes are too few to tell a missing command from a missing user, so the agent encodes a [`proto::Failure`]
//! into the status's details. The code is chosen from the kind, so that generic clients see something sensible too.

use crate::proto;
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

/// Longest [`Failure::subject`] and message taken from a guest, in bytes.
const MAX_TEXT: usize = 1024;

/// What went wrong, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The request breaks a rule of the protocol.
    InvalidRequest,
    /// Too many calls of this kind at once; trying again later can help.
    Busy,
    /// The guest's kernel refused something that has no name of its own here; also: a kind this release does not know.
    System,
    /// No such command (a shell exits with 127).
    CommandNotFound,
    /// The command is there but cannot be run (a shell exits with 126).
    NotExecutable,
    /// No such user in the guest.
    UnknownUser,
    /// No such group in the guest.
    UnknownGroup,
    /// The working directory is missing, not a directory, or closed to the user.
    WorkdirUnusable,
    /// The command to be signalled has ended, or never was.
    NoSuchCommand,
    /// No such file or directory.
    PathNotFound,
    /// The directory that should hold the path does not exist.
    ParentNotFound,
    /// A directory stands where a file is to go.
    IsADirectory,
    /// Something else stands where a directory is needed.
    NotADirectory,
    /// The stream is not a tar archive, or not one that may be unpacked.
    BadArchive,
    /// The guest's disk (or quota) is full.
    NoSpace,
    /// The guest's file system is read-only there.
    ReadOnly,
    /// The stream ended before its end was marked.
    Incomplete,
    /// Nothing listens at the port.
    Refused,
    /// There is no way to the address.
    Unreachable,
    /// No answer came from the port.
    TimedOut,
    /// The connection was there and was reset.
    Reset,
    /// The image has no sshd.
    NoSshServer,
    /// A session of this id is there already.
    SessionExists,
    /// There is no session of this id: it was removed, or the agent was started anew since.
    NoSuchSession,
    /// The session has not ended.
    SessionRuns,
}

impl FailureKind {
    fn to_proto(self) -> proto::FailureKind {
        match self {
            Self::InvalidRequest => proto::FailureKind::InvalidRequest,
            Self::Busy => proto::FailureKind::Busy,
            Self::System => proto::FailureKind::System,
            Self::CommandNotFound => proto::FailureKind::CommandNotFound,
            Self::NotExecutable => proto::FailureKind::NotExecutable,
            Self::UnknownUser => proto::FailureKind::UnknownUser,
            Self::UnknownGroup => proto::FailureKind::UnknownGroup,
            Self::WorkdirUnusable => proto::FailureKind::WorkdirUnusable,
            Self::NoSuchCommand => proto::FailureKind::NoSuchCommand,
            Self::PathNotFound => proto::FailureKind::PathNotFound,
            Self::ParentNotFound => proto::FailureKind::ParentNotFound,
            Self::IsADirectory => proto::FailureKind::IsADirectory,
            Self::NotADirectory => proto::FailureKind::NotADirectory,
            Self::BadArchive => proto::FailureKind::BadArchive,
            Self::NoSpace => proto::FailureKind::NoSpace,
            Self::ReadOnly => proto::FailureKind::ReadOnly,
            Self::Incomplete => proto::FailureKind::Incomplete,
            Self::Refused => proto::FailureKind::Refused,
            Self::Unreachable => proto::FailureKind::Unreachable,
            Self::TimedOut => proto::FailureKind::TimedOut,
            Self::Reset => proto::FailureKind::Reset,
            Self::NoSshServer => proto::FailureKind::NoSshServer,
            Self::SessionExists => proto::FailureKind::SessionExists,
            Self::NoSuchSession => proto::FailureKind::NoSuchSession,
            Self::SessionRuns => proto::FailureKind::SessionRuns,
        }
    }

    fn from_proto(kind: proto::FailureKind) -> Self {
        match kind {
            proto::FailureKind::Unspecified | proto::FailureKind::System => Self::System,
            proto::FailureKind::InvalidRequest => Self::InvalidRequest,
            proto::FailureKind::Busy => Self::Busy,
            proto::FailureKind::CommandNotFound => Self::CommandNotFound,
            proto::FailureKind::NotExecutable => Self::NotExecutable,
            proto::FailureKind::UnknownUser => Self::UnknownUser,
            proto::FailureKind::UnknownGroup => Self::UnknownGroup,
            proto::FailureKind::WorkdirUnusable => Self::WorkdirUnusable,
            proto::FailureKind::NoSuchCommand => Self::NoSuchCommand,
            proto::FailureKind::PathNotFound => Self::PathNotFound,
            proto::FailureKind::ParentNotFound => Self::ParentNotFound,
            proto::FailureKind::IsADirectory => Self::IsADirectory,
            proto::FailureKind::NotADirectory => Self::NotADirectory,
            proto::FailureKind::BadArchive => Self::BadArchive,
            proto::FailureKind::NoSpace => Self::NoSpace,
            proto::FailureKind::ReadOnly => Self::ReadOnly,
            proto::FailureKind::Incomplete => Self::Incomplete,
            proto::FailureKind::Refused => Self::Refused,
            proto::FailureKind::Unreachable => Self::Unreachable,
            proto::FailureKind::TimedOut => Self::TimedOut,
            proto::FailureKind::Reset => Self::Reset,
            proto::FailureKind::NoSshServer => Self::NoSshServer,
            proto::FailureKind::SessionExists => Self::SessionExists,
            proto::FailureKind::NoSuchSession => Self::NoSuchSession,
            proto::FailureKind::SessionRuns => Self::SessionRuns,
        }
    }

    fn code(self) -> Code {
        match self {
            Self::InvalidRequest | Self::BadArchive => Code::InvalidArgument,
            Self::Busy | Self::NoSpace => Code::ResourceExhausted,
            Self::System => Code::Internal,
            Self::CommandNotFound
            | Self::UnknownUser
            | Self::UnknownGroup
            | Self::NoSuchCommand
            | Self::NoSuchSession
            | Self::PathNotFound
            | Self::ParentNotFound => Code::NotFound,
            Self::SessionExists => Code::AlreadyExists,
            Self::SessionRuns => Code::FailedPrecondition,
            Self::NotExecutable | Self::ReadOnly => Code::PermissionDenied,
            Self::WorkdirUnusable | Self::IsADirectory | Self::NotADirectory => Code::FailedPrecondition,
            Self::Incomplete | Self::Reset => Code::Aborted,
            // Never `Unavailable`, which is the transport's own word.
            Self::Refused | Self::Unreachable | Self::NoSshServer => Code::FailedPrecondition,
            Self::TimedOut => Code::DeadlineExceeded,
        }
    }

    /// The exit code a shell (and docker) gives for this failure, where there is one.
    #[must_use]
    pub fn shell_exit_code(self) -> Option<u8> {
        match self {
            Self::CommandNotFound => Some(127),
            Self::NotExecutable => Some(126),
            Self::InvalidRequest
            | Self::Busy
            | Self::System
            | Self::UnknownUser
            | Self::UnknownGroup
            | Self::WorkdirUnusable
            | Self::NoSuchCommand
            | Self::PathNotFound
            | Self::ParentNotFound
            | Self::IsADirectory
            | Self::NotADirectory
            | Self::BadArchive
            | Self::NoSpace
            | Self::ReadOnly
            | Self::Incomplete
            | Self::Refused
            | Self::Unreachable
            | Self::TimedOut
            | Self::Reset
            | Self::NoSshServer
            | Self::SessionExists
            | Self::NoSuchSession
            | Self::SessionRuns => None,
        }
    }
}

/// A call's failure as the guest names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which kind.
    pub kind: FailureKind,
    /// What it is about: a command, a user, a path. The guest's word: never to be used as a path on the host.
    pub subject: String,
    /// One line for people: a lowercase fragment that fits "failed to …".
    pub message: String,
}

impl Failure {
    /// A failure of `kind` about `subject`, which people read as `message`.
    #[must_use]
    pub fn new(kind: FailureKind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            subject: subject.into(),
            message: message.into(),
        }
    }

    /// The status to send: code, message and details.
    #[must_use]
    pub fn into_status(mut self) -> Status {
        truncate(&mut self.subject);
        truncate(&mut self.message);
        let details = proto::Failure {
            kind: self.kind.to_proto().into(),
            subject: self.subject,
        };
        Status::with_details(
            self.kind.code(),
            self.message,
            Bytes::from(details.encode_to_vec()),
        )
    }

    /// The failure inside a received status; `None` when it carries none (then it is the transport's).
    ///
    /// Control characters become spaces, and texts are cut at 1 KiB: the guest chose them and a terminal may show them.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        if status.details().is_empty() {
            return None;
        }
        let details = proto::Failure::decode(status.details()).ok()?;
        let kind = FailureKind::from_proto(details.kind());
        Some(Self {
            kind,
            subject: printable(&details.subject),
            message: printable(status.message()),
        })
    }
}

fn truncate(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
}

/// A text of the guest's, fit for a terminal: cut at 1 KiB, control characters as spaces.
pub(crate) fn printable(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [FailureKind; 25] = [
        FailureKind::InvalidRequest,
        FailureKind::Busy,
        FailureKind::System,
        FailureKind::CommandNotFound,
        FailureKind::NotExecutable,
        FailureKind::UnknownUser,
        FailureKind::UnknownGroup,
        FailureKind::WorkdirUnusable,
        FailureKind::NoSuchCommand,
        FailureKind::PathNotFound,
        FailureKind::ParentNotFound,
        FailureKind::IsADirectory,
        FailureKind::NotADirectory,
        FailureKind::BadArchive,
        FailureKind::NoSpace,
        FailureKind::ReadOnly,
        FailureKind::Incomplete,
        FailureKind::Refused,
        FailureKind::Unreachable,
        FailureKind::TimedOut,
        FailureKind::Reset,
        FailureKind::NoSshServer,
        FailureKind::SessionExists,
        FailureKind::NoSuchSession,
        FailureKind::SessionRuns,
    ];

    proptest! {
        #[test]
        fn a_failure_survives_the_way(kind in prop::sample::select(&KINDS[..]), subject in "[ -~]{0,64}", message in "[ -~]{1,64}") {
            let failure = Failure::new(kind, subject, message);
            prop_assert_eq!(Failure::from_status(&failure.clone().into_status()), Some(failure));
        }

        #[test]
        fn hostile_details_never_panic(details: Vec<u8>, message in "\\PC{0,3000}") {
            let status = Status::with_details(Code::Internal, message, Bytes::from(details));
            if let Some(failure) = Failure::from_status(&status) {
                prop_assert!(failure.message.len() <= MAX_TEXT && failure.subject.len() <= MAX_TEXT);
            }
        }
    }

    #[test]
    fn terminal_escapes_are_defused() {
        let failure = Failure::new(FailureKind::System, "a\u{1b}[2Jb", "x\ny");
        let seen = Failure::from_status(&failure.into_status()).expect("details");
        assert_eq!((seen.subject.as_str(), seen.message.as_str()), ("a [2Jb", "x y"));
    }

    #[test]
    fn a_transport_status_is_not_a_failure() {
        assert_eq!(Failure::from_status(&Status::unavailable("gone")), None);
    }

    #[test]
    fn a_kind_from_a_newer_agent_is_a_system_failure() {
        let details = proto::Failure {
            kind: 9999,
            subject: String::new(),
        }
        .encode_to_vec();
        let status = Status::with_details(Code::Unknown, "new", Bytes::from(details));
        assert_eq!(
            Failure::from_status(&status).map(|failure| failure.kind),
            Some(FailureKind::System)
        );
    }
}
