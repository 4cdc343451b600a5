//! The GrowDisk call: the host has made a disk larger, and its file system follows.
//!
//! The file systems in question are not to be found by a path: the overlay's upper layer is hidden, and a user may have
//! mounted anything over their home. So the disk is mounted once more, nowhere (fsmount(2)): the kernel gives the same
//! file system again, and it is gone when the descriptor is.

use crate::boot::Disks;
use crate::grow::{self, Sizes};
use crate::log;
use banger_agent_api::proto::{DiskRole, GrowDiskReply, GrowDiskRequest};
use banger_agent_api::{Failure, FailureKind};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For the guest's kernel to see a device's new size. It learns of it by an interrupt, and a notice to user space comes
/// only to who has listened before, so the size is looked at.
const SEEN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// Grows one disk's file system.
pub(super) async fn grow(disks: Option<&Disks>, request: GrowDiskRequest) -> Result<GrowDiskReply, Failure> {
    let device = device_of(disks, request.role())?;
    let size = request.device_size;
    let worked = tokio::task::spawn_blocking(move || {
        wait_for_size(&device, size)?;
        grow_now(&device)
    });
    let sizes = worked
        .await
        .unwrap_or_else(|lost| Err(system(format!("grow a disk: {lost}"))))?;
    Ok(GrowDiskReply {
        file_system_size: sizes.file_system,
        device_size: sizes.device,
    })
}

fn device_of(disks: Option<&Disks>, role: DiskRole) -> Result<PathBuf, Failure> {
    let refuse = |what: &str| {
        let message = format!("grow a disk: {what}");
        Err(Failure::new(FailureKind::InvalidRequest, "disk", message))
    };
    let Some(disks) = disks else {
        return refuse("this agent has not booted its machine");
    };
    match (role, &disks.work) {
        (DiskRole::System, _) => Ok(disks.system.clone()),
        (DiskRole::Work, Some(work)) => Ok(work.clone()),
        (DiskRole::Work, None) => refuse("this guest was booted without a work disk"),
        (DiskRole::Unspecified, _) => refuse("none that this agent knows was named"),
    }
}

fn system(message: String) -> Failure {
    Failure::new(FailureKind::System, "disk", message)
}

fn wait_for_size(device: &Path, wanted: u64) -> Result<(), Failure> {
    let size = || File::open(device)?.seek(SeekFrom::End(0));
    let end = Instant::now() + SEEN;
    loop {
        let found = size().map_err(|error| system(format!("look at {}: {error}", device.display())))?;
        if found >= wanted {
            return Ok(());
        }
        if Instant::now() >= end {
            let message = format!(
                "see {} at {wanted} bytes: it has {found} in this guest",
                device.display()
            );
            return Err(system(message));
        }
        std::thread::sleep(LOOK);
    }
}

fn grow_now(device: &Path) -> Result<Sizes, Failure> {
    let mounted =
        mount_nowhere(device).map_err(|error| system(format!("mount {}: {error}", device.display())))?;
    let sizes =
        grow::to_device_size(device, &mounted).map_err(|error| system(log::Chain(&error).to_string()))?;
    if sizes.file_system > sizes.was {
        log::line(format_args!(
            "grew the file system on {} from {} to {} bytes",
            device.display(),
            sizes.was,
            sizes.file_system
        ));
    }
    Ok(sizes)
}

/// A directory of the file system on `device`, which is mounted elsewhere.
pub(super) fn mount_nowhere(device: &Path) -> io::Result<OwnedFd> {
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", device)?;
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_known_by_what_they_are_for() {
        let mut disks = Disks {
            system: "/dev/vdb".into(),
            work: Some("/dev/vdc".into()),
        };
        let found = |disks: Option<&Disks>, role| device_of(disks, role).map_err(|failure| failure.message);
        assert_eq!(found(Some(&disks), DiskRole::System), Ok("/dev/vdb".into()));
        assert_eq!(found(Some(&disks), DiskRole::Work), Ok("/dev/vdc".into()));
        disks.work = None;
        for (disks, role, words) in [
            (Some(&disks), DiskRole::Work, "without a work disk"),
            (Some(&disks), DiskRole::Unspecified, "none that this agent knows"),
            (None, DiskRole::System, "has not booted its machine"),
        ] {
            let message = found(disks, role).expect_err("refused");
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_size_that_is_there_is_not_waited_for() {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(4096).expect("size");
        wait_for_size(file.path(), 4096).expect("there");
        let error = wait_for_size(&file.path().with_extension("none"), 0).expect_err("no such device");
        assert_eq!(error.kind, FailureKind::System);
    }
}
