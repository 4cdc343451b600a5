//! The daemon, its host, and what doctor says of both.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Origin, VmState, VmmKind};

/// Result of `daemon.status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DaemonStatus {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds it has run.
    pub uptime_seconds: u64,
    /// Socket it serves.
    pub socket: String,
    /// Where its state is.
    pub state_directory: String,
    /// Configuration file it read, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
    /// Keys of that file that mean nothing to this release, with their paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config_unknown_keys: Vec<String>,
    /// Resident memory in bytes.
    pub memory: u64,
    /// The guest agent it puts into machines: version, or why there is none.
    pub agent: Component,
    /// VMMs it looked for.
    pub vmms: Vec<Vmm>,
    /// VMM that a machine without a pin gets, and why.
    pub chosen_vmm: Option<VmmKind>,
    /// Why.
    pub chosen_vmm_reason: String,
    /// Machines by state.
    pub machines: BTreeMap<VmState, u32>,
    /// Images.
    pub images: u32,
    /// Operations at work.
    pub operations: u32,
}

/// A companion binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Component {
    /// Its path, where it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its version, where it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it cannot be used, and where it was looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A VMM as found on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vmm {
    /// Which.
    pub kind: VmmKind,
    /// The binary.
    #[serde(flatten)]
    pub component: Component,
    /// `kvm` or `tcg`, where usable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceleration: Option<String>,
    /// Where it came from, if it was installed by `runtime.install`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// Outcome of a doctor's check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// Fine.
    Ok,
    /// Works, with a limit.
    Warning,
    /// Something will not work.
    Failure,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Group: `host`, `vmm`, `image`, `state`.
    pub group: String,
    /// Stable name.
    pub name: String,
    /// Outcome.
    pub state: CheckState,
    /// What was found.
    pub reason: String,
    /// What to do, unless fine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Result of `doctor.run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DoctorReport {
    /// All checks.
    pub checks: Vec<Check>,
}

/// Parameters of `gc.run` and `image.prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GcRun {
    /// Only say what would be collected.
    #[serde(default)]
    pub dry_run: bool,
}

/// Something that nothing needs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Garbage {
    /// `directory`, `process`, `device`, `loop`, `ledger`, `image`, `blob`, `kernel`, `initramfs`, `operation`.
    pub kind: String,
    /// A path, a process id, a device's name.
    pub what: String,
    /// Why nothing needs it.
    pub why: String,
    /// Bytes it takes on the host's file system.
    pub size: u64,
    /// It is gone. Absent after a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected: Option<bool>,
    /// Why it is not gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Result of `gc.run` and `image.prune`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcReport {
    /// All that was found.
    pub garbage: Vec<Garbage>,
}
