//! Streams into a guest and out of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `guest.exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecOpen {
    /// Machine, by name or id.
    pub vm: String,
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
    /// Standard input will be sent; otherwise the command reads end of file.
    #[serde(default)]
    pub stdin: bool,
    /// Give the command a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
}

/// A terminal's kind and first size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Value of `TERM`.
    pub term: String,
    /// Rows, 1 to 65535.
    pub rows: u16,
    /// Columns, 1 to 65535.
    pub columns: u16,
}

/// Parameters of `guest.upload`. The stream carries a tar archive with one top entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadOpen {
    /// Machine, by name or id.
    pub vm: String,
    /// Destination in the guest; relative to root's home. An existing directory takes the entry in under its own name;
    /// otherwise the entry gets the path's last component as its name, and the parent must exist.
    pub path: String,
    /// The top entry's content goes into the destination directory, not the entry itself (`SRC/.`).
    #[serde(default)]
    pub contents_only: bool,
    /// Keep numeric owners; otherwise everything belongs to root.
    #[serde(default)]
    pub keep_owner: bool,
}

/// Parameters of `guest.download`. The stream carries a tar archive with one top entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DownloadOpen {
    /// Machine, by name or id.
    pub vm: String,
    /// File or directory in the guest; relative to root's home.
    pub path: String,
    /// Follow the path's last component where it is a symbolic link.
    #[serde(default)]
    pub follow_link: bool,
}

/// Parameters of `vm.logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsOpen {
    /// Machine, by name or id.
    pub vm: String,
    /// Go on as the console grows, until the machine stops or the client goes.
    #[serde(default)]
    pub follow: bool,
    /// Only the last N lines. Absent: all that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
}
