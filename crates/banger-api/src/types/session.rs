//! Sessions: commands that run in guests beside everybody's connections.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `session.start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionStart {
    /// Machine, by name or id.
    pub vm: String,
    /// The session's name, made as a machine's is, unique in its machine. Absent: after its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// Environment on top of the user's login defaults and the image's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory. Absent: the image's, or the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`. Absent: the image's, or root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Stop the machine when the session ends.
    #[serde(default)]
    pub ends_machine: bool,
}

/// Parameters of `session.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionsOf {
    /// Machine, by name or id. Absent: all machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
}

/// Names a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRef {
    /// Machine, by name or id.
    pub vm: String,
    /// The session's name.
    pub session: String,
}

/// Parameters of `session.signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionSignal {
    /// Machine, by name or id.
    pub vm: String,
    /// The session's name.
    pub session: String,
    /// The signal's number, 1 to 64, as Linux has them.
    pub signal: u8,
}

/// Parameters of `session.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRemove {
    /// Machine, by name or id.
    pub vm: String,
    /// The session's name.
    pub session: String,
    /// Kill it first where it runs.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `session.logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionLogs {
    /// Machine, by name or id.
    pub vm: String,
    /// The session's name.
    pub session: String,
    /// Go on until the session ends or the client goes.
    #[serde(default)]
    pub follow: bool,
    /// Only the last N lines. Absent: all that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Only what was written from then on, by the guest's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// Whether a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// It does.
    Running,
    /// It has ended by itself or by a signal.
    Exited,
    /// It ended with its machine, or nobody knows how.
    Lost,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    /// 10 characters.
    pub id: String,
    /// Unique in its machine.
    pub name: String,
    /// Machine's name.
    pub vm: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// As which user, where it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it runs.
    pub state: SessionState,
    /// Its exit code, where it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// The number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Why nobody knows how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was started.
    pub started: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// The machine is stopped when it ends.
    #[serde(default)]
    pub ends_machine: bool,
}
