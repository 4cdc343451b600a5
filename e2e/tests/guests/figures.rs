//! Figures and health of machines, and waiting for a guest's services, against guests that work and guests that hang.

use std::time::{Duration, Instant};

use e2e::{Daemon, Guest, Settings, Testbed, Wire, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Answers come within two seconds, each; this is for a machine whose processors all emulate guests.
const PROMPT: Duration = Duration::from_secs(15);

const MIB: u64 = 1 << 20;

fn stats(daemon: &Daemon, names: &[&str]) -> Vec<Value> {
    let all = daemon
        .banger(["vm", "stats", "--output", "json"])
        .args(names)
        .json();
    all.as_array().expect("a list").clone()
}

/// The health of one machine, and whether the command line says by its exit code that all is well.
fn health(daemon: &Daemon, name: &str) -> (Value, bool) {
    let finished = daemon.banger(["vm", "health", name, "--output", "json"]).run();
    let well = finished.code() == 0;
    let all: Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    (all[0].clone(), well)
}

/// The check of that group and name.
fn check<'v>(health: &'v Value, group: &str, name: &str) -> &'v Value {
    let checks = health["checks"].as_array().expect("checks");
    checks
        .iter()
        .find(|check| check["group"] == group && check["name"] == name)
        .unwrap_or_else(|| panic!("no {group}/{name} in {health:#}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn signal(guest: &Guest, signal: Signal) {
    let pid = i32::try_from(guest.vmm_pid()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), signal).expect("signal the VMM");
}

#[test]
fn figures_tell_what_a_machine_does() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    assert_eq!(stats(&daemon, &[]), [] as [Value; 0], "none runs");
    let guest = Guest::start_with(
        &daemon,
        "busy",
        "busybox",
        &["--memory", "256M", "--vcpus", "2", "--disk", "256M"],
    );
    let before = stats(&daemon, &[]).remove(0);
    assert_eq!(
        (&before["vm"], &before["state"]),
        (&json!("busy"), &json!("running"))
    );
    assert_eq!(before["host"]["vcpus"], 2);
    assert_eq!(number(&before["host"]["memory_limit"]), 256 * MIB);
    assert!(number(&before["host"]["memory"]) > 16 * MIB, "{before:#}");
    assert_eq!(before["guest_problem"], Value::Null, "{before:#}");

    // 32 MiB written and read by the guest, and a second of one processor.
    guest.sh("dd if=/dev/zero of=/file bs=1M count=32 2>/dev/null; sync; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    let after = stats(&daemon, &["busy"]).remove(0);
    let grown = |name: &str| number(&after["host"][name]) - number(&before["host"][name]);
    assert!(grown("uptime_microseconds") > 0);
    assert!(grown("cpu_microseconds") > 0, "{before:#} {after:#}");
    assert!(grown("disk_written") >= 32 * MIB, "{before:#} {after:#}");
    assert!(grown("disk_used") >= 16 * MIB, "{before:#} {after:#}");

    // What the guest says is what it sees itself.
    let seen = &after["guest"];
    let total: u64 = guest
        .sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .expect("a number");
    assert_eq!(number(&seen["memory_total"]), total * 1024);
    assert!(number(&seen["memory_available"]) < total * 1024);
    assert!(number(&seen["processes"]) > 2);
    let root = &seen["filesystems"][0];
    assert_eq!((&root["mount"], &root["kind"]), (&json!("/"), &json!("overlay")));
    assert!(number(&root["used"]) >= 32 * MIB, "{root}");
    assert!(number(&root["size"]) > 200 * MIB, "{root}");

    daemon.banger(["vm", "stop", "busy"]).ok();
    let stopped = stats(&daemon, &["busy"]).remove(0);
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(
        (&stopped["host"], &stopped["guest"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(stats(&daemon, &[]), [] as [Value; 0]);
    daemon.banger(["vm", "stats", "nobody"]).fails(3);
    daemon.finish();
}

#[test]
fn health_says_what_is_wrong_and_a_hung_machine_costs_nobody_else() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let good = Guest::start(&daemon, "good", "busybox");
    let hung = Guest::start_with(
        &daemon,
        "hung",
        "busybox",
        &["--memory", "256M", "--vcpus", "1", "--disk", "64M"],
    );
    // The kernel brings a link up a moment after it was told to.
    e2e::wait_for(std::time::Duration::from_secs(60), || {
        health(&daemon, "hung").1.then_some(())
    });
    let (state, well) = health(&daemon, "hung");
    assert_eq!((&state["health"], well), (&json!("healthy"), true), "{state:#}");
    for (group, name) in [
        ("process", "vmm"),
        ("process", "control"),
        ("agent", "agent"),
        ("disks", "filesystems"),
        ("disks", "space"),
        ("network", "network"),
    ] {
        assert_eq!(check(&state, group, name)["state"], "ok", "{state:#}");
    }

    // A file system that fills up.
    hung.sh("dd if=/dev/zero of=/fill bs=1M 2>/dev/null; sync; true");
    let (state, well) = health(&daemon, "hung");
    assert_eq!((&state["health"], well), (&json!("degraded"), false), "{state:#}");
    let full = check(&state, "disks", "filesystems");
    assert!(full["reason"].as_str().expect("why").contains("% full"), "{full}");
    assert!(
        full["fix"].as_str().expect("what to do").contains("--disk"),
        "{full}"
    );
    hung.sh("rm /fill");

    // A VMM that does not run: known by itself, and nothing that asks for it waits long.
    signal(&hung, Signal::STOP);
    let began = Instant::now();
    let all = stats(&daemon, &[]);
    assert!(began.elapsed() < PROMPT, "took {:?}", began.elapsed());
    let of = |name: &str| all.iter().find(|stats| stats["vm"] == name).expect("its figures");
    assert!(of("good")["guest"].is_object(), "{all:#?}");
    assert!(
        of("hung")["guest"].is_null() && of("hung")["host"].is_object(),
        "{all:#?}"
    );
    let problem = of("hung")["guest_problem"].as_str().expect("why");
    assert!(problem.contains("did not answer"), "{problem}");

    let began = Instant::now();
    let (state, well) = health(&daemon, "hung");
    assert!(began.elapsed() < PROMPT, "took {:?}", began.elapsed());
    assert_eq!(
        (&state["health"], well),
        (&json!("unhealthy"), false),
        "{state:#}"
    );
    let process = check(&state, "process", "vmm");
    assert!(
        process["reason"]
            .as_str()
            .expect("why")
            .contains("stopped by a signal"),
        "{process}"
    );
    assert!(
        process["fix"]
            .as_str()
            .expect("what to do")
            .contains("kill -CONT")
    );
    assert_eq!(check(&state, "agent", "agent")["state"], "failure");
    let (state, well) = health(&daemon, "good");
    assert_eq!((&state["health"], well), (&json!("healthy"), true), "{state:#}");

    signal(&hung, Signal::CONT);
    let mended = wait_for(PROMPT, || health(&daemon, "hung").1.then_some(()));
    assert!(mended.is_some(), "{:#}", health(&daemon, "hung").0);

    daemon.banger(["vm", "stop", "hung"]).ok();
    assert_eq!(health(&daemon, "hung").0["health"], "stopped");
    // One whose VMM died is unhealthy, with the reason.
    signal(&good, Signal::KILL);
    let failed = wait_for(PROMPT, || {
        let (state, _) = health(&daemon, "good");
        (state["state"] == "failed").then_some(state)
    });
    let failed = failed.expect("the end of its VMM is seen");
    assert_eq!(failed["health"], "unhealthy", "{failed:#}");
    assert_eq!(check(&failed, "process", "run")["state"], "failure");
    daemon.finish();
}

#[test]
fn a_guest_s_services_can_be_waited_for() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let mut wire = Wire::connect(&daemon);
    let mut wait =
        |vm: &str, seconds: u32| wire.call("vm.wait", &json!({"vm": vm, "timeout_seconds": seconds}));

    // The agent as init starts nothing, so nothing is waited for.
    Guest::start(&daemon, "small", "busybox");
    assert_eq!(wait("small", 3600), Ok(json!({"vm": "small", "boot": "running"})));
    daemon.banger(["vm", "kill", "small"]).ok();
    let refused = wait("small", 1).expect_err("it does not run");
    assert_eq!(refused["data"]["kind"], "wrong_state", "{refused}");

    let debian = Guest::start(&daemon, "large", "debian");
    assert_eq!(wait("large", 0), Ok(json!({"vm": "large", "boot": "starting"})));
    let booted = wait("large", 55).expect("an answer");
    let state = booted["boot"].as_str().expect("a state");
    // Emulated on a busy machine, 55 s may be too short; never is it anything else.
    assert!(matches!(state, "running" | "degraded" | "starting"), "{booted}");
    if state != "starting" {
        let said = debian.sh("systemctl is-system-running || true");
        assert_eq!(said, state);
    }
    daemon.finish();
}
