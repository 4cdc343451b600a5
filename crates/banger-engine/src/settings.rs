//! What the daemon's configuration decides for the engine. The engine reads neither files nor the environment for it.

use std::path::PathBuf;
use std::time::Duration;

use banger_vmm::Preference;

use crate::net::subnet::Subnet;
use crate::vm::capability::system_disk::SystemDiskKind;

/// Everything the engine must be told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Durable state. Exists, belongs to us, mode 0700.
    pub state_dir: PathBuf,
    /// Sockets; emptied by a reboot. Exists, belongs to us, mode 0700 (0750 with a group).
    pub runtime_dir: PathBuf,
    /// Where companion binaries are looked for, in order, after a configured path.
    pub libexec: Vec<PathBuf>,
    /// Directories of `PATH`.
    pub path: Vec<PathBuf>,
    /// Guest agent, if configured.
    pub agent: Option<PathBuf>,
    /// Bytes that are kept free on the state directory's file system when something is made.
    pub space_floor: u64,
    /// VMMs.
    pub vmm: VmmSettings,
    /// Machines' network.
    pub network: NetworkSettings,
    /// Defaults of machines.
    pub vm: VmDefaults,
    /// Name of the kernel that is used when nothing else is named.
    pub default_kernel: String,
    /// A directory whose contents new work disks have in the user's home.
    pub seed_template: Option<PathBuf>,
    /// Where images are pulled from, and how.
    pub registries: banger_oci::Registries,
}

impl Settings {
    /// Where companion programs are looked for: the places of an installation, then `PATH`; each once.
    pub(crate) fn companion_dirs(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = Vec::new();
        for dir in self.libexec.iter().chain(&self.path) {
            if !dirs.contains(dir) {
                dirs.push(dir.clone());
            }
        }
        dirs
    }

    /// Where programs are looked for: `PATH`, then the administrators' directories, which Debian leaves out of it.
    pub(crate) fn tool_dirs(&self) -> Vec<PathBuf> {
        let admin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        self.path.iter().cloned().chain(admin).collect()
    }
}

/// Machines' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    /// How machines are connected.
    pub mode: NetworkMode,
    /// The bridge's name: 1 to 10 of a-z, 0-9, `-` and `_`, beginning with a letter; taps are called after it.
    pub bridge: String,
    /// The machines' addresses.
    pub subnet: Subnet,
    /// Spare taps that are kept.
    pub pool: u16,
    /// Who carries the packets of machines in user mode.
    pub passt: PasstChoice,
}

/// Whether `passt` carries the packets of machines under QEMU in user mode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PasstChoice {
    /// Where it is installed and works.
    #[default]
    Auto,
    /// This one, where it works.
    At(PathBuf),
    /// No: QEMU does.
    Off,
}

/// How machines are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// By a bridge where the host lets us have one, else without privileges.
    Auto,
    /// By a bridge.
    Bridge,
    /// Without privileges: the VMM's own network.
    User,
}

/// Which VMMs, and where.
#[derive(Debug, Clone)]
pub struct VmmSettings {
    /// Automatic or pinned.
    pub preference: Preference,
    /// Firecracker, if configured.
    pub firecracker: Option<PathBuf>,
    /// QEMU, if configured.
    pub qemu: Option<PathBuf>,
    /// `vhost-device-vsock`, if configured.
    pub vhost_device_vsock: Option<PathBuf>,
}

/// Defaults of machines.
#[derive(Debug, Clone)]
pub struct VmDefaults {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Size of the writable system disk in bytes.
    pub disk: u64,
    /// How the system disk is made. Absent: the best way that the host offers.
    pub system_disk: Option<SystemDiskKind>,
    /// Size of the work disk in bytes; 0: none.
    pub work_disk: u64,
    /// From the begin of a start to the agent's answer.
    pub start_timeout: Duration,
    /// From asking the guest to stop to forcing it.
    pub stop_timeout: Duration,
}
