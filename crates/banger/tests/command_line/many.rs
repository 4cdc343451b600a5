//! Many at once: named, by label, all; the first failure counts and keeps no other from its turn.

use crate::support::{Daemon, ended};

#[test]
fn one_that_fails_keeps_no_other_from_its_turn() {
    let daemon = Daemon::start();
    for what in ["image", "kernel"] {
        let ended = daemon.run(&[what, "rm", "a", "nosuch", "used", "b"]);
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(3), "a\nb\n"),
            "the first failure's code"
        );
        assert_eq!(
            ended.stderr,
            format!("error: no {what} \"nosuch\"\nerror: used: something uses it\n")
        );
    }
    assert_eq!(
        daemon.run(&["image", "rm", "used"]).stderr,
        "error: something uses it\n"
    );
    *daemon.world.slow.lock().unwrap() = true;
    daemon.run(&["vm", "create", "x", "--image", "busybox", "-d"]);
    daemon.run(&["vm", "create", "y", "--image", "busybox", "-d"]);
    let cancelled = daemon.run(&["op", "cancel", "op0", "nosuch", "op1"]);
    assert_eq!(
        (cancelled.code, cancelled.stdout.as_str()),
        (Some(3), "op0\nop1\n")
    );
}

#[test]
fn several_machines_are_stopped_and_the_first_failure_counts() {
    let daemon = Daemon::start();
    daemon.add_vm("a");
    daemon.add_vm("b");
    let stopped = daemon.run(&["vm", "stop", "-q", "--timeout", "0", "a", "missing", "b"]);
    assert_eq!((stopped.code, stopped.stdout.as_str()), (Some(3), "a\nb\n"));
    let mut calls = daemon.calls();
    calls.sort();
    assert_eq!(
        calls,
        ["vm.stop a Some(0)", "vm.stop b Some(0)"],
        "at once, in any order"
    );
}

#[test]
fn many_at_once_by_name_label_and_all() {
    let daemon = Daemon::start();
    daemon.add_vm("a");
    daemon.add_labelled("b", "team", "red");
    daemon.add_labelled("c", "team", "blue");
    assert_eq!(
        daemon.run(&["vm", "restart", "-q", "c", "a", "c"]),
        ended(0, "c\na\n", ""),
        "in the order named, each once"
    );
    assert_eq!(
        daemon.run(&["vm", "kill", "-q", "--label", "team"]),
        ended(0, "b\nc\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "stop", "-q", "--label", "team=red"]),
        ended(0, "b\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "start", "-q", "--all"]),
        ended(0, "a\nb\nc\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "stop", "--label", "team=green", "--label", "x"]),
        ended(0, "", "no machine is labelled team=green and x\n")
    );
    assert_eq!(
        daemon.run(&["vm", "stop", "missing"]),
        ended(
            3,
            "",
            "error: no machine is named missing\nhint: did you mean dev?\n"
        )
    );
    for words in [
        &["vm", "stop"][..],
        &["vm", "stop", "a", "--all"],
        &["vm", "stop", "a", "--label", "x"],
        &["vm", "stop", "--all", "--label", "x"],
    ] {
        assert_eq!(daemon.run(words).code, Some(2), "{words:?}");
    }
}

#[test]
fn a_failure_among_many_is_told_with_its_machine() {
    let daemon = Daemon::start();
    for name in ["a", "b", "c"] {
        daemon.add_vm(name);
    }
    let reset = daemon.run(&["vm", "reset", "-q", "missing", "b", "c"]);
    assert_eq!((reset.code, reset.stdout.as_str()), (Some(3), ""));
    assert_eq!(
        reset.stderr,
        "error: no machine is named missing\nhint: did you mean dev?\n\
         error: b is running\nerror: c is running\n"
    );
    let reset = daemon.run(&["vm", "reset", "-q", "b", "missing"]);
    assert_eq!(reset.code, Some(4), "the first failure in the order named");
}

#[test]
fn what_cannot_be_undone_is_asked_for() {
    let daemon = Daemon::start();
    daemon.add_vm("a");
    daemon.add_vm("b");
    for verb in ["rm", "reset"] {
        let refused = daemon.run(&["vm", verb, "--all", "--force"]);
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains("2 machines (a, b)"), "{}", refused.stderr);
        assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    }
    assert_eq!(daemon.calls(), Vec::<String>::new());
    assert_eq!(
        daemon.run(&["vm", "rm", "-q", "--all", "--yes"]),
        ended(0, "a\nb\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "rm", "--all"]),
        ended(0, "", "there are no machines\n"),
        "nothing to ask"
    );
}
