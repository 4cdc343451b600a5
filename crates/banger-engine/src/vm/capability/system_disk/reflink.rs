//! The reflink kind: the machine's disk is a file of its own that shares the image's blocks until they are written
//! (`FICLONE`, ioctl_ficlone(2)). The file system below does all the work; the guest sees one plain disk, and the image
//! may go once the file is made.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use banger_store::vms::VmRow;
use banger_vmm::{Disk, MachineSpec};
use hostkit::{copy, reflink};

use super::{Obstacle, ROOT, WHICH, file};
use crate::doctor::Check;
use crate::error::{Error, chain, io};
use crate::host::Host;
use crate::image::build;
use crate::vm::capability::Start;
use crate::vm::capability::disk;

/// What keeps it from being had: the state directory's file system.
pub(super) async fn obstacle(host: &Host) -> Option<Obstacle> {
    let directory = crate::vm::state::machines_dir(&host.settings.state_dir);
    let probed = tokio::task::spawn_blocking(move || reflink::probe(&directory)).await;
    let reason = match probed {
        Ok(Ok(true)) => return None,
        Ok(Ok(false)) => format!(
            "the file system of {} cannot share blocks between files",
            host.settings.state_dir.display()
        ),
        Ok(Err(e)) => chain(&e),
        Err(e) => chain(&e),
    };
    Some(Obstacle {
        reason,
        fix: "put `state_dir` under `[daemon]` in the configuration on XFS or btrfs".to_owned(),
    })
}

/// Whether the image's blocks can be shared from where its file is.
pub(super) async fn reaches(host: &Host, image: &str) -> Result<bool, Error> {
    let state = &host.settings.state_dir;
    let (image, directory) = (
        crate::image::rootfs_path(state, image),
        crate::vm::state::machines_dir(state),
    );
    let probed = tokio::task::spawn_blocking(move || {
        let from = File::open(&image).map_err(io("open", &image))?;
        reflink::probe_from(&from, &directory).map_err(io("share the blocks of", &image))
    });
    probed.await.map_err(|e| Error::Host {
        action: "look at the image's file",
        source: Box::new(e),
    })?
}

/// Shares the image's blocks, then lengthens the file to the disk's size.
pub(super) async fn make(host: &Host, row: &VmRow, path: &Path) -> Result<(), Error> {
    let image = crate::image::rootfs_path(&host.settings.state_dir, &row.image);
    let from = File::open(&image).map_err(io("open", &image))?;
    // Opened here and not in the blocking thread: a creation that is cancelled removes the directory while that thread
    // may be at work still, and then no new name may appear in it.
    let to = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io("create", path))?;
    let (size, shown) = (row.disk, path.to_owned());
    let may_copy = row.labels.contains_key(build::LABEL);
    // Sharing waits until what the image has in the page cache is written back.
    let cloned = tokio::task::spawn_blocking(move || {
        let made = match may_copy {
            // Nobody is told that this takes no time.
            true => copy::copy(&from, &to, |_| Ok(())).map(|_copied| ()),
            false => reflink::clone(&from, &to),
        };
        made.map_err(io("share the image's blocks with", &shown))?;
        to.set_len(size).map_err(io("extend", &shown))
    });
    cloned.await.map_err(|e| Error::Host {
        action: "make the system disk",
        source: Box::new(e),
    })?
}

/// Bytes of its own; `None` where the file system does not say, or not soon.
pub(super) fn own_bytes(path: &Path) -> Option<u64> {
    reflink::own_bytes(&File::open(path).ok()?).ok()
}

pub(super) fn check(start: &Start<'_>) -> Vec<Check> {
    let path = file(start.row, start.paths).unwrap_or_default();
    vec![disk::check(WHICH, &path)]
}

pub(super) fn contribute(start: &Start<'_>, spec: &mut MachineSpec) {
    spec.disks.push(Disk {
        id: ROOT.to_owned(),
        path: file(start.row, start.paths).unwrap_or_default(),
        read_only: false,
    });
    spec.boot.args.push("banger.root=/dev/vda".to_owned());
}
