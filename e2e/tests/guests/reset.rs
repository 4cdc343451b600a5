//! Renewing the system disk.

use e2e::{Daemon, Guest, Settings, Testbed};

/// Names of the system disks in the state directory, all machines'.
fn system_disks(daemon: &Daemon) -> Vec<String> {
    let machines = std::fs::read_dir(daemon.state().join("vms")).expect("the machines' directory");
    let files = machines.flat_map(|machine| {
        let machine = machine.expect("an entry").path();
        std::fs::read_dir(machine).expect("a machine's directory")
    });
    let names = files.map(|file| file.expect("an entry").file_name().into_string().expect("a name"));
    let mut disks: Vec<String> = names
        .filter(|name| name.ends_with(".img") && name != "work.img")
        .collect();
    disks.sort();
    disks
}

#[test]
fn the_system_disk_is_renewed_and_the_work_disk_stays() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    {
        let guest = Guest::start_with(
            &daemon,
            "renewed",
            "busybox",
            &["--memory", "256M", "--vcpus", "1", "--work-disk", "64M"],
        );
        guest.sh("echo system > /etc/mark; echo work > /root/mark; sync");
        let first = system_disks(&daemon);
        assert_eq!(first.len(), 1, "{first:?}");

        // Not from under a guest, unless that is meant.
        let refused = guest.banger("reset").fails(4);
        assert!(refused.contains("--force"), "no way out: {refused}");
        assert_eq!(guest.sh("cat /etc/mark /root/mark"), "system\nwork");
        let pid = guest.vmm_pid();
        guest.banger("reset").args(["--force"]).ok();
        assert_eq!(guest.state(), "running");
        assert_ne!(guest.vmm_pid(), pid);
        assert_eq!(
            guest.sh("cat /root/mark; ls /etc/mark 2>/dev/null || echo gone"),
            "work\ngone"
        );
        let second = system_disks(&daemon);
        assert!(second.len() == 1 && second != first, "{first:?}, then {second:?}");

        // One that rests stays at rest.
        guest.sh("echo again > /etc/mark; sync");
        guest.banger("stop").ok();
        guest.banger("reset").ok();
        assert_eq!(guest.state(), "stopped");
    }
    // It is the machine's disk for good.
    daemon.kill();
    daemon.launch();
    assert_eq!(system_disks(&daemon).len(), 1);
    daemon.banger(["vm", "start", "renewed"]).ok();
    let seen = daemon.banger([
        "exec",
        "renewed",
        "--",
        "sh",
        "-c",
        "ls /etc/mark 2>/dev/null || cat /root/mark",
    ]);
    assert_eq!(seen.ok(), "work");
    daemon.finish();
}

#[test]
fn a_machine_moves_to_another_image() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::create_with(
        &daemon,
        "moves",
        "busybox",
        &["--memory", "512M", "--vcpus", "1", "--work-disk", "64M"],
    );
    guest.banger("reset").args(["--image", "no-such"]).fails(3);
    assert_eq!(guest.show()["image"], "busybox");
    // In use by this machine alone, then by none.
    daemon.banger(["image", "rm", "busybox"]).fails(4);
    guest.banger("set").args(["--image", "debian"]).ok();
    let shown = guest.show();
    assert_eq!(
        (&shown["image"], &shown["state"]),
        (&"debian".into(), &"stopped".into())
    );
    daemon.banger(["image", "rm", "busybox"]).ok();
    daemon.banger(["image", "rm", "debian"]).fails(4);
    guest.banger("start").ok();
    assert_eq!(guest.sh(". /etc/os-release; echo $ID"), "debian");
    daemon.finish();
}
