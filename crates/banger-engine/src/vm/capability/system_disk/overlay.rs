//! The overlay kind: the image is the first disk, read-only and shared by all its machines; the second is the machine's
//! own. The guest's agent stacks them (overlayfs), so this needs nothing of the host.

use std::path::Path;

use banger_store::vms::VmRow;
use banger_vmm::{Disk, MachineSpec};
use hostkit::ext4;

use super::{ROOT, WHICH, file};
use crate::doctor::Check;
use crate::error::{Error, Problem, chain};
use crate::host::Host;
use crate::image::registered;
use crate::vm::capability::Start;
use crate::vm::capability::disk;

/// The machine's own disk's id in the machine.
pub(super) const ID: &str = "overlay";

pub(super) async fn make(host: &Host, row: &VmRow, path: &Path) -> Result<(), Error> {
    disk::make_empty(host, path, row.disk, "banger-system").await
}

pub(super) fn check(start: &Start<'_>) -> Vec<Check> {
    let path = file(start.row, start.paths).unwrap_or_default();
    vec![image(start), disk::check(WHICH, &path)]
}

/// The image, where the run needs it.
pub(super) fn image(start: &Start<'_>) -> Check {
    let state = &start.host.settings.state_dir;
    let obstacle = start
        .image
        .as_ref()
        .and_then(|row| registered::obstacle(state, row));
    if let Some(Problem { message, fix }) = obstacle {
        return Check::failure(WHICH.group, "image", message, fix.unwrap_or_default());
    }
    match ext4::superblock::check(&start.rootfs) {
        Ok(_) => Check::fine(WHICH.group, "image", start.rootfs.display().to_string()),
        Err(e) => Check::failure(
            WHICH.group,
            "image",
            format!("the image's root file system: {}", chain(&e)),
            "make the image anew: `banger image bootstrap` or `banger image register`, with --replace",
        ),
    }
}

pub(super) fn contribute(start: &Start<'_>, spec: &mut MachineSpec) {
    spec.disks.push(Disk {
        id: ROOT.to_owned(),
        path: start.rootfs.clone(),
        read_only: true,
    });
    spec.disks.push(Disk {
        id: ID.to_owned(),
        path: file(start.row, start.paths).unwrap_or_default(),
        read_only: false,
    });
    spec.boot.args.push("banger.root=/dev/vda".to_owned());
    spec.boot.args.push("banger.overlay=/dev/vdb".to_owned());
}
