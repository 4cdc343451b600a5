//! How a machine fares: figures and health.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Check, VmState};

/// Parameters of `vm.stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmStatsOf {
    /// Names or ids. Empty: all that run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<String>,
}

/// Figures of one machine. Counters grow from the run's start; rates are the difference of two answers by that of
/// their `uptime_microseconds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmStats {
    /// Name.
    pub vm: String,
    /// Id.
    pub id: String,
    /// Where it stands.
    pub state: VmState,
    /// When these were taken.
    pub time: Timestamp,
    /// What the VMM takes of the host, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostFigures>,
    /// What the guest says of itself, where its agent answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestFigures>,
    /// Why there are no figures of the guest although it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_problem: Option<String>,
}

/// What the VMM and its companions take of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostFigures {
    /// A clock for rates: microseconds since the host booted, when these were read.
    pub uptime_microseconds: u64,
    /// Processor time used, all threads, user and system.
    pub cpu_microseconds: u64,
    /// Virtual processors, so that 100 % of one of them is known.
    pub vcpus: u32,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Memory the guest was given, bytes.
    pub memory_limit: u64,
    /// Bytes read from disks.
    pub disk_read: u64,
    /// Bytes written to disks.
    pub disk_written: u64,
    /// Bytes that came in for the guest, where its network is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_received: Option<u64>,
    /// Bytes that the guest sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_sent: Option<u64>,
    /// Bytes its disks take on the host's file system.
    pub disk_used: u64,
}

/// What a guest says of itself. Not to be trusted: a guest may say anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GuestFigures {
    /// Seconds since its kernel started.
    pub uptime_seconds: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Processes, threads not counted.
    pub processes: u32,
    /// Memory in bytes, as its kernel sees it.
    pub memory_total: u64,
    /// Memory that programs could still get.
    pub memory_available: u64,
    /// Swap in bytes.
    pub swap_total: u64,
    /// Swap not in use.
    pub swap_free: u64,
    /// Mounted file systems with a size, at most 64.
    pub filesystems: Vec<FilesystemFigures>,
}

/// A mounted file system of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FilesystemFigures {
    /// Where it is mounted.
    pub mount: String,
    /// `ext4`, `overlay`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes that users can still write.
    pub available: u64,
    /// Files and directories it can still take; 0 where that is not limited.
    pub inodes_free: u64,
}

/// Overall health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// All is well.
    Healthy,
    /// It works, and something should be seen to.
    Degraded,
    /// It does not do what it should.
    Unhealthy,
    /// It does not run, and is not meant to.
    Stopped,
}

/// Result of `vm.health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmHealth {
    /// Name.
    pub vm: String,
    /// Where it stands.
    pub state: VmState,
    /// The worst of the checks.
    pub health: HealthState,
    /// `process`, `agent`, `disks`, `network`: each with a reason.
    pub checks: Vec<Check>,
}

/// Parameters of `vm.wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmWait {
    /// Name or id of a machine that runs.
    pub vm: String,
    /// Seconds to wait, at most an hour; 0 only asks. Absent: two minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// How far a guest's init has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BootState {
    /// Not told: the image has an init of its own that is not systemd.
    Unknown,
    /// Services are still being started.
    Starting,
    /// Everything runs.
    Running,
    /// Everything has been started, and some of it has failed.
    Degraded,
    /// In the rescue or emergency shell.
    Maintenance,
    /// On the way down.
    Stopping,
}

/// Result of `vm.wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmWaited {
    /// Name.
    pub vm: String,
    /// How far it has come; `starting` when the time was over before.
    pub boot: BootState,
}

/// Result of `vm.preflight`: what a start would check, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmPreflight {
    /// Name.
    pub vm: String,
    /// A start would go on from here.
    pub ready: bool,
    /// Every check with its outcome, by capability.
    pub checks: Vec<Check>,
}
