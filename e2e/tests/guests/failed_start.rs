//! Starts that go wrong: a VMM that is missing or killed, kernels and root file systems that are gone or no such thing,
//! a guest that panics or never answers.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, Wire, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const SMALL: [&str; 4] = ["--vcpus", "1", "--memory", "256M"];

fn rootfs(daemon: &Daemon) -> PathBuf {
    let image = daemon
        .banger(["image", "show", "busybox", "--output", "json"])
        .json();
    daemon
        .state()
        .join("images")
        .join(image["id"].as_str().expect("an id"))
        .join("rootfs.ext4")
}

#[test]
fn no_vmm() {
    let Some(bed) = Testbed::find() else { return };
    let config = "[vmm]\nchoice = \"qemu\"\nqemu = \"/no/such/qemu\"\n";
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    Guest::create_with(&daemon, "none", "busybox", &SMALL);
    let before = daemon.snapshot();
    let start = daemon.banger(["vm", "start", "none"]).run().expect(6);
    assert!(start.err().contains("/no/such/qemu"), "{start}");
    let run = daemon
        .banger(["run", "busybox", "--name", "other"])
        .run()
        .expect(6);
    assert!(run.err().contains("/no/such/qemu"), "{run}");
    before.assert_nothing_left(&daemon);
    let doctor = daemon.banger(["doctor"]).run().expect(1);
    assert!(doctor.out().contains("/no/such/qemu"), "{doctor}");
    daemon.finish();
}

#[test]
fn no_vsock_device() {
    let Some(bed) = Testbed::find() else { return };
    let config = "[vmm]\nchoice = \"qemu\"\nvhost_device_vsock = \"/no/such/vsock\"\n";
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    let before = daemon.snapshot();
    let run = daemon.banger(["run", "busybox"]).run().expect(6);
    assert!(run.err().contains("/no/such/vsock"), "{run}");
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn a_vmm_killed_while_starting() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    // Each of the two processes of a machine in turn.
    for part in ["qemu-system", "vhost-device-vsock"] {
        let run = daemon
            .banger(["run", "busybox", "--name", "short"])
            .args(SMALL)
            .spawn();
        let process = wait_for(Duration::from_secs(60), || {
            daemon.machine_processes().into_iter().find(|p| {
                p.command
                    .split(' ')
                    .next()
                    .is_some_and(|program| program.contains(part))
            })
        });
        e2e::processes::kill(&[process.unwrap_or_else(|| panic!("no {part}"))]);
        let failed = run.finish().expect(8);
        assert!(
            failed.err().contains("signal 9") || failed.err().contains("SIGKILL"),
            "{failed}"
        );
        before.assert_nothing_left(&daemon);
    }
    daemon.finish();
}

#[test]
fn a_kernel_or_root_file_system_that_is_gone_or_broken() {
    let Some(bed) = Testbed::find() else { return };
    // A guest that does not come up must not take the whole timeout of two minutes.
    let config = "[vmm]\nchoice = \"qemu\"\n[vm]\nstart_timeout = \"40s\"\n";
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    Guest::create_with(&daemon, "broken", "busybox", &SMALL);
    let fails = |what: &str, words: &[&str]| {
        let before = daemon.snapshot();
        let start = daemon.banger(["vm", "start", "broken"]).run();
        assert!(matches!(start.code(), 1 | 3 | 6 | 7 | 8), "{what}: {start}");
        for word in words {
            assert!(
                start.err().contains(word),
                "{what}: {word:?} is not in it: {start}"
            );
        }
        let shown = daemon.banger(["vm", "show", "broken", "--output", "json"]).json();
        assert!(
            shown["state"] == "failed" || shown["state"] == "stopped",
            "{what}: {shown:#}"
        );
        assert!(
            daemon.machine_processes().is_empty(),
            "{what}: {:?}",
            daemon.machine_processes()
        );
        daemon.banger(["vm", "ls"]).ok();
        drop(before);
    };

    // A file is removed before it is written: it is a hard link to the prepared one.
    let root = rootfs(&daemon);
    let good = std::fs::read(&root).expect("read the image");
    std::fs::remove_file(&root).expect("remove");
    fails("no root file system", &["rootfs.ext4"]);
    std::fs::write(&root, vec![0; good.len()]).expect("write");
    fails("a root file system of zeros", &["rootfs.ext4"]);
    std::fs::write(&root, b"short").expect("write");
    fails("a root file system of five bytes", &[]);
    std::fs::write(&root, &good).expect("write");

    let kernels = daemon.state().join("kernels/debian");
    let kernel = ["vmlinux", "vmlinuz"]
        .map(|name| kernels.join(name))
        .into_iter()
        .find(|path| path.exists());
    let kernel = kernel.expect("a kernel");
    let good = std::fs::read(&kernel).expect("read the kernel");
    std::fs::remove_file(&kernel).expect("remove");
    fails("no kernel", &["kernel"]);
    std::fs::write(&kernel, b"not a kernel").expect("write");
    fails("a kernel of text", &["kernel"]);
    std::fs::write(&kernel, &good[..good.len() / 3]).expect("write");
    fails("a third of a kernel", &[]);
    std::fs::write(&kernel, &good).expect("write");

    // All is well again, and so is the machine.
    daemon.banger(["vm", "start", "broken"]).ok();
    assert_eq!(
        daemon.banger(["exec", "broken", "--", "echo", "mended"]).ok(),
        "mended"
    );
    daemon.finish();
}

/// The image's files are fine but there is nothing to run in it: the agent says so, and exec fails in the guest's way.
#[test]
fn an_image_with_nothing_in_it() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let tar = daemon.scratch().join("empty.tar");
    // Two blocks of zeros: an archive without entries.
    std::fs::write(&tar, [0; 10240]).expect("write");
    let before = daemon.snapshot();
    let register = daemon.banger(["image", "register", "hollow"]).args([&tar]).run();
    if register.code() == 0 {
        let run = daemon.banger(["run", "hollow", "--rm", "--", "true"]).run();
        assert!(matches!(run.code(), 125 | 127), "{run}");
        daemon.banger(["image", "rm", "hollow"]).ok();
    } else {
        assert!(register.err().contains("empty"), "{register}");
    }
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn a_guest_kernel_that_panics() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(&daemon, "panics", "busybox", &SMALL);
    let run = guest
        .exec([
            "sh",
            "-c",
            "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
        ])
        .run();
    assert_eq!(run.code(), 125, "{run}");
    let ended = wait_for(Duration::from_secs(60), || {
        // Between the two it is `stopping`, while what the run left on the host is collected.
        (!["running", "stopping"].contains(&guest.state().as_str())).then(|| guest.show())
    });
    let shown = ended.expect("a machine that has ended");
    assert_eq!(shown["state"], "failed", "{shown:#}");
    assert!(guest.banger("logs").ok().contains("Kernel panic"));
    assert!(
        daemon.machine_processes().is_empty(),
        "{:?}",
        daemon.machine_processes()
    );
    guest.banger("start").ok();
    assert_eq!(guest.sh("echo again"), "again");
    daemon.finish();
}

/// The agent never answers because the guest stands still.
#[test]
fn a_guest_that_stands_still() {
    let Some(bed) = Testbed::find() else { return };
    let config = "[vmm]\nchoice = \"qemu\"\n[vm]\nstart_timeout = \"8s\"\n";
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    let before = daemon.snapshot();
    let run = daemon
        .banger(["run", "busybox", "--name", "still"])
        .args(SMALL)
        .spawn();
    // Once the guest's kernel is at work, and long before the agent is, its processors are stopped.
    let at_work = wait_for(Duration::from_secs(60), || {
        let vmm = daemon
            .machine_processes()
            .into_iter()
            .find(|p| p.command.contains("qemu-system"))?;
        (ticks(vmm.pid) >= 25).then_some(vmm.pid)
    });
    let vmm = Pid::from_raw(at_work.expect("a VMM")).expect("a pid");
    kill_process(vmm, Signal::STOP).expect("stop the VMM");
    let failed = run.finish().expect(7);
    assert!(failed.err().contains("console"), "{failed}");
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

/// Processor time of a process in user mode, in hundredths of a second (proc_pid_stat(5), field 14).
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields
        .split(' ')
        .nth(11)
        .and_then(|ticks| ticks.parse().ok())
        .unwrap_or(0)
}

/// What the agent said on the console before it gave up is in the error.
#[test]
fn a_guest_that_gives_up() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    Guest::create_with(&daemon, "gives-up", "busybox", &SMALL);
    // A writable layer that the kernel mounts read-only, whatever it is asked.
    let vms = std::fs::read_dir(daemon.state().join("vms")).expect("list the machines");
    let overlay = vms
        .flatten()
        .next()
        .expect("a machine")
        .path()
        .join("overlay.img");
    let tune2fs = e2e::testbed::find_program("tune2fs").expect("tune2fs");
    let tuned = Command::new(tune2fs)
        .args(["-O", "read-only"])
        .arg(&overlay)
        .status();
    assert!(tuned.expect("run tune2fs").success());
    let failed = daemon.banger(["vm", "start", "gives-up"]).run().expect(8);
    assert!(failed.err().contains("banger-agent: "), "{failed}");
    assert!(
        daemon.machine_processes().is_empty(),
        "{:?}",
        daemon.machine_processes()
    );
    daemon.banger(["vm", "rm", "gives-up"]).ok();
    daemon.finish();
}

/// One that goes when it stops has stopped when it is restarted: it goes with a start that fails, however it does, and is
/// not left as a failure that nobody looks for.
#[test]
fn an_ephemeral_machine_goes_when_its_restart_fails() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let runs = |daemon: &Daemon| {
        let create = json!({
            "name": "brief", "image": "busybox", "memory": 256 << 20, "vcpus": 1, "ephemeral": true, "start": true,
        });
        let created = Wire::connect(daemon)
            .operate("vm.create", &create)
            .expect("an answer");
        assert!(created.is_ok(), "{created:?}");
    };
    let state = |daemon: &Daemon| {
        let vm = Wire::connect(daemon).call("vm.show", &json!({"vm": "brief"}));
        vm.ok()
            .map(|vm| vm["state"].as_str().expect("a state").to_owned())
    };
    let goes = |daemon: &Daemon| {
        let gone = wait_for(Duration::from_secs(60), || state(daemon).is_none().then_some(()));
        assert!(gone.is_some(), "{:?}\n{}", state(daemon), daemon.log());
    };
    // Restarted, up to where its new run boots.
    let boots = |daemon: &Daemon, wire: &mut Wire| {
        let restart = wire.call("vm.restart", &json!({"vm": "brief"})).expect("begun");
        let booting = wait_for(Duration::from_secs(30), || {
            (state(daemon)? == "starting" && !daemon.machine_processes().is_empty()).then_some(())
        });
        assert!(booting.is_some(), "{}", daemon.log());
        restart
    };

    // The host is not ready for it any more: it goes on running, as any machine that could not come up again.
    runs(&daemon);
    let process = daemon.machine_processes();
    let root = rootfs(&daemon);
    let aside = root.with_extension("aside");
    std::fs::rename(&root, &aside).expect("put the image aside");
    let refused = daemon.banger(["vm", "restart", "brief"]).run().expect(6);
    assert!(refused.err().contains("rootfs.ext4"), "{refused}");
    assert_eq!(state(&daemon).as_deref(), Some("running"));
    assert_eq!(daemon.machine_processes(), process);
    std::fs::rename(&aside, &root).expect("put the image back");

    // Somebody thinks better of it.
    let mut wire = Wire::connect(&daemon);
    let restart = boots(&daemon, &mut wire);
    wire.call("op.cancel", &json!({"operation": restart["id"]}))
        .expect("its record");
    drop(wire);
    goes(&daemon);

    // The daemon dies.
    runs(&daemon);
    let mut wire = Wire::connect(&daemon);
    boots(&daemon, &mut wire);
    drop(wire);
    daemon.kill();
    daemon.launch();
    goes(&daemon);
    daemon.finish();
}
