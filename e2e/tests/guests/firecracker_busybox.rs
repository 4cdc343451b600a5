//! The suite's core under real Firecracker, with a kernel that boots where the processor cannot virtualize. There a
//! command takes half a second and a boot a quarter of a minute, so: few commands, one guest a test.

use std::time::Duration;

use e2e::state::{TESTBED_IMAGE, TESTBED_KERNEL};
use e2e::{Daemon, Guest, Settings, Testbed};

use crate::set::{change, set, size};

const SMALL: [&str; 4] = ["--vcpus", "1", "--memory", "128M"];

fn daemon(bed: &Testbed) -> Option<Daemon> {
    let (firecracker, _) = bed.firecracker()?;
    let config = format!(
        "[vmm]\nchoice = \"firecracker\"\nfirecracker = {:?}\n[vm]\nstart_timeout = \"240s\"\nstop_timeout = \"120s\"\n",
        firecracker.display().to_string()
    );
    Some(Daemon::start(bed, Settings::prepared().config(config)))
}

#[test]
fn run_with_rm_passes_output_and_code_and_leaves_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let Some(daemon) = daemon(&bed) else { return };
    let before = daemon.snapshot();
    let run =
        daemon
            .banger(["run", TESTBED_IMAGE, "--rm"])
            .args(SMALL)
            .args(["--", "sh", "-c", "echo hi; exit 3"]);
    let run = run.deadline(Duration::from_secs(300)).run().expect(3);
    assert_eq!(run.stdout, b"hi\n");
    before.assert_nothing_left(&daemon);
}

#[test]
fn a_life_from_create_to_rm() {
    let Some(bed) = Testbed::find() else { return };
    let Some(mut daemon) = daemon(&bed) else { return };
    let scratch = daemon.scratch();
    let pid = {
        let guest = Guest::start_with(&daemon, "fc", TESTBED_IMAGE, &SMALL);
        let shown = guest.show();
        assert_eq!(shown["running"]["vmm"], "firecracker");
        assert_eq!(shown["kernel"], TESTBED_KERNEL);
        let both = guest
            .exec(["sh", "-c", "hostname; echo err >&2; cat; kill -TERM $$"])
            .run();
        // Without `-i` the command reads end of file.
        assert_eq!(
            (both.out().as_str(), both.err().as_str(), both.code()),
            ("fc", "err\n", 143)
        );
        let echo = guest
            .exec_with(&["-i"])
            .args(["--", "cat"])
            .input(vec![7; 300_000])
            .run()
            .expect(0);
        assert!(
            echo.stdout == vec![7; 300_000],
            "{} bytes came back",
            echo.stdout.len()
        );
        std::fs::write(scratch.join("file"), "content").expect("write");
        daemon
            .banger(["cp"])
            .args([scratch.join("file")])
            .args(["fc:/root/"])
            .ok();
        daemon
            .banger(["cp", "fc:/root/file"])
            .args([scratch.join("back")])
            .ok();
        assert_eq!(std::fs::read(scratch.join("back")).expect("read"), b"content");
        guest.banger("ping").ok();
        guest.vmm_pid()
    };

    // The machine outlives its daemon.
    daemon.kill();
    daemon.launch();
    let shown = daemon.banger(["vm", "show", "fc", "--output", "json"]).json();
    assert_eq!(
        (&shown["state"], &shown["running"]["pid"]),
        (&"running".into(), &pid.into())
    );
    assert_eq!(
        daemon.banger(["exec", "fc", "--", "cat", "/root/file"]).ok(),
        "content"
    );

    daemon.banger(["vm", "stop", "fc"]).ok();
    let shown = daemon.banger(["vm", "show", "fc", "--output", "json"]).json();
    assert_eq!(shown["state"], "stopped", "{shown:#}");
    daemon.finish();
}

/// Firecracker is told of the longer file (`PATCH /drives`), its guest's kernel takes the new size, the agent grows the
/// file system: none of it needs a stop.
#[test]
fn disks_grow_under_a_guest() {
    let Some(bed) = Testbed::find() else { return };
    let Some(daemon) = daemon(&bed) else { return };
    let disks = ["--disk", "128M", "--work-disk", "32M"];
    let guest = Guest::start_with(&daemon, "fc", TESTBED_IMAGE, &[&SMALL[..], &disks].concat());
    let vmm = guest.vmm_pid();
    assert!(size(&guest, "/") < 128 && size(&guest, "/root") < 32);
    guest.sh(
        "echo kept > /etc/kept; echo kept > /root/kept; cat /proc/sys/kernel/random/boot_id > /root/boot",
    );

    let answer = set(&guest, &["--disk", "256M", "--work-disk", "96M"]);
    assert_eq!(change(&answer, "disk"), ("128MiB", "256MiB", "now"), "{answer:#}");
    assert_eq!(
        change(&answer, "work_disk"),
        ("32MiB", "96MiB", "now"),
        "{answer:#}"
    );
    assert!(answer["vm"]["pending"].is_null(), "{answer:#}");
    assert!(size(&guest, "/") > 200 && size(&guest, "/root") > 70);
    // There is room behind the figures, and what was there is there still, in the same boot.
    guest.sh("fallocate -l 140M /var/large && fallocate -l 40M /root/large && sync");
    assert_eq!(guest.sh("cat /etc/kept /root/kept"), "kept\nkept");
    guest.sh("cmp /root/boot /proc/sys/kernel/random/boot_id");
    assert_eq!(guest.vmm_pid(), vmm);
    daemon.finish();
}

#[test]
fn a_killed_vmm_is_noticed() {
    let Some(bed) = Testbed::find() else { return };
    let Some(daemon) = daemon(&bed) else { return };
    let guest = Guest::create_with(&daemon, "fc", TESTBED_IMAGE, &SMALL);
    let start = guest.banger("start").spawn();
    let vmm = e2e::wait_for(Duration::from_secs(60), || {
        daemon
            .machine_processes()
            .into_iter()
            .find(|p| p.command.contains("firecracker --"))
    });
    let vmm = vmm.expect("a VMM");
    e2e::processes::kill(&[vmm]);
    let failed = start.finish().expect(8);
    assert!(
        failed.err().contains("firecracker") || failed.err().contains("vmm"),
        "{failed}"
    );
    assert_eq!(guest.state(), "failed");
    guest.banger("rm").ok();
    daemon.finish();
}
