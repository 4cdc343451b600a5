//! What a machine is made of, in terms both drivers understand.
//!
//! A specification is plain data: complete, without defaults, and enough to adopt the machine later. Nothing is
//! validated here; [`Vmm::check`](crate::Vmm::check) does that against the driver that is to run it.

use std::path::PathBuf;

/// One machine, ready to be launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Name of the machine on the host: `bgr` and the VM's id, lowercase letters and digits. It is in the arguments
    /// of every process of the machine, so that an orphan can be recognised by it.
    pub token: String,
    /// Virtual processors, at least 1.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What the guest starts with.
    pub boot: Boot,
    /// Disks in the order the guest sees them: the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// The guest's only control channel.
    pub vsock: Vsock,
    /// Network card, if any.
    pub network: Option<Network>,
    /// Where the serial console is appended. Opened with `O_APPEND`, so it may be truncated while the guest runs.
    pub console: PathBuf,
    /// Directory for this machine's sockets; it exists, belongs to us and nobody else may enter it.
    pub runtime_dir: PathBuf,
    /// Where the VMM processes' own messages are appended.
    pub log: PathBuf,
    /// Where the VMM's metrics go, one JSON document a line; begun anew by each launch. Firecracker writes its own; QEMU
    /// has none, and its driver keeps there what its tap had moved before.
    pub metrics: PathBuf,
}

/// Kernel, initramfs and command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Firecracker: an uncompressed ELF `vmlinux`. QEMU: that (with a PVH note, which is faster) or a `bzImage`.
    pub kernel: PathBuf,
    /// Initial root file system, a cpio archive.
    pub initramfs: PathBuf,
    /// Command line parameters beyond those of the driver (console, reboot, panic …), which come first.
    pub args: Vec<String>,
}

/// A raw disk image, attached as virtio-blk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Name within the machine: letters, digits, `-` and `_`.
    pub id: String,
    /// The image, in raw format.
    pub path: PathBuf,
    /// Attached read-only; such an image may be shared by any number of machines.
    pub read_only: bool,
}

/// The virtio socket device and its end on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
    /// Unix socket on which the host connects to guest ports by Firecracker's hybrid-vsock protocol
    /// (`CONNECT <port>\n`, answered by `OK <port>\n`). A guest that connects to port P of the host arrives at
    /// `<socket>_P`.
    pub socket: PathBuf,
}

/// How the guest's network card is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// User-mode network: outbound only, needs no privileges. The guest is 10.0.2.15/24, gateway 10.0.2.2, DNS 10.0.2.3;
    /// with IPv6 it configures itself. Carried by `passt` where that works, else by QEMU itself
    /// ([`Carrier`](crate::Carrier)).
    ///
    /// QEMU's own lets the guest reach services on the host's loopback, at 10.0.2.2: it has no option against it. passt
    /// does not.
    User {
        /// The card's hardware address.
        mac: [u8; 6],
    },
    /// A tap of the host's: a persistent interface that exists, is in no other machine's use, and that the VMM may open
    /// (with `CAP_NET_ADMIN`, or as its owner). What it is connected to is not this crate's business.
    Tap {
        /// The tap's name in the network namespace in which the VMM is started, which is the caller's.
        name: String,
        /// The card's hardware address. The tap has another of its own.
        mac: [u8; 6],
    },
}

/// A hardware address as people and programs write it.
pub(crate) fn mac_text(mac: &[u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
