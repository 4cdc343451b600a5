//! What Firecracker is told about a machine: the bodies of its API's requests, typed, as pure functions of the
//! specification.
//!
//! Source: Firecracker 1.12, src/firecracker/swagger/firecracker.yaml.

use serde::Serialize;

use crate::spec::{Disk, MachineSpec, Network, mac_text};

/// What a kernel for x86-64 reads of its command line: `COMMAND_LINE_SIZE` of asm/setup.h less the NUL.
const COMMAND_LINE_LIMIT: usize = 2047;
/// Firecracker adds ` virtio_mmio.device=4K@0xd0000000:5` for each device, and up to three digits more.
const DEVICE_PARAMETER: usize = 40;

/// Parameters that fit this machine and any Linux guest:
/// the serial console; a reset through the keyboard controller, the only one Firecracker has, which ends the process,
/// for reboots and (`panic=-1`, at once) panics; no chatter over a serial port; no bus or device to probe for that is
/// not there; no self-tests of cryptography.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 quiet pci=off cryptomgr.notests 8250.nr_uarts=1 \
                            i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on";

/// The command line that we pass. What the caller adds comes last and so overrides.
pub(super) fn command_line(spec: &MachineSpec) -> String {
    let mut line = COMMAND_LINE.to_owned();
    for argument in &spec.boot.args {
        line.push(' ');
        line.push_str(argument);
    }
    line
}

/// How long our part of the command line may be, in bytes.
pub(super) fn command_line_limit(spec: &MachineSpec) -> usize {
    // The vsock device and the disks.
    COMMAND_LINE_LIMIT.saturating_sub(DEVICE_PARAMETER * (1 + spec.disks.len()))
}

/// Everything that is told before the machine is started, each part the body of a request of its own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Config<'a> {
    /// For `PUT /machine-config`.
    pub(super) machine_config: MachineConfig,
    /// For `PUT /boot-source`.
    pub(super) boot_source: BootSource<'a>,
    /// For `PUT /drives/{drive_id}`, in this order.
    pub(super) drives: Vec<Drive<'a>>,
    /// For `PUT /vsock`.
    pub(super) vsock: Vsock<'a>,
    /// For `PUT /network-interfaces/{iface_id}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network: Option<NetworkInterface<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    kernel_image_path: &'a str,
    initrd_path: &'a str,
    boot_args: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Drive<'a> {
    pub(super) drive_id: &'a str,
    path_on_host: &'a str,
    /// Whether Firecracker adds `root=` for it. It never is: our init mounts what it is told to.
    is_root_device: bool,
    is_read_only: bool,
    cache_type: CacheType,
    io_engine: IoEngine,
}

#[derive(Debug, Serialize)]
enum CacheType {
    /// The guest sees no write cache, and its flushes do nothing: for disks that are not written.
    Unsafe,
    /// The guest's flushes reach the host's disk.
    Writeback,
}

#[derive(Debug, Serialize)]
enum IoEngine {
    /// Blocking reads and writes. `Async` (io_uring) is switched off on many hosts.
    Sync,
}

#[derive(Debug, Serialize)]
pub(super) struct MachineConfig {
    vcpu_count: u8,
    mem_size_mib: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    guest_cid: u32,
    uds_path: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface<'a> {
    pub(super) iface_id: &'static str,
    host_dev_name: &'a str,
    guest_mac: String,
}

impl<'a> Config<'a> {
    /// Describes a specification that has been checked: paths that are not UTF-8 come out empty.
    pub(super) fn of(spec: &'a MachineSpec) -> Self {
        Self {
            boot_source: BootSource {
                kernel_image_path: spec.boot.kernel.to_str().unwrap_or_default(),
                initrd_path: spec.boot.initramfs.to_str().unwrap_or_default(),
                boot_args: command_line(spec),
            },
            drives: spec.disks.iter().map(Drive::of).collect(),
            machine_config: MachineConfig {
                vcpu_count: spec.vcpus,
                mem_size_mib: spec.memory_mib,
            },
            vsock: Vsock {
                guest_cid: spec.vsock.guest_cid,
                uds_path: spec.vsock.socket.to_str().unwrap_or_default(),
            },
            network: spec.network.as_ref().and_then(NetworkInterface::of),
        }
    }
}

impl<'a> NetworkInterface<'a> {
    fn of(network: &'a Network) -> Option<Self> {
        match network {
            Network::Tap { name, mac } => Some(Self {
                iface_id: "net",
                host_dev_name: name,
                guest_mac: mac_text(mac),
            }),
            // Refused by the check.
            Network::User { .. } => None,
        }
    }
}

impl<'a> Drive<'a> {
    fn of(disk: &'a Disk) -> Self {
        Self {
            drive_id: &disk.id,
            path_on_host: disk.path.to_str().unwrap_or_default(),
            is_root_device: false,
            is_read_only: disk.read_only,
            cache_type: if disk.read_only {
                CacheType::Unsafe
            } else {
                CacheType::Writeback
            },
            io_engine: IoEngine::Sync,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::tests::spec;

    #[test]
    fn all_requests() {
        let spec = spec(Path::new("/d"));
        let text = serde_json::to_string_pretty(&Config::of(&spec)).unwrap();
        let expected = r#"{
  "machine-config": {
    "vcpu_count": 2,
    "mem_size_mib": 256
  },
  "boot-source": {
    "kernel_image_path": "/d/vmlinux",
    "initrd_path": "/d/initramfs",
    "boot_args": "console=ttyS0 reboot=k panic=-1 quiet pci=off cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on banger.root=/dev/vda banger.overlay=/dev/vdb"
  },
  "drives": [
    {
      "drive_id": "base",
      "path_on_host": "/d/base.ext4",
      "is_root_device": false,
      "is_read_only": true,
      "cache_type": "Unsafe",
      "io_engine": "Sync"
    },
    {
      "drive_id": "overlay",
      "path_on_host": "/d/overlay.img",
      "is_root_device": false,
      "is_read_only": false,
      "cache_type": "Writeback",
      "io_engine": "Sync"
    }
  ],
  "vsock": {
    "guest_cid": 3,
    "uds_path": "/d/vsock.sock"
  }
}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_tap_is_a_network_interface() {
        let mut spec = spec(Path::new("/d"));
        spec.network = Some(Network::Tap {
            name: "bgr0t3".to_owned(),
            mac: [2, 0, 0, 1, 2, 0xff],
        });
        let text = serde_json::to_string(&Config::of(&spec).network).unwrap();
        assert_eq!(
            text,
            r#"{"iface_id":"net","host_dev_name":"bgr0t3","guest_mac":"02:00:00:01:02:ff"}"#
        );
    }
}
