//! Machines that end by themselves: what is said of it, and whether they are started again.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, Wire, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const SMALL: [&str; 4] = ["--memory", "256M", "--vcpus", "1"];
/// A start under emulation on a busy host, and the longest back-off that these tests see.
const PATIENCE: Duration = Duration::from_secs(90);

fn show(daemon: &Daemon, vm: &str) -> Value {
    daemon.banger(["vm", "show", vm, "--output", "json"]).json()
}

fn wait_until(daemon: &Daemon, vm: &str, what: impl Fn(&Value) -> bool) -> Value {
    wait_for(PATIENCE, || Some(show(daemon, vm)).filter(&what))
        .unwrap_or_else(|| panic!("{:#}\n{}", show(daemon, vm), daemon.log()))
}

/// Kills a machine's VMM, as the kernel would when memory runs out.
fn kill_vmm(daemon: &Daemon, vm: &str) {
    let pid = show(daemon, vm)["running"]["pid"]
        .as_i64()
        .expect("a machine that runs");
    let mut vmm = daemon.machine_processes();
    vmm.retain(|process| i64::from(process.pid) == pid);
    assert_eq!(vmm.len(), 1);
    e2e::processes::kill(&vmm);
}

/// It is in that state, and nothing will start it again by itself.
#[track_caller]
fn assert_rests(shown: &Value, state: &str) {
    assert_eq!(
        (&shown["state"], &shown["restarts_at"]),
        (&state.into(), &Value::Null),
        "{shown:#}"
    );
}

fn is_again(times: u64) -> impl Fn(&Value) -> bool {
    move |shown| shown["state"] == "running" && shown["restarts"] == times
}

#[test]
fn what_dies_is_started_again_ever_later_until_somebody_stops_it() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let options = [&SMALL[..], &["--restart", "on-failure"]].concat();
    let guest = Guest::start_with(&daemon, "dies", "busybox", &options);
    kill_vmm(&daemon, "dies");
    wait_until(&daemon, "dies", is_again(1));
    assert_eq!(guest.sh("echo again"), "again");

    // The second time in a row it waits two seconds; while it does, the reason is said.
    kill_vmm(&daemon, "dies");
    let waiting = wait_until(&daemon, "dies", |shown| !shown["restarts_at"].is_null());
    assert_eq!(waiting["state"], "failed", "{waiting:#}");
    assert!(
        waiting["failure"]
            .as_str()
            .is_some_and(|reason| reason.contains("SIGKILL"))
    );
    let at: jiff::Timestamp = waiting["restarts_at"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .expect("a time");
    let ended = jiff::Timestamp::now();
    let left = at.duration_since(ended).as_millis();
    assert!(left > 500 && left <= 2000, "{left} ms");
    wait_until(&daemon, "dies", is_again(2));

    // Whoever stops it means it: also while it waits.
    kill_vmm(&daemon, "dies");
    wait_until(&daemon, "dies", |shown| !shown["restarts_at"].is_null());
    guest.banger("stop").ok();
    assert_rests(&guest.show(), "failed");
    assert!(daemon.machine_processes().is_empty());
    guest.banger("start").ok();
    assert_eq!(guest.show()["restarts"], 0);
    guest.banger("stop").ok();
    assert_rests(&guest.show(), "stopped");
    daemon.finish();
}

#[test]
fn a_shutdown_from_within_is_no_failure() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let options = [&SMALL[..], &["--restart", "on-failure"]].concat();
    let guest = Guest::start_with(&daemon, "leaves", "busybox", &options);
    // The command's connection breaks with its guest.
    guest.exec(["reboot", "-f"]).fails(125);
    let ended = wait_until(&daemon, "leaves", |shown| shown["state"] == "stopped");
    assert_rests(&ended, "stopped");
    assert_eq!(ended["failure"], Value::Null);

    guest.banger("set").args(["--restart", "always"]).ok();
    guest.banger("start").ok();
    guest.exec(["reboot", "-f"]).fails(125);
    wait_until(&daemon, "leaves", is_again(1));
    // Stopped by somebody, it stays so.
    guest.banger("stop").ok();
    assert_rests(&guest.show(), "stopped");

    // Busybox's programs ask process 1, here the agent, each by its signal, and are told nothing.
    guest.banger("set").args(["--restart", "on-failure"]).ok();
    for program in ["poweroff", "halt", "reboot"] {
        guest.banger("start").ok();
        // Whether its end or the guest's comes first is not settled.
        drop(guest.exec([program]).run());
        let ended = wait_until(&daemon, "leaves", |shown| shown["state"] == "stopped");
        assert_rests(&ended, "stopped");
        assert_eq!(ended["failure"], Value::Null, "{program}");
    }
    daemon.finish();
}

/// Never shown as running: the guest's kernel resets on a panic, which ends the VMM.
#[test]
fn a_panic_is_a_failure_with_its_last_words_within_a_second() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "panics", "busybox");
    let began = std::time::Instant::now();
    guest
        .exec(["sh", "-c", "echo c > /proc/sysrq-trigger"])
        .fails(125);
    // Not running any more at once; what it had on the host is collected on the way.
    let failed = wait_until(&daemon, "panics", |shown| {
        shown["state"] != "running" && shown["state"] != "stopping"
    });
    // From the command on, with the guest's way to its panic.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert!(
        failed["failure"]
            .as_str()
            .is_some_and(|reason| reason.contains("panic"))
    );
    let lines = failed["last_lines"].as_array().expect("last lines");
    assert!(!lines.is_empty() && lines.len() <= 12, "{failed:#}");
    assert!(daemon.machine_processes().is_empty());
    assert!(
        std::fs::read_dir(daemon.runtime())
            .expect("a directory")
            .all(|entry| {
                !entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .starts_with("bgr")
            })
    );
    daemon.finish();
}

#[test]
fn what_died_without_a_daemon_is_started_by_the_next_one() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let options = [&SMALL[..], &["--restart", "always"]].concat();
    Guest::start_with(&daemon, "orphan", "busybox", &options);
    let vmm = daemon.machine_processes();
    daemon.kill();
    e2e::processes::kill(&vmm);
    daemon.launch();
    wait_until(&daemon, "orphan", |shown| {
        shown["state"] == "starting" || is_again(1)(shown)
    });
    // Killed in the middle of that start, the next daemon goes on with it.
    daemon.kill();
    daemon.launch();
    wait_until(&daemon, "orphan", is_again(1));
    assert_eq!(daemon.banger(["exec", "orphan", "--", "echo", "up"]).ok(), "up");
    // An end of the daemon in order is nobody's wish that the machine be down.
    kill_vmm(&daemon, "orphan");
    wait_until(&daemon, "orphan", |shown| shown["state"] != "running");
    daemon.terminate();
    daemon.launch();
    wait_until(&daemon, "orphan", |shown| shown["state"] == "running");
    daemon.finish();
}

/// Whoever asked for a stop has decided, whatever becomes of the daemon that was asked.
#[test]
fn a_stop_goes_on_under_the_next_daemon() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let options = [&SMALL[..], &["--restart", "always"]].concat();
    let vmm = |daemon: &Daemon| {
        let pid = show(daemon, "asked")["running"]["pid"].as_i64().expect("a pid");
        Pid::from_raw(pid.try_into().expect("a pid")).expect("a pid")
    };
    let stop = |daemon: &Daemon| {
        Wire::connect(daemon)
            .call("vm.stop", &json!({"vm": "asked"}))
            .expect("begun");
        wait_until(daemon, "asked", |shown| shown["state"] == "stopping");
    };
    let ends = |daemon: &Daemon| {
        let shown = show(daemon, "asked");
        assert!(
            shown["state"] == "stopping" || shown["state"] == "stopped",
            "{shown:#}"
        );
        let stopped = wait_until(daemon, "asked", |shown| shown["state"] != "stopping");
        assert_rests(&stopped, "stopped");
        assert_eq!(stopped["failure"], Value::Null);
        assert!(daemon.machine_processes().is_empty());
    };
    Guest::create_with(&daemon, "asked", "busybox", &options);

    // Killed before the guest could hear of it, which is therefore asked again.
    daemon.banger(["vm", "start", "asked"]).ok();
    let pid = vmm(&daemon);
    kill_process(pid, Signal::STOP).expect("stop the VMM");
    stop(&daemon);
    daemon.kill();
    kill_process(pid, Signal::CONT).expect("continue the VMM");
    daemon.launch();
    ends(&daemon);

    // Killed, and ended in order, while the guest is on its way down, which something in it makes a long one.
    for orderly in [false, true] {
        daemon.banger(["vm", "start", "asked"]).ok();
        let mind = "trap '' TERM HUP; setsid sleep 600 </dev/null >/dev/null 2>&1 & echo minds";
        let minds = daemon.banger(["exec", "asked", "--", "sh", "-c", mind]).ok();
        assert_eq!(minds, "minds");
        stop(&daemon);
        if orderly {
            daemon.terminate();
        } else {
            daemon.kill();
        }
        daemon.launch();
        ends(&daemon);
    }

    // Nor does the one after it start what was stopped.
    daemon.terminate();
    daemon.launch();
    assert_rests(&show(&daemon, "asked"), "stopped");
    daemon.finish();
}

/// The host's boot is known by its id, which here is made another.
#[test]
fn machines_with_autostart_are_started_when_the_host_has_booted() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let options = [&SMALL[..], &["--autostart"]].concat();
    for name in ["auto-1", "auto-2", "auto-3"] {
        Guest::create_with(&daemon, name, "busybox", &options);
    }
    Guest::create_with(&daemon, "other", "busybox", &SMALL);
    // Of the same boot nothing is started.
    daemon.terminate();
    daemon.launch();
    assert_eq!(show(&daemon, "auto-1")["state"], "stopped");
    daemon.terminate();
    let state = rusqlite::Connection::open(daemon.state().join("banger.db")).expect("the state file");
    state
        .execute("UPDATE facts SET value = 'another' WHERE key = 'boot_id'", [])
        .expect("another boot");
    drop(state);
    daemon.launch();
    for name in ["auto-1", "auto-2", "auto-3"] {
        let shown = wait_until(&daemon, name, |shown| shown["state"] == "running");
        assert_eq!(shown["restarts"], 0, "{shown:#}");
    }
    assert_eq!(show(&daemon, "other")["state"], "stopped");
    daemon.finish();
}
