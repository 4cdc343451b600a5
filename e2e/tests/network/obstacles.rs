//! What stands against a bridge: machines without one go on, and a start says what is wrong and what to do.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, wait_for};

use crate::world::{CONFIG, World, objects, sh, wait_taps};

/// A start is refused with these words, and works once `mend` has been done.
fn refused(daemon: &Daemon, words: &[&str], mend: &str) {
    let guest = Guest::create_with(daemon, "x", "busybox", &["--memory", "256M", "--vcpus", "1"]);
    let said = guest.banger("start").run();
    assert_ne!(said.code(), 0, "{said}");
    for word in words {
        assert!(said.err().contains(word), "{said}");
    }
    assert_eq!(guest.state(), "stopped");
    let status = daemon.banger(["net", "status", "--output", "json"]).json();
    assert_eq!(
        (&status["up"], &status["mode"]),
        (&false.into(), &"bridge".into()),
        "{status:#}"
    );
    assert!(
        status["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains(words[0])),
        "{status:#}"
    );
    sh(mend);
    guest.banger("start").ok();
    guest.banger("rm").args(["--force"]).ok();
}

#[test]
fn a_foreign_bridge_an_overlapping_network_and_a_lost_one() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    sh("ip link add bgr0 type bridge");
    let mut daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    refused(
        &daemon,
        &["bgr0", "`bridge` under `[network]`"],
        "ip link del bgr0",
    );
    // Every machine is gone, and a foreign bridge never was ours to remove.
    daemon.terminate();
    assert_eq!(objects(), [""; 0]);
    sh("ip link add vpn0 type veth peer name vpn1; ip addr add 10.209.7.1/24 dev vpn0; ip link set vpn0 up");
    daemon.launch();
    refused(
        &daemon,
        &["vpn0", "`subnet` under `[network]`"],
        "ip link del vpn0",
    );
    // Somebody takes all of it away: it is made again.
    wait_taps(2);
    sh("nft flush ruleset; ip link del bgr0t0");
    let guest = Guest::create_with(&daemon, "y", "busybox", &["--memory", "256M", "--vcpus", "1"]);
    let back = wait_for(Duration::from_secs(30), || {
        objects()
            .contains(&"table bridge banger".to_owned())
            .then_some(())
    });
    assert!(back.is_some(), "{:?}", objects());
    guest.banger("rm").ok();
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

#[test]
fn auto_is_a_bridge_where_the_host_lets_us() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let config = CONFIG.replace("\"bridge\"", "\"auto\"");
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    let status = daemon.banger(["net", "status", "--output", "json"]).json();
    assert_eq!(status["mode"], "bridge", "{status:#}");
    let doctor = daemon.banger(["doctor", "--output", "json"]).run();
    let shown = doctor.out();
    assert!(
        shown.contains("ip_forward") && shown.contains("firewall"),
        "{shown}"
    );
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

#[test]
fn addresses_run_out_with_a_clear_error() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let config = format!("{CONFIG}subnet = \"10.77.0.0/29\"\n");
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    for name in ["a", "b", "c", "d", "e"] {
        daemon.banger(["vm", "create", name, "--image", "busybox"]).ok();
    }
    let full = daemon.banger(["vm", "create", "f", "--image", "busybox"]).run();
    assert_ne!(full.code(), 0);
    assert!(
        full.err().contains("all 5 are taken") && full.err().contains("`subnet`"),
        "{full}"
    );
    daemon.banger(["vm", "rm", "b"]).ok();
    daemon.banger(["vm", "create", "f", "--image", "busybox"]).ok();
    let shown = daemon.banger(["vm", "show", "f", "--output", "json"]).json();
    assert_eq!(shown["address"], "10.77.0.3");
    daemon.finish();
}
