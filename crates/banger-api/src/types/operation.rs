//! Operations.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationRef {
    /// Id.
    pub operation: String,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// At work.
    Running,
    /// Asked to stop; cleaning up.
    Cancelling,
    /// Done.
    Succeeded,
    /// Failed; `error` says why. What it had made is removed.
    Failed,
    /// Cancelled. What it had made is removed.
    Cancelled,
}

impl OperationState {
    /// Nothing more will happen.
    #[must_use]
    pub fn ended(self) -> bool {
        match self {
            Self::Running | Self::Cancelling => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// Somebody wanted an operation cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OperationCancel {
    /// Who, for people.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// The stage that was at work.
    pub stage: String,
}

/// Something slow, begun by a call and watched through `op.watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// 10 characters.
    pub id: String,
    /// The method that began it, `vm.create`.
    pub kind: String,
    /// What it works on: the machine's or image's name.
    pub subject: String,
    /// Where it stands.
    pub state: OperationState,
    /// Grows with each change.
    pub generation: u64,
    /// The stage at work, or the last one: `booting`.
    pub stage: String,
    /// What the stage says of itself, one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Units done of this stage (bytes, files), where it can be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// Units in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Things said once, on the way: a slow mode and its reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
    /// That somebody has cancelled it, which may have been too late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<OperationCancel>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::error::RpcError>,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
}
