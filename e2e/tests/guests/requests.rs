//! Requests that meet at one machine, and what is left of those that are taken back.

use std::time::{Duration, Instant};

use e2e::{Daemon, Guest, Settings, Testbed, Wire, wait_for};
use serde_json::{Value, json};

const SMALL: [&str; 4] = ["--memory", "256M", "--vcpus", "1"];

/// One that waits for another's work is taken back at once, and the other does not notice.
#[test]
fn a_request_that_waits_is_cancelled_at_once() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::create_with(&daemon, "queue", "busybox", &SMALL);
    let mut wire = Wire::connect(&daemon);
    let first = wire.call("vm.start", &json!({"vm": "queue"})).expect("begun");
    let starting = wait_for(Duration::from_secs(60), || {
        (guest.state() == "starting").then_some(())
    });
    assert!(starting.is_some(), "{:#}", guest.show());
    // A removal without force is refused, a second start waits; so do settings, which are no operation.
    let second = wire.call("vm.start", &json!({"vm": "queue"})).expect("begun");
    let began = Instant::now();
    let cancelled = wire.call("op.cancel", &json!({"operation": second["id"]}));
    assert_eq!(cancelled.expect("its record")["state"], "cancelled");
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(guest.state(), "starting");
    let set = wire
        .call("vm.set", &json!({"vm": "queue", "memory": 320 << 20}))
        .expect("set");
    assert_eq!(set["vm"]["state"], "running", "it waits for the start: {set:#}");
    assert_eq!(set["changes"][0]["applies"], "next_start");
    let started = wire.follow(&first).expect("an answer");
    assert!(started.is_ok(), "{started:?}");
    assert_eq!(guest.sh("echo up"), "up");

    // A finished operation is left as it is.
    let again = wire
        .call("op.cancel", &json!({"operation": first["id"]}))
        .expect("its record");
    assert_eq!(again["state"], "succeeded");
    daemon.finish();
}

/// Taken back while the guest is being asked, it runs on; a stop that has come to killing kills.
#[test]
fn only_the_asking_of_a_stop_is_taken_back() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "asked", "busybox");
    // A VMM that is stopped cannot react to being asked.
    let pid = rustix::process::Pid::from_raw(guest.vmm_pid().try_into().expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stop the VMM");
    let mut wire = Wire::connect(&daemon);
    let stop = wire
        .call("vm.stop", &json!({"vm": "asked", "timeout_seconds": 60}))
        .expect("begun");
    let asking = wait_for(Duration::from_secs(60), || {
        let shown = wire
            .call("op.show", &json!({"operation": stop["id"]}))
            .expect("its record");
        (shown["stage"] == "stopping").then_some(())
    });
    assert!(asking.is_some());
    let cancelled = wire
        .call("op.cancel", &json!({"operation": stop["id"]}))
        .expect("its record");
    assert_eq!(cancelled["state"], "cancelled");
    // What it has been asked it may still do.
    let notices = cancelled["notices"].to_string();
    assert!(
        notices.contains("has been asked to shut down already"),
        "{cancelled:#}"
    );
    assert_eq!(guest.state(), "running");

    let stop = wire
        .call("vm.stop", &json!({"vm": "asked", "timeout_seconds": 1}))
        .expect("begun");
    let mut watch = Wire::connect(&daemon);
    watch
        .call("op.watch", &json!({"operation": stop["id"]}))
        .expect("a subscription");
    loop {
        let event = watch.receive().expect("an event");
        assert!(event["params"].get("end").is_none(), "it never came to killing");
        if event["params"]["result"]["stage"] == "killing" {
            break;
        }
    }
    // The answer comes when the operation has ended, and says how: what was being killed is dead.
    let ended = wire
        .call("op.cancel", &json!({"operation": stop["id"]}))
        .expect("its record");
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    assert_eq!(guest.state(), "stopped");
    daemon.finish();
}

/// A machine that is removed when it stops is there until a run of it has ended, and no longer.
#[test]
fn an_ephemeral_machine_outlives_what_was_no_run() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let create = json!({
        "name": "brief", "image": "busybox", "memory": 256 << 20, "vcpus": 1, "ephemeral": true,
    });
    let mut wire = Wire::connect(&daemon);
    let created = wire.operate("vm.create", &create).expect("an answer");
    assert!(created.is_ok(), "{created:?}");
    // Contradictions are refused.
    let refused = wire
        .call("vm.set", &json!({"vm": "brief", "restart": "always"}))
        .unwrap_err();
    assert_eq!(refused["data"]["kind"], "invalid_argument", "{refused:#}");
    drop(wire);

    // Neither the daemon's restart nor a start that was broken off is a run.
    daemon.kill();
    daemon.launch();
    let state = |daemon: &Daemon| -> Value {
        daemon.banger(["vm", "show", "brief", "--output", "json"]).json()["state"].take()
    };
    assert_eq!(state(&daemon), "stopped");
    let mut wire = Wire::connect(&daemon);
    let start = wire.call("vm.start", &json!({"vm": "brief"})).expect("begun");
    let booting = wait_for(Duration::from_secs(60), || {
        (state(&daemon) == "starting").then_some(())
    });
    assert!(booting.is_some());
    wire.call("op.cancel", &json!({"operation": start["id"]}))
        .expect("its record");
    assert_eq!(state(&daemon), "stopped");
    drop(wire);

    // The end of a run is, also where no daemon saw it.
    daemon.banger(["vm", "start", "brief"]).ok();
    let vmm = daemon.machine_processes();
    daemon.kill();
    e2e::processes::kill(&vmm);
    daemon.launch();
    let gone = wait_for(Duration::from_secs(60), || {
        (daemon.banger(["vm", "show", "brief"]).run().code() == 3).then_some(())
    });
    assert!(gone.is_some(), "{}", daemon.log());
    daemon.finish();
}
