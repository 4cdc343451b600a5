//! Many machines with one command: by name, by label, all of them. Which are meant, in which order they are told, and
//! which failure decides the exit code.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, wait_for};

fn create<'d>(daemon: &'d Daemon, name: &str, labels: &[&str]) -> Guest<'d> {
    let mut options = vec!["--vcpus", "1", "--memory", "256M"];
    for label in labels {
        options.extend(["--label", label]);
    }
    Guest::create_with(daemon, name, "busybox", &options)
}

/// Names of the machines in a state.
fn in_state(daemon: &Daemon, state: &str) -> Vec<String> {
    let list = daemon.banger(["ls", "--output", "json"]).json();
    let vms = list.as_array().expect("a list");
    vms.iter()
        .filter(|vm| vm["state"] == state)
        .map(|vm| vm["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn started_restarted_and_stopped_together() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let amy = create(&daemon, "amy", &["team=red"]);
    let bob = create(&daemon, "bob", &["team=red", "stage=test"]);
    let eve = create(&daemon, "eve", &["team=blue"]);

    // One that does not exist stops none of the others; what is told keeps the order of the command.
    let start = daemon
        .banger(["vm", "start", "eve", "nobody", "amy", "bob"])
        .run()
        .expect(3);
    assert_eq!(start.out(), "eve\namy\nbob");
    assert!(start.err().contains("nobody"), "{start}");
    assert_eq!(in_state(&daemon, "running"), ["amy", "bob", "eve"]);
    // They were begun together: none waited for another's end.
    let operations = daemon.banger(["op", "ls", "--output", "json"]).json();
    let starts: Vec<_> = operations
        .as_array()
        .expect("a list")
        .iter()
        .filter(|operation| operation["kind"] == "vm.start" && operation["state"] == "succeeded")
        .filter(|operation| {
            ["amy", "bob", "eve"]
                .iter()
                .any(|name| operation["subject"] == *name)
        })
        .collect();
    let times = |field: &str| {
        starts
            .iter()
            .filter_map(|start| start[field].as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!((times("began").len(), times("ended").len()), (3, 3));
    assert!(
        times("began").iter().max() < times("ended").iter().min(),
        "{starts:#?}"
    );

    // All of a label, and no other.
    let pids = [amy.vmm_pid(), bob.vmm_pid(), eve.vmm_pid()];
    assert_eq!(
        daemon.banger(["vm", "restart", "--label", "team=red"]).ok(),
        "amy\nbob"
    );
    assert_ne!(amy.vmm_pid(), pids[0]);
    assert_ne!(bob.vmm_pid(), pids[1]);
    assert_eq!(eve.vmm_pid(), pids[2]);
    assert_eq!(bob.sh("echo up"), "up");
    // Several labels are one condition; a key alone is any value.
    assert_eq!(
        daemon
            .banger(["vm", "stop", "--label", "team", "--label", "stage=test"])
            .ok(),
        "bob"
    );
    assert_eq!(in_state(&daemon, "stopped"), ["bob"]);
    // What is so already is a success.
    assert_eq!(daemon.banger(["vm", "stop", "--all"]).ok(), "amy\nbob\neve");
    assert!(daemon.machine_processes().is_empty());
    assert_eq!(
        daemon.banger(["vm", "rm", "--all", "--yes"]).ok(),
        "amy\nbob\neve"
    );
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn the_exit_code_is_that_of_the_first_failure() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let running = create(&daemon, "running", &[]);
    running.banger("start").ok();
    create(&daemon, "stopped", &[]);
    let rm = |words: &[&str]| daemon.banger(["vm", "rm"]).args(words).run();
    // Running without --force is 4, unknown is 3.
    let first = rm(&["running", "nobody"]).expect(4);
    assert!(
        first.err().contains("running") && first.err().contains("nobody"),
        "{first}"
    );
    assert_eq!(rm(&["nobody", "running", "stopped"]).expect(3).out(), "stopped");
    // Named twice is meant once.
    assert_eq!(rm(&["--force", "running", "running"]).expect(0).out(), "running");
    daemon.finish();
}

#[test]
fn nothing_matched_is_said_and_no_failure() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    for verb in ["start", "stop", "restart", "kill", "rm", "reset"] {
        let all = daemon.banger(["vm", verb, "--all"]).run().expect(0);
        assert_eq!(
            (all.out().as_str(), all.err().as_str()),
            ("", "there are no machines\n")
        );
        let some = daemon.banger(["vm", verb, "--label", "team=red"]).run().expect(0);
        assert!(some.err().contains("team=red"), "{some}");
        // Neither names nor a filter is a mistake, and so are both.
        daemon.banger(["vm", verb]).fails(2);
        daemon.banger(["vm", verb, "x", "--all"]).fails(2);
        daemon.banger(["vm", verb, "--label", "Team=x"]).fails(2);
    }
    create(&daemon, "kept", &[]);
    for verb in ["rm", "reset"] {
        let refused = daemon.banger(["vm", verb, "--all"]).fails(2);
        assert!(
            refused.contains("kept") && refused.contains("--yes"),
            "no way out: {refused}"
        );
    }
    assert_eq!(in_state(&daemon, "stopped"), ["kept"]);
    daemon.finish();
}

/// More than are at work at once: each is done, once, and told in order.
#[test]
fn forty_machines() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let mut operations = Vec::new();
    for number in 10..50 {
        let create = ["vm", "create", "--detach", "--image", "busybox"];
        operations.push(daemon.banger(create).args([format!("m{number}")]).ok());
    }
    for operation in operations {
        daemon.banger(["op", "watch", &operation]).ok();
    }
    let names: Vec<String> = (10..50).map(|number| format!("m{number}")).collect();
    for verb in [&["stop"][..], &["kill"], &["reset", "--yes"], &["rm", "--yes"]] {
        let all = daemon.banger(["vm"]).args(verb).args(["--all"]).ok();
        assert_eq!(all.lines().collect::<Vec<_>>(), names, "{verb:?}");
    }
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

/// Ctrl-C cancels all that was begun, and waits for it.
#[test]
fn interrupted_together() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    for name in ["one", "two"] {
        create(&daemon, name, &[]);
    }
    let start = daemon.banger(["vm", "start", "--all"]).spawn();
    wait_for(Duration::from_secs(60), || {
        (in_state(&daemon, "starting").len() == 2).then_some(())
    })
    .expect("two that start");
    start.interrupt();
    let ended = start.finish().expect(130);
    assert_eq!(ended.out(), "", "{ended}");
    assert!(in_state(&daemon, "running").is_empty());
    assert!(daemon.machine_processes().is_empty());
    // Nothing of it is in the way of the next.
    assert_eq!(daemon.banger(["vm", "start", "one"]).ok(), "one");
    daemon.finish();
}

#[test]
fn what_has_ended_cannot_be_cancelled() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let operation = daemon
        .banger(["vm", "create", "done", "--image", "busybox", "--detach"])
        .ok();
    daemon.banger(["op", "watch", &operation]).ok();
    let refused = daemon.banger(["op", "cancel", &operation]).fails(4);
    assert!(
        refused.contains("ended") && refused.contains("banger vm rm done"),
        "no way out: {refused}"
    );
    assert_eq!(in_state(&daemon, "stopped"), ["done"]);
    daemon.finish();
}
