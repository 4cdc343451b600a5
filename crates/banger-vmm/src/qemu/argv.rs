//! Command lines of QEMU and `vhost-device-vsock`, as pure functions of the specification.
//!
//! Options whose values hold paths are given as JSON where QEMU takes it, since its key=value form splits at commas.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde_json::json;

use super::passt;
use crate::spec::{Disk, MachineSpec, Network, mac_text};
use crate::vmm::Accelerator;

/// What a kernel for x86-64 reads of its command line: `COMMAND_LINE_SIZE` of asm/setup.h less the NUL.
pub(super) const COMMAND_LINE_LIMIT: usize = 2047;

/// Parameters that fit this machine and any Linux guest:
/// the serial console; a reset by triple fault, which works at any moment and ends QEMU because of `-no-reboot`, for
/// reboots and (`panic=-1`, at once) panics; no chatter over an emulated serial port; no test of a timer that is known
/// to work, which a busy host can make fail; no self-tests of cryptography; one serial port and no PS/2 mouse to probe
/// for. The last three save a quarter of an emulated start.
const COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 quiet no_timer_check cryptomgr.notests \
                            8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on";

/// The kernel's whole command line. What the caller adds comes last and so overrides.
pub(super) fn command_line(spec: &MachineSpec) -> String {
    let mut line = COMMAND_LINE.to_owned();
    for argument in &spec.boot.args {
        line.push(' ');
        line.push_str(argument);
    }
    line
}

/// Numbers of the descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    /// A connection to `vhost-device-vsock`.
    vhost: RawFd,
    /// A listening socket for QMP.
    qmp: RawFd,
    /// A connection to passt, where that carries the packets.
    passt: Option<RawFd>,
}

impl Descriptors {
    pub(super) fn of(vhost: &impl AsRawFd, qmp: &impl AsRawFd, passt: Option<&impl AsRawFd>) -> Self {
        Self {
            vhost: vhost.as_raw_fd(),
            qmp: qmp.as_raw_fd(),
            passt: passt.map(AsRawFd::as_raw_fd),
        }
    }
}

/// Arguments of `vhost-device-vsock`. The group does two things: it carries the token, and it lets the guest talk to no
/// sibling, as it is the only member.
pub(super) fn vsock_device(spec: &MachineSpec, control: &Path) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.pair("--groups", &spec.token);
    args.pair("--guest-cid", &spec.vsock.guest_cid.to_string());
    args.path("--socket", control);
    args.path("--uds-path", &spec.vsock.socket);
    args.0
}

/// Arguments of `qemu-system-x86_64`.
pub(super) fn qemu(spec: &MachineSpec, accelerator: Accelerator, descriptors: &Descriptors) -> Vec<OsString> {
    let mut args = Arguments::default();
    args.pair("-name", &spec.token);
    args.flag("-no-user-config");
    args.flag("-nodefaults");
    args.flag("-no-reboot");
    args.pair("-display", "none");
    args.pair("-msg", "timestamp=on");
    // Nothing that QEMU still does once it runs needs what is denied here.
    args.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );

    args.pair(
        "-machine",
        "q35,memory-backend=memory,sata=off,smm=off,usb=off,vmport=off",
    );
    match accelerator {
        Accelerator::Kvm => {
            args.pair("-accel", "kvm");
            args.pair("-cpu", "host");
        }
        Accelerator::Tcg => {
            args.pair("-accel", "tcg,thread=multi");
            args.pair("-cpu", "max");
        }
    }
    args.pair("-smp", &spec.vcpus.to_string());
    args.pair("-m", &format!("{}M", spec.memory_mib));
    // Shared, because vhost-device-vsock reads the guest's queues in its memory.
    args.pair(
        "-object",
        &format!(
            "memory-backend-memfd,id=memory,size={}M,share=on",
            spec.memory_mib
        ),
    );

    args.path("-kernel", &spec.boot.kernel);
    args.path("-initrd", &spec.boot.initramfs);
    args.pair("-append", &command_line(spec));

    args.pair(
        "-chardev",
        &format!("file,id=console,append=on,path={}", escape(&spec.console)),
    );
    args.pair("-serial", "chardev:console");
    args.pair(
        "-chardev",
        &format!("socket,id=qmp,fd={},server=on,wait=off", descriptors.qmp),
    );
    args.pair("-qmp", "chardev:qmp");

    for (slot, disk) in spec.disks.iter().enumerate() {
        args.pair("-blockdev", &blockdev(disk));
        // Slots are given out here, since the guest names disks in their order.
        args.pair(
            "-device",
            &json!({
                "driver": "virtio-blk-pci",
                "id": format!("disk-{}", disk.id),
                "drive": node(disk),
                "addr": format!("{:x}", FIRST_DISK_SLOT + slot),
            })
            .to_string(),
        );
    }
    args.pair("-chardev", &format!("socket,id=vhost,fd={}", descriptors.vhost));
    args.pair(
        "-device",
        &format!("vhost-user-vsock-pci,id=vsock,chardev=vhost,addr={VSOCK_SLOT:x}"),
    );
    let mac = match &spec.network {
        None => None,
        Some(Network::User { mac }) => {
            match descriptors.passt {
                Some(socket) => args.pair(
                    "-netdev",
                    &format!("{STREAM},id=net,addr.type=fd,addr.str={socket}"),
                ),
                None => args.pair("-netdev", "user,id=net"),
            }
            Some(mac)
        }
        Some(Network::Tap { name, mac }) => {
            // The scripts would bring it up and into a bridge: it is already.
            args.pair(
                "-netdev",
                &format!("tap,id=net,ifname={name},script=no,downscript=no"),
            );
            Some(mac)
        }
    };
    if let Some(mac) = mac {
        // Without a boot ROM: nobody boots from this card.
        let mut card = format!(
            "virtio-net-pci,id=card,netdev=net,romfile=,addr={NETWORK_SLOT:x},mac={}",
            mac_text(mac)
        );
        if descriptors.passt.is_some() {
            // The guest's driver takes it up by itself.
            card.push_str(&format!(",host_mtu={}", passt::MTU));
        }
        args.pair("-device", &card);
    }
    args.0
}

/// The kind of network that is another program's, in frames over a stream.
const STREAM: &str = "stream";

/// Whether a QEMU with these arguments has its packets carried by passt.
pub(super) fn is_carried_by_passt(args: &[OsString]) -> bool {
    let netdev = args.iter().skip_while(|argument| *argument != "-netdev").nth(1);
    netdev
        .and_then(|netdev| netdev.to_str())
        .is_some_and(|netdev| netdev.split(',').next() == Some(STREAM))
}

/// Slots on q35's root bus; 0x1f is the chipset's.
const VSOCK_SLOT: usize = 2;
const NETWORK_SLOT: usize = 3;
const FIRST_DISK_SLOT: usize = 4;

/// A raw image with the host's page cache, written back when the guest asks for it; blocks that the guest discards are
/// given back to the host's file system. QEMU's image locks stay on: they let any number of machines read an image, and
/// none write what another one uses.
fn blockdev(disk: &Disk) -> String {
    // QEMU refuses a block device as a file.
    let device = std::fs::metadata(&disk.path).is_ok_and(|found| found.file_type().is_block_device());
    json!({
        "driver": "raw",
        "node-name": node(disk),
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": {
            "driver": if device { "host_device" } else { "file" },
            "filename": disk.path.to_string_lossy(),
            "aio": "threads",
            "discard": "unmap",
        },
    })
    .to_string()
}

/// Node names hold 31 bytes at most; [`crate::check`] keeps ids short enough.
fn node(disk: &Disk) -> String {
    node_name(&disk.id)
}

/// The block node of the disk with this id.
pub(super) fn node_name(id: &str) -> String {
    format!("node-{id}")
}

/// A value in QEMU's key=value syntax, where a comma is written twice.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// An argument list under construction.
#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn pair(&mut self, name: &str, value: &str) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn path(&mut self, name: &str, path: &Path) {
        self.flag(name);
        self.0.push(path.into());
    }
}

#[cfg(test)]
mod tests {
    use hostkit::process::{CommandLine, ProcessId};

    use super::*;
    use crate::check::tests::spec;
    use crate::vmm::ProcessRole;

    const DESCRIPTORS: Descriptors = Descriptors {
        vhost: 7,
        qmp: 8,
        passt: None,
    };

    fn shown(args: &[OsString]) -> String {
        let mut text = String::new();
        for argument in args {
            let argument = argument.to_str().unwrap();
            text.push_str(if argument.starts_with('-') && !text.is_empty() {
                "\n"
            } else {
                " "
            });
            text.push_str(argument);
        }
        text.trim_start().to_owned()
    }

    #[test]
    fn the_whole_command_line() {
        let mut spec = spec(Path::new("/d"));
        spec.network = Some(Network::User {
            mac: [0x52, 0x54, 0, 1, 2, 0xff],
        });
        spec.console = "/d/a,b/console".into();
        let args = qemu(&spec, Accelerator::Tcg, &DESCRIPTORS);
        let expected = r#"-name bgrabc0123456
-no-user-config
-nodefaults
-no-reboot
-display none
-msg timestamp=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine q35,memory-backend=memory,sata=off,smm=off,usb=off,vmport=off
-accel tcg,thread=multi
-cpu max
-smp 2
-m 256M
-object memory-backend-memfd,id=memory,size=256M,share=on
-kernel /d/vmlinux
-initrd /d/initramfs
-append console=ttyS0 reboot=t panic=-1 quiet no_timer_check cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on banger.root=/dev/vda banger.overlay=/dev/vdb
-chardev file,id=console,append=on,path=/d/a,,b/console
-serial chardev:console
-chardev socket,id=qmp,fd=8,server=on,wait=off
-qmp chardev:qmp
-blockdev {"driver":"raw","node-name":"node-base","read-only":true,"discard":"unmap","file":{"driver":"file","filename":"/d/base.ext4","aio":"threads","discard":"unmap"}}
-device {"driver":"virtio-blk-pci","id":"disk-base","drive":"node-base","addr":"4"}
-blockdev {"driver":"raw","node-name":"node-overlay","read-only":false,"discard":"unmap","file":{"driver":"file","filename":"/d/overlay.img","aio":"threads","discard":"unmap"}}
-device {"driver":"virtio-blk-pci","id":"disk-overlay","drive":"node-overlay","addr":"5"}
-chardev socket,id=vhost,fd=7
-device vhost-user-vsock-pci,id=vsock,chardev=vhost,addr=2
-netdev user,id=net
-device virtio-net-pci,id=card,netdev=net,romfile=,addr=3,mac=52:54:00:01:02:ff"#;
        assert_eq!(shown(&args), expected);
    }

    #[test]
    fn passt_is_a_stream_of_frames() {
        let mut spec = spec(Path::new("/d"));
        let mac = [0x52, 0x54, 0, 1, 2, 0xff];
        spec.network = Some(Network::User { mac });
        let slirp = qemu(&spec, Accelerator::Tcg, &DESCRIPTORS);
        assert!(!is_carried_by_passt(&slirp));
        let descriptors = Descriptors {
            passt: Some(9),
            ..DESCRIPTORS
        };
        let args = qemu(&spec, Accelerator::Tcg, &descriptors);
        assert!(is_carried_by_passt(&args));
        let text = shown(&args);
        let expected = "\n-netdev stream,id=net,addr.type=fd,addr.str=9\
                        \n-device virtio-net-pci,id=card,netdev=net,romfile=,addr=3,mac=52:54:00:01:02:ff,host_mtu=65520";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_tap_is_opened_as_it_is() {
        let mut spec = spec(Path::new("/d"));
        spec.network = Some(Network::Tap {
            name: "bgr0t3".to_owned(),
            mac: [2, 0, 0, 1, 2, 0xff],
        });
        let text = shown(&qemu(&spec, Accelerator::Tcg, &DESCRIPTORS));
        let expected = "\n-netdev tap,id=net,ifname=bgr0t3,script=no,downscript=no\
                        \n-device virtio-net-pci,id=card,netdev=net,romfile=,addr=3,mac=02:00:00:01:02:ff";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn kvm_uses_the_hosts_processor() {
        let args = qemu(&spec(Path::new("/d")), Accelerator::Kvm, &DESCRIPTORS);
        let text = shown(&args);
        assert!(text.contains("\n-accel kvm\n-cpu host\n"), "{text}");
        assert!(!text.contains("netdev"), "{text}");
    }

    #[test]
    fn all_processes_are_recognised_by_their_arguments() {
        let spec = spec(Path::new("/d"));
        let identify = |mut args: Vec<OsString>| {
            args.insert(0, "program".into());
            crate::identify(&CommandLine {
                id: ProcessId {
                    pid: 1,
                    start_time: 1,
                },
                uid: 0,
                args,
            })
        };
        let found = |role| Some((spec.token.clone(), role));
        let args = qemu(&spec, Accelerator::Tcg, &DESCRIPTORS);
        assert_eq!(identify(args), found(ProcessRole::Vmm));
        assert_eq!(
            identify(vsock_device(&spec, Path::new("/d/vhost.sock"))),
            found(ProcessRole::VsockDevice)
        );
        assert_eq!(
            identify(passt::arguments(&spec.token, 7, Path::new("/d/passt.log"))),
            found(ProcessRole::Passt)
        );
    }
}
