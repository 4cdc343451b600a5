//! Complete validation of a specification before anything is touched.
//!
//! Everything is looked at and every problem reported, so that a user fixes them in one go. What is checked here is
//! what both drivers share, within [`Limits`] that each driver sets.

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::files::SOCKET_PATH_LIMIT;
use crate::identify::is_token;
use crate::kernel::{Kernel, sniff};
use crate::spec::{Disk, MachineSpec, Network};

/// Less memory than this, in MiB, boots no kernel of this century.
const LEAST_MEMORY: u64 = 32;
/// What a kernel needs to start beyond its image and twice the initramfs (the archive and what it unpacks to), in bytes.
///
/// Measured with Debian's 6.1 cloud kernel (51 MiB of ELF), an initramfs of 3.2 MiB and busybox under QEMU: with 72 MiB of
/// memory the kernel runs out of it while it starts its drivers, with 74 in one start of three, with 76, 78, 80 and 82 in
/// none of eighteen. This asks for 82.
const KERNEL_OVERHEAD: u64 = 24 << 20;
/// Both drivers have room for more; nobody has asked.
const MOST_DISKS: usize = 16;
/// QEMU's node names hold 31 bytes, and its serial numbers are derived from the id as well.
const LONGEST_DISK_ID: usize = 20;
/// Room for `_` and the number of a guest's port after the vsock socket's path.
const PORT_SUFFIX: usize = 6;

/// The least memory with which a machine comes up, from the sizes of its kernel's image and its initramfs; all in bytes,
/// the result a multiple of 1 MiB. What the image's own programs need comes on top.
#[must_use]
pub fn least_memory(kernel: u64, initramfs: u64) -> u64 {
    let needed = kernel.saturating_add(initramfs.saturating_mul(2));
    let needed = needed.saturating_add(KERNEL_OVERHEAD).div_ceil(1 << 20);
    needed.max(LEAST_MEMORY) << 20
}

/// One thing wrong with a specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecProblem {
    /// Which part of the specification, such as `boot.kernel` or `disks[1].path`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for SpecProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Which kernel images a driver boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KernelFormats {
    /// An ELF kernel.
    Elf,
    /// An ELF kernel with a PVH entry, or a bzImage.
    PvhOrBzImage,
}

/// Why there is no user-mode network, and what to do about it.
pub(crate) struct NoUserNetwork {
    pub(crate) message: String,
    pub(crate) hint: &'static str,
}

/// What a driver can do.
pub(crate) struct Limits<'a> {
    pub(crate) vcpus: u8,
    pub(crate) kernel: KernelFormats,
    /// The whole command line as the kernel will see it, and how long it may be.
    pub(crate) command_line: &'a str,
    pub(crate) command_line_limit: usize,
    /// Whether there is a user-mode network.
    pub(crate) user_network: Result<(), NoUserNetwork>,
    /// Names of the driver's own sockets in the runtime directory.
    pub(crate) sockets: &'a [&'a str],
}

/// Everything wrong with `spec` for a driver with these limits.
pub(crate) fn check(spec: &MachineSpec, limits: &Limits<'_>) -> Vec<SpecProblem> {
    let mut found = Problems(Vec::new());
    if !is_token(&spec.token) {
        found.add(
            "token",
            format!("{:?} is not `bgr` and lowercase letters and digits", spec.token),
            "",
        );
    }
    if spec.vcpus == 0 || spec.vcpus > limits.vcpus {
        found.add(
            "vcpus",
            format!("{} is not between 1 and {}", spec.vcpus, limits.vcpus),
            "",
        );
    }
    boot(spec, limits, &mut found);
    disks(&spec.disks, &mut found);
    if spec.vsock.guest_cid < 3 || spec.vsock.guest_cid == u32::MAX {
        found.add(
            "vsock.guest_cid",
            format!("{} is reserved", spec.vsock.guest_cid),
            "use 3 or more",
        );
    }
    network(spec.network.as_ref(), limits, &mut found);
    places(spec, limits, &mut found);
    found.0
}

struct Problems(Vec<SpecProblem>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>, hint: &str) {
        self.0.push(SpecProblem {
            field: field.into(),
            message: message.into(),
            hint: hint.to_owned(),
        });
    }
}

fn boot(spec: &MachineSpec, limits: &Limits<'_>, found: &mut Problems) {
    let boot = &spec.boot;
    let kernel = readable("boot.kernel", &boot.kernel, found);
    if kernel.is_some() {
        match (sniff(&boot.kernel), limits.kernel) {
            (Ok(Kernel::Elf { .. }), KernelFormats::Elf)
            | (Ok(Kernel::Elf { pvh: true } | Kernel::BzImage), KernelFormats::PvhOrBzImage) => {}
            (Ok(Kernel::BzImage), KernelFormats::Elf) => found.add(
                "boot.kernel",
                format!("{} is a compressed kernel (bzImage)", boot.kernel.display()),
                "Firecracker boots the uncompressed vmlinux only: decompress it",
            ),
            (Ok(Kernel::Elf { pvh: false }), KernelFormats::PvhOrBzImage) => found.add(
                "boot.kernel",
                format!("{} has no PVH entry", boot.kernel.display()),
                "QEMU boots a vmlinux built with CONFIG_PVH, or a bzImage",
            ),
            (Ok(Kernel::Unknown), KernelFormats::Elf | KernelFormats::PvhOrBzImage) => {
                found.add(
                    "boot.kernel",
                    format!("{} is no Linux kernel for x86-64", boot.kernel.display()),
                    "",
                );
            }
            (Err(error), _) => found.add("boot.kernel", cannot("read", &boot.kernel, &error), ""),
        }
    }
    let initramfs = readable("boot.initramfs", &boot.initramfs, found);
    if initramfs == Some(0) {
        found.add(
            "boot.initramfs",
            format!("{} is empty", boot.initramfs.display()),
            "",
        );
    }

    let needed = least_memory(kernel.unwrap_or(0), initramfs.unwrap_or(0)) >> 20;
    if u64::from(spec.memory_mib) < needed {
        found.add(
            "memory_mib",
            format!("{}MiB do not hold kernel and initramfs", spec.memory_mib),
            &format!("give it {needed}MiB or more"),
        );
    }

    for (index, argument) in boot.args.iter().enumerate() {
        // A parameter with spaces would be several; a quoted one no driver here needs.
        if argument.is_empty() || !argument.bytes().all(|byte| byte.is_ascii_graphic()) {
            found.add(
                format!("boot.args[{index}]"),
                format!("{argument:?} is not one kernel parameter"),
                "only visible ASCII characters, no spaces",
            );
        }
    }
    if limits.command_line.len() > limits.command_line_limit {
        found.add(
            "boot.args",
            format!(
                "the kernel's command line would have {} bytes, {} is the most",
                limits.command_line.len(),
                limits.command_line_limit
            ),
            "pass fewer or shorter parameters",
        );
    }
}

fn disks(disks: &[Disk], found: &mut Problems) {
    if disks.len() > MOST_DISKS {
        found.add("disks", format!("{} are more than {MOST_DISKS}", disks.len()), "");
    }
    let mut ids = HashSet::new();
    let mut written = HashSet::new();
    for (index, disk) in disks.iter().enumerate() {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if disk.id.is_empty() || disk.id.len() > LONGEST_DISK_ID || !disk.id.bytes().all(plain) {
            found.add(
                format!("disks[{index}].id"),
                format!(
                    "{:?} is not 1 to {LONGEST_DISK_ID} letters, digits, `-`, `_`",
                    disk.id
                ),
                "",
            );
        }
        if !ids.insert(&disk.id) {
            found.add(
                format!("disks[{index}].id"),
                format!("{:?} is used twice", disk.id),
                "",
            );
        }
        let field = format!("disks[{index}].path");
        if !disk.read_only && !written.insert(&disk.path) {
            found.add(
                &field,
                format!("{} is attached for writing twice", disk.path.display()),
                "",
            );
        }
        if let Some(size) = readable(&field, &disk.path, found) {
            if size == 0 || size % 512 != 0 {
                found.add(
                    &field,
                    format!("{} has {size} bytes, not a multiple of 512", disk.path.display()),
                    "",
                );
            }
            if !disk.read_only {
                may(Access::WRITE_OK, "write", &field, &disk.path, found);
            }
        }
    }
}

fn network(network: Option<&Network>, limits: &Limits<'_>, found: &mut Problems) {
    match network {
        None => {}
        Some(Network::User { mac }) => {
            if let Err(NoUserNetwork { message, hint }) = &limits.user_network {
                found.add("network", message, hint);
            }
            card(mac, found);
        }
        Some(Network::Tap { name, mac }) => {
            tap(name, found);
            card(mac, found);
        }
    }
}

fn card(mac: &[u8; 6], found: &mut Problems) {
    if mac[0] & 1 != 0 {
        found.add(
            "network.mac",
            "a card's address is no group address",
            "make the first byte even",
        );
    }
}

fn tap(name: &str, found: &mut Problems) {
    // QEMU's options split at commas; and it makes what is not there, of a sort of its own.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if hostkit::link::check_name(name).is_err() || !name.bytes().all(plain) {
        found.add(
            "network.name",
            format!("{name:?} is not 1 to 15 letters, digits, `-`, `_`, `.`"),
            "",
        );
        return;
    }
    let exists = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .and_then(|any| name_to_index(&any, name));
    if let Err(errno) = exists {
        found.add(
            "network.name",
            format!("cannot find the tap {name}: {}", std::io::Error::from(errno)),
            "make it before the machine is started",
        );
    }
}

/// Directories, and the sockets and logs in them.
fn places(spec: &MachineSpec, limits: &Limits<'_>, found: &mut Problems) {
    directory("runtime_dir", &spec.runtime_dir, found);
    for name in limits.sockets {
        socket("runtime_dir", &spec.runtime_dir.join(name), 0, found);
    }
    socket("vsock.socket", &spec.vsock.socket, PORT_SUFFIX, found);
    for (field, path) in [
        ("vsock.socket", &spec.vsock.socket),
        ("console", &spec.console),
        ("log", &spec.log),
        ("metrics", &spec.metrics),
    ] {
        if !is_text(field, path, found) {
            continue;
        }
        match path.parent() {
            // Said once already.
            Some(parent) if parent == spec.runtime_dir => {}
            Some(parent) => directory(field, parent, found),
            None => found.add(field, format!("{} is no file name", path.display()), ""),
        }
    }
}

fn socket(field: &str, path: &Path, suffix: usize, found: &mut Problems) {
    let length = path.as_os_str().len() + suffix;
    if length > SOCKET_PATH_LIMIT {
        found.add(
            field,
            format!(
                "{} is {} bytes too long for a socket",
                path.display(),
                length - SOCKET_PATH_LIMIT
            ),
            "use a runtime directory with a shorter path",
        );
    }
}

/// The file's size in bytes if it is a file or block device that we may read; a problem otherwise.
fn readable(field: &str, path: &Path, found: &mut Problems) -> Option<u64> {
    if !is_text(field, path, found) {
        return None;
    }
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => {
            found.add(field, cannot("find", path, &error), "");
            return None;
        }
    };
    let block = meta.file_type().is_block_device();
    if !meta.is_file() && !block {
        found.add(
            field,
            format!("{} is neither a file nor a block device", path.display()),
            "",
        );
        return None;
    }
    if !may(Access::READ_OK, "read", field, path, found) {
        return None;
    }
    // A device's size is not in its metadata; its own driver checks it.
    Some(if block { 512 } else { meta.len() })
}

fn directory(field: &str, path: &Path, found: &mut Problems) {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            may(Access::WRITE_OK | Access::EXEC_OK, "write in", field, path, found);
        }
        Ok(_) => found.add(field, format!("{} is no directory", path.display()), ""),
        Err(error) => found.add(field, cannot("find the directory", path, &error), ""),
    }
}

/// Whether the effective user has the right, without opening anything.
fn may(access: Access, verb: &str, field: &str, path: &Path, found: &mut Problems) -> bool {
    match rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS) {
        Ok(()) => true,
        Err(errno) => {
            found.add(field, cannot(verb, path, &errno.into()), "");
            false
        }
    }
}

/// Firecracker's configuration and QEMU's options are UTF-8; one rule for both.
fn is_text(field: &str, path: &Path, found: &mut Problems) -> bool {
    let text = path
        .to_str()
        .is_some_and(|text| !text.chars().any(char::is_control));
    if !text {
        found.add(field, format!("{} is not plain UTF-8", path.display()), "");
    } else if !path.is_absolute() {
        found.add(field, format!("{} is not absolute", path.display()), "");
        return false;
    }
    text
}

fn cannot(verb: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {verb} {}: {error}", path.display())
}

#[cfg(test)]
#[path = "check_tests.rs"]
pub(crate) mod tests;
