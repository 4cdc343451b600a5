//! Machines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Publication, PublishPort};

/// Names a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRef {
    /// Name or id.
    pub vm: String,
}

/// Which VMM runs a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmKind {
    /// Firecracker.
    Firecracker,
    /// QEMU, with KVM or TCG.
    Qemu,
}

/// Parameters of `vm.create`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// 1 to 63 characters of a-z, 0-9 and `-`, beginning with a letter and not ending with `-` (RFC 1123 label). Absent:
    /// a free one is made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Image, by name or id.
    pub image: String,
    /// Virtual processors, 1 to the host's limit. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in bytes, a multiple of 1 MiB. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Size of the writable system disk in bytes. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Kernel, by name. Absent: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// VMM. Absent: chosen at each start by what the host can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmKind>,
    /// Labels: keys of 1 to 63 characters of `a-z0-9._/-`, values of up to 255.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Start it as part of the same operation; when the start fails, the machine is removed again.
    #[serde(default)]
    pub start: bool,
    /// Remove the machine when it stops.
    #[serde(default)]
    pub ephemeral: bool,
    /// How the system disk is made. Absent: the configured default, which is what the host can do best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_disk: Option<SystemDisk>,
    /// Size of a work disk in bytes, mounted at the user's home; it survives `vm.reset`. Absent: the configured default;
    /// 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk: Option<u64>,
    /// The guest may reach what its host reaches. Absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
    /// Start it when the host has booted.
    #[serde(default)]
    pub autostart: bool,
    /// When to start it again after it ended by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Remove it at this time, whatever it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// What its guest may reach on the bridge.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<Reach>,
    /// Its ports that are to be reached at the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishPort>,
}

/// How a system disk is made. Each is a copy-on-write view of the image, made in the same time for any image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SystemDisk {
    /// The guest stacks a disk of its own over the shared image (overlayfs). Needs nothing of the host.
    Overlay,
    /// A file that shares the image's blocks (`FICLONE`): XFS and btrfs.
    Reflink,
    /// A device-mapper snapshot. Needs root.
    Dm,
}

/// When a machine is started again after it ended by itself. One that was stopped stays stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When its VMM died or its kernel panicked.
    OnFailure,
    /// Also when the guest shut itself down.
    Always,
}

/// What a guest on the bridge may reach beyond what its host reaches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Other machines that allow it too.
    Guests,
    /// Services of the host.
    Host,
    /// The host's own networks and all private ones.
    Lan,
}

/// Parameters of `vm.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmList {
    /// Only machines that carry all of these labels; an empty value matches any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Parameters of `vm.start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmStart {
    /// Name or id.
    pub vm: String,
    /// Seconds to wait for the guest's agent. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// Parameters of `vm.stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmStop {
    /// Name or id.
    pub vm: String,
    /// Seconds the guest has to stop by itself before it is forced; 0 forces at once. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// Parameters of `vm.remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRemove {
    /// Name or id.
    pub vm: String,
    /// Kill it first where it runs.
    #[serde(default)]
    pub force: bool,
}

/// Where a machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Its disks are being made.
    Creating,
    /// No VMM runs.
    Stopped,
    /// The VMM is being started, or the guest has not answered yet.
    Starting,
    /// The guest's agent answers.
    Running,
    /// The guest was asked to stop, or is being forced.
    Stopping,
    /// No VMM runs; the system disk is being renewed.
    Resetting,
    /// The last start failed or the VMM died; `failure` says why. Can be started again.
    Failed,
    /// Its disks are being removed.
    Removing,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vm {
    /// 10 characters, for life.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Where it stands.
    pub state: VmState,
    /// Why it failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The last lines of its console then, when it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
    /// Image's name.
    pub image: String,
    /// Image's id.
    pub image_id: String,
    /// Kernel's name.
    pub kernel: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Size of the writable system disk in bytes.
    pub disk: u64,
    /// Bytes the system disk takes on the host.
    pub disk_used: u64,
    /// Pinned VMM, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmKind>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Removed when it stops.
    pub ephemeral: bool,
    /// How the system disk is made.
    pub system_disk: SystemDisk,
    /// Size of the work disk in bytes; 0: none.
    pub work_disk: u64,
    /// Bytes the work disk takes on the host.
    pub work_disk_used: u64,
    /// The guest may reach what its host reaches.
    pub nat: bool,
    /// Started when the host has booted.
    pub autostart: bool,
    /// When it is started again after it ended by itself.
    pub restart: RestartPolicy,
    /// What its guest may reach on the bridge.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<Reach>,
    /// Its address on the bridge, which it keeps for life. Absent where it never was on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Its card's hardware address.
    pub mac: String,
    /// When it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// How often it was started again by `restart` since somebody last started it.
    #[serde(default)]
    pub restarts: u32,
    /// When `restart` starts it again, where that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts_at: Option<Timestamp>,
    /// Names of the settings that the run does not have yet; its next start will.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
    /// When it was created.
    pub created: Timestamp,
    /// Its ports that are published, by the host's port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Publication>,
    /// Present while a VMM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<VmRunning>,
}

/// Facts of a machine whose VMM runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmRunning {
    /// VMM in use.
    pub vmm: VmmKind,
    /// `kvm` or `tcg`.
    pub acceleration: String,
    /// The VMM's process id.
    pub pid: u32,
    /// When the VMM was started.
    pub since: Timestamp,
    /// Milliseconds from the begin of the start to the agent's first answer.
    pub start_milliseconds: u64,
    /// Agent's version.
    pub agent_version: String,
    /// Guest kernel's release.
    pub kernel_release: String,
    /// The Unix socket of the guest's vsock (`CONNECT port` protocol).
    pub vsock: String,
    /// Its tap, where it is on the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Who carries its packets, where it is in user mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_network: Option<super::UserNetwork>,
}

/// Result of `vm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmPing {
    /// Machine's name.
    pub vm: String,
    /// Round trip from daemon to agent, in microseconds.
    pub latency_microseconds: u64,
    /// Agent's version.
    pub agent_version: String,
    /// Seconds since the guest's kernel started.
    pub guest_uptime_seconds: u64,
}
