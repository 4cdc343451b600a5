//! A machine of each kind of system disk: what it costs, what its guest sees, what the host sees, and what is left of it.

use std::time::Duration;

use e2e::Host;

/// Kinds, and the machines that have them.
///
/// Not the overlay in the guest, which needs nothing of a host and is what all other suites use.
pub(crate) const KINDS: [(&str, &str); 2] = [("reflink", "ref"), ("dm", "mapped")];

/// How long machines may take that are emulated in an emulated host, beside other tests.
pub(crate) const BOOTED: Duration = Duration::from_secs(600);

/// Written into the guest's system disk once it runs.
const WITNESS: &str = "/etc/witness";

/// Called as a machine's objects are, of which there is none.
const ORPHAN: &str = "bgrqqqqqqqqqq";

pub(crate) fn steps(host: &Host<'_>) {
    host.step("create a machine of each kind", || {
        for (kind, name) in KINDS {
            create(host, kind, name);
        }
    });
    for (step, name) in [
        ("start the one on a reflink", "ref"),
        ("start the one on device-mapper", "mapped"),
    ] {
        // One at a time: emulated within an emulated host, they only wait for each other.
        host.step(step, || host.banger(["vm", "start", name]).deadline(BOOTED).ok());
    }
    host.step("what guests see of their disks", || {
        for (kind, name) in KINDS {
            inside(host, kind, name);
        }
    });
    host.step("what the host sees of them", || running(host));
}

/// What is tried when the service is no longer needed to go on undisturbed. The machine on a reflink runs on.
pub(crate) fn renewed(host: &Host<'_>) {
    let token = token(host, "mapped");
    let uuid = host.sh(&format!(
        "dmsetup info --columns --noheadings --options uuid {token}"
    ));
    host.step("a stop takes the devices down", || {
        host.banger(["vm", "stop", "mapped"]).ok();
        assert_no_devices(host);
    });
    host.step("a reset renews the disk on device-mapper", || {
        reset(host, "dm", "mapped");
        assert_no_devices(host);
    });
    host.step("a crash in the middle of a start leaves no devices", || {
        crash(host, &token);
    });
    host.step("devices that only their names betray are removed", || {
        orphan(host, &uuid.replace(&token, ORPHAN));
    });
}

/// Resets a machine that is stopped.
pub(crate) fn reset(host: &Host<'_>, kind: &str, name: &str) {
    let before = files(host, name);
    let reset = host.banger(["vm", "reset", name, "--yes"]).run().expect(0);
    println!("          {kind}: {:?}", reset.took);
    assert!(reset.took < Duration::from_secs(20), "{reset}");
    let after = files(host, name);
    assert_eq!(after.len(), 1, "{after:?}");
    assert_ne!(before, after);
    let used = host.vm(name)["disk_used"].as_u64().expect("a size");
    assert!(used < 8 << 20, "{kind}: {used} bytes taken by an empty disk");
}

fn create(host: &Host<'_>, kind: &str, name: &str) {
    let created = host
        .banger(["vm", "create", name, "--image", "busybox", "--system-disk", kind])
        .args(["--memory", "128M", "--vcpus", "1", "--disk", "512M"])
        .run()
        .expect(0);
    println!("          {kind}: {:?}", created.took);
    assert!(created.took < Duration::from_secs(20), "{created}");
    assert_eq!(host.vm(name)["system_disk"], kind);
}

fn inside(host: &Host<'_>, kind: &str, name: &str) {
    let root = host.vm_sh(
        name,
        "awk '$2 == \"/\" { kind = $3 } END { print kind }' /proc/mounts",
    );
    assert_eq!(root, "ext4", "{kind}");
    // The disk can be written to and is as large as it was asked to be, whatever the image's size.
    leave_witness(host, name);
    let size = host.vm_sh(name, "df -k / | awk 'END { print $(NF - 4) }'");
    let size: u64 = size.parse().unwrap_or_else(|e| panic!("{e}: {size:?}"));
    assert!((400 << 10..=512 << 10).contains(&size), "{kind}: {size} KiB");
    let used = host.vm(name)["disk_used"].as_u64().expect("a size");
    assert!((1..64 << 20).contains(&used), "{kind}: {used} bytes taken");
}

fn leave_witness(host: &Host<'_>, name: &str) {
    host.vm_sh(name, &format!("echo kept > {WITNESS} && sync"));
}

/// The machine still has what was written into it.
pub(crate) fn assert_witness(host: &Host<'_>, name: &str) {
    assert_eq!(host.vm_sh(name, &format!("cat {WITNESS}")), "kept");
}

/// The machine has a system disk as new.
pub(crate) fn assert_new(host: &Host<'_>, name: &str) {
    assert_eq!(
        host.vm_sh(name, &format!("test ! -e {WITNESS} && echo new")),
        "new"
    );
}

/// Device-mapper devices and loop devices of the one machine that has them, and nothing else of ours.
fn running(host: &Host<'_>) {
    let token = token(host, "mapped");
    assert_eq!(
        host.sh("dmsetup ls | cut -f 1 | sort"),
        format!("{token}\n{token}-base")
    );
    // The second part is the disk's growth beyond the image.
    assert_eq!(
        host.sh(&format!(
            "for name in {token}-base {token}; do dmsetup table $name | cut -d ' ' -f 3; done"
        )),
        "linear\nzero\nsnapshot"
    );
    let loops = loops(host);
    let own = format!("/var/lib/banger/vms/{token}/cow-0.img");
    assert_eq!(loops.len(), 2, "{loops:#?}");
    assert!(
        loops.contains(&own) && loops.iter().any(|file| file.ends_with("/rootfs.ext4")),
        "{loops:#?}"
    );
    assert_eq!(
        host.sh("losetup --noheadings --output RO --associated /var/lib/banger/images/*/rootfs.ext4")
            .trim(),
        "1"
    );
}

fn crash(host: &Host<'_>, token: &str) {
    let daemon = host.sh("systemctl show --value --property MainPID bangerd");
    // Killed as soon as the first device is there: loop devices, the other device, perhaps processes are left.
    host.sh(&format!(
        "banger vm start mapped >/dev/null 2>&1 & \
         until [ -e /dev/mapper/{token}-base ]; do :; done; kill -KILL {daemon}; wait"
    ));
    back(host);
    assert_no_devices(host);
    // The brackets keep the pattern from being found in the arguments of the search itself.
    let pattern = token.replacen('b', "[b]", 1);
    assert_eq!(
        host.sh(&format!("pgrep --list-full --full '{pattern}' || true")),
        ""
    );
    let state = host.vm("mapped")["state"].clone();
    assert!(state == "stopped" || state == "failed", "{state}");
}

/// As a start leaves it of a machine of which nothing is known any more, not even a row; and one that is somebody else's.
fn orphan(host: &Host<'_>, uuid: &str) {
    host.sh(&format!(
        "dmsetup create {ORPHAN} --uuid {uuid} --table '0 8 zero'; dmsetup create other --table '0 8 zero'; \
         systemctl restart bangerd"
    ));
    assert_eq!(host.sh("dmsetup ls | cut -f 1"), "other");
    host.sh("dmsetup remove other");
    assert_no_devices(host);
}

/// Waits until systemd has started a daemon again that was killed.
pub(crate) fn back(host: &Host<'_>) {
    host.wait(
        "systemd starts the daemon again",
        "systemctl is-active --quiet bangerd && banger --no-start daemon status >/dev/null 2>&1",
    );
}

/// No block device of Banger's is there.
pub(crate) fn assert_no_devices(host: &Host<'_>) {
    assert_eq!(host.sh("dmsetup ls"), "No devices found");
    assert_eq!(loops(host), [""; 0]);
    assert_eq!(host.sh("udevadm settle; ls /dev/mapper"), "control");
}

/// Files in the state directory that are behind loop devices: the devices that Banger made.
fn loops(host: &Host<'_>) -> Vec<String> {
    let all = host.sh("losetup --list --noheadings --output BACK-FILE");
    let ours = all
        .lines()
        .map(str::trim)
        .filter(|file| file.starts_with("/var/lib/banger/"));
    ours.map(str::to_owned).collect()
}

/// A machine's system disks: all generations that are there.
pub(crate) fn files(host: &Host<'_>, name: &str) -> Vec<String> {
    let token = token(host, name);
    let all = host.sh(&format!("ls /var/lib/banger/vms/{token}"));
    all.lines()
        .filter(|file| file.ends_with(".img"))
        .map(str::to_owned)
        .collect()
}

/// What a machine's objects on the host are called.
pub(crate) fn token(host: &Host<'_>, name: &str) -> String {
    format!("bgr{}", host.vm(name)["id"].as_str().expect("an id"))
}
