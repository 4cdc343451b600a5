//! The pieces of a start. A capability is one file that owns one concern from end to end: what it checks, what it makes
//! on the host, what it adds to the machine, what it does once the guest answers. How it is undone is in the ledger,
//! which it writes before it makes anything.
//!
//! Adding one touches its file and [`ALL`].

mod boot;
mod console;
mod network;
pub(crate) mod system_disk;
mod vsock;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use banger_store::vms::VmRow;
use banger_vmm::{Boot, MachineSpec, Vmm, Vsock};
use tokio::net::UnixListener;

use crate::error::{Error, Problem};
use crate::host::Host;
use crate::image::kernel::KernelFiles;
use crate::vm::state::Paths;

/// One start of one machine, as the capabilities see it.
pub(crate) struct Start<'a> {
    pub(crate) host: &'a Arc<Host>,
    pub(crate) row: &'a VmRow,
    pub(crate) paths: &'a Paths,
    pub(crate) vmm: &'a dyn Vmm,
    /// The image's root file system.
    pub(crate) rootfs: PathBuf,
    pub(crate) kernel: KernelFiles,
    /// QEMU boots the kernel's ELF form.
    pub(crate) kernel_pvh: bool,
    /// Made by `boot`.
    pub(crate) initramfs: OnceLock<PathBuf>,
    /// Made by `vsock`: where the guest's hello arrives.
    pub(crate) hello: Mutex<Option<UnixListener>>,
}

/// See the module.
#[async_trait::async_trait]
pub(crate) trait Capability: Send + Sync {
    /// Everything that would keep it from working. Touches nothing.
    async fn check(&self, start: &Start<'_>) -> Vec<Problem>;

    /// Makes its host objects, each entered in the ledger first.
    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error>;

    /// Adds itself to the machine. Derives everything from ids and paths, so that an adopted machine gets the same.
    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec);
}

/// All, in the order of preparation.
pub(crate) const ALL: &[&dyn Capability] = &[
    &vsock::GuestSocket,
    &console::Console,
    &system_disk::SystemDisk,
    &boot::BootFiles,
    &network::UserNetwork,
];

impl Start<'_> {
    /// All failed checks of all capabilities.
    pub(crate) async fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for capability in ALL {
            problems.extend(capability.check(self).await);
        }
        problems
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
