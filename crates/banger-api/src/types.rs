//! What the methods carry. Sizes are in bytes unless the name says otherwise; times are RFC 3339 in UTC.
//!
//! Parameter types refuse unknown fields, so that a misspelt option is an error and not a silent default. Result types
//! do not, so that an older client can read a newer daemon's answer.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// No parameters, or no result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

// ---- machines ------------------------------------------------------------------------------------------------------

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
    /// When it was created.
    pub created: Timestamp,
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

// ---- images and kernels --------------------------------------------------------------------------------------------

/// Names an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Name or id.
    pub image: String,
}

/// Parameters of `image.register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRegister {
    /// The image's name: 1 to 128 characters of `a-z0-9`, with `.`, `_`, `-` and `/` between them, as in OCI.
    pub name: String,
    /// Absolute path of an ext4 file system image or a tar archive (plain, gzip, xz, zstd). It is copied.
    pub path: String,
    /// Kernel, by name. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Replace an image of that name that no machine uses.
    #[serde(default)]
    pub replace: bool,
}

/// What `image.bootstrap` can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BootstrapSource {
    /// Debian 12 with systemd, sshd, git and curl.
    Debian,
    /// A static busybox; the agent stays init.
    Busybox,
}

/// Parameters of `image.bootstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBootstrap {
    /// What to make.
    pub source: BootstrapSource,
    /// The image's name. Absent: the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kernel, by name. Absent: the configured default, added first where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Make it anew where it exists and no machine uses it. Otherwise an existing one is a success.
    #[serde(default)]
    pub replace: bool,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// 10 characters.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Kernel's name.
    pub kernel: String,
    /// SHA-256 of the root file system, hexadecimal.
    pub sha256: String,
    /// Size of the root file system in bytes.
    pub size: u64,
    /// Bytes it takes on the host.
    pub used: u64,
    /// Where it came from: `bootstrap:debian`, `file:NAME`.
    pub source: String,
    /// Names of the machines that use it.
    pub used_by: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
}

/// Names a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelRef {
    /// Name.
    pub kernel: String,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KernelSource {
    /// An absolute path of a vmlinux (ELF) or vmlinuz (bzImage) file with everything built in.
    File(String),
    /// A Debian package: its name, fetched with the host's apt, or the absolute path of a `.deb` file.
    Debian(String),
}

/// Parameters of `kernel.add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelAdd {
    /// Name, by the rules of machine names and with `.` allowed.
    pub name: String,
    /// Where it comes from.
    pub source: KernelSource,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// Unique name.
    pub name: String,
    /// Release, as far as known (`6.1.0-…-cloud-amd64`).
    pub version: String,
    /// SHA-256 of the file it came from, hexadecimal.
    pub sha256: String,
    /// Bytes it takes on the host, modules included.
    pub size: u64,
    /// How many modules go into its initramfs at most.
    pub modules: u32,
    /// Where it came from.
    pub source: String,
    /// Used when nothing else is named.
    pub default: bool,
    /// When it was added.
    pub created: Timestamp,
}

// ---- guest ---------------------------------------------------------------------------------------------------------

/// Parameters of `guest.exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecOpen {
    /// Machine, by name or id.
    pub vm: String,
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// Environment on top of the user's login defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory. Absent: the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`. Absent: root.
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

// ---- operations ----------------------------------------------------------------------------------------------------

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
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<crate::error::RpcError>,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
}

// ---- daemon --------------------------------------------------------------------------------------------------------

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
