//! Create, start, stop, kill, remove; and a daemon that dies in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, Wire, wait_for};
use serde_json::json;

#[test]
fn every_verb_and_every_verb_twice() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let guest = Guest::create_with(&daemon, "life", "busybox", &["--memory", "256M", "--vcpus", "1"]);
    assert_eq!(guest.state(), "stopped");
    daemon
        .banger(["vm", "create", "life", "--image", "busybox"])
        .fails(4);
    guest.exec(["true"]).fails(125);
    guest.banger("ping").fails(4);

    guest.banger("start").ok();
    let pid = guest.vmm_pid();
    guest.banger("start").ok();
    assert_eq!(guest.vmm_pid(), pid, "starting what runs does nothing");
    guest.banger("ping").ok();
    let refused = guest.banger("rm").fails(4);
    assert!(
        refused.contains("--force") || refused.contains("stop"),
        "no way out: {refused}"
    );
    assert_eq!(guest.state(), "running");

    guest.banger("stop").ok();
    assert_eq!(guest.state(), "stopped");
    assert!(
        daemon.machine_processes().is_empty(),
        "{:?}",
        daemon.machine_processes()
    );
    guest.banger("stop").ok();
    guest.banger("start").ok();
    guest.banger("kill").ok();
    assert_eq!(guest.state(), "stopped");
    guest.banger("kill").ok();
    guest.banger("rm").ok();
    before.assert_nothing_left(&daemon);
    daemon.banger(["vm", "show", "life"]).fails(3);
    daemon.finish();
}

/// A guest that does not react to being asked is forced after the timeout, and not before.
#[test]
fn a_stop_that_the_guest_ignores_is_forced() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "deaf", "busybox");
    // A VMM that is stopped cannot answer; SIGKILL ends it all the same.
    let pid = rustix::process::Pid::from_raw(guest.vmm_pid().try_into().expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stop the VMM");
    let stop = guest.banger("stop").args(["--timeout", "3"]).run().expect(0);
    assert!(stop.took >= Duration::from_secs(3), "forced too soon: {stop}");
    assert_eq!(guest.state(), "stopped");
    daemon.finish();
}

#[test]
fn logs_show_the_console_and_follow_it_to_its_end() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "talk", "busybox");
    guest.sh("echo before anybody looks > /dev/console");
    let follow = guest.banger("logs").args(["-f"]).spawn();
    follow.wait_stdout("before anybody looks");
    guest.sh("echo a word from inside > /dev/console");
    follow.wait_stdout("a word from inside");
    guest.banger("kill").ok();
    // The console ends with the machine, and so does following it.
    let followed = follow.finish().expect(0);
    assert!(followed.out().contains("a word from inside"));
    // It stays readable while the machine is there.
    assert!(guest.banger("logs").ok().contains("a word from inside"));
    daemon.finish();
}

#[test]
fn a_machine_outlives_its_daemon() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let (pid, since) = {
        let guest = Guest::start(&daemon, "goes-on", "busybox");
        Guest::create_with(&daemon, "sleeps", "busybox", &[]);
        guest.sh("echo here > /tmp/here; (sleep 1000 &)");
        let shown = guest.show();
        (guest.vmm_pid(), shown["running"]["since"].clone())
    };

    daemon.kill();
    let running = daemon.machine_processes();
    assert!(
        running.iter().any(|p| p.command.contains("qemu-system")),
        "the machine died with its daemon: {running:?}"
    );
    daemon.launch();
    let shown = daemon
        .banger(["vm", "show", "goes-on", "--output", "json"])
        .json();
    assert_eq!(shown["state"], "running", "{shown:#}");
    assert_eq!(
        (&shown["running"]["pid"], &shown["running"]["since"]),
        (&pid.into(), &since)
    );
    assert_eq!(
        daemon.banger(["exec", "goes-on", "--", "cat", "/tmp/here"]).ok(),
        "here"
    );
    assert_eq!(
        daemon.banger(["vm", "show", "sleeps", "--output", "json"]).json()["state"],
        "stopped"
    );

    // The same after an orderly end, and an adopted machine can be stopped in order.
    daemon.terminate();
    daemon.launch();
    assert_eq!(
        daemon.banger(["exec", "goes-on", "--", "cat", "/tmp/here"]).ok(),
        "here"
    );
    daemon.banger(["vm", "stop", "goes-on"]).ok();
    assert!(daemon.machine_processes().is_empty());
    daemon.banger(["vm", "start", "goes-on"]).ok();

    // A machine that died while no daemon looked is known as such, and what was left of it is gone.
    let vmm = daemon.machine_processes();
    daemon.kill();
    e2e::processes::kill(&vmm);
    daemon.launch();
    let shown = wait_for(Duration::from_secs(60), || {
        let shown = daemon
            .banger(["vm", "show", "goes-on", "--output", "json"])
            .json();
        (shown["state"] == "failed" || shown["state"] == "stopped").then_some(shown)
    });
    assert!(
        shown.is_some(),
        "{:#}",
        daemon
            .banger(["vm", "show", "goes-on", "--output", "json"])
            .json()
    );
    assert!(daemon.machine_processes().is_empty());
    daemon.banger(["vm", "start", "goes-on"]).ok();
    daemon.finish();
}

/// The daemon is killed at points of a start that no step is aware of; the next one leaves neither half a machine nor
/// a process that nobody knows.
#[test]
fn a_daemon_killed_during_a_start_leaves_nothing_unknown() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    Guest::create_with(&daemon, "half", "busybox", &["--memory", "256M", "--vcpus", "1"]);
    let mut broken_off = 0;
    for milliseconds in [0, 20, 60, 150, 400, 1000, 2500] {
        let start = daemon.banger(["vm", "start", "half"]).spawn();
        std::thread::sleep(Duration::from_millis(milliseconds));
        daemon.kill();
        let told = start.finish();
        daemon.launch();
        // Adopted, taken down, or never begun: whatever it is called, one command leads back to a known state. Only who
        // was told that it had started may count on it, as on a fast host after the longest of these.
        broken_off += u32::from(told.code() != 0);
        if told.code() == 0 {
            let shown = daemon.banger(["vm", "show", "half", "--output", "json"]).json();
            assert_eq!(shown["state"], "running", "after {milliseconds} ms: {shown:#}");
        }
        daemon.banger(["vm", "kill", "half"]).ok();
        let gone = wait_for(Duration::from_secs(60), || {
            daemon.machine_processes().is_empty().then_some(())
        });
        assert!(
            gone.is_some(),
            "after {milliseconds} ms: {:?}",
            daemon.machine_processes()
        );
        let shown = daemon.banger(["vm", "show", "half", "--output", "json"]).json();
        assert!(shown["running"].is_null(), "after {milliseconds} ms: {shown:#}");
    }
    // No guest boots in a fifth of a second.
    assert!(broken_off >= 4, "{broken_off}");
    daemon.banger(["vm", "start", "half"]).ok();
    assert_eq!(
        daemon.banger(["exec", "half", "--", "echo", "whole"]).ok(),
        "whole"
    );
    daemon.finish();
}

#[test]
fn a_vmm_that_dies_is_noticed_without_asking() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "dies", "busybox");
    let hanging = guest.exec(["sleep", "1000"]).spawn();
    guest.sh("echo something to follow > /dev/console");
    let follow = guest.banger("logs").args(["-f"]).spawn();
    follow.wait_stdout("something to follow");
    let pid = i32::try_from(guest.vmm_pid()).expect("a pid");
    let vmm: Vec<_> = daemon
        .machine_processes()
        .into_iter()
        .filter(|p| p.pid == pid)
        .collect();
    assert_eq!(vmm.len(), 1);
    e2e::processes::kill(&vmm);
    // Both that waited on the guest are told.
    let broken = hanging.finish();
    assert_eq!(broken.code(), 125, "{broken}");
    follow.finish().expect(0);
    assert_eq!(guest.state(), "failed");
    assert!(!guest.show()["failure"].as_str().unwrap_or_default().is_empty());
    assert!(
        daemon.machine_processes().is_empty(),
        "{:?}",
        daemon.machine_processes()
    );
    guest.banger("start").ok();
    assert_eq!(guest.sh("echo again"), "again");
    daemon.finish();
}

/// The command line starts the daemon where none runs, and the daemon does not hold on to the command's terminal.
#[test]
fn the_command_line_starts_the_daemon() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::new(&bed, Settings::empty());
    daemon.banger(["ls"]).fails(9);
    daemon.banger(["ls"]).env_remove("BANGER_NO_AUTOSTART").ok();
    let status = daemon.banger(["daemon", "status", "--output", "json"]).json();
    let pid = i32::try_from(status["pid"].as_u64().expect("a pid")).expect("a pid");
    let mode = std::fs::metadata(daemon.socket())
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(daemon.state().join("bangerd.log").is_file());
    // A session of its own: closing the terminal does not end it (proc_pid_stat(5): field 6).
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    assert_eq!(fields.split(' ').nth(3), Some(pid.to_string().as_str()));

    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("end the daemon");
    let gone = wait_for(Duration::from_secs(60), || {
        (!daemon.socket().exists()).then_some(())
    });
    assert!(gone.is_some(), "the daemon leaves its socket");
    daemon.finish();
}

#[test]
fn many_starts_at_once_do_one_start() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::new(&bed, Settings::empty());
    let all: Vec<_> = (0..6)
        .map(|_| daemon.banger(["ls"]).env_remove("BANGER_NO_AUTOSTART").spawn())
        .collect();
    for one in all {
        one.finish().expect(0);
    }
    let status = daemon.banger(["daemon", "status", "--output", "json"]).json();
    let running = || {
        let mut daemons = daemon.machine_processes();
        daemons.retain(|p| p.command.ends_with("bangerd run"));
        daemons
    };
    // Those that came second may be at their last instructions.
    wait_for(Duration::from_secs(60), || (running().len() == 1).then_some(()));
    let daemons = running();
    assert_eq!(daemons.len(), 1, "{daemons:?}");
    assert_eq!(u64::try_from(daemons[0].pid).ok(), status["pid"].as_u64());
    e2e::processes::kill(&daemons);
    // A killed process counts as ended when its first thread has; its socket goes with the last one.
    let gone = wait_for(Duration::from_secs(60), || {
        let refused = std::os::unix::net::UnixStream::connect(daemon.socket()).is_err();
        (daemon.machine_processes().is_empty() && refused).then_some(())
    });
    assert!(gone.is_some());
    // It was killed, not ended: its socket stays, and the next daemon takes it over.
    daemon.banger(["ls"]).env_remove("BANGER_NO_AUTOSTART").ok();
    // Those that came second may be at their last instructions.
    wait_for(Duration::from_secs(60), || (running().len() == 1).then_some(()));
    let daemons = running();
    assert_eq!(daemons.len(), 1, "{daemons:?}");
    let pid = rustix::process::Pid::from_raw(daemons[0].pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("end the daemon");
    let gone = wait_for(Duration::from_secs(60), || {
        (!daemon.socket().exists()).then_some(())
    });
    assert!(gone.is_some(), "the daemon leaves its socket");
    daemon.finish();
}

/// What a daemon that was killed in the middle of making an image has left at work is ended before its files go.
#[test]
fn unfinished_work_goes_with_those_who_are_at_it() {
    use std::os::unix::process::CommandExt as _;

    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::empty());
    daemon.kill();
    let left = daemon.state().join("images/.bgr-tmp-left");
    std::fs::create_dir_all(&left).expect("make a directory");
    // As a bootstrap's: it knows the directory by its environment only, and goes on making files there.
    let busy = r#"n=0; while :; do n=$((n + 1)); : > "$TMPDIR/$n"; sleep 0.01 & wait; done"#;
    let mut worker = std::process::Command::new("sh");
    worker.args(["-c", busy]).env("TMPDIR", &left).process_group(0);
    let mut worker = worker.spawn().expect("run sh");
    let at_work = wait_for(Duration::from_secs(60), || left.join("5").exists().then_some(()));
    assert!(at_work.is_some());
    daemon.launch();
    assert!(!left.exists(), "{}", daemon.log());
    let ended = wait_for(Duration::from_secs(60), || {
        worker.try_wait().expect("wait for sh")
    });
    if ended.is_none() {
        worker.kill().expect("kill sh");
        worker.wait().expect("wait for sh");
        panic!("still at work: {}", daemon.log());
    }
    daemon.finish();
}

/// Everything in a state directory is its state file's. Without that, nothing may be taken for garbage.
#[test]
fn a_lost_state_file_costs_nothing_else() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    Guest::create_with(&daemon, "kept", "busybox", &["--disk", "64M"]);
    daemon.terminate();
    let (file, away) = (daemon.state().join("banger.db"), daemon.state().join("away.db"));
    std::fs::rename(&file, &away).expect("move the state file away");
    let refused = daemon.banger(["daemon", "run"]).run();
    assert_ne!(refused.code(), 0, "{refused}");
    assert!(refused.err().contains("banger.db is lost"), "{refused}");
    std::fs::rename(&away, &file).expect("put it back");
    daemon.launch();
    assert_eq!(daemon.banger(["ls", "-q"]).ok(), "kept");
    daemon.finish();
}

/// Nothing on the way from the guest's readiness to the end of a start looks at a clock to see whether it is time to look
/// again: the guest says that it serves, and the start has ended.
///
/// Measured from outside: when the process was started that serves the daemon (in the guest's own time, which the guest
/// reads out for comparison), and when the operation ended (in the host's). In between the agent binds its port, says
/// hello, and is called once.
#[test]
fn a_start_ends_when_the_guest_is_up() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::create_with(
        &daemon,
        "prompt",
        "busybox",
        &["--memory", "256M", "--vcpus", "1"],
    );
    let mut wire = Wire::connect(&daemon);
    let mut starts: Vec<(f64, f64)> = (0..3)
        .map(|_| {
            let started = wire
                .operate("vm.start", &json!({"vm": "prompt"}))
                .expect("an answer")
                .expect("a start");
            let time = |field: &str| -> jiff::Timestamp {
                let time = started[field].as_str().expect("a time");
                time.parse().expect("a time")
            };
            let took = seconds(time("ended")) - seconds(time("began"));
            let overshoot = seconds(time("ended")) - (booted(&guest) + served_since(&guest));
            guest.banger("kill").ok();
            (overshoot, took)
        })
        .collect();
    starts.sort_by(|one, other| one.0.total_cmp(&other.0));
    println!("seconds from the agent's start to the operation's end, and of the operation: {starts:.3?}");
    // The middle one of three, because an interval of polling is there each time, by half on average. Binding, hello and call
    // take an emulated guest a tenth of a second or two; where the host is so busy with others that it boots in more than
    // twice its 3 s, each handover waits for a processor as well.
    let (overshoot, took) = starts[1];
    let budget = if took < 6.0 { 0.5 } else { 1.0 };
    assert!(starts[0].0 > -CLOCKS && overshoot < budget, "{starts:?}");
    daemon.finish();
}

/// How far off the comparison of two clocks may be: `/proc` counts in hundredths of a second (proc_pid_stat(5)).
const CLOCKS: f64 = 0.02;

fn seconds(time: jiff::Timestamp) -> f64 {
    Duration::try_from(time.duration_since(jiff::Timestamp::UNIX_EPOCH))
        .expect("a time after 1970")
        .as_secs_f64()
}

/// When the guest's kernel started, in the host's time: the guest is asked for its uptime over one stream until an answer
/// comes at once.
fn booted(guest: &Guest<'_>) -> f64 {
    let script = "while read -r _; do read -r up _ < /proc/uptime; echo $up; done";
    let mut clock = guest
        .exec_with(&["-i"])
        .args(["--", "sh", "-c", script])
        .into_command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run the command line");
    let mut ask = clock.stdin.take().expect("a pipe");
    let mut hear = BufReader::new(clock.stdout.take().expect("a pipe"));
    let mut best = (f64::INFINITY, 0.0);
    for _ in 0..20 {
        let asked = seconds(jiff::Timestamp::now());
        ask.write_all(b"\n").expect("ask");
        let mut up = String::new();
        hear.read_line(&mut up).expect("hear");
        let up: f64 = up.trim().parse().expect("an uptime");
        let answered = seconds(jiff::Timestamp::now());
        if answered - asked < best.0 {
            best = (answered - asked, f64::midpoint(asked, answered) - up);
        }
    }
    drop(ask);
    assert!(clock.wait().expect("wait").success());
    best.1
}

/// When the agent's server was started, in seconds since the guest's kernel was.
fn served_since(guest: &Guest<'_>) -> f64 {
    let stats = guest.sh("cat /proc/[0-9]*/stat 2>/dev/null || true");
    let starts = stats.lines().filter_map(|line| {
        let (head, rest) = line.rsplit_once(") ")?;
        // Field 22; the state behind the name is the third.
        let ticks = rest.split(' ').nth(19)?;
        head.ends_with("(banger-agent")
            .then(|| ticks.parse::<f64>().ok())?
    });
    starts.reduce(f64::min).expect("the agent") / 100.0
}
