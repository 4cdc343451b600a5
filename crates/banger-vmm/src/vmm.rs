//! The seam between the engine and a virtual machine monitor: [`Vmm`] starts machines, [`Machine`] is one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use hostkit::process::{Exit, ProcessId};

use crate::check::SpecProblem;
use crate::error::{AdoptError, ControlError, KillError, LaunchError};
use crate::figures::MachineFigures;
use crate::spec::MachineSpec;

/// Which program runs machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmmKind {
    /// Amazon's microVM monitor; needs `/dev/kvm`.
    Firecracker,
    /// The general emulator; runs with and without hardware virtualization.
    Qemu,
}

impl VmmKind {
    /// Its name in configuration, store and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        }
    }
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor itself, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator: works anywhere, several times slower.
    Tcg,
}

impl Accelerator {
    /// Its name in messages and on QEMU's command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a driver found out about its program when it was probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmInfo {
    /// Which driver.
    pub kind: VmmKind,
    /// The program.
    pub path: PathBuf,
    /// Its version as it says itself, such as `1.12.1`.
    pub version: String,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// Why guests will be slow, where they will be; to be said aloud once.
    pub slow: Option<String>,
    /// Other programs this one needs for each machine.
    pub companions: Vec<Companion>,
    /// Who would carry the packets of a machine with [`Network::User`](crate::Network::User) that is launched now; absent
    /// where the VMM has no such network.
    pub user_network: Option<UserNetwork>,
}

/// Who carries the packets of a machine with [`Network::User`](crate::Network::User).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNetwork {
    /// Who.
    pub carrier: Carrier,
    /// What there is to say about it, for people: why it is not passt, or what this passt lets through.
    pub note: Option<String>,
}

/// A user-mode network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// A `passt` beside the VMM.
    Passt,
    /// QEMU's own, which is the library libslirp.
    Slirp,
}

impl Carrier {
    /// Its name in messages and rows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passt => "passt",
            Self::Slirp => "slirp",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A program that runs beside the VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// Its name, such as `vhost-device-vsock`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its version as it says itself.
    pub version: String,
}

/// What part a process plays in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProcessRole {
    /// The process that is the machine: Firecracker or QEMU.
    Vmm,
    /// `vhost-device-vsock`, which serves QEMU's vsock device.
    VsockDevice,
    /// `passt`, which carries the packets of QEMU's network card.
    Passt,
}

impl ProcessRole {
    /// Its name in the ledger and in messages; [`str::parse`] reads it back.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::VsockDevice => "vsock-device",
            Self::Passt => "passt",
        }
    }

    /// Whether the machine ends when this process does. One without its network goes on.
    pub(crate) fn is_vital(self) -> bool {
        match self {
            Self::Vmm | Self::VsockDevice => true,
            Self::Passt => false,
        }
    }
}

impl fmt::Display for ProcessRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role's name that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the process role {0:?}: expected `vmm`, `vsock-device` or `passt`")]
pub struct UnknownRole(
    /// What was read.
    pub String,
);

impl FromStr for ProcessRole {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "vmm" => Ok(Self::Vmm),
            "vsock-device" => Ok(Self::VsockDevice),
            "passt" => Ok(Self::Passt),
            other => Err(UnknownRole(other.to_owned())),
        }
    }
}

/// One process of a machine, as the ledger remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessRecord {
    /// Its part in the machine.
    pub role: ProcessRole,
    /// Which process.
    pub id: ProcessId,
}

/// How a machine ended: the first of its processes to end decides, of those that it cannot be without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineExit {
    /// Which process ended first.
    pub role: ProcessRole,
    /// How it ended.
    pub exit: Exit,
    /// What the VMM gave as its reason, where it gave one: QEMU's `guest-reset` (a stop or a panic: both reset the
    /// guest), `guest-shutdown`, `host-signal` …
    pub reason: Option<String>,
}

impl fmt::Display for MachineExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit {
            // It was adopted: its status went where it came from.
            Exit::Unknown => write!(
                f,
                "{} ended, and nobody saw how: what started it was gone",
                self.role
            )?,
            exit @ (Exit::Code(_) | Exit::Signal(_)) => write!(f, "{} ended: {exit}", self.role)?,
        }
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// What a machine's processors are doing, as the VMM says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// They run.
    Running,
    /// They are stopped and can be resumed.
    Paused,
    /// Neither: about to start, about to end, or stopped by an error.
    Other,
}

/// A program that runs machines. Made by probing ([`crate::Firecracker::probe`], [`crate::Qemu::probe`]).
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Which driver this is.
    fn kind(&self) -> VmmKind;

    /// What was found when the program was probed.
    fn describe(&self) -> VmmInfo;

    /// Everything wrong with the specification, all at once; empty if it can be launched.
    ///
    /// Looks at files but changes nothing. Synchronous; reads a few blocks of each file at most.
    fn check(&self, spec: &MachineSpec) -> Vec<SpecProblem>;

    /// Starts the machine and returns once the VMM has taken up the guest and answers on its control socket.
    ///
    /// Every process is reported to `log` directly after it was spawned. On an error, and when the future is dropped,
    /// the processes spawned so far are killed; the files and sockets they made stay until the caller removes the
    /// directories.
    async fn launch(&self, spec: &MachineSpec, log: &dyn ProcessLog)
    -> Result<Arc<dyn Machine>, LaunchError>;

    /// Takes up a machine that an earlier run of the daemon launched with this specification.
    ///
    /// All its processes must run still. If only some do, the error says so, and [`crate::kill_processes`] ends the
    /// rest.
    async fn adopt(
        &self,
        spec: &MachineSpec,
        processes: &[ProcessRecord],
    ) -> Result<Arc<dyn Machine>, AdoptError>;
}

/// Where a launch reports the processes it spawns, so that the ledger holds each of them.
#[async_trait]
pub trait ProcessLog: Send + Sync {
    /// Called directly after a spawn, before anything else is done. An error ends the launch.
    async fn spawned(&self, record: &ProcessRecord) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// A running machine (or one that just ended). Dropping the handle leaves the machine running.
#[async_trait]
pub trait Machine: Send + Sync + fmt::Debug {
    /// Its processes, ended or not.
    fn processes(&self) -> Vec<ProcessRecord>;

    /// Waits until the machine has ended: every process gone and reaped, its control sockets removed.
    ///
    /// When one that it cannot be without ends, the others are killed. Any number of callers may wait; cancel-safe.
    async fn exited(&self) -> MachineExit;

    /// Ends the machine at once, as pulling the plug would, and returns when [`Self::exited`] would.
    ///
    /// Works on stopped processes as well. Idempotent. Dropping the future does not take the kill back.
    async fn kill(&self) -> Result<(), KillError>;

    /// Stops the guest's processors.
    async fn pause(&self) -> Result<(), ControlError>;

    /// Lets the guest's processors go on.
    async fn resume(&self) -> Result<(), ControlError>;

    /// Asks the VMM for the machine's state over its control socket: an answer proves that the VMM is alive.
    async fn control_alive(&self) -> Result<RunState, ControlError>;

    /// Tells the VMM, and so the guest, that a disk has grown: its file has `bytes` bytes by now. `id` is the disk's in
    /// the specification.
    async fn resize_disk(&self, id: &str, bytes: u64) -> Result<(), ControlError>;

    /// What the machine has used since it was started. Waits for the VMM at most a second.
    async fn figures(&self) -> MachineFigures;

    /// Its processes that a signal has stopped (SIGSTOP, a debugger), so that they do nothing.
    fn stopped_processes(&self) -> Vec<ProcessRole>;

    /// Who carries the packets of its card, where that is a user-mode network. What was noted at the launch is not known
    /// any more of a machine that was adopted.
    fn user_network(&self) -> Option<UserNetwork>;

    /// It goes on, but the process that carried its packets has ended: it has no network until it is started anew.
    fn network_lost(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_far_as_it_was_seen() {
        let exit = |exit, reason: Option<&str>| {
            let reason = reason.map(str::to_owned);
            let role = ProcessRole::Vmm;
            MachineExit { role, exit, reason }.to_string()
        };
        assert_eq!(exit(Exit::Signal(9), None), "vmm ended: signal 9 (SIGKILL)");
        assert_eq!(
            exit(Exit::Code(0), Some("guest-reset")),
            "vmm ended: exit code 0 (guest-reset)"
        );
        assert_eq!(
            exit(Exit::Unknown, None),
            "vmm ended, and nobody saw how: what started it was gone"
        );
    }
}
