//! What people and programs read: listings in each format, `-q`, help.

use e2e::{Daemon, Guest, Settings, Testbed};

#[test]
fn each_listing_in_each_format() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    // Nothing to list is an empty list, not an error.
    assert_eq!(daemon.banger(["ls", "-q"]).ok(), "");
    assert_eq!(
        daemon.banger(["ls", "--output", "json"]).json(),
        serde_json::json!([])
    );
    Guest::create_with(
        &daemon,
        "zoe",
        "busybox",
        &["--vcpus", "1", "--memory", "256M", "--label", "team=red"],
    );
    Guest::create_with(&daemon, "amy", "debian", &[]);

    for (listing, names) in [
        (&["vm", "ls"][..], &["amy", "zoe"][..]),
        (&["ls"], &["amy", "zoe"]),
        (&["ps"], &["amy", "zoe"]),
        (&["image", "ls"], &["busybox", "debian"]),
        (&["kernel", "ls"], &["debian"]),
    ] {
        let table = daemon.banger(listing).ok();
        assert!(table.starts_with("NAME"), "{listing:?} has no heading: {table}");
        let json = daemon.banger(listing).args(["--output", "json"]).json();
        let listed: Vec<_> = json
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|row| row["name"].as_str())
            .collect();
        let quiet = daemon.banger(listing).args(["-q"]).ok();
        let yaml = daemon.banger(listing).args(["--output", "yaml"]).ok();
        for name in names {
            assert!(listed.contains(name), "{listing:?}: {json:#}");
            assert!(quiet.lines().any(|line| line == *name), "{listing:?} -q: {quiet}");
            assert!(
                yaml.contains(&format!("name: {name}")),
                "{listing:?} yaml: {yaml}"
            );
            assert!(
                table.lines().any(|line| line.starts_with(name)),
                "{listing:?}: {table}"
            );
        }
        assert_eq!(
            quiet.lines().collect::<Vec<_>>(),
            listed,
            "{listing:?}: -q and json list the same in the same order"
        );
        // A format is asked for, never guessed.
        let bad = daemon.banger(listing).args(["--output", "jsn"]).fails(2);
        assert!(bad.contains("json"), "no near match: {bad}");
    }
    assert_eq!(daemon.banger(["ls", "-q", "--label", "team=red"]).ok(), "zoe");
    assert_eq!(daemon.banger(["ls", "-q", "--label", "team=blue"]).ok(), "");
    for show in [
        &["vm", "show", "zoe"][..],
        &["image", "show", "debian"],
        &["daemon", "status"],
        &["version"],
        &["doctor"],
        &["op", "ls"],
        &["vm", "health"],
        &["vm", "start", "--dry-run", "--all"],
    ] {
        daemon.banger(show).args(["--output", "json"]).json();
        assert!(daemon.banger(show).args(["--output", "yaml"]).ok().contains(": "));
        assert!(!daemon.banger(show).ok().is_empty());
    }
    let vm = daemon.banger(["vm", "show", "zoe", "--output", "json"]).json();
    assert_eq!(
        (&vm["vcpus"], &vm["memory"], &vm["labels"]["team"]),
        (&1.into(), &(256_u64 << 20).into(), &"red".into())
    );
    daemon.finish();
}

#[test]
fn versions_of_everything_that_takes_part() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(daemon.banger(["--version"]).ok(), format!("banger {version}"));
    let versions = daemon.banger(["version", "--output", "json"]).json();
    for part in [
        &versions["client"],
        &versions["daemon"],
        &versions["agent"]["version"],
    ] {
        assert_eq!(*part, version, "{versions:#}");
    }
    let table = daemon.banger(["version"]).ok();
    for part in ["client", "daemon", "agent", "qemu"] {
        assert!(table.contains(part), "{table}");
    }
    daemon.finish();
}

/// Every command says what it does and shows an example; what goes wrong goes to standard error.
#[test]
fn help_has_examples() {
    let Some(bed) = Testbed::find() else { return };
    let help = |arguments: &[&str]| e2e::Banger::new(bed.program("banger")).args(arguments).ok();
    let all = help(&["--help"]);
    let mut commands = vec![];
    for line in all
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| !l.is_empty())
    {
        commands.extend(line.split_whitespace().next().filter(|word| *word != "help"));
    }
    assert!(commands.len() > 8, "{all}");
    for command in commands {
        let text = help(&[command, "--help"]);
        // A group's help lists commands; theirs have the examples.
        let group: Vec<_> = text
            .lines()
            .skip_while(|line| !line.starts_with("Commands:"))
            .skip(1)
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_whitespace().next().filter(|word| *word != "help"))
            .collect();
        if group.is_empty() {
            assert!(
                text.contains("Examples:"),
                "banger {command} --help has no examples:\n{text}"
            );
        }
        for verb in group {
            let text = help(&[command, verb, "--help"]);
            assert!(
                text.contains("Examples:"),
                "banger {command} {verb} --help has no examples:\n{text}"
            );
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(help(&["completions", shell]).contains("banger"));
    }
}

/// A reader that goes away is no crash: `banger … | head`.
#[test]
fn a_closed_pipe_is_no_error_message() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "pipe", "busybox");
    let program = bed.program("banger");
    let script = "\"$0\" exec pipe -- sh -c 'while :; do echo y; done' | head -n 2; \"$0\" --help | head -n 1 >/dev/null";
    let mut shell = e2e::Banger::new("bash")
        .args(["-c", script])
        .args([program])
        .env("BANGER_NO_AUTOSTART", "1");
    for (name, value) in daemon.environment() {
        shell = shell.env(name, value);
    }
    let run = shell.run().expect(0);
    assert_eq!((run.out().as_str(), run.err().as_str()), ("y\ny", ""));
    // The command in the guest has lost its reader and is gone as well.
    let gone = e2e::wait_for(std::time::Duration::from_secs(60), || {
        (guest.sh("ps | grep -c '[w]hile :' || true") == "0").then_some(())
    });
    assert!(gone.is_some(), "{}", guest.sh("ps"));
    daemon.finish();
}
