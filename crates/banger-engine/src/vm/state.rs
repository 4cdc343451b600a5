//! A machine's durable phase and the view of it that is published.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::AgentClient;
use banger_store::vms::VmRow;
use banger_vmm::{Machine, UserNetwork, VmmKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id;
use crate::net::allow::Allow;
use crate::ports::Published;
use crate::vm::capability::system_disk::SystemDiskKind;
use crate::vm::change::RanWith;
use crate::vm::policy::State;
use crate::vm::restart::{self, Restart};

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
    /// No VMM runs, and its system disk is being renewed. The row names the disk in force all the while.
    Resetting,
    /// The last start or run ended badly.
    Failed(Failure),
    /// No VMM runs, and the daemon is to start it by itself. Kept like this until that start has its outcome, so that a
    /// daemon which dies meanwhile is followed by one that starts it.
    Due(Due),
    /// Its disks are being removed.
    Removing,
}

/// How a start or a run ended badly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One line.
    pub reason: String,
    /// The last lines of the console then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

impl Failure {
    /// Without a console that would say more.
    pub(crate) fn of(error: &crate::error::Error) -> Self {
        let report = error.report();
        Self {
            reason: report.message,
            console: report.details,
        }
    }
}

/// A start that the daemon makes by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Due {
    /// How the last run ended, where it ended badly.
    pub failure: Option<Failure>,
    /// Because the host has booted, and not because a run ended.
    pub autostart: bool,
    /// How often it was started again since somebody started it.
    pub restarts: u32,
    /// How many starts in a row came to nothing.
    pub streak: u32,
}

impl Due {
    /// What follows a run of this length.
    pub(crate) fn after(self, ran: Duration) -> Self {
        let streak = restart::streak_after(self.streak, ran);
        Self { streak, ..self }
    }

    /// What is left when it is off.
    pub(crate) fn off(self) -> Phase {
        match self.failure {
            Some(failure) => Phase::Failed(failure),
            None => Phase::Stopped,
        }
    }
}

impl Running {
    /// It has a tap on the host's bridge.
    pub(crate) fn on_bridge(&self) -> bool {
        self.with.as_ref().is_some_and(|with| with.bridged)
    }
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
    /// The settings it has; absent in rows of releases that did not keep them.
    #[serde(default)]
    pub with: Option<RanWith>,
    /// How often the machine was started again by itself since somebody started it.
    #[serde(default)]
    pub restarts: u32,
    /// How many starts in a row came to nothing before this run, itself counted.
    #[serde(default)]
    pub streak: u32,
    /// Who carries the packets of its card, where that is a user-mode network; absent also in rows of releases that did
    /// not keep it.
    #[serde(default)]
    pub user_network: Option<RunNetwork>,
}

/// The user-mode network of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunNetwork {
    /// `passt` or `slirp`.
    pub carrier: String,
    /// What there was to say about it when the run began: why it is not passt, or what this passt lets through.
    #[serde(default)]
    pub note: Option<String>,
}

impl From<UserNetwork> for RunNetwork {
    fn from(UserNetwork { carrier, note }: UserNetwork) -> Self {
        let carrier = carrier.as_str().to_owned();
        Self { carrier, note }
    }
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
            Self::Resetting => State::Resetting,
            Self::Failed(_) => State::Failed,
            Self::Due(Due { failure: Some(_), .. }) => State::Failed,
            Self::Due(Due { failure: None, .. }) => State::Stopped,
            Self::Removing => State::Removing,
        }
    }

    /// The run, where there is one.
    pub fn running(&self) -> Option<&Running> {
        match self {
            Self::Running(running) | Self::Stopping(running) => Some(running),
            Self::Creating
            | Self::Stopped
            | Self::Starting
            | Self::Resetting
            | Self::Failed(_)
            | Self::Due(_)
            | Self::Removing => None,
        }
    }

    /// How the last start or run ended badly, where it did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Due(due) => due.failure.as_ref(),
            Self::Creating
            | Self::Stopped
            | Self::Starting
            | Self::Running(_)
            | Self::Stopping(_)
            | Self::Resetting
            | Self::Removing => None,
        }
    }

    /// How often the machine was started again by itself since somebody started it.
    pub fn restarts(&self) -> u32 {
        match self {
            Self::Running(running) | Self::Stopping(running) => running.restarts,
            Self::Due(due) => due.restarts,
            Self::Creating
            | Self::Stopped
            | Self::Starting
            | Self::Resetting
            | Self::Failed(_)
            | Self::Removing => 0,
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
    /// Its processes, while it runs: to be looked at. Ending them is the task's.
    pub(crate) machine: Option<Arc<dyn Machine>>,
    /// When it is started again, where it waits for that.
    pub restarts_at: Option<Timestamp>,
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
    /// How the system disk is made; `None`: in a way that this release does not know.
    pub system_disk: Option<SystemDiskKind>,
    /// Size of the work disk in bytes; 0: none.
    pub work_disk: u64,
    /// Bytes the work disk takes on the host.
    pub work_disk_used: u64,
    /// The guest may reach what its host reaches.
    pub nat: bool,
    /// What the guest may reach on the bridge.
    pub allow: Allow,
    /// Its address on the bridge.
    pub address: Option<Ipv4Addr>,
    /// Its card's hardware address.
    pub mac: [u8; 6],
    /// The tap of its run, where it is on the bridge.
    pub tap: Option<String>,
    /// Started when the host has booted.
    pub autostart: bool,
    /// When it is started again after it ended by itself.
    pub restart: Restart,
    /// When it is removed.
    pub expires: Option<Timestamp>,
    /// When it is started again, where it waits for that.
    pub restarts_at: Option<Timestamp>,
    /// Names of the settings that its run does not have yet.
    pub pending: Vec<String>,
    /// When it was created.
    pub created: Timestamp,
    /// The Unix socket of the guest's vsock.
    pub vsock: PathBuf,
    /// Its ports that are published, by the host's port.
    pub published: Vec<Published>,
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
