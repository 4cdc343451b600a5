//! A VPN comes up and goes while machines run: guests go its way out, reach nothing behind it unasked, and where it takes
//! their addresses it is said whose doing that is.

use e2e::{Daemon, Guest, Settings};

use crate::world::{
    CONFIG, GATEWAY, HOST, INTERNET, World, answer, ask, checks, eventually, objects, reaches, sh, status,
    wait_taps,
};

/// The host's address in the VPN, and the other end's.
const INNER: &str = "198.51.100.2";
const FAR: &str = "198.51.100.1";
const NETWORK: &str = "198.51.100.0/24";

fn up(world: &World) {
    sh(&format!(
        "ip link add tun0 type veth peer name far0 netns {}; ip addr add {INNER}/24 dev tun0; ip link set tun0 up",
        world.router()
    ));
    world.router_sh(&format!("ip addr add {FAR}/24 dev far0; ip link set far0 up"));
}

#[test]
fn a_vpn_comes_up_and_goes() {
    let Some((bed, world)) = World::enter() else {
        return;
    };
    let daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    let guest = Guest::start(&daemon, "a", "busybox");
    assert_eq!(answer(&guest, INTERNET), HOST);

    // What is at the other end is the host's own network, not the internet.
    up(&world);
    eventually("the VPN's network among those of the host", || {
        let inside = sh("nft list set inet banger inside");
        inside.contains(NETWORK).then_some(())
    });
    assert_eq!(answer(&guest, INTERNET), HOST);
    assert_eq!(ask(&guest, FAR), None);
    guest.banger("set").args(["--allow", "lan"]).ok();
    assert_eq!(answer(&guest, FAR), INNER);
    guest.banger("set").args(["--allow", "none"]).ok();
    assert_eq!(ask(&guest, FAR), None);
    assert_eq!(answer(&guest, INTERNET), HOST);

    // All of the internet by way of it, in both ways that there are: no network of the host's for that.
    for (way, back) in [
        (
            "ip route add 0.0.0.0/1 dev tun0; ip route add 128.0.0.0/1 dev tun0",
            "ip route del 0.0.0.0/1; ip route del 128.0.0.0/1",
        ),
        (
            "ip route replace default dev tun0",
            "ip route replace default via 192.0.2.1",
        ),
    ] {
        sh(way);
        assert_eq!(answer(&guest, INTERNET), INNER, "{way}");
        // Also once the host's networks were looked at again.
        guest.banger("set").args(["--no-nat"]).ok();
        assert_eq!(ask(&guest, INTERNET), None, "{way}");
        guest.banger("set").args(["--nat"]).ok();
        assert_eq!(answer(&guest, INTERNET), INNER, "{way}");
        assert_eq!(ask(&guest, FAR), None, "{way}");
        assert_eq!(ask(&guest, HOST), None, "{way}");
        let now = status(&daemon);
        assert!(now["problem"].is_null() && now["up"] == true, "{now:#}");
        sh(back);
        assert_eq!(answer(&guest, INTERNET), HOST, "{back}");
    }

    overlaps(&daemon, &guest);
    sh("ip link del tun0");
    assert_eq!(answer(&guest, INTERNET), HOST);
    guest.banger("rm").args(["--force"]).ok();
    wait_taps(2);
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

/// Machines' own addresses by way of the VPN.
fn overlaps(daemon: &Daemon, guest: &Guest<'_>) {
    // Beside the machines there are.
    sh("ip route add 10.209.7.0/24 dev tun0");
    let now = status(daemon);
    let problem = now["problem"].as_str().unwrap_or_default();
    assert!(
        problem.contains("10.209.7.0/24") && problem.contains("tun0") && now["up"] == true,
        "{now:#}"
    );
    assert!(
        now["fix"].as_str().is_some_and(|fix| fix.contains("`subnet`")),
        "{now:#}"
    );
    let found = checks(daemon, "bridge");
    assert!(
        found
            .iter()
            .any(|(state, why, fix)| state == "warning" && why.contains("tun0") && fix.contains("`subnet`")),
        "{found:?}"
    );
    reaches(guest, GATEWAY);
    assert_eq!(answer(guest, INTERNET), HOST);
    sh("ip route del 10.209.7.0/24");
    // That of a machine: what is for it goes elsewhere, and nothing of it is lost.
    sh("ip route add 10.209.0.2/32 dev tun0");
    assert_eq!(ask(guest, INTERNET), None);
    assert_eq!(guest.sh("echo on"), "on");
    let now = status(daemon);
    assert!(
        now["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("10.209.0.2/32")),
        "{now:#}"
    );
    sh("ip route del 10.209.0.2/32");
    assert_eq!(answer(guest, INTERNET), HOST);
    assert!(status(daemon)["problem"].is_null());
}
