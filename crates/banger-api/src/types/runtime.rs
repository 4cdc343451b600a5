//! Runtimes: VMMs that the daemon has installed itself, by version.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What can be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// Firecracker.
    Firecracker,
}

/// Where a runtime comes from: a release's archive (`firecracker-vX-x86_64.tgz`), or the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RuntimeSource {
    /// A file of the host.
    File {
        /// Absolute path.
        path: String,
        /// Its SHA-256, hexadecimal. Absent: it is digested and that is recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// A file on a server.
    Url {
        /// `https://…`; plain http from this host, and from hosts that are configured so.
        url: String,
        /// Its SHA-256, hexadecimal.
        sha256: String,
    },
}

/// Parameters of `runtime.install`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuntimeInstall {
    /// What.
    pub runtime: RuntimeKind,
    /// Where from.
    pub source: RuntimeSource,
    /// The version that the program must say it is. Absent: whatever it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Parameters of `runtime.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuntimeRef {
    /// What.
    pub runtime: RuntimeKind,
    /// Which version. Absent: the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// An installed version of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Runtime {
    /// What.
    pub runtime: RuntimeKind,
    /// As the program says itself.
    pub version: String,
    /// The program.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// Where it came from: a URL, or a file's path.
    pub source: String,
    /// SHA-256 of what came from there, hexadecimal.
    pub source_sha256: String,
    /// The one installed last, which new runs get unless the configuration names a program.
    pub current: bool,
    /// Names of the machines that run on it.
    pub used_by: Vec<String>,
    /// When it was installed, the last time.
    pub installed: Timestamp,
}

/// Where an installed program came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Origin {
    /// A URL, or a file's path.
    pub source: String,
    /// SHA-256 of the program, hexadecimal.
    pub sha256: String,
}
