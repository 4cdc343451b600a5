//! Machines in user mode whose packets passt carries: what their guests reach, and that passt comes and goes with them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use e2e::processes::Process;
use e2e::{Daemon, Guest, Settings, Testbed, wait_for};
use serde_json::Value;

use crate::world::{HOST, INTERNET, LAN, PORT, World, sh};

/// For what an emulated guest does on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A daemon's death, or its coming up.
const DEATH: Duration = Duration::from_secs(60);
/// The gateway of the user-mode network; with QEMU's own it is the host's loopback.
const GATEWAY: &str = "10.0.2.2";

const USER: &str = "[network]\nmode = \"user\"\n";
/// With passt.
const PASST: &str = "[network]\nmode = \"user\"\npasst = \"auto\"\n";
const OPTIONS: [&str; 4] = ["--memory", "256M", "--vcpus", "1"];

/// The test bed and the namespaces, where there is passt.
fn enter() -> Option<(Testbed, World)> {
    let bed = Testbed::find()?;
    if e2e::testbed::find_program("passt").is_none() {
        e2e::testbed::require("passt is missing: make setup");
        return None;
    }
    let world = World::around(&bed)?;
    Some((bed, world))
}

/// What the service at an address says to a guest, which is to reach it.
#[track_caller]
fn answer(guest: &Guest<'_>, address: &str) -> String {
    let said = wait_for(PATIENCE, || ask(guest, address));
    said.unwrap_or_else(|| panic!("never: an answer of {address}"))
}

/// The same, asked once; `None` where it is not reached. The guest's side of the connection stays
/// open until the other has ended: Debian 12's passt does not tell the end to a guest that was the first to end.
fn ask(guest: &Guest<'_>, address: &str) -> Option<String> {
    let said = guest.sh(&format!(
        "[ -p /tmp/open ] || mkfifo /tmp/open; nc -w 10 {address} {PORT} <>/tmp/open 2>/dev/null || true"
    ));
    said.strip_prefix("hello ").map(ToOwned::to_owned)
}

fn carrier(guest: &Guest<'_>) -> String {
    let shown = guest.show();
    let carrier = shown["running"]["user_network"]["carrier"].as_str();
    carrier
        .unwrap_or_else(|| panic!("no user-mode network: {shown}"))
        .to_owned()
}

/// The processes of passt that this daemon's machines have.
fn passts(daemon: &Daemon) -> Vec<Process> {
    let mut found = daemon.machine_processes();
    found.retain(|process| {
        process
            .command
            .split(' ')
            .next()
            .is_some_and(|word| word.ends_with("passt"))
    });
    found
}

/// The checks of a machine's health that concern its network.
fn health(daemon: &Daemon, vm: &str) -> Vec<Value> {
    // Its exit code tells what we are about to look at.
    let said = daemon
        .banger(["vm", "health", vm, "--output", "json"])
        .run()
        .out();
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let one = said.as_array().and_then(|all| all.first()).unwrap_or(&said);
    let checks = one["checks"].as_array().expect("checks").iter();
    checks
        .filter(|check| check["group"] == "network")
        .cloned()
        .collect()
}

#[test]
fn a_guest_behind_passt() {
    let Some((bed, _world)) = enter() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared().add_config(PASST));
    let status = daemon.banger(["net", "status", "--output", "json"]).json();
    assert_eq!(status["user_network"]["carrier"], "passt", "{status}");
    {
        let options = [&OPTIONS[..], &["-p", "8080:80"]].concat();
        let guest = Guest::create_with(&daemon, "dev", "busybox", &options);
        guest.banger("start").ok();
        assert_eq!(carrier(&guest), "passt");
        assert_eq!(passts(&daemon).len(), 1);

        // Out by the host's address, and to what the host itself serves to others; its loopback is not the gateway.
        assert_eq!(answer(&guest, INTERNET), HOST);
        assert_eq!(answer(&guest, LAN), HOST);
        answer(&guest, HOST);
        assert_eq!(ask(&guest, GATEWAY), None);
        assert_eq!(guest.sh("cat /sys/class/net/eth0/mtu"), "65520");

        // What comes in comes over vsock, as ever.
        guest.sh("mkdir -p /srv && echo served > /srv/word && httpd -p 80 -h /srv");
        let word = wait_for(PATIENCE, || {
            let mut stream = TcpStream::connect(("127.0.0.1", 8080)).ok()?;
            write!(stream, "GET /word HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.ends_with("served\n").then_some(())
        });
        assert!(word.is_some(), "the published port answers");
    }

    // It outlives the daemon with its machine, and is the next one's.
    daemon.kill();
    daemon.launch();
    let guest = Guest::of(&daemon, "dev");
    assert_eq!(carrier(&guest), "passt");
    assert_eq!(answer(&guest, INTERNET), HOST);
    let fine = health(&daemon, "dev");
    assert!(fine.iter().all(|check| check["state"] == "ok"), "{fine:?}");

    guest.banger("restart").ok();
    assert_eq!(answer(&guest, INTERNET), HOST);
    guest.banger("stop").ok();
    assert_eq!(passts(&daemon).len(), 0);
    daemon.finish();
}

#[test]
fn without_passt_qemu_carries_the_packets_and_says_why() {
    let Some((bed, _world)) = enter() else { return };
    let settings = Settings::prepared().add_config(&format!("{USER}passt = \"/nonexistent/passt\"\n"));
    let mut daemon = Daemon::start(&bed, settings);
    let status = daemon.banger(["net", "status"]).ok();
    assert!(
        status.contains("QEMU's own (/nonexistent/passt is no program)"),
        "{status}"
    );
    let guest = Guest::start(&daemon, "missing", "busybox");
    assert_eq!(carrier(&guest), "slirp");
    assert_eq!(answer(&guest, INTERNET), HOST);
    guest.banger("rm").args(["--force"]).ok();

    // One that is there and does not work: no way out for it to find.
    daemon.terminate();
    daemon.configure(&daemon.config().replace("/nonexistent/passt", "auto"));
    sh("ip route del default");
    daemon.launch();
    let guest = Guest::create_with(&daemon, "broken", "busybox", &OPTIONS);
    let said = guest.banger("start").run();
    assert!(said.err().contains("passt does not work here"), "{}", said.err());
    assert_eq!(carrier(&guest), "slirp");
    let note = guest.show()["running"]["user_network"]["note"].clone();
    assert!(
        note.as_str().is_some_and(|note| note.contains("interface")),
        "{note}"
    );
    assert_eq!(passts(&daemon).len(), 0);
    // The host's loopback, which is why one may prefer passt.
    answer(&guest, GATEWAY);
    daemon.finish();
}

#[test]
fn dying_while_passt_comes_and_goes() {
    let Some((bed, _world)) = enter() else { return };
    if !bed.has_crash_daemon() {
        return;
    }
    for step in ["entering", "entered", "removing", "removed", "struck"] {
        let point = format!("passt.{step}");
        let mut daemon = Daemon::ready(&bed, Settings::prepared().crash_points(&bed).add_config(PASST));
        daemon
            .launch_with(&[("BANGER_CRASH_AT", &point)])
            .expect("a daemon that serves");
        drop(Guest::create_with(&daemon, "mortal", "busybox", &OPTIONS));
        for verb in ["start", "kill"] {
            // Whichever it dies in; the other is refused or works.
            drop(daemon.banger(["vm", verb, "mortal"]).run());
        }
        daemon.wait_killed(DEATH);
        daemon.launch();
        let gone = wait_for(PATIENCE, || passts(&daemon).is_empty().then_some(()));
        assert!(gone.is_some(), "{point}");
        let guest = Guest::of(&daemon, "mortal");
        guest.banger("start").ok();
        assert_eq!(carrier(&guest), "passt", "{point}");
        daemon.finish();
    }
}
