//! Kernel, initramfs and the guest's host name.

use banger_vmm::{MachineSpec, VmmKind};

use super::{Capability, Start};
use crate::error::{Error, Problem};
use crate::image::initramfs;

pub(crate) struct BootFiles;

#[async_trait::async_trait]
impl Capability for BootFiles {
    async fn check(&self, start: &Start<'_>) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(e) = start.kernel.check() {
            problems.push(Problem {
                message: format!("kernel {:?}: {}", start.row.kernel, crate::error::chain(&e)),
                fix: Some(format!(
                    "use another one (`banger kernel ls`), or add it anew: banger kernel rm {0}; banger kernel add {0} …",
                    start.row.kernel
                )),
            });
        }
        if let Err(e) = start.host.assets.agent() {
            let report = e.report();
            problems.push(Problem {
                message: report.message,
                fix: report.hint,
            });
        }
        problems
    }

    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error> {
        let agent = start.host.assets.agent()?;
        let dir = crate::image::initramfs_dir(&start.host.settings.state_dir);
        let kernel = start.kernel.clone();
        let made = tokio::task::spawn_blocking(move || initramfs::build(&dir, &agent, &kernel))
            .await
            .map_err(|e| Error::Host {
                action: "build the initramfs",
                source: Box::new(e),
            })?
            .map_err(|e| Error::Host {
                action: "build the initramfs",
                source: Box::new(e),
            })?;
        // Shared by all machines with this kernel and agent, and kept: not an object of this run.
        drop(start.initramfs.set(made.path));
        Ok(())
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        spec.boot.kernel = match start.vmm.kind() {
            VmmKind::Firecracker => start.kernel.vmlinux(),
            // The ELF form saves the guest from unpacking itself, which takes seconds without hardware virtualization.
            VmmKind::Qemu if start.kernel_pvh => start.kernel.vmlinux(),
            VmmKind::Qemu => start.kernel.vmlinuz(),
        };
        // Absent when adopting, where nothing boots.
        spec.boot.initramfs = start.initramfs.get().cloned().unwrap_or_default();
        spec.boot.args.push(format!("banger.hostname={}", start.row.name));
    }
}
