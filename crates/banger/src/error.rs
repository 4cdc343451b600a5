//! What a failed command says and which exit code it gives: a kind that fixes the code, a message, details under it, a
//! hint saying what to try.
//!
//! Messages can hold what a guest printed (its last console lines), so they are cleaned of control characters before
//! they reach a terminal.

use std::fmt::Write as _;

use banger_api::client::ClientError;
use banger_api::{ErrorKind, RpcError};

/// What went wrong, as far as the exit code goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything that has no code of its own.
    General,
    /// The command line makes no sense, in a way that clap cannot know.
    Usage,
    /// No such machine, image, kernel, operation or file.
    NotFound,
    /// A name is taken, or an object's state or another object does not allow it.
    Conflict,
    /// The caller may not.
    Permission,
    /// The host lacks something.
    Prerequisite,
    /// Time ran out.
    Timeout,
    /// The guest did not come up or cannot be reached.
    Guest,
    /// No daemon answers.
    Unreachable,
    /// Somebody cancelled it.
    Interrupted,
    /// `exec` and `run -- CMD`: Banger itself failed, so the code must not look like the command's own.
    Exec,
    /// `exec`: the guest refused to run the command.
    NotExecutable,
    /// `exec`: no such command in the guest.
    CommandNotFound,
}

impl Kind {
    /// The exit code, as the help of `banger` lists them.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::General => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Permission => 5,
            Self::Prerequisite => 6,
            Self::Timeout => 7,
            Self::Guest => 8,
            Self::Unreachable => 9,
            Self::Exec => 125,
            Self::NotExecutable => 126,
            Self::CommandNotFound => 127,
            Self::Interrupted => 130,
        }
    }
}

impl Kind {
    /// The kind of a failed system call.
    pub(crate) fn of_io(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::NotFound {
            Self::NotFound
        } else if error.kind() == std::io::ErrorKind::PermissionDenied {
            Self::Permission
        } else {
            Self::General
        }
    }
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::AlreadyExists | ErrorKind::WrongState | ErrorKind::InUse | ErrorKind::Busy => {
                Self::Conflict
            }
            ErrorKind::PermissionDenied => Self::Permission,
            ErrorKind::MissingPrerequisite => Self::Prerequisite,
            ErrorKind::TimedOut => Self::Timeout,
            ErrorKind::StartFailed | ErrorKind::GuestUnavailable => Self::Guest,
            ErrorKind::CommandNotFound => Self::CommandNotFound,
            ErrorKind::NotExecutable => Self::NotExecutable,
            ErrorKind::Cancelled => Self::Interrupted,
            // A value out of range is the same mistake whether clap or the daemon finds it.
            ErrorKind::InvalidArgument => Self::Usage,
            ErrorKind::BadRequest
            | ErrorKind::UnknownMethod
            | ErrorKind::OutOfResources
            | ErrorKind::GuestRefused
            | ErrorKind::Internal => Self::General,
        }
    }
}

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    /// Fixes the exit code.
    pub(crate) kind: Kind,
    /// What went wrong, the whole chain of causes in it.
    pub(crate) message: String,
    /// Lines under the message.
    pub(crate) details: Vec<String>,
    /// What to try.
    pub(crate) hint: Option<String>,
}

impl CliError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            details: Vec::new(),
            hint: None,
        }
    }

    pub(crate) fn general(message: impl Into<String>) -> Self {
        Self::new(Kind::General, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Ended by Ctrl-C.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message)
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure on the way of `exec`: a code of its own would look like the command's.
    #[must_use]
    pub(crate) fn of_exec(mut self) -> Self {
        self.kind = match self.kind {
            Kind::Usage | Kind::Interrupted | Kind::NotExecutable | Kind::CommandNotFound => self.kind,
            Kind::General
            | Kind::NotFound
            | Kind::Conflict
            | Kind::Permission
            | Kind::Prerequisite
            | Kind::Timeout
            | Kind::Guest
            | Kind::Unreachable
            | Kind::Exec => Kind::Exec,
        };
        self
    }

    /// The error as it stands on standard error, ending with a newline. No control character of a guest gets through.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let mut lines = self.message.lines();
        // Writing to a string does not fail.
        let _ = writeln!(text, "error: {}", printable(lines.next().unwrap_or_default()));
        for line in lines.chain(self.details.iter().flat_map(|detail| detail.lines())) {
            let _ = writeln!(text, "  {}", printable(line));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "hint: {}", printable(hint));
        }
        text
    }
}

impl From<RpcError> for CliError {
    fn from(e: RpcError) -> Self {
        Self {
            kind: e.kind.into(),
            message: e.message,
            details: e.details,
            hint: e.hint,
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Rpc(error) => error.into(),
            ClientError::Unreachable { .. } | ClientError::Broken { .. } | ClientError::Protocol { .. } => {
                Self::new(Kind::Unreachable, format!("failed to {}", chain(&error)))
            }
        }
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// One line that a terminal shows and does not obey: control characters become `\x1b` and the like; tabs stay.
pub(crate) fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for c in line.chars() {
        if c == '\t' || !c.is_control() {
            text.push(c);
        } else {
            text.extend(c.escape_default());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_with_details_and_hint() {
        let mut error = CliError::from(
            RpcError::new(
                ErrorKind::StartFailed,
                "failed to start dev: the guest's kernel panicked",
            )
            .hint("see `banger vm logs dev`"),
        );
        error.details = vec![
            "[ 1.0] Kernel panic".into(),
            "\u{1b}[31m---[ end ]---\u{7}\ttab".into(),
        ];
        insta::assert_snapshot!(error.render(), @r"
        error: failed to start dev: the guest's kernel panicked
          [ 1.0] Kernel panic
          \u{1b}[31m---[ end ]---\u{7}	tab
        hint: see `banger vm logs dev`
        ");
        assert_eq!(error.kind.code(), 8);
    }

    #[test]
    fn a_message_of_several_lines_is_indented() {
        insta::assert_snapshot!(CliError::general("one\ntwo").render(), @r"
        error: one
          two
        ");
    }

    #[test]
    fn every_kind_of_the_wire_has_its_code() {
        for (kind, code) in [
            (ErrorKind::BadRequest, 1),
            (ErrorKind::UnknownMethod, 1),
            (ErrorKind::InvalidArgument, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::AlreadyExists, 4),
            (ErrorKind::WrongState, 4),
            (ErrorKind::InUse, 4),
            (ErrorKind::Busy, 4),
            (ErrorKind::PermissionDenied, 5),
            (ErrorKind::MissingPrerequisite, 6),
            (ErrorKind::OutOfResources, 1),
            (ErrorKind::StartFailed, 8),
            (ErrorKind::GuestUnavailable, 8),
            (ErrorKind::GuestRefused, 1),
            (ErrorKind::CommandNotFound, 127),
            (ErrorKind::NotExecutable, 126),
            (ErrorKind::TimedOut, 7),
            (ErrorKind::Cancelled, 130),
            (ErrorKind::Internal, 1),
        ] {
            assert_eq!(Kind::from(kind).code(), code, "{kind:?}");
        }
    }
}
