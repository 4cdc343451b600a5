//! One machine as the command line shows and changes it: lists, settings, figures, health; and what is garbage.

use std::io::{BufRead as _, BufReader};

use rustix::process::Signal;

use crate::support::{Daemon, ended, signal};

#[test]
fn listings() {
    let daemon = Daemon::start();
    let header = "NAME   STATE   IMAGE   VCPUS   MEMORY   DISK   VMM   AGE\n";
    assert_eq!(
        daemon.run(&["ps"]),
        ended(0, header, ""),
        "an empty table is its headers"
    );
    assert_eq!(daemon.run(&["vm", "ls", "-o", "json"]), ended(0, "[]\n", ""));
    assert_eq!(daemon.run(&["ls", "-q"]), ended(0, "", ""));
    daemon.add_vm("dev");
    daemon.add_vm("ci");
    assert_eq!(daemon.run(&["vm", "ls", "-q"]), ended(0, "ci\ndev\n", ""));
    let json = daemon.run(&["ps", "-o", "json"]);
    let vms: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(vms[1]["memory"], 128 << 20);
    assert!(daemon.run(&["ps", "-o", "yaml"]).stdout.starts_with("- id: "));
    assert_eq!(daemon.run(&["ps", "-q", "-o", "json"]).code, Some(2));
}

#[test]
fn an_empty_console_is_told() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    daemon.add_vm("mute");
    assert_eq!(daemon.run(&["vm", "logs", "dev"]), ended(0, "console\n", ""));
    let empty = "the console is empty so far\n";
    assert_eq!(daemon.run(&["vm", "logs", "mute"]), ended(0, "", empty));
    assert_eq!(daemon.run(&["vm", "logs", "-n", "0", "mute"]), ended(0, "", ""));
}

#[test]
fn settings() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    assert_eq!(
        daemon.run(&["vm", "set", "dev", "--memory", "256M"]),
        ended(
            0,
            "SETTING   FROM        TO          APPLIES\n\
             memory    134217728   268435456   at next start (fixed while it runs)\n",
            ""
        )
    );
    assert_eq!(
        daemon.run(&["vm", "set", "dev", "--memory", "128M"]),
        ended(0, "", "nothing changed: dev is so already\n")
    );
    assert_eq!(daemon.run(&["vm", "set", "dev"]).code, Some(2));
    let json = daemon.run(&["vm", "set", "dev", "--memory", "128M", "-o", "json"]);
    let reply: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(reply["changes"], serde_json::json!([]));
    // Another image is a reset; what was set before it was refused is told.
    let refused = daemon.run(&["vm", "set", "dev", "--memory", "256M", "--image", "next"]);
    assert_eq!(refused.code, Some(4));
    assert!(refused.stdout.contains("268435456"), "{}", refused.stdout);
    let moved = daemon.run(&["vm", "set", "dev", "--image", "next", "--force"]);
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    assert_eq!(
        moved.stdout,
        "SETTING   FROM      TO     APPLIES\nimage     busybox   next   now\n"
    );
    assert_eq!(daemon.run(&["vm", "rename", "dev", "old"]), ended(0, "old\n", ""));
    assert_eq!(daemon.run(&["ps", "-q"]).stdout, "old\n");
}

#[test]
fn a_dry_start_says_what_it_would_check() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    daemon.add_vm("sick");
    assert_eq!(
        daemon.run(&["vm", "start", "--dry-run", "dev"]),
        ended(0, "dev: ready\n  ✓ ok       image  as told\n", "")
    );
    let both = daemon.run(&["vm", "start", "--dry-run", "--all", "-o", "json"]);
    assert_eq!(both.code, Some(6));
    let both: serde_json::Value = serde_json::from_str(&both.stdout).unwrap();
    assert_eq!(
        (&both[0]["ready"], &both[1]["ready"]),
        (&true.into(), &false.into())
    );
    assert_eq!(daemon.calls(), Vec::<String>::new());
}

#[test]
fn figures_and_health() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let stats = daemon.run(&["vm", "stats"]);
    assert_eq!(stats.code, Some(0));
    assert!(stats.stdout.contains("dev    50.0 %"), "{}", stats.stdout);
    assert_eq!(
        stats.stderr,
        "note: no figures of dev's guest: the agent does not answer\n"
    );
    let raw = daemon.run(&["vm", "stats", "dev", "-o", "json"]);
    let raw: serde_json::Value = serde_json::from_str(&raw.stdout).unwrap();
    assert_eq!(raw[0]["host"]["vcpus"], 1);
    assert_eq!(daemon.run(&["vm", "stats", "dve"]).code, Some(3));
    assert_eq!(daemon.run(&["vm", "stats", "--interval", "1s"]).code, Some(2));
    // A line for each machine and sample, until somebody has seen enough.
    let mut watched = daemon
        .banger(&["vm", "stats", "--watch", "--interval", "100ms", "-o", "json"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watched.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let sample: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(sample["vm"], "dev");
    }
    signal(&watched, Signal::INT);
    watched.wait().unwrap();

    assert_eq!(
        daemon.run(&["vm", "health"]),
        ended(0, "dev: running, healthy\n  ✓ ok       process  as told\n", "")
    );
    daemon.add_vm("asleep");
    assert_eq!(
        daemon.run(&["vm", "health"]).code,
        Some(0),
        "nobody asked for the one that is stopped"
    );
    assert_eq!(daemon.run(&["vm", "health", "asleep"]).code, Some(1));
    daemon.add_vm("sick");
    assert_eq!(daemon.run(&["vm", "health"]).code, Some(1));
    assert_eq!(daemon.run(&["vm", "health", "dev", "dve"]).code, Some(3));

    assert_eq!(
        daemon.run(&["vm", "wait", "dev", "sick"]),
        ended(1, "NAME   BOOT\ndev    running\nsick   degraded\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "ping", "-c", "2", "--interval", "1ms", "dev"]),
        ended(
            0,
            "dev: 1.50 ms, up 5s, agent 0.1.0\ndev: 1.50 ms, up 5s, agent 0.1.0\n\
             2 answers: min 1.50 ms, avg 1.50 ms, max 1.50 ms\n",
            ""
        )
    );
}

#[test]
fn garbage() {
    let daemon = Daemon::start();
    let dry = daemon.run(&["gc", "--dry-run"]);
    assert_eq!((dry.code, dry.stderr.as_str()), (Some(0), "2 to collect, 6MiB\n"));
    assert_eq!(daemon.run(&["gc", "-n", "-q"]).stdout, "/a\n/b\n");
    let wet = daemon.run(&["gc"]);
    assert_eq!(
        (wet.code, wet.stderr.as_str()),
        (Some(1), "1 collected, 3MiB; 1 could not be\n")
    );
    assert!(wet.stdout.contains("failed: it is in use"), "{}", wet.stdout);
}
