//! The system disk: the image's root file system, shared and read-only, under a writable layer of the machine's own.
//! The guest's agent stacks them (overlayfs), so this needs nothing of the host and takes the same time for any image.

use std::os::unix::fs::DirBuilderExt;

use banger_store::vms::VmRow;
use banger_vmm::{Disk, MachineSpec};
use hostkit::ext4::{self, E2fsTools};

use super::{Capability, Start};
use crate::error::{Error, Problem, chain, io};
use crate::host::Host;
use crate::ledger::{Object, Owner};
use crate::vm::state::Paths;

pub(crate) struct SystemDisk;

/// Makes the machine's directory and its writable layer. At creation; a start finds them.
pub(crate) async fn create(host: &Host, row: &VmRow, paths: &Paths) -> Result<(), Error> {
    let owner = Owner::Machine(row.id.clone());
    host.ledger
        .enter(
            &owner,
            &Object::Directory {
                path: paths.state.clone(),
            },
        )
        .await?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&paths.state)
        .map_err(io("create", &paths.state))?;
    let tools = E2fsTools::find(&host.settings.tool_dirs()).map_err(|e| Error::Host {
        action: "make the system disk",
        source: Box::new(e),
    })?;
    ext4::make_empty(&tools, &paths.overlay(), row.disk, "banger-system")
        .await
        .map_err(|e| Error::Host {
            action: "make the system disk",
            source: Box::new(e),
        })
}

#[async_trait::async_trait]
impl Capability for SystemDisk {
    async fn check(&self, start: &Start<'_>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let (rootfs, overlay) = (start.rootfs.clone(), start.paths.overlay());
        if let Err(e) = ext4::superblock::check(&rootfs) {
            problems.push(Problem {
                message: format!("the image's root file system: {}", chain(&e)),
                fix: Some("make the image anew: `banger image bootstrap` or `banger image register`, with --replace".to_owned()),
            });
        }
        if let Err(e) = ext4::superblock::check_writable(&overlay) {
            problems.push(Problem {
                message: format!("the machine's own disk: {}", chain(&e)),
                fix: Some(
                    "the disk was damaged from outside; remove the machine and create it again".to_owned(),
                ),
            });
        }
        problems
    }

    async fn prepare(&self, _start: &Start<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        spec.disks.push(Disk {
            id: "root".to_owned(),
            path: start.rootfs.clone(),
            read_only: true,
        });
        spec.disks.push(Disk {
            id: "overlay".to_owned(),
            path: start.paths.overlay(),
            read_only: false,
        });
        spec.boot.args.push("banger.root=/dev/vda".to_owned());
        spec.boot.args.push("banger.overlay=/dev/vdb".to_owned());
    }
}
