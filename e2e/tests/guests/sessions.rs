//! Sessions of real guests: they outlast clients and daemons, and what they wrote is there when the machine is not.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, truth, wait_for};
use serde_json::{Value, json};

/// For an answer of a guest whose processor is emulated on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn show(daemon: &Daemon, vm: &str, session: &str) -> Value {
    daemon
        .banger(["session", "show", vm, session, "--output", "json"])
        .json()
}

#[test]
fn a_session_outlasts_clients_daemons_and_its_machine() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "dev", "busybox");
    let script = "echo one; echo two >&2; while ! [ -e /go ]; do sleep 0.1; done; echo three; exit 7";
    let started = daemon
        .banger(["session", "start", "dev", "--", "sh", "-c", script])
        .ok();
    assert_eq!(started, "sh");
    let following = daemon.banger(["session", "logs", "-f", "dev", "sh"]).spawn();
    following.wait_stdout("one\n");
    following.wait_stderr("two\n");
    assert_eq!(show(&daemon, "dev", "sh")["state"], "running");
    let refused = daemon.banger(["session", "rm", "dev", "sh"]).fails(4);
    assert!(
        refused.contains("is running") && refused.contains("--force"),
        "{refused}"
    );
    // Names are one's own or made after the program, and never twice.
    let taken = daemon
        .banger(["session", "start", "dev", "--name", "sh", "--", "true"])
        .fails(4);
    assert!(taken.contains("session \"sh\" already exists"), "{taken}");
    let second = daemon
        .banger(["session", "start", "dev", "--", "sh", "-c", "exit 0"])
        .ok();
    assert_eq!(second, "sh-2");
    assert_eq!(daemon.banger(["session", "wait", "dev", "sh-2"]).run().code(), 0);

    // The daemon dies, the session does not, and says something meanwhile.
    let marker = "echo while away > /tmp/said; touch /go";
    guest.sh(&format!("(sleep 1; {marker}) > /dev/null 2>&1 &"));
    daemon.kill();
    drop(following);
    std::thread::sleep(Duration::from_secs(3));
    daemon.launch();
    let waited = daemon.banger(["session", "wait", "dev", "sh"]).run();
    assert_eq!(waited.code(), 7, "{waited}");
    let all = daemon.banger(["session", "logs", "dev", "sh"]).run().expect(0);
    assert_eq!((all.out().as_str(), all.err().as_str()), ("one\nthree", "two\n"));
    let tail = daemon
        .banger(["session", "logs", "-n", "1", "dev", "sh"])
        .run()
        .expect(0);
    assert_eq!((tail.out(), tail.err()), ("three".to_owned(), String::new()));
    let future = daemon
        .banger(["session", "logs", "--since", "2100-01-01T00:00:00Z", "dev", "sh"])
        .ok();
    assert_eq!(future, "");
    let shown = show(&daemon, "dev", "sh");
    assert_eq!(
        (&shown["state"], &shown["exit_code"]),
        (&json!("exited"), &json!(7))
    );

    // One ends by a signal, one with its machine.
    daemon
        .banger([
            "session", "start", "dev", "--name", "ended", "--", "sleep", "1000",
        ])
        .ok();
    daemon.banger(["session", "signal", "dev", "ended", "INT"]).ok();
    assert_eq!(
        daemon.banger(["session", "wait", "dev", "ended"]).run().code(),
        130
    );
    daemon.banger(["session", "signal", "dev", "ended"]).fails(4);
    daemon
        .banger([
            "session",
            "start",
            "dev",
            "--name",
            "killed",
            "--",
            "sh",
            "-c",
            "echo alive; sleep 1000",
        ])
        .ok();
    let alive = daemon.banger(["session", "logs", "-f", "dev", "killed"]).spawn();
    alive.wait_stdout("alive\n");
    daemon.banger(["vm", "kill", "dev"]).ok();
    let lost = alive.finish().expect(0);
    assert_eq!(lost.out(), "alive");
    assert_eq!(
        daemon.banger(["session", "wait", "dev", "killed"]).run().code(),
        125
    );
    let shown = show(&daemon, "dev", "killed");
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!("lost"), &json!("its machine stopped"))
    );
    assert_eq!(daemon.banger(["session", "logs", "dev", "killed"]).ok(), "alive");
    daemon.banger(["session", "start", "dev", "--", "true"]).fails(4);

    let listed = daemon.banger(["session", "ls", "dev", "-q"]).ok();
    assert_eq!(listed, "sh\nsh-2\nended\nkilled");
    let removed = daemon.banger(["session", "rm", "dev", "sh", "ended"]).ok();
    assert_eq!(removed, "sh\nended");
    let missing = daemon.banger(["session", "logs", "dev", "sh"]).fails(3);
    assert!(missing.contains("no session \"sh\""), "{missing}");
    daemon.banger(["vm", "rm", "dev"]).ok();
    assert_eq!(daemon.banger(["session", "ls", "-q"]).ok(), "");
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn a_program_in_the_background_is_the_machines_main_session() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let run = |name: &str, options: &[&str], script: &str| {
        daemon
            .banger(["run", "-d", "--name", name, "--memory", "256M", "--vcpus", "1"])
            .args(options)
            .args(["busybox", "--", "sh", "-c", script])
            .ok()
    };
    assert_eq!(run("stays", &["-e", "WORD=hi"], "echo $WORD"), "stays");
    assert_eq!(
        daemon.banger(["session", "wait", "stays", "main"]).run().code(),
        0
    );
    assert_eq!(daemon.banger(["session", "logs", "stays", "main"]).ok(), "hi");
    // Its machine does not end with it, unless it was made for it alone.
    assert_eq!(Guest::of(&daemon, "stays").state(), "running");
    assert_eq!(run("goes", &["--rm"], "sleep 2"), "goes");
    let gone = wait_for(PATIENCE, || {
        let listed = daemon.banger(["vm", "ls", "-q"]).ok();
        (listed == "stays").then_some(())
    });
    assert!(gone.is_some(), "the machine is there still");
    // What cannot be started is said, and leaves no machine that was to be removed.
    daemon
        .banger(["run", "-d", "--rm", "--name", "none", "busybox", "--", "/no/such"])
        .fails(127);
    assert_eq!(daemon.banger(["vm", "ls", "-q"]).ok(), "stays");
    daemon.banger(["vm", "rm", "--force", "stays"]).ok();
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn a_talkative_session_is_bounded_and_whole_at_its_end() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "dev", "busybox");
    // 24 MiB of numbered lines of 64 bytes: more than is kept.
    let script = "i=0; l=$(printf '%055d' 0); while [ $i -lt 24 ]; do \
                  yes $l$(printf '%08d' $i) | head -n 16384; i=$((i+1)); done; echo end";
    daemon
        .banger([
            "session", "start", "dev", "--name", "talks", "--", "sh", "-c", script,
        ])
        .ok();
    let waited = daemon
        .banger(["session", "wait", "dev", "talks"])
        .deadline(Duration::from_secs(300))
        .run();
    assert_eq!(waited.code(), 0, "{waited}");
    let log = daemon.banger(["session", "logs", "dev", "talks"]).ok();
    assert!(
        log.ends_with(&format!("{:063}\nend", 23)),
        "{}",
        &log[log.len() - 200..]
    );
    assert!(log.len() > 8 << 20 && log.len() < 17 << 20, "{}", log.len());
    assert_eq!(guest.sh("echo well"), "well");
    let last = daemon.banger(["session", "logs", "-n", "2", "dev", "talks"]).ok();
    assert_eq!(last, format!("{:063}\nend", 23));
    daemon.finish();
}
