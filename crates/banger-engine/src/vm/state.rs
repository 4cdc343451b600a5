//! A machine's durable phase and the view of it that is published.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use banger_agent_api::AgentClient;
use banger_store::vms::VmRow;
use banger_vmm::VmmKind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id;
use crate::vm::policy::State;

/// Where a machine stands, kept in its row. Each state carries what only it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its disks are being made.
    Creating,
    /// No VMM runs.
    Stopped,
    /// A VMM is being started.
    Starting,
    /// The guest's agent has answered.
    Running(Running),
    /// A stop is at work on this run.
    Stopping(Running),
    /// The last start or run ended badly.
    Failed {
        /// How, one line.
        reason: String,
    },
    /// Its disks are being removed.
    Removing,
}

/// A run: from the VMM's start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// `firecracker` or `qemu`.
    pub vmm: String,
    /// `kvm` or `tcg`.
    pub acceleration: String,
    /// The VMM's process id.
    pub pid: u32,
    /// When the start began.
    pub since: Timestamp,
    /// From there to the agent's answer.
    pub start_milliseconds: u64,
    /// Agent's version.
    pub agent_version: String,
    /// Guest kernel's release.
    pub kernel_release: String,
}

impl Phase {
    /// The state for decisions.
    pub fn state(&self) -> State {
        match self {
            Self::Creating => State::Creating,
            Self::Stopped => State::Stopped,
            Self::Starting => State::Starting,
            Self::Running(_) => State::Running,
            Self::Stopping(_) => State::Stopping,
            Self::Failed { .. } => State::Failed,
            Self::Removing => State::Removing,
        }
    }

    /// The run, where there is one.
    pub fn running(&self) -> Option<&Running> {
        match self {
            Self::Running(running) | Self::Stopping(running) => Some(running),
            Self::Creating | Self::Stopped | Self::Starting | Self::Failed { .. } | Self::Removing => None,
        }
    }
}

/// The driver's kind by its stored name.
pub fn vmm_kind(name: &str) -> Option<VmmKind> {
    [VmmKind::Firecracker, VmmKind::Qemu]
        .into_iter()
        .find(|kind| kind.as_str() == name)
}

/// A machine as others see it: what its task last published.
#[derive(Debug, Clone)]
pub struct View {
    /// Its row; the row's `phase` is stale, see the next field.
    pub row: VmRow,
    /// Where it stands.
    pub phase: Phase,
    /// Grows with each publication.
    pub generation: u64,
    /// The way to its agent, while it runs.
    pub guest: Option<AgentClient>,
}

/// A machine, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// For life.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Where it stands.
    pub phase: Phase,
    /// Image's name and id.
    pub image: String,
    /// Image's id.
    pub image_id: String,
    /// Kernel's name.
    pub kernel: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Size of the writable system disk, bytes.
    pub disk: u64,
    /// Bytes the system disk takes on the host.
    pub disk_used: u64,
    /// Pinned VMM.
    pub vmm: Option<VmmKind>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Removed when it stops.
    pub ephemeral: bool,
    /// When it was created.
    pub created: Timestamp,
    /// The Unix socket of the guest's vsock.
    pub vsock: PathBuf,
}

/// Where a machine's files are; derived from its id and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `bgr` and the id.
    pub token: String,
    /// Durable: disks, console, logs.
    pub state: PathBuf,
    /// Gone with the run: sockets.
    pub runtime: PathBuf,
}

impl Paths {
    /// A machine's paths.
    pub fn new(state_dir: &Path, runtime_dir: &Path, vm: &str) -> Self {
        let token = id::token(vm);
        Self {
            state: machines_dir(state_dir).join(&token),
            runtime: runtime_dir.join(&token),
            token,
        }
    }

    /// Serial console of this run.
    pub fn console(&self) -> PathBuf {
        self.state.join("console.log")
    }

    /// The VMM's own log.
    pub fn vmm_log(&self) -> PathBuf {
        self.state.join("vmm.log")
    }

    /// The VMM's metrics.
    pub fn metrics(&self) -> PathBuf {
        self.state.join("metrics.json")
    }

    /// The guest's vsock.
    pub fn vsock(&self) -> PathBuf {
        self.runtime.join("vsock.sock")
    }

    /// Where the guest's hello arrives.
    pub fn hello(&self) -> PathBuf {
        self.runtime
            .join(format!("vsock.sock_{}", banger_agent_api::HELLO_PORT))
    }
}

/// The directory of all machines' state.
pub fn machines_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("vms")
}
