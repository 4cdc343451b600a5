//! Operations: followed, left to themselves, cancelled.

use std::io::{BufRead as _, BufReader};

use rustix::process::Signal;

use crate::support::{Daemon, Ended, ended, eventually, signal};

#[test]
fn ctrl_c_cancels_an_operation_and_waits() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    let child = daemon
        .banger(&["vm", "create", "dev", "--image", "busybox"])
        .spawn()
        .unwrap();
    eventually("the operation", || {
        daemon
            .world
            .operations
            .lock()
            .unwrap()
            .values()
            .any(|operation| operation.receiver_count() > 0)
    });
    signal(&child, Signal::INT);
    let ended = Ended::from(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(130));
    assert_eq!(
        ended.stderr,
        "note: slow mode: no hardware virtualization\n\
         cancelling; press Ctrl-C again to leave the clean-up to the daemon\n\
         error: cancelled: vm.create of dev\n"
    );
    assert_eq!(
        daemon.calls(),
        ["vm.create dev ephemeral=false start=false", "op.cancel op0"]
    );
}

#[test]
fn watching_does_not_cancel() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    let create = daemon
        .banger(&["vm", "create", "dev", "--image", "busybox"])
        .spawn()
        .unwrap();
    eventually("the operation", || {
        daemon.world.operations.lock().unwrap().contains_key("op0")
    });
    let watch = daemon.banger(&["op", "watch", "op0"]).spawn().unwrap();
    eventually("two watchers", || {
        daemon.world.operations.lock().unwrap()["op0"].receiver_count() == 2
    });
    signal(&watch, Signal::INT);
    let watch = Ended::from(watch.wait_with_output().unwrap());
    assert_eq!(watch.code, Some(130));
    assert!(watch.stderr.contains("goes on in the daemon"), "{}", watch.stderr);
    assert!(!daemon.calls().iter().any(|call| call.starts_with("op.cancel")));
    assert_eq!(daemon.run(&["op", "cancel", "op0"]), ended(0, "op0\n", ""));
    assert_eq!(
        create.wait_with_output().unwrap().status.code(),
        Some(130),
        "cancelled by somebody else"
    );
}

#[test]
fn detached_operations_are_named_by_their_ids() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    assert_eq!(
        daemon.run(&["vm", "create", "dev", "--image", "busybox", "-d"]),
        ended(0, "op0\n", "")
    );
    assert_eq!(daemon.run(&["vm", "start", "-d", "dev"]), ended(0, "op1\n", ""));
    assert_eq!(daemon.run(&["run", "busybox", "-d"]), ended(0, "op2\n", ""));
    assert_eq!(
        daemon.run(&["image", "register", "x", "/x", "-d"]),
        ended(0, "op3\n", "")
    );
    let cancelled = daemon.run(&["op", "cancel", "op0"]);
    assert_eq!(cancelled, ended(0, "op0\n", ""));
}

#[test]
fn an_operation_that_has_ended_cannot_be_cancelled() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon
            .run(&["vm", "create", "dev", "--image", "busybox", "-q"])
            .code,
        Some(0)
    );
    assert_eq!(
        daemon.run(&["op", "cancel", "op0"]),
        ended(
            4,
            "",
            "error: vm.create of dev has ended already: it succeeded\n\
             hint: `banger vm rm dev` removes what it made\n"
        )
    );
}

#[test]
fn the_states_of_an_operation_as_lines() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    daemon.run(&["vm", "create", "dev", "--image", "busybox", "-d"]);
    let mut watch = daemon
        .banger(&["op", "watch", "op0", "-o", "json"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut state =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(state()["state"], "running");
    daemon.run(&["op", "cancel", "op0"]);
    assert_eq!(state()["state"], "cancelled");
    assert_eq!(watch.wait().unwrap().code(), Some(130), "as the operation ended");
}
