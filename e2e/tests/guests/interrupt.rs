//! Ctrl-C at points of everything that takes time. Whatever point it hits: the exit code says "interrupted", nothing is
//! left, and the next command works.

use std::time::Duration;

use e2e::{Daemon, Guest, Running, Settings, Testbed, wait_for};

const SMALL: [&str; 4] = ["--vcpus", "1", "--memory", "256M"];

fn interrupted(running: Running) {
    let finished = running.finish();
    assert_eq!(finished.code(), 130, "{finished}");
    assert!(!finished.err().contains("panicked"), "{finished}");
}

/// The delays cover a run from its first instruction to a command in a guest that has long booted; where exactly one
/// hits differs from run to run, and must not matter.
#[test]
fn run_interrupted_anywhere() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    for milliseconds in [5, 15, 40, 100, 250, 600, 1500, 3000, 12_000] {
        let run = daemon
            .banger(["run", "busybox", "--rm"])
            .args(SMALL)
            .args(["--", "sleep", "1000"])
            .spawn();
        // Before the command has set up its handling, the signal's own default is the same answer.
        std::thread::sleep(Duration::from_millis(milliseconds));
        run.interrupt();
        interrupted(run);
        before.assert_nothing_left(&daemon);
    }
    daemon.finish();
}

#[test]
fn create_interrupted_anywhere() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    for milliseconds in [0, 5, 10, 15, 20, 30, 50, 80] {
        let create = daemon
            .banger(["vm", "create", "cut", "--image", "busybox", "--disk", "20G"])
            .spawn();
        std::thread::sleep(Duration::from_millis(milliseconds));
        create.interrupt();
        let finished = create.finish();
        match finished.code() {
            // It was faster.
            0 => drop(daemon.banger(["vm", "rm", "cut"]).ok()),
            130 => {}
            _ => panic!("after {milliseconds} ms: {finished}"),
        }
        before.assert_nothing_left(&daemon);
    }
    daemon.finish();
}

#[test]
fn bootstrap_interrupted() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    for milliseconds in [100, 1000, 6000] {
        let bootstrap = daemon
            .banger(["image", "bootstrap", "debian", "--name", "again"])
            .spawn();
        std::thread::sleep(Duration::from_millis(milliseconds));
        bootstrap.interrupt();
        interrupted(bootstrap);
        before.assert_nothing_left(&daemon);
    }
    daemon.finish();
}

/// A signal to `exec` is the command's; a client that is killed takes its command with it.
#[test]
fn exec_interrupted() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "long", "busybox");
    let gone = |what: &str| {
        let gone = wait_for(Duration::from_secs(60), || {
            (guest.sh("ps | grep -c '[s]leep 1234' || true") == "0").then_some(())
        });
        assert!(gone.is_some(), "{what}: {}", guest.sh("ps"));
    };
    let command = ["sh", "-c", "echo begun; exec sleep 1234"];
    let exec = guest.exec(command).spawn();
    exec.wait_stdout("begun");
    exec.interrupt();
    interrupted(exec);
    gone("after Ctrl-C");
    // The command may catch it and end in its own way.
    let exec = guest
        .exec([
            "sh",
            "-c",
            "trap 'echo caught; exit 9' INT; echo begun; while :; do sleep 0.1; done",
        ])
        .spawn();
    exec.wait_stdout("begun");
    exec.interrupt();
    let finished = exec.finish().expect(9);
    assert!(finished.out().ends_with("caught"), "{finished}");
    let exec = guest.exec(command).spawn();
    exec.wait_stdout("begun");
    exec.signal(rustix::process::Signal::KILL);
    drop(exec.finish());
    gone("after its client was killed");
    daemon.finish();
}

/// A client that goes away without a word cancels nothing: the operation goes on and its result is there.
#[test]
fn a_killed_client_cancels_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::create_with(&daemon, "goes-on", "busybox", &SMALL);
    let start = guest.banger("start").spawn();
    wait_for(Duration::from_secs(60), || {
        (guest.state() == "starting").then_some(())
    })
    .expect("a start");
    start.signal(rustix::process::Signal::KILL);
    drop(start.finish());
    wait_for(Duration::from_secs(60), || {
        (guest.state() == "running").then_some(())
    })
    .expect("a machine that runs");
    assert_eq!(guest.sh("echo up"), "up");
    daemon.finish();
}
