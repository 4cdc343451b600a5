//! Kernel, initramfs and the guest's host name.

use std::sync::Arc;

use banger_vmm::{MachineSpec, VmmKind};

use super::{Capability, Start};
use crate::doctor::Check;
use crate::error::Error;
use crate::host::Host;
use crate::image::{build, initramfs};

pub(crate) struct BootFiles;

#[async_trait::async_trait]
impl Capability for BootFiles {
    fn name(&self) -> &'static str {
        "boot"
    }

    async fn check(&self, start: &Start<'_>) -> Vec<Check> {
        let kernel = match start.kernel.check() {
            Ok(()) => Check::fine(self.name(), "kernel", start.row.kernel.clone()),
            Err(e) => Check::failure(
                self.name(),
                "kernel",
                format!("kernel {:?}: {}", start.row.kernel, crate::error::chain(&e)),
                format!(
                    "use another one (`banger kernel ls`), or add it anew: banger kernel rm {0}; banger kernel add {0} …",
                    start.row.kernel
                ),
            ),
        };
        let agent = match start.host.assets.agent() {
            Ok(path) => Check::fine(self.name(), "agent", path.display().to_string()),
            Err(e) => no_agent(self.name(), &e),
        };
        vec![kernel, agent]
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
        spec.boot.kernel = match start.vmm {
            VmmKind::Firecracker => start.kernel.vmlinux(),
            // The ELF form saves the guest from unpacking itself, which takes seconds without hardware virtualization.
            VmmKind::Qemu if start.kernel_pvh => start.kernel.vmlinux(),
            VmmKind::Qemu => start.kernel.vmlinuz(),
        };
        // Absent when adopting, where nothing boots.
        spec.boot.initramfs = start.initramfs.get().cloned().unwrap_or_default();
        spec.boot.args.push(format!("banger.hostname={}", start.row.name));
        if start.row.labels.contains_key(build::LABEL) {
            // Its disk becomes an image: nothing is to run but the recipe's commands, and nothing of us is to be on it.
            let arguments = ["banger.init=agent", "banger.traces=none"].map(str::to_owned);
            spec.boot.args.extend(arguments);
        }
    }

    async fn doctor(&self, host: &Arc<Host>) -> Vec<Check> {
        vec![match host.assets.agent_version().await {
            Ok((path, version)) => Check::fine("guest", "agent", format!("{} {version}", path.display())),
            Err(e) => no_agent("guest", &e),
        }]
    }
}

fn no_agent(group: &'static str, e: &Error) -> Check {
    let report = e.report();
    Check::failure(group, "agent", report.message, report.hint.unwrap_or_default())
}
