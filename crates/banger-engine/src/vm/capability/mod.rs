//! The pieces of a start. A capability is one file that owns one concern from end to end: what it checks, what it makes
//! on the host, what it adds to the machine, what it does once the guest answers. How it is undone is in the ledger,
//! which it writes before it makes anything.
//!
//! Adding one touches its file and [`ALL`].

mod boot;
mod console;
mod disk;
mod network;
mod publish;
pub(crate) mod system_disk;
mod vsock;
pub(crate) mod work_disk;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use banger_store::images::ImageRow;
use banger_store::vms::VmRow;
use banger_vmm::{Boot, MachineSpec, VmmKind, Vsock};
use tokio::net::UnixListener;

use crate::doctor::{Check, Outcome};
use crate::error::{Error, Problem};
use crate::host::Host;
use crate::image::kernel::KernelFiles;
use crate::operation::Progress;
use crate::ports::Reserved;
use crate::vm::state::Paths;

/// One start of one machine, as the capabilities see it.
pub(crate) struct Start<'a> {
    pub(crate) host: &'a Arc<Host>,
    pub(crate) row: &'a VmRow,
    pub(crate) paths: &'a Paths,
    /// What runs it.
    pub(crate) vmm: VmmKind,
    /// The image's root file system.
    pub(crate) rootfs: PathBuf,
    /// The image's row.
    pub(crate) image: Option<ImageRow>,
    pub(crate) kernel: KernelFiles,
    /// QEMU boots the kernel's ELF form.
    pub(crate) kernel_pvh: bool,
    /// Made by `boot`.
    pub(crate) initramfs: OnceLock<PathBuf>,
    /// Made by `network`: the guest's address on the bridge.
    pub(crate) address: OnceLock<std::net::Ipv4Addr>,
    /// The largest packet that gets out of the host whole, in bytes, where it is smaller than the bridge's.
    pub(crate) mtu: OnceLock<u32>,
    /// It runs already: it has what it was started with, and not what a start would give it.
    pub(crate) adopts: bool,
    /// Made by `vsock`: where the guest's hello arrives.
    pub(crate) hello: Mutex<Option<UnixListener>>,
    /// Made by `publish`: ports that are kept for when the guest has answered.
    pub(crate) reserved: Mutex<Vec<Reserved>>,
    /// Where a start tells its user things; absent where nothing is started.
    pub(crate) progress: Option<&'a Progress>,
}

/// See the module.
#[async_trait::async_trait]
pub(crate) trait Capability: Send + Sync {
    /// Its name, which groups its checks.
    fn name(&self) -> &'static str;

    /// Everything that would keep it from working in this start, and what it found to be fine. Touches nothing.
    async fn check(&self, start: &Start<'_>) -> Vec<Check>;

    /// Makes its host objects, each entered in the ledger first.
    async fn prepare(&self, _start: &Start<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Adds itself to the machine. Derives everything from ids and paths, so that an adopted machine gets the same.
    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec);

    /// Whether a disk of that path comes to be by [`Self::prepare`], so that it cannot be looked at before.
    fn makes(&self, _start: &Start<'_>, _disk: &Path) -> bool {
        false
    }

    /// The VMM runs and the guest boots: begins what has time until the guest has.
    fn launched(&self, _start: &Start<'_>) {}

    /// The guest has answered. What still fails here is no reason to end it, and is told by the capability itself.
    async fn started(&self, _start: &Start<'_>) {}

    /// What it needs of this host, whatever the machine.
    async fn doctor(&self, _host: &Arc<Host>) -> Vec<Check> {
        Vec::new()
    }
}

/// All, in the order of preparation.
pub(crate) const ALL: &[&dyn Capability] = &[
    &publish::Publish,
    &vsock::GuestSocket,
    &console::Console,
    &system_disk::SystemDisk,
    &work_disk::WorkDisk,
    &boot::BootFiles,
    &network::GuestNetwork,
];

impl Start<'_> {
    /// All checks of all capabilities.
    pub(crate) async fn checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for capability in ALL {
            checks.extend(capability.check(self).await);
        }
        checks
    }

    /// Whether a disk of that path comes to be in the start.
    pub(crate) fn makes(&self, disk: &Path) -> bool {
        ALL.iter().any(|capability| capability.makes(self, disk))
    }

    /// Tells the user of the start, where there is one.
    pub(crate) fn notice(&self, text: String) {
        if let Some(progress) = self.progress {
            progress.notice(text);
        }
    }

    /// The whole machine.
    pub(crate) fn spec(&self) -> MachineSpec {
        let mut spec = MachineSpec {
            token: self.paths.token.clone(),
            vcpus: u8::try_from(self.row.vcpus).unwrap_or(u8::MAX),
            memory_mib: self.row.memory_mib,
            boot: Boot {
                kernel: PathBuf::new(),
                initramfs: PathBuf::new(),
                args: Vec::new(),
            },
            disks: Vec::new(),
            vsock: Vsock {
                guest_cid: banger_agent_api::GUEST_CID,
                socket: self.paths.vsock(),
            },
            network: None,
            console: self.paths.console(),
            runtime_dir: self.paths.runtime.clone(),
            log: self.paths.vmm_log(),
            metrics: self.paths.metrics(),
        };
        for capability in ALL {
            capability.contribute(self, &mut spec);
        }
        spec
    }
}

/// Whether none of the checks failed.
pub(crate) fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != Outcome::Failure)
}

/// The failures among checks, as the problems of a start.
pub(crate) fn problems(checks: Vec<Check>) -> Vec<Problem> {
    checks
        .into_iter()
        .filter(|check| check.outcome == Outcome::Failure)
        .map(|check| Problem {
            message: check.reason,
            fix: check.fix,
        })
        .collect()
}
