//! Errors as the wire carries them: a stable kind that programs match on, a message for people, a hint that says what
//! to try, and details that belong under the message (the last console lines of a guest that did not come up).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What went wrong, in a form that stays stable between releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is not valid JSON-RPC 2.0, or not valid JSON, or too large.
    BadRequest,
    /// No method of that name.
    UnknownMethod,
    /// Parameters do not fit the method: unknown field, wrong type, value out of range.
    InvalidArgument,
    /// The named machine, image, kernel, operation or file does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The object is not in a state that allows this.
    WrongState,
    /// Another object uses it; the message says which.
    InUse,
    /// Too many requests wait already; trying again can help.
    Busy,
    /// The caller may not do this.
    PermissionDenied,
    /// The host lacks something: a program, a device, a kernel feature.
    MissingPrerequisite,
    /// Disk space, memory or another bounded resource is used up.
    OutOfResources,
    /// The machine did not start, or stopped while it was starting.
    StartFailed,
    /// The guest's agent cannot be reached or broke off.
    GuestUnavailable,
    /// The guest refused: no such user or directory there.
    GuestRefused,
    /// The guest has no such command (a shell exits with 127).
    CommandNotFound,
    /// The guest has the command and cannot run it (a shell exits with 126).
    NotExecutable,
    /// The time allowed ran out.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// A fault of the daemon itself; its log has more.
    Internal,
}

impl ErrorKind {
    /// The JSON-RPC error code: the specification's own for protocol errors, -32000 for all of ours.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::BadRequest => -32600,
            Self::UnknownMethod => -32601,
            Self::InvalidArgument => -32602,
            Self::Internal => -32603,
            Self::NotFound
            | Self::AlreadyExists
            | Self::WrongState
            | Self::InUse
            | Self::Busy
            | Self::PermissionDenied
            | Self::MissingPrerequisite
            | Self::OutOfResources
            | Self::StartFailed
            | Self::GuestUnavailable
            | Self::GuestRefused
            | Self::CommandNotFound
            | Self::NotExecutable
            | Self::TimedOut
            | Self::Cancelled => -32000,
        }
    }
}

/// An error answer. On the wire: `{"code":…, "message":…, "data":{"kind":…, "hint":…, "details":[…]}}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, JsonSchema)]
#[error("{message}")]
pub struct RpcError {
    /// Stable kind.
    pub kind: ErrorKind,
    /// One line for people, the whole chain of causes in it.
    pub message: String,
    /// What to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Lines that belong under the message: last console lines, the list of failed checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl RpcError {
    /// An error with neither hint nor details.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            details: Vec::new(),
        }
    }

    /// Adds what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The wire form of [`RpcError`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WireError {
    /// JSON-RPC code.
    pub code: i32,
    /// Message.
    pub message: String,
    /// Kind, hint, details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<WireErrorData>,
}

/// The `data` member of a [`WireError`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WireErrorData {
    /// Stable kind.
    pub kind: ErrorKind,
    /// What to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Lines under the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl From<RpcError> for WireError {
    fn from(e: RpcError) -> Self {
        Self {
            code: e.kind.code(),
            message: e.message,
            data: Some(WireErrorData {
                kind: e.kind,
                hint: e.hint,
                details: e.details,
            }),
        }
    }
}

impl From<WireError> for RpcError {
    fn from(e: WireError) -> Self {
        let data = e.data.unwrap_or(WireErrorData {
            kind: ErrorKind::Internal,
            hint: None,
            details: Vec::new(),
        });
        Self {
            kind: data.kind,
            message: e.message,
            hint: data.hint,
            details: data.details,
        }
    }
}
