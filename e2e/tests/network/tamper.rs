//! Somebody's hands in what is the daemon's: flushed rules, deleted links, a state that was lost. And another daemon.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, truth, wait_for};

use crate::world::{
    CONFIG, GATEWAY, HOST, INTERNET, LAN, World, answer, ask, objects, reaches, sh, status, wait_taps,
};

/// A test that waits as long has failed.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn what_somebody_takes_away_comes_back() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    wait_taps(2);
    let guest = Guest::start(&daemon, "dev", "busybox");
    truth::assert_true(&daemon);
    let rules = sh("nft -s -t list ruleset");
    for script in [
        "nft flush ruleset",
        "nft delete table bridge banger",
        "nft add rule inet banger to_host accept",
    ] {
        sh(script);
        let back = wait_for(DEADLINE, || (sh("nft -s -t list ruleset") == rules).then_some(()));
        assert!(back.is_some(), "{script}: {}", sh("nft -s -t list ruleset"));
        reaches(&guest, GATEWAY);
        assert_eq!(answer(&guest, INTERNET), HOST, "{script}");
        assert_eq!(ask(&guest, GATEWAY), None, "{script}");
    }
    let spare = objects().into_iter().find(|name| {
        name.starts_with("bgr0t") && Some(name.as_str()) != guest.show()["running"]["tap"].as_str()
    });
    sh(&format!(
        "ip link del {}; ip link del bgr0",
        spare.expect("a spare tap")
    ));
    reaches(&guest, GATEWAY);
    assert_eq!(answer(&guest, INTERNET), HOST);
    assert_eq!(ask(&guest, LAN), None);
    truth::assert_true(&daemon);
    drop(guest);
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

#[test]
fn what_nobody_keeps_is_garbage() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let mut daemon = Daemon::start(&bed, Settings::empty().config(CONFIG));
    wait_taps(2);
    daemon.kill();
    // The host's part of the ledger is lost, and the bridge gets another name.
    let file = rusqlite::Connection::open(daemon.state().join("banger.db")).expect("the state file");
    file.execute("DELETE FROM ledger WHERE owner = 'host:network'", [])
        .expect("rows lost");
    drop(file);
    let config = format!("{}bridge = \"bgr9\"\n", daemon.config());
    daemon.configure(&config);
    sh("ip link add bgr8 type bridge");
    daemon.launch();
    // The daemon's own start has removed it, as it removes all garbage.
    let expected = ["bgr8", "bgr9"];
    let links = || {
        objects()
            .into_iter()
            .filter(|name| !name.contains(' ') && !name.contains('t'))
    };
    let there = wait_for(DEADLINE, || links().eq(expected).then_some(()));
    assert!(there.is_some(), "{:?}", objects());
    truth::assert_true(&daemon);
    // What comes while it runs is shown, and removed when it is asked to.
    let alias = sh("ip -j link show bgr9 | sed 's/.*\"ifalias\":\"\\([^\"]*\\)\".*/\\1/'");
    sh(&format!(
        "ip link add bgr7 type bridge; ip link set bgr7 alias \"{alias}\""
    ));
    let shown = daemon.banger(["gc", "--dry-run"]).run();
    assert!(shown.out().contains("bgr7"), "{shown}");
    assert!(objects().contains(&"bgr7".to_owned()));
    daemon.banger(["gc"]).ok();
    assert!(!objects().contains(&"bgr7".to_owned()));
    daemon.finish();
    assert_eq!(objects(), ["bgr8"]);
}

#[test]
fn a_second_daemon_leaves_the_first_ones_bridge_alone() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let auto = CONFIG.replace("\"bridge\"", "\"auto\"");
    let first = Daemon::start(&bed, Settings::empty().config(auto.clone()));
    wait_taps(2);
    let second = Daemon::start(&bed, Settings::prepared().config(auto));
    assert_eq!(status(&first)["mode"], "bridge");
    let says = status(&second);
    assert_eq!(says["mode"], "user", "{says:#}");
    let reason = says["reason"].as_str().expect("a reason");
    assert!(reason.contains("bgr0") && reason.contains("`subnet`"), "{reason}");
    let guest = Guest::start(&second, "dev", "busybox");
    assert_eq!(guest.sh("echo here"), "here");
    drop(guest);
    second.finish();
    assert!(objects().contains(&"bgr0".to_owned()));
    first.finish();
    assert_eq!(objects(), [""; 0]);
}
