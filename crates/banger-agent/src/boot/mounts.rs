//! File systems: the kernel's own, the image's root, and the change from the initramfs to it.
//!
//! ```text
//! initramfs /            after `mount_root`               after `switch_to`
//!   /dev /proc /sys /run  (mounted)                        moved along
//!   /banger/lower         image's ext4, read-only          unmounted; the overlay holds it
//!   /banger/upper         VM's ext4: upper/ work/ banger/  unmounted; the overlay holds it, and a descriptor
//!   /banger/work          work disk (see `work`)           unmounted; the bind mount holds it, and a descriptor
//!   /banger/root          overlay, or the machine's ext4   /
//! ```

use super::BootError;
use super::cmdline::BootSpec;
use super::work::WORK;
use crate::{grow, log};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, chown, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOWER: &str = "/banger/lower";
const UPPER: &str = "/banger/upper";
pub(super) const ROOT: &str = "/banger/root";

/// Where on the VM's own disk the agent keeps what it remembers from boot to boot: with an overlay out of the guest's
/// sight, else within the root.
pub(super) const MEMORY: &str = "/banger/upper/banger";
pub(super) const MEMORY_IN_ROOT: &str = "/banger/root/var/lib/banger-agent";

/// For a disk's device node to appear. Drivers find disks while they load, so most often it is there.
const DISK_TIME: Duration = Duration::from_secs(10);
const DISK_LOOK: Duration = Duration::from_millis(5);

/// How often the emptying of the initramfs goes down.
const MAX_DEPTH: usize = 32;

const QUIET: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Mounts what every Linux system has. The order matters: devpts lies on devtmpfs.
pub(super) fn mount_kernel() -> Result<(), BootError> {
    let no_exec = MountFlags::NOSUID | MountFlags::NOEXEC;
    let table: [(&str, &str, MountFlags, &str); 6] = [
        ("proc", "/proc", QUIET, ""),
        ("sysfs", "/sys", QUIET, ""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", no_exec, "mode=0620,gid=5,ptmxmode=0666"),
        (
            "tmpfs",
            "/run",
            MountFlags::NOSUID | MountFlags::NODEV,
            "mode=0755,size=20%",
        ),
        ("cgroup2", "/sys/fs/cgroup", QUIET, "nsdelegate"),
    ];
    for (kind, target, flags, data) in table {
        // sysfs makes its own directories, and has them already.
        if !Path::new(target).is_dir() {
            make_dir(Path::new(target))?;
        }
        match mount_one(kind, Path::new(target), kind, flags, data) {
            // The kernel may have mounted devtmpfs itself.
            Err(BootError::Mount { source, .. })
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
            result => result?,
        }
    }
    // As udev would; programs expect them.
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match std::os::unix::fs::symlink(target, link) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(BootError::Io {
                    doing: "make",
                    path: link.into(),
                    source,
                });
            }
        }
    }
    make_dir(Path::new("/dev/shm"))?;
    mount_one(
        "tmpfs",
        Path::new("/dev/shm"),
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=1777",
    )
}

/// Mounts the root as the command line says. Gives the upper layer's file system, where there is one, so that it can be
/// made read-only last.
pub(super) fn mount_root(spec: &BootSpec) -> Result<Option<OwnedFd>, BootError> {
    make_dir(Path::new(ROOT))?;
    wait_for_disk(&spec.root)?;
    let Some(overlay) = &spec.overlay else {
        mount_to_write(&spec.root, ROOT)?;
        return Ok(None);
    };
    wait_for_disk(overlay)?;
    make_dir(Path::new(LOWER))?;
    make_dir(Path::new(UPPER))?;
    mount_disk(&spec.root, LOWER, MountFlags::RDONLY)?;
    let keep = mount_to_write(overlay, UPPER)?;

    let upper = Path::new(UPPER).join("upper");
    let work = Path::new(UPPER).join("work");
    make_upper(&upper)?;
    make_dir(&work)?;
    // redirect_dir: directories of the image can be renamed, as package managers do. index: hard links of the image stay
    // links when one of them is written to.
    let data = format!(
        "lowerdir={LOWER},upperdir={},workdir={},redirect_dir=on,index=on",
        upper.display(),
        work.display()
    );
    mount_one("overlay", Path::new(ROOT), "overlay", MountFlags::empty(), &data)?;
    Ok(Some(keep))
}

/// Mounts a disk of the machine's own, and grows its file system where the disk has grown since the last boot. Gives the
/// mount's directory.
pub(super) fn mount_to_write(device: &Path, target: &str) -> Result<OwnedFd, BootError> {
    mount_disk(device, target, MountFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mounted = openat(CWD, target, flags, Mode::empty()).map_err(|error| BootError::Io {
        doing: "open",
        path: target.into(),
        source: error.into(),
    })?;
    // As large as it was, it still serves.
    if let Err(error) = grow::to_device_size(device, &mounted) {
        log::line(format_args!("failed to {}", log::Chain(&error)));
    }
    Ok(mounted)
}

/// Hides the layers from the guest. The overlay keeps them; the guest cannot come at them from two sides.
pub(super) fn hide_layers() {
    for layer in [LOWER, UPPER, WORK] {
        // Not there without an overlay, or a work disk.
        let _not_mounted = unmount(layer, UnmountFlags::DETACH);
    }
}

/// Makes the overlay's upper directory on first boot, looking like the image's root: its owner and mode become `/`'s.
fn make_upper(upper: &Path) -> Result<(), BootError> {
    if upper.is_dir() {
        return Ok(());
    }
    let error = |source| BootError::Io {
        doing: "make",
        path: upper.to_owned(),
        source,
    };
    let root = fs::metadata(LOWER).map_err(error)?;
    // Under another name first: a crash in between must not leave one with the wrong mode.
    let fresh = upper.with_extension("new");
    make_dir(&fresh)?;
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(root.uid()),
        rustix::fs::Gid::from_raw(root.gid()),
    );
    chown(&fresh, Some(uid), Some(gid)).map_err(|errno| error(errno.into()))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(root.mode() & 0o7777)).map_err(error)?;
    fs::rename(&fresh, upper).map_err(error)
}

pub(super) fn wait_for_disk(device: &Path) -> Result<(), BootError> {
    let end = Instant::now() + DISK_TIME;
    loop {
        if fs::metadata(device).is_ok_and(|found| found.file_type().is_block_device()) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(BootError::NoDisk {
                device: device.to_owned(),
                waited: DISK_TIME,
            });
        }
        std::thread::sleep(DISK_LOOK);
    }
}

fn mount_disk(device: &Path, target: &str, flags: MountFlags) -> Result<(), BootError> {
    let device = device.to_str().unwrap_or_default();
    mount_one(device, Path::new(target), "ext4", flags, "")
}

fn mount_one(what: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> Result<(), BootError> {
    let error = |source| BootError::Mount {
        what: what.to_owned(),
        kind: kind.to_owned(),
        target: target.to_owned(),
        source,
    };
    let data = CString::new(data).map_err(|nul| error(nul.into()))?;
    mount(what, target, kind, flags, data.as_c_str()).map_err(|errno| error(errno.into()))
}

pub(super) fn make_dir(path: &Path) -> Result<(), BootError> {
    let made = fs::DirBuilder::new().mode(0o755).recursive(true).create(path);
    made.map_err(|source| BootError::Io {
        doing: "make",
        path: path.to_owned(),
        source,
    })
}

/// Makes the mounted root the root of this process, and frees what the initramfs holds. As switch_root(8).
pub(super) fn switch_root() -> Result<(), BootError> {
    let io = |doing: &'static str, path: PathBuf| {
        move |errno: Errno| BootError::Io {
            doing,
            path,
            source: errno.into(),
        }
    };
    for mount_point in ["dev", "proc", "sys", "run"] {
        let target = Path::new(ROOT).join(mount_point);
        // An image without the directory gets it; on a read-only one this fails and says so.
        if !target.is_dir() {
            make_dir(&target)?;
        }
        let source = Path::new("/").join(mount_point);
        mount_move(&source, &target).map_err(io("move the mount", source))?;
    }
    let initramfs = openat(
        CWD,
        "/",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io("open", "/".into()))?;
    let root = PathBuf::from(ROOT);
    rustix::process::chdir(&root).map_err(io("enter", root.clone()))?;
    mount_move(".", "/").map_err(io("move the mount", root.clone()))?;
    rustix::process::chroot(".").map_err(io("make the root", root))?;
    rustix::process::chdir("/").map_err(io("enter", "/".into()))?;
    // Memory that would be lost for as long as the guest runs; nothing depends on it.
    if let Ok(stat) = rustix::fs::fstat(&initramfs) {
        empty(&initramfs, stat.st_dev, MAX_DEPTH);
    }
    Ok(())
}

/// Removes everything below a directory of the initramfs without crossing into other file systems.
fn empty(directory: &OwnedFd, device: u64, depth: usize) {
    let Ok(entries) = rustix::fs::Dir::read_from(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if stat.st_dev != device {
            continue;
        }
        if FileType::from_raw_mode(stat.st_mode).is_dir() && depth > 0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(below) = openat(directory, name, flags, Mode::empty()) {
                empty(&below, device, depth - 1);
            }
            let _mount_point = unlinkat(directory, name, AtFlags::REMOVEDIR);
        } else {
            let _busy = unlinkat(directory, name, AtFlags::empty());
        }
    }
}
