//! The overlay kind: the image is the first disk, read-only and shared by all its machines; the second is the machine's
//! own. The guest's agent stacks them (overlayfs), so this needs nothing of the host.

use std::path::Path;

use banger_store::vms::VmRow;
use banger_vmm::{Disk, MachineSpec};
use hostkit::ext4;

use super::{file, tools};
use crate::doctor::Check;
use crate::error::{Error, chain};
use crate::host::Host;
use crate::vm::capability::Start;

const GROUP: &str = "system-disk";

pub(super) async fn make(host: &Host, row: &VmRow, path: &Path) -> Result<(), Error> {
    ext4::make_empty(&tools(host)?, path, row.disk, "banger-system")
        .await
        .map_err(|e| Error::Host {
            action: "make the system disk",
            source: Box::new(e),
        })
}

pub(super) fn check(start: &Start<'_>) -> Vec<Check> {
    let image = match ext4::superblock::check(&start.rootfs) {
        Ok(_) => Check::fine(GROUP, "image", start.rootfs.display().to_string()),
        Err(e) => Check::failure(
            GROUP,
            "image",
            format!("the image's root file system: {}", chain(&e)),
            "make the image anew: `banger image bootstrap` or `banger image register`, with --replace",
        ),
    };
    let path = file(start.row, start.paths).unwrap_or_default();
    vec![image, own_disk(GROUP, "disk", &path)]
}

/// A disk of the machine's own that a guest mounts for writing.
pub(crate) fn own_disk(group: &'static str, name: &'static str, path: &Path) -> Check {
    match ext4::superblock::check_writable(path) {
        Ok(()) => Check::fine(group, name, path.display().to_string()),
        Err(e) => Check::failure(
            group,
            name,
            format!("the machine's own disk: {}", chain(&e)),
            "the disk was damaged from outside; renew it with `banger vm reset`, or remove the machine",
        ),
    }
}

pub(super) fn contribute(start: &Start<'_>, spec: &mut MachineSpec) {
    spec.disks.push(Disk {
        id: "root".to_owned(),
        path: start.rootfs.clone(),
        read_only: true,
    });
    spec.disks.push(Disk {
        id: "overlay".to_owned(),
        path: file(start.row, start.paths).unwrap_or_default(),
        read_only: false,
    });
    spec.boot.args.push("banger.root=/dev/vda".to_owned());
    spec.boot.args.push("banger.overlay=/dev/vdb".to_owned());
}
