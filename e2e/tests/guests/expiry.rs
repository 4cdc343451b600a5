//! Machines whose time comes.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, wait_for};

fn is_gone(daemon: &Daemon, vm: &str) -> bool {
    daemon.banger(["vm", "show", vm]).run().code() == 3
}

#[test]
fn a_machine_goes_when_its_time_has_come_whatever_it_does() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    // Restarting does not save it.
    let options = [
        "--memory",
        "256M",
        "--vcpus",
        "1",
        "--restart",
        "always",
        "--ttl",
        "1h",
    ];
    let guest = Guest::start_with(&daemon, "runs", "busybox", &options);
    Guest::create_with(&daemon, "rests", "busybox", &["--ttl", "1s"]);
    let gone = wait_for(Duration::from_secs(60), || {
        is_gone(&daemon, "rests").then_some(())
    });
    assert!(gone.is_some(), "{}", daemon.log());

    assert!(guest.show()["expires"].is_string());
    guest.banger("set").args(["--no-expiry"]).ok();
    assert!(guest.show()["expires"].is_null());
    guest
        .banger("set")
        .args(["--expires", "2020-01-01T00:00:00Z"])
        .fails(2);
    assert_eq!(guest.state(), "running");
    guest.banger("set").args(["--ttl", "1s"]).ok();
    let gone = wait_for(Duration::from_secs(60), || is_gone(&daemon, "runs").then_some(()));
    assert!(gone.is_some(), "{}", daemon.log());
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn time_goes_on_without_a_daemon() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let expires = jiff::Timestamp::now() + Duration::from_secs(15);
    Guest::start_with(
        &daemon,
        "expires",
        "busybox",
        &[
            "--memory",
            "256M",
            "--vcpus",
            "1",
            "--expires",
            &expires.to_string(),
        ],
    );
    daemon.kill();
    // The clock is what is waited for.
    let left = Duration::try_from(expires.duration_since(jiff::Timestamp::now())).unwrap_or_default();
    std::thread::sleep(left);
    assert!(
        !daemon.machine_processes().is_empty(),
        "a machine goes on without a daemon"
    );
    daemon.launch();
    let gone = wait_for(Duration::from_secs(60), || {
        is_gone(&daemon, "expires").then_some(())
    });
    assert!(gone.is_some(), "{}", daemon.log());
    before.assert_nothing_left(&daemon);
    daemon.finish();
}
