//! One flaw at a time against a specification without any.

use std::path::PathBuf;

use super::*;
use crate::kernel::tests::elf;
use crate::spec::{Boot, Vsock};

/// A specification with everything in one directory, which need not exist.
pub(crate) fn spec(dir: &Path) -> MachineSpec {
    let disk = |id: &str, name: &str, read_only| Disk {
        id: id.to_owned(),
        path: dir.join(name),
        read_only,
    };
    MachineSpec {
        token: "bgrabc0123456".to_owned(),
        vcpus: 2,
        memory_mib: 256,
        boot: Boot {
            kernel: dir.join("vmlinux"),
            initramfs: dir.join("initramfs"),
            args: vec![
                "banger.root=/dev/vda".to_owned(),
                "banger.overlay=/dev/vdb".to_owned(),
            ],
        },
        disks: vec![
            disk("base", "base.ext4", true),
            disk("overlay", "overlay.img", false),
        ],
        vsock: Vsock {
            guest_cid: 3,
            socket: dir.join("vsock.sock"),
        },
        network: None,
        console: dir.join("console.log"),
        runtime_dir: dir.to_owned(),
        log: dir.join("vmm.log"),
        metrics: dir.join("metrics.json"),
    }
}

/// The files of [`spec`].
fn fill(dir: &Path) {
    std::fs::write(dir.join("vmlinux"), elf(true)).unwrap();
    std::fs::write(dir.join("initramfs"), "070701").unwrap();
    std::fs::write(dir.join("base.ext4"), [0; 1024]).unwrap();
    std::fs::write(dir.join("overlay.img"), [0; 1024]).unwrap();
}

fn problems_with(limits: &Limits<'_>, flaw: impl FnOnce(&mut MachineSpec, &Path)) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let mut spec = spec(dir.path());
    flaw(&mut spec, dir.path());
    let before = listing(dir.path());
    let found = check(&spec, limits);
    assert_eq!(listing(dir.path()), before, "a check changes nothing");
    let root = dir.path().to_str().unwrap();
    found
        .iter()
        .map(|problem| problem.to_string().replace(root, "DIR"))
        .collect()
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
}

const LIMITS: Limits<'_> = Limits {
    vcpus: 32,
    kernel: KernelFormats::PvhOrBzImage,
    command_line: "quiet",
    command_line_limit: 2047,
    user_network: Ok(()),
    sockets: &["control.sock"],
};

#[test]
fn nothing_wrong() {
    assert_eq!(problems_with(&LIMITS, |_, _| {}), [""; 0]);
}

#[test]
fn each_flaw_is_named() {
    type Flaw = fn(&mut MachineSpec, &Path);
    let table: &[(Flaw, &str)] = &[
        (
            |spec, _| spec.token = "bgr/..".into(),
            "token: \"bgr/..\" is not `bgr` and lowercase letters and digits",
        ),
        (|spec, _| spec.vcpus = 0, "vcpus: 0 is not between 1 and 32"),
        (|spec, _| spec.vcpus = 33, "vcpus: 33 is not between 1 and 32"),
        (
            |spec, _| spec.memory_mib = 31,
            "memory_mib: 31MiB do not hold kernel and initramfs",
        ),
        (
            |spec, dir| {
                std::fs::File::create(dir.join("big"))
                    .unwrap()
                    .set_len(200 << 20)
                    .unwrap();
                spec.boot.initramfs = dir.join("big");
            },
            "memory_mib: 256MiB do not hold kernel and initramfs",
        ),
        (
            |spec, dir| spec.boot.kernel = dir.join("none"),
            "boot.kernel: cannot find DIR/none: No such file or directory (os error 2)",
        ),
        (
            |spec, dir| spec.boot.kernel = dir.into(),
            "boot.kernel: DIR is neither a file nor a block device",
        ),
        (
            |spec, dir| spec.boot.kernel = dir.join("initramfs"),
            "boot.kernel: DIR/initramfs is no Linux kernel for x86-64",
        ),
        (
            |_, dir| std::fs::write(dir.join("vmlinux"), elf(false)).unwrap(),
            "boot.kernel: DIR/vmlinux has no PVH entry",
        ),
        (
            |_, dir| std::fs::write(dir.join("initramfs"), "").unwrap(),
            "boot.initramfs: DIR/initramfs is empty",
        ),
        (
            |spec, _| spec.boot.initramfs = "a".into(),
            "boot.initramfs: a is not absolute",
        ),
        (
            |spec, _| spec.boot.args.push("a b".into()),
            "boot.args[2]: \"a b\" is not one kernel parameter",
        ),
        (
            |spec, _| spec.boot.args.push("a\0".into()),
            "boot.args[2]: \"a\\0\" is not one kernel parameter",
        ),
        (
            |spec, _| spec.boot.args.push("".into()),
            "boot.args[2]: \"\" is not one kernel parameter",
        ),
        (
            |spec, _| spec.disks[0].id = "a,b".into(),
            "disks[0].id: \"a,b\" is not 1 to 20 letters, digits, `-`, `_`",
        ),
        (
            |spec, _| spec.disks[0].id = "overlay".into(),
            "disks[1].id: \"overlay\" is used twice",
        ),
        (
            |spec, _| {
                spec.disks[0].read_only = false;
                spec.disks[0].path = spec.disks[1].path.clone();
            },
            "disks[1].path: DIR/overlay.img is attached for writing twice",
        ),
        (
            |_, dir| std::fs::write(dir.join("base.ext4"), [0; 1000]).unwrap(),
            "disks[0].path: DIR/base.ext4 has 1000 bytes, not a multiple of 512",
        ),
        (
            |spec, dir| spec.disks[1].path = dir.join("none"),
            "disks[1].path: cannot find DIR/none: No such file or directory (os error 2)",
        ),
        (
            |spec, _| spec.vsock.guest_cid = 2,
            "vsock.guest_cid: 2 is reserved",
        ),
        (
            |spec, _| {
                spec.network = Some(Network::User {
                    mac: [1, 0, 0, 0, 0, 0],
                });
            },
            "network.mac: a card's address is no group address",
        ),
        (
            |spec, _| {
                spec.network = Some(Network::Tap {
                    name: "bgr0,t1".to_owned(),
                    mac: [0; 6],
                });
            },
            "network.name: \"bgr0,t1\" is not 1 to 15 letters, digits, `-`, `_`, `.`",
        ),
        (
            |spec, _| {
                spec.network = Some(Network::Tap {
                    name: "no-such-tap".to_owned(),
                    mac: [0; 6],
                });
            },
            "network.name: cannot find the tap no-such-tap: No such device (os error 19)",
        ),
        (
            |spec, _| {
                spec.network = Some(Network::Tap {
                    name: "lo".to_owned(),
                    mac: [3; 6],
                });
            },
            "network.mac: a card's address is no group address",
        ),
        (
            |spec, dir| spec.console = dir.join("none/console"),
            "console: cannot find the directory DIR/none: No such file or directory (os error 2)",
        ),
        (
            |spec, dir| spec.log = dir.join("initramfs/log"),
            "log: DIR/initramfs is no directory",
        ),
        (|spec, _| spec.metrics = "/".into(), "metrics: / is no file name"),
    ];
    for (flaw, message) in table {
        assert_eq!(problems_with(&LIMITS, flaw), [*message]);
    }
}

#[test]
fn drivers_differ() {
    let elf_only = Limits {
        kernel: KernelFormats::Elf,
        user_network: Err(NoUserNetwork {
            message: "there is none".to_owned(),
            hint: "",
        }),
        ..LIMITS
    };
    let problems = problems_with(&elf_only, |spec, dir| {
        let mut image = vec![0; 0x400];
        image[0x1fe..0x206].copy_from_slice(b"\x55\xaa\x00\x00HdrS");
        std::fs::write(dir.join("vmlinux"), image).unwrap();
        spec.network = Some(Network::User { mac: [0; 6] });
    });
    assert_eq!(
        problems,
        [
            "boot.kernel: DIR/vmlinux is a compressed kernel (bzImage)",
            "network: there is none"
        ]
    );
    assert_eq!(
        problems_with(&elf_only, |_, dir| std::fs::write(
            dir.join("vmlinux"),
            elf(false)
        )
        .unwrap()),
        [""; 0]
    );
    let short = Limits {
        command_line_limit: 4,
        ..LIMITS
    };
    assert_eq!(
        problems_with(&short, |_, _| {}),
        ["boot.args: the kernel's command line would have 5 bytes, 4 is the most"]
    );
}

#[test]
fn socket_paths_have_a_limit() {
    let long = |length: usize| {
        move |spec: &mut MachineSpec, dir: &Path| {
            let name = "r".repeat(length - dir.as_os_str().len() - 1);
            spec.runtime_dir = dir.join(name);
            std::fs::create_dir(&spec.runtime_dir).unwrap();
        }
    };
    // With "/control.sock": 13 bytes more.
    assert_eq!(problems_with(&LIMITS, long(94)), [""; 0]);
    let problems = problems_with(&LIMITS, long(95));
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].ends_with("/control.sock is 1 bytes too long for a socket"),
        "{problems:?}"
    );
    let vsock = |length: usize| {
        move |spec: &mut MachineSpec, dir: &Path| {
            spec.vsock.socket = dir.join("s".repeat(length - dir.as_os_str().len() - 1));
        }
    };
    assert_eq!(problems_with(&LIMITS, vsock(101)), [""; 0]);
    assert_eq!(
        problems_with(&LIMITS, vsock(102)).len(),
        1,
        "no room for the guest's ports"
    );
}

#[test]
fn all_problems_at_once() {
    let problems = problems_with(&LIMITS, |spec, _| {
        spec.vcpus = 0;
        spec.vsock.guest_cid = 0;
        spec.boot.kernel = "/nonexistent".into();
        spec.disks[0].path = "/nonexistent".into();
    });
    assert_eq!(problems.len(), 4, "{problems:?}");
}
