//! What a host does to a daemon and its machines: sockets that vanish, guests that panic, file systems that turn read-only
//! or fill up, clocks that jump. Whatever it is, the daemon says so, stays in command, and is well again when the host is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Banger, Daemon, Guest, Settings, Testbed, Wire, testbed, truth, wait_for};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value, json};

const SMALL: [&str; 4] = ["--vcpus", "1", "--memory", "192M"];
/// Until something has been noticed, on a machine whose processors all emulate guests.
const NOTICED: Duration = Duration::from_secs(20);

fn health(daemon: &Daemon, name: &str) -> Value {
    let health = Wire::connect(daemon).call("vm.health", &json!({"vm": name}));
    health.expect("the health")
}

fn runtime(daemon: &Daemon, guest: &Guest<'_>) -> PathBuf {
    daemon
        .runtime()
        .join(format!("bgr{}", guest.show()["id"].as_str().expect("an id")))
}

fn vmm(guest: &Guest<'_>) -> Pid {
    let pid = i32::try_from(guest.vmm_pid()).ok().and_then(Pid::from_raw);
    pid.expect("a process id")
}

/// The sockets of a running machine are deleted: it runs on, its health says what is wrong, and it can be stopped, killed,
/// taken up by the next daemon and started again.
#[test]
fn sockets_deleted() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    for restarts in [false, true] {
        for verb in ["stop", "kill"] {
            let name = format!("{verb}-{restarts}");
            let pid = {
                let guest = Guest::start_with(&daemon, &name, "busybox", &SMALL);
                let directory = runtime(&daemon, &guest);
                let mut sockets = 0;
                for entry in std::fs::read_dir(&directory).expect("sockets").flatten() {
                    std::fs::remove_file(entry.path()).expect("delete a socket");
                    sockets += 1;
                }
                assert!(sockets >= 2, "{sockets} sockets in {}", directory.display());
                vmm(&guest)
            };
            if restarts {
                daemon.kill();
                daemon.launch();
            }
            let shown = daemon.banger(["vm", "show", &name, "--output", "json"]).json();
            assert_eq!(shown["state"], "running", "{shown:#}");
            let health = health(&daemon, &name);
            assert_ne!(health["health"], "healthy", "{health:#}");
            let ill = health["checks"]
                .as_array()
                .expect("checks")
                .iter()
                .filter(|c| c["state"] != "ok");
            assert!(
                ill.clone()
                    .all(|c| c["reason"].as_str().is_some_and(|r| !r.is_empty())),
                "{health:#}"
            );
            // A connection that there is goes on; a new one has no way in.
            let exec = daemon.banger(["exec", &name, "--", "true"]);
            match restarts {
                false => drop(exec.ok()),
                true => drop(exec.fails(125)),
            }

            daemon.banger(["vm", verb, &name]).ok();
            // Where its daemon was killed it is the first process that reaps it, in its own time.
            let gone = wait_for(NOTICED, || rustix::process::test_kill_process(pid).err());
            assert!(gone.is_some(), "the VMM is still there");
            truth::assert_true(&daemon);
            daemon.banger(["vm", "start", &name]).ok();
            assert_eq!(
                daemon.banger(["exec", &name, "--", "echo", "again"]).ok(),
                "again"
            );
            daemon.banger(["vm", "rm", "--force", &name]).ok();
        }
    }
    daemon.finish();
}

/// A VMM that a signal has stopped is known to be, and can be killed.
#[test]
fn a_stopped_vmm_can_be_killed() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(&daemon, "frozen", "busybox", &SMALL);
    kill_process(vmm(&guest), Signal::STOP).expect("stop the VMM");
    assert_eq!(health(&daemon, "frozen")["health"], "unhealthy");
    let kill = guest.banger("kill").run().expect(0);
    assert!(kill.took < NOTICED, "{kill}");
    assert_eq!(guest.state(), "stopped");
    truth::assert_true(&daemon);
    daemon.finish();
}

/// The agent dies in a guest whose init is another: the guest runs, nobody can reach it, and a stop still ends it.
#[test]
fn an_agent_that_is_killed() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "mute", "debian");
    // Each of its processes, whatever would start it again included; the command goes with it.
    let script = "for exe in /proc/[0-9]*/exe; do case $(readlink $exe) in *banger-agent*|/init*) \
        pid=${exe#/proc/}; kill -KILL ${pid%/exe};; esac; done";
    drop(guest.exec(["sh", "-c", script]).run());
    let silent = wait_for(NOTICED, || {
        (guest.exec(["true"]).run().code() == 125).then_some(())
    });
    match silent {
        Some(()) => {
            let health = health(&daemon, "mute");
            assert_eq!(health["health"], "unhealthy", "{health:#}");
            let agent = health["checks"]
                .as_array()
                .expect("checks")
                .iter()
                .find(|c| c["group"] == "agent");
            assert_eq!(
                agent.expect("a check of the agent")["state"],
                "failure",
                "{health:#}"
            );
            assert_eq!(guest.state(), "running", "the machine runs, and is said to");
        }
        // It was started again within the guest, which is the better outcome.
        None => assert_eq!(guest.sh("echo here"), "here"),
    }
    let stop = guest.banger("stop").args(["--timeout", "10"]).run().expect(0);
    assert!(stop.took < Duration::from_secs(60), "{stop}");
    truth::assert_true(&daemon);
    daemon.finish();
}

/// A guest kernel that panics after it had started is no machine that runs.
#[test]
fn a_kernel_that_panics_while_running() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(&daemon, "panics", "busybox", &SMALL);
    let exec = guest.exec(["sh", "-c", "echo c > /proc/sysrq-trigger"]).spawn();
    let failed = wait_for(NOTICED, || (guest.state() == "failed").then(|| guest.show()));
    let failed = failed.unwrap_or_else(|| panic!("{:#}", guest.show()));
    let why = failed["failure"].to_string();
    assert!(why.contains("panic"), "{failed:#}");
    assert_eq!(exec.finish().code(), 125);
    truth::assert_true(&daemon);
    guest.banger("start").ok();
    assert_eq!(guest.sh("echo again"), "again");
    daemon.finish();
}

/// A stop takes as long as the guest does: the answer is there when the VMM is gone, with no wait of fixed length after it
/// or before.
#[test]
fn a_stop_has_no_wait_of_its_own() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(&daemon, "prompt", "busybox", &SMALL);
    // Ending by itself, as fast as this guest can here and now.
    let pid = pidfd_open(vmm(&guest), PidfdFlags::empty()).expect("a pidfd");
    let began = Instant::now();
    let reboot = guest.exec(["sh", "-c", "reboot -f"]).spawn();
    assert!(ended(&pid), "the VMM is still there");
    let by_itself = began.elapsed();
    drop(reboot.finish());
    wait_for(NOTICED, || (guest.state() != "running").then_some(())).expect("its end is seen");

    guest.banger("start").ok();
    let pid = pidfd_open(vmm(&guest), PidfdFlags::empty()).expect("a pidfd");
    let began = Instant::now();
    let stop = guest.banger("stop").spawn();
    assert!(ended(&pid), "the VMM is still there");
    let gone = began.elapsed();
    let answered = stop.finish().expect(0).took;
    println!("by itself {by_itself:?}, asked {gone:?}, answered {answered:?}");
    assert!(
        answered < gone + Duration::from_millis(1500),
        "{answered:?} for what took {gone:?}"
    );
    assert!(
        gone < by_itself + Duration::from_millis(2900),
        "{gone:?}, and by itself {by_itself:?}"
    );
    daemon.finish();
}

/// Whether the process has ended within twenty seconds.
fn ended(pid: &rustix::fd::OwnedFd) -> bool {
    let mut ready = [rustix::event::PollFd::new(pid, rustix::event::PollFlags::IN)];
    let timeout = NOTICED.try_into().expect("a sane timeout");
    rustix::event::poll(&mut ready, Some(&timeout)).expect("wait for a process") == 1
}

/// A second daemon is refused before it touches anything of the first one's.
#[test]
fn a_second_daemon_touches_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(&daemon, "first", "busybox", &SMALL);
    let before = daemon.snapshot();
    let sockets = |daemon: &Daemon| {
        let metadata = std::fs::metadata(daemon.socket()).expect("the socket");
        std::os::unix::fs::MetadataExt::ino(&metadata)
    };
    let socket = sockets(&daemon);
    let mut second = e2e::Banger::new(bed.program("bangerd")).args(["run"]);
    for (name, value) in daemon.environment() {
        second = second.env(name, value);
    }
    let refused = second.fails(1);
    assert!(
        refused.contains("already running") && refused.contains(&daemon.pid().to_string()),
        "{refused}"
    );
    assert_eq!(sockets(&daemon), socket);
    before.assert_nothing_left(&daemon);
    assert_eq!(guest.sh("echo here"), "here");
    daemon.finish();
}

// ---- the state directory's file system -----------------------------------------------------------------------------

/// The file system under the state directory turns read-only, as ext4 does on an error of its disk. Every change is refused
/// and said to be, nothing that is read is wrong, and with the file system mended all is as it was last confirmed.
#[test]
fn a_state_directory_that_turns_read_only() {
    let Some(bed) = Testbed::find() else { return };
    if !testbed::is_root() {
        return;
    }
    let mut daemon = Daemon::start(&bed, Settings::prepared().file_system("ext4"));
    daemon
        .banger(["vm", "create", "rests", "--image", "busybox"])
        .ok();
    daemon
        .banger(["vm", "set", "rests", "--label", "confirmed=1"])
        .ok();
    let before = daemon.banger(["vm", "show", "rests", "--output", "json"]).json();

    turn_read_only(&daemon);
    for arguments in [
        &["vm", "set", "rests", "--label", "confirmed=2"][..],
        &["vm", "rename", "rests", "other"],
        &["vm", "create", "new", "--image", "busybox"],
        &["vm", "start", "rests"],
        &["vm", "rm", "rests"],
        &["image", "rm", "debian"],
    ] {
        let refused = daemon.banger(arguments).run();
        assert_ne!(refused.code(), 0, "{refused}");
        let said = refused.err().to_lowercase();
        assert!(
            ["read-only", "cannot be written", "state file"]
                .iter()
                .any(|word| said.contains(word)),
            "{refused}"
        );
        assert_eq!(
            daemon.banger(["vm", "show", "rests", "--output", "json"]).json(),
            before
        );
        assert_eq!(daemon.banger(["ls", "-q"]).ok(), "rests");
    }
    assert_ne!(
        daemon.banger(["doctor"]).run().code(),
        0,
        "doctor sees nothing wrong"
    );

    daemon.terminate();
    mend(&daemon);
    daemon.launch();
    let after = daemon.banger(["vm", "show", "rests", "--output", "json"]).json();
    assert_eq!(after["labels"], before["labels"]);
    assert_eq!(daemon.banger(["ls", "-q"]).ok(), "rests");
    daemon
        .banger(["vm", "set", "rests", "--label", "confirmed=2"])
        .ok();
    daemon.banger(["vm", "start", "rests"]).ok();
    assert_eq!(
        daemon.banger(["exec", "rests", "--", "echo", "here"]).ok(),
        "here"
    );
    daemon.finish();
}

/// The loop device of the daemon's own file system.
fn loop_device(daemon: &Daemon) -> Option<String> {
    let losetup = Banger::new("losetup").args(["--associated"]);
    let text = losetup.args([daemon.disk_image()]).ok();
    let (device, _) = text.split_once(':')?;
    Some(device.strip_prefix("/dev/")?.to_owned())
}

/// Has the kernel find an error in the daemon's own file system, upon which it lets nobody write to it any more (ext4(5),
/// `errors=remount-ro`).
fn turn_read_only(daemon: &Daemon) {
    let remount = r#"mount -o remount,errors=remount-ro "$1""#;
    let status = Command::new("nsenter")
        .args([
            "--mount",
            "--target",
            &daemon.pid().to_string(),
            "sh",
            "-c",
            remount,
            "sh",
        ])
        .arg(daemon.disk_image().with_file_name("disk"))
        .status();
    assert!(status.expect("run nsenter").success());
    let device = loop_device(daemon).expect("a loop device");
    let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
    std::fs::write(trigger, "a test's\n").expect("trigger an error");
    let probe = daemon.state().join("probe");
    let refused = wait_for(NOTICED, || std::fs::write(&probe, "x").is_err().then_some(()));
    assert!(refused.is_some(), "the file system takes writes still");
}

/// Repairs it once nobody has it mounted any more.
fn mend(daemon: &Daemon) {
    let free = wait_for(NOTICED, || loop_device(daemon).is_none().then_some(()));
    assert!(free.is_some(), "still mounted");
    let e2fsck = testbed::find_program("e2fsck").expect("e2fsck");
    let mended = Banger::new(e2fsck).args(["-f", "-y"]);
    let mended = mended.args([daemon.disk_image()]).run();
    // Bit 0: errors were corrected (e2fsck(8)).
    assert!(mended.code() <= 1, "{mended}");
}

/// No room for a single row: refused, said, not half-done; with room again all goes on from what was last confirmed.
#[test]
fn no_room_for_the_state_file() {
    let Some(bed) = Testbed::find() else { return };
    if !testbed::is_root() {
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared().small_disk("2G"));
    daemon
        .banger(["vm", "create", "rests", "--image", "busybox"])
        .ok();
    let filler = daemon.state().join("filler");
    fill(&filler);
    let mut wire = Wire::connect(&daemon);
    let mut label = |turn: usize| {
        // Larger than a page, so that each needs room.
        let value = format!("{turn:04}").repeat(15);
        let labels: serde_json::Map<_, _> = (0..60).map(|n| (format!("key-{n}"), json!(value))).collect();
        (
            value.clone(),
            wire.call("vm.set", &json!({"vm": "rests", "labels": labels})),
        )
    };
    let mut confirmed = None;
    let refused = (0..20_000).find_map(|turn| match label(turn) {
        (value, Ok(_)) => {
            confirmed = Some(value);
            None
        }
        (_, Err(error)) => Some(error),
    });
    let refused = refused.expect("a full file system");
    assert_eq!(refused["data"]["kind"], "out_of_resources", "{refused:#}");
    let shown = daemon.banger(["vm", "show", "rests", "--output", "json"]).json();
    assert_eq!(
        shown["labels"]["key-7"].as_str(),
        confirmed.as_deref(),
        "{refused:#}"
    );
    std::fs::remove_file(&filler).expect("make room");
    let (value, outcome) = label(20_001);
    outcome.expect("room again");
    let shown = daemon.banger(["vm", "show", "rests", "--output", "json"]).json();
    assert_eq!(shown["labels"]["key-7"], json!(value));
    daemon.finish();
}

/// Writes a file until the file system takes no more.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("make the filler");
    for size in [1 << 20, 4096] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
}

// ---- the clock -----------------------------------------------------------------------------------------------------

/// The wall clock jumps by hours, both ways. What expires does at its time by the clock, and nothing else minds.
#[test]
fn a_clock_that_jumps_by_hours() {
    let Some(bed) = Testbed::find() else { return };
    let library = Path::new("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1");
    if !library.is_file() {
        testbed::require(&format!("{} is missing: make setup", library.display()));
        return;
    }
    let scratch = tempfile::tempdir().expect("make a directory");
    let clock = scratch.path().join("clock");
    // Whole, or not at all: the daemon reads it at every look at the clock.
    let set = |by: &str| {
        let new = clock.with_extension("new");
        std::fs::write(&new, by).expect("write the clock");
        std::fs::rename(&new, &clock).expect("set the clock");
    };
    set("+0");
    // Timers count on the monotonic clock, which no jump changes (clock_settime(2)).
    let settings = Settings::prepared()
        .env("LD_PRELOAD", library.to_str().expect("ASCII"))
        .env("FAKETIME_TIMESTAMP_FILE", clock.to_str().expect("ASCII"))
        .env("FAKETIME_NO_CACHE", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    let daemon = Daemon::start(&bed, settings);
    let stays = Guest::start_with(&daemon, "stays", "busybox", &SMALL);
    let pid = stays.vmm_pid();
    Guest::create_with(&daemon, "expires", "busybox", &["--ttl", "5h"]);
    Guest::create_with(&daemon, "later", "busybox", &["--ttl", "100h"]);

    set("-7h");
    daemon.banger(["vm", "stop", "later"]).ok();
    assert_eq!(
        daemon.banger(["vm", "show", "stays", "--output", "json"]).json()["running"]["pid"],
        pid
    );
    assert_eq!(stays.sh("echo here"), "here");
    assert_eq!(daemon.banger(["ls", "-q"]).ok().lines().count(), 3);
    set("+6h");
    // A machine's task looks at the clock twice a minute.
    let gone = wait_for(Duration::from_secs(60), || {
        (!daemon.banger(["ls", "-q"]).ok().contains("expires")).then_some(())
    });
    assert!(gone.is_some(), "{}", daemon.banger(["ls"]).ok());
    let names = daemon.banger(["ls", "-q"]).ok();
    assert!(names.contains("later") && names.contains("stays"), "{names}");
    assert_eq!(stays.sh("echo here"), "here");
    assert_eq!(stays.vmm_pid(), pid);
    stays.banger("stop").ok();
    stays.banger("start").ok();
    truth::assert_true(&daemon);
    daemon.finish();
}
