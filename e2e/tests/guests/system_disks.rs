//! System disks of every kind that this machine can make, work disks, and the floor of free space.
//!
//! Device-mapper needs a kernel that has it: the suite `host` runs that kind in a host of its own.

use e2e::{Daemon, Guest, Settings, Testbed, testbed};
use serde_json::Value;

const SMALL: [&str; 4] = ["--memory", "256M", "--vcpus", "1"];
const MIB: u64 = 1 << 20;

fn create<'d>(daemon: &'d Daemon, name: &str, options: &[&str]) -> Guest<'d> {
    Guest::start_with(daemon, name, "busybox", &[&SMALL, options].concat())
}

fn show(daemon: &Daemon, name: &str) -> Value {
    daemon.banger(["vm", "show", name, "--output", "json"]).json()
}

/// Bytes of the file system that is mounted there in the guest.
fn size(guest: &Guest<'_>, mount: &str) -> u64 {
    let line = guest
        .exec(["sh", "-c", &format!("df -k {mount} | tail -n 1")])
        .ok();
    let field = line.split_whitespace().nth(1).expect("a size");
    field.parse::<u64>().expect("a number") * 1024
}

/// What every kind has to do: hold what is written over stops and power cuts, grow, be new after a reset, and take all of
/// it with it when the machine goes.
fn lives(daemon: &Daemon, kind: &str) {
    let options = ["--disk", "64M", "--work-disk", "32M", "--system-disk", kind];
    let guest = create(daemon, "lives", &options);
    let shown = show(daemon, "lives");
    assert_eq!(shown["system_disk"], kind, "{shown}");
    let (root, home) = (size(&guest, "/"), size(&guest, "/root"));
    assert!((40 * MIB..=64 * MIB).contains(&root), "/ has {root} bytes");
    assert!((20 * MIB..=32 * MIB).contains(&home), "/root has {home} bytes");
    let write = "echo system > /etc/kept && echo work > /root/kept && sync";
    guest.exec(["sh", "-c", write]).ok();
    let read = || guest.exec(["sh", "-c", "cat /etc/kept /root/kept"]).ok();

    daemon.banger(["vm", "stop", "lives"]).ok();
    daemon
        .banger(["vm", "set", "lives", "--disk", "128M", "--work-disk", "64M"])
        .ok();
    daemon.banger(["vm", "start", "lives"]).ok();
    assert_eq!(read(), "system\nwork");
    assert!(size(&guest, "/") > 90 * MIB, "/ has {} bytes", size(&guest, "/"));
    assert!(size(&guest, "/root") > 45 * MIB);

    // As the power goes: what was synced is there, and the disks are whole again.
    daemon.banger(["vm", "kill", "lives"]).ok();
    let started = daemon.banger(["vm", "start", "lives"]).run().expect(0);
    assert!(
        started.err().contains("the work disk was not unmounted in order"),
        "{started}"
    );
    assert_eq!(read(), "system\nwork");

    daemon.banger(["vm", "reset", "lives"]).run().expect(4);
    daemon.banger(["vm", "reset", "lives", "--force"]).ok();
    assert_eq!(
        guest
            .exec(["sh", "-c", "ls /etc/kept || cat /root/kept"])
            .run()
            .out()
            .trim(),
        "work"
    );
    let disks = disks(daemon, &shown);
    assert_eq!(disks.len(), 2, "{disks:?}");

    daemon.banger(["vm", "rm", "--force", "lives"]).ok();
    assert!(
        daemon
            .state()
            .join("vms")
            .read_dir()
            .expect("list")
            .next()
            .is_none()
    );
}

/// Text without the line breaks that fit it to a terminal.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The disks in a machine's directory.
fn disks(daemon: &Daemon, shown: &Value) -> Vec<String> {
    let id = shown["id"].as_str().expect("an id");
    let entries = daemon.state().join("vms").join(format!("bgr{id}")).read_dir();
    let names = entries.expect("list").flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.contains(".img"))
        .collect()
}

#[test]
fn overlay() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    lives(&daemon, "overlay");
    daemon.finish();
}

/// A daemon whose state is on a file system of that kind.
fn on(kind: &'static str) -> Option<Daemon> {
    let bed = Testbed::find()?;
    if !testbed::mounts(kind) {
        return None;
    }
    Some(Daemon::start(&bed, Settings::prepared().file_system(kind)))
}

#[test]
fn reflink_on_xfs() {
    let Some(daemon) = on("xfs") else { return };
    // What the host can do best is what a machine gets that asks for nothing.
    Guest::create_with(&daemon, "auto", "busybox", &SMALL);
    assert_eq!(show(&daemon, "auto")["system_disk"], "reflink");
    daemon.banger(["vm", "rm", "auto"]).ok();
    lives(&daemon, "reflink");
    daemon.finish();
}

#[test]
fn reflink_on_btrfs() {
    let Some(daemon) = on("btrfs") else { return };
    lives(&daemon, "reflink");
    daemon.finish();
}

#[test]
fn reflinks_take_no_room_for_what_they_share() {
    let Some(daemon) = on("xfs") else { return };
    let options = ["--disk", "512M", "--system-disk", "reflink"];
    Guest::create_with(&daemon, "shares", "debian", &options);
    let shown = show(&daemon, "shares");
    let used = shown["disk_used"].as_u64().expect("bytes");
    assert!(used < 8 * MIB, "a new disk takes {used} bytes");
    daemon.finish();
}

#[test]
fn a_kind_that_cannot_be_had_and_a_disk_below_its_image_are_refused_with_a_way_out() {
    let Some(daemon) = on("xfs") else { return };
    let small = daemon
        .banger(["vm", "create", "small", "--image", "debian", "--disk", "64M"])
        .args(["--system-disk", "reflink"])
        .run()
        .expect(2);
    assert!(small.err().contains("below the image's"), "{small}");
    // Where nothing is asked for there is a kind that needs no room for the image.
    Guest::create_with(&daemon, "small", "debian", &["--disk", "64M"]);
    assert_eq!(show(&daemon, "small")["system_disk"], "overlay");
    daemon.banger(["vm", "rm", "small"]).ok();
    daemon.finish();

    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared().small_disk("4G"));
    let tmpfs = daemon
        .banger([
            "vm",
            "create",
            "none",
            "--image",
            "busybox",
            "--system-disk",
            "reflink",
        ])
        .run()
        .expect(6);
    assert!(
        tmpfs.err().contains("cannot share blocks") && tmpfs.err().contains("XFS or btrfs"),
        "{tmpfs}"
    );
    daemon.finish();
}

#[test]
fn preflight_says_everything_at_once_and_touches_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let options = ["--disk", "64M", "--work-disk", "32M", "--system-disk", "overlay"];
    Guest::create_with(&daemon, "looked-at", "busybox", &options);
    let before = daemon.snapshot();
    let ready = daemon.banger(["vm", "start", "looked-at", "--dry-run"]).ok();
    assert!(ready.contains("work.img"), "{ready}");
    before.assert_nothing_left(&daemon);

    // Two things broken: both are said, and a start says the same.
    let shown = show(&daemon, "looked-at");
    let id = shown["id"].as_str().expect("an id");
    let directory = daemon.state().join("vms").join(format!("bgr{id}"));
    for disk in ["overlay.img", "work.img"] {
        std::fs::write(directory.join(disk), [0; 4096]).expect("break a disk");
    }
    for dry in [true, false] {
        let mut start = daemon.banger(["vm", "start", "looked-at"]);
        if dry {
            start = start.args(["--dry-run"]);
        }
        let broken = start.run().expect(6);
        let said = unwrapped(&format!("{}{}", broken.out(), broken.err()));
        assert!(
            said.contains("the system disk: ") && said.contains("the work disk: "),
            "{broken}"
        );
        assert!(
            said.contains("banger vm reset") && said.contains("e2fsck"),
            "{broken}"
        );
    }
    daemon.finish();
}

#[test]
fn below_the_floor_nothing_new_is_made_and_what_is_there_goes_on() {
    let Some(bed) = Testbed::find() else { return };
    let config = |floor: &str| format!("[daemon]\nspace_floor = {floor:?}\n[vmm]\nchoice = \"qemu\"\n");
    let mut daemon = Daemon::start(&bed, Settings::prepared().config(config("1MiB")));
    let options = [&SMALL[..], &["--disk", "64M", "--system-disk", "overlay"]].concat();
    Guest::create_with(&daemon, "there", "busybox", &options);
    daemon.terminate();
    daemon.configure(&config("1024TiB"));
    daemon.launch();

    let before = daemon.snapshot();
    let source = daemon.scratch().join("source.ext4");
    std::fs::write(&source, [0; 4096]).expect("write");
    for refused in [
        &["vm", "create", "new", "--image", "busybox"][..],
        &["vm", "reset", "there"],
        &["vm", "set", "there", "--disk", "128M"],
        &["image", "register", "new", source.to_str().expect("ASCII")],
    ] {
        let refused = daemon.banger(refused).run().expect(1);
        assert!(
            refused.err().contains("not enough space") && refused.err().contains("space_floor"),
            "{refused}"
        );
    }
    before.assert_nothing_left(&daemon);
    assert_eq!(show(&daemon, "there")["disk"], 64 * MIB);
    let doctor = daemon.banger(["doctor"]).run();
    assert!(unwrapped(&doctor.out()).contains("below the floor"), "{doctor}");
    daemon.banger(["vm", "start", "there"]).ok();
    assert_eq!(
        daemon.banger(["exec", "there", "--", "echo", "still"]).ok(),
        "still"
    );
    daemon.finish();
}
