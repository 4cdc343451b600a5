//! Settings of machines that exist, and their names.

use e2e::{Daemon, Guest, Settings, Testbed};
use serde_json::{Value, json};

/// `vm set` with JSON output.
pub(crate) fn set(guest: &Guest<'_>, options: &[&str]) -> Value {
    guest
        .banger("set")
        .args(options)
        .args(["--output", "json"])
        .json()
}

/// What an answer says of a setting: from, to, when.
pub(crate) fn change<'a>(answer: &'a Value, setting: &str) -> (&'a str, &'a str, &'a str) {
    let changes = answer["changes"].as_array().expect("changes");
    let change = changes.iter().find(|change| change["setting"] == setting);
    let change = change.unwrap_or_else(|| panic!("no {setting} in {answer:#}"));
    let text = |key: &str| change[key].as_str().expect("a text");
    (text("from"), text("to"), text("applies"))
}

/// MiB of the file system that is mounted there in the guest.
pub(crate) fn size(guest: &Guest<'_>, mount: &str) -> u64 {
    let df = guest.sh(&format!("df -k {mount} | tail -n 1"));
    let kib = df
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("{df}")) >> 10
}

#[test]
fn settings_apply_now_or_at_the_next_start() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    {
        let guest = Guest::create_with(&daemon, "set", "busybox", &["--memory", "192M", "--vcpus", "1"]);
        // One that rests has what is set.
        let answer = set(&guest, &["--memory", "256M", "--label", "team=a"]);
        assert_eq!(change(&answer, "memory"), ("192MiB", "256MiB", "now"));
        assert_eq!(answer["vm"]["pending"], Value::Null);

        guest.banger("start").ok();
        let options = [
            "--memory",
            "320M",
            "--vcpus",
            "2",
            "--unlabel",
            "team",
            "--autostart",
        ];
        let answer = set(&guest, &options);
        assert_eq!(change(&answer, "memory"), ("256MiB", "320MiB", "next_start"));
        assert_eq!(change(&answer, "vcpus"), ("1", "2", "next_start"));
        assert_eq!(change(&answer, "label team"), ("\"a\"", "absent", "now"));
        assert_eq!(change(&answer, "autostart"), ("no", "yes", "now"));
        assert_eq!(answer["vm"]["pending"], json!(["vcpus", "memory"]));
        assert_eq!(guest.sh("nproc"), "1");
        // The same again is no change, and no error.
        assert_eq!(set(&guest, &options)["changes"], json!([]));
        guest.banger("set").args(options).ok();
    }

    // What a run does not have yet is known across the daemon's death.
    daemon.kill();
    daemon.launch();
    let shown = daemon.banger(["vm", "show", "set", "--output", "json"]).json();
    assert_eq!(shown["state"], "running", "{shown:#}");
    assert_eq!(shown["pending"], json!(["vcpus", "memory"]));
    daemon.banger(["vm", "restart", "set"]).ok();
    let shown = daemon.banger(["vm", "show", "set", "--output", "json"]).json();
    assert_eq!(shown["pending"], Value::Null);
    let seen = daemon.banger([
        "exec",
        "set",
        "--",
        "sh",
        "-c",
        "nproc; grep MemTotal /proc/meminfo",
    ]);
    let seen = seen.ok();
    let (processors, memory) = seen.split_once('\n').expect("two lines");
    assert_eq!(processors, "2");
    let memory: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("MemTotal");
    assert!(memory > 256 << 10, "{memory} KiB");
    daemon.finish();
}

#[test]
fn what_cannot_be_set_is_refused_whole_and_says_the_way_out() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::create_with(&daemon, "firm", "busybox", &["--disk", "2GiB"]);
    let before = guest.show();
    for (options, code, expected) in [
        (&["--disk", "1GiB"][..], 2, "banger cp"),
        (&["--memory", "4TiB"], 2, "this host has"),
        (&["--memory", "1M"], 2, "below the minimum"),
        // It would be, and the kernel would run out of it while it boots.
        (&["--memory", "70M"], 2, "does not hold kernel"),
        (&["--vcpus", "1000"], 2, "is not in 1..=32"),
        (&["--expires", "2020-01-01T00:00:00Z"], 2, "past"),
        (&["--label", "Not=allowed"], 2, "label"),
        (&["--kernel", "debain"], 3, "debian"),
        // A part that is fine does not go through with one that is not.
        (&["--memory", "512M", "--disk", "1GiB"], 2, "shrink"),
    ] {
        let said = guest.banger("set").args(options).fails(code);
        assert!(
            said.contains(expected),
            "{options:?} says nothing of {expected:?}: {said}"
        );
    }
    assert_eq!(guest.show(), before);
    daemon.finish();
}

#[test]
fn a_disk_grows_under_a_guest_and_at_the_next_start() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(
        &daemon,
        "grows",
        "busybox",
        &[
            "--memory",
            "256M",
            "--vcpus",
            "1",
            "--disk",
            "512M",
            "--work-disk",
            "64M",
        ],
    );
    assert!(size(&guest, "/") < 512 && size(&guest, "/root") < 64);
    guest.sh("echo kept > /root/kept; echo kept > /etc/kept");

    let answer = set(&guest, &["--disk", "1GiB", "--work-disk", "256M"]);
    assert_eq!(change(&answer, "disk"), ("512MiB", "1GiB", "now"), "{answer:#}");
    assert_eq!(
        change(&answer, "work_disk"),
        ("64MiB", "256MiB", "now"),
        "{answer:#}"
    );
    assert_eq!(answer["vm"]["pending"], Value::Null);
    assert!(size(&guest, "/") > 900 && size(&guest, "/root") > 200);

    guest.banger("stop").ok();
    set(&guest, &["--disk", "2GiB"]);
    guest.banger("start").ok();
    assert!(size(&guest, "/") > 1800);
    assert_eq!(guest.sh("cat /root/kept /etc/kept"), "kept\nkept");
    daemon.finish();
}

#[test]
fn a_name_changes_at_once_and_the_host_name_with_the_next_start() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    {
        let guest = Guest::start(&daemon, "old", "busybox");
        Guest::create_with(&daemon, "taken", "busybox", &[]);
        guest.banger("rename").args(["taken"]).fails(4);
        guest.banger("rename").args(["Not-A-Name"]).fails(2);
        assert_eq!(guest.state(), "running");
        guest.banger("rename").args(["old"]).ok();
        guest.banger("rename").args(["new"]).ok();
    }
    daemon.banger(["vm", "show", "old"]).fails(3);
    assert_eq!(daemon.banger(["exec", "new", "--", "hostname"]).ok(), "old");
    // The old name is free.
    Guest::create_with(&daemon, "old", "busybox", &[]);
    daemon.kill();
    daemon.launch();
    let shown = daemon.banger(["vm", "show", "new", "--output", "json"]).json();
    assert_eq!(
        (&shown["state"], &shown["pending"]),
        (&json!("running"), &json!(["name"]))
    );
    daemon.banger(["vm", "restart", "new"]).ok();
    assert_eq!(daemon.banger(["exec", "new", "--", "hostname"]).ok(), "new");
    daemon.finish();
}
