//! A machine of each kind of system disk.

use std::time::Duration;

use e2e::Host;

/// Kinds, and the machines that have them.
pub(crate) const KINDS: [(&str, &str); 3] = [("overlay", "over"), ("reflink", "ref"), ("dm", "mapped")];

pub(crate) fn steps(host: &Host<'_>) {
    host.step("create a machine of each kind", || {
        KINDS.map(|(kind, name)| create(host, kind, name))
    });
    host.step("start all", || {
        host.banger(["vm", "start"])
            .args(KINDS.map(|(_, name)| name))
            .ok();
    });
    host.step("what a guest sees of its disk", || {
        KINDS.map(|(kind, name)| inside(host, kind, name))
    });
    host.step("what a host sees of device-mapper", || running(host));
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
    let root = host.vm_sh(name, "awk '$2 == \"/\" { print $3 }' /proc/mounts | tail -n 1");
    assert_eq!(root, if kind == "overlay" { "overlay" } else { "ext4" });
    // The image's own programs are there, the disk can be written to and is as large as it was asked to be.
    host.vm_sh(name, "test -x /bin/busybox; echo kept > /etc/witness; sync");
    let size: u64 = host
        .vm_sh(name, "df -k / | awk 'END { print $2 }'")
        .parse()
        .expect("a size");
    assert!((400 << 10..=512 << 10).contains(&size), "{kind}: {size} KiB");
    let used = host.vm(name)["disk_used"].as_u64().expect("a size");
    assert!((1..64 << 20).contains(&used), "{kind}: {used} bytes taken");
}

/// Device-mapper devices and loop devices of the one machine that has them, and nothing else of ours.
fn running(host: &Host<'_>) {
    let id = host.vm("mapped")["id"].as_str().expect("an id").to_owned();
    assert_eq!(
        host.sh("dmsetup ls | cut -f 1 | sort"),
        format!("bgr{id}\nbgr{id}-base")
    );
    assert_eq!(loops(host).len(), 2, "{:#?}", loops(host));
}

/// Files behind the loop devices that Banger made: in the state directory.
pub(crate) fn loops(host: &Host<'_>) -> Vec<String> {
    let all = host.sh("losetup --list --noheadings --output BACK-FILE");
    all.lines()
        .filter(|file| file.starts_with("/var/lib/banger/"))
        .map(str::to_owned)
        .collect()
}
