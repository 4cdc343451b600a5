//! Two guests: what they reach, what they do not, and that all of it outlives the daemon and none of it the machines.

use e2e::{Daemon, Guest, Settings};

use crate::world::{
    CONFIG, GATEWAY, HOST, INTERNET, LAN, World, answer, ask, host_reaches, objects, pings, reaches, sh,
    wait_taps,
};

fn address(guest: &Guest<'_>) -> String {
    guest.show()["address"].as_str().expect("an address").to_owned()
}

fn set(guest: &Guest<'_>, options: &[&str]) {
    guest.banger("set").args(options).ok();
}

#[test]
fn two_guests_on_a_bridge() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let mut daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    wait_taps(2);
    let before = objects();
    assert!(
        before.contains(&"bgr0".to_owned()) && before.contains(&"table inet banger".to_owned()),
        "{before:?}"
    );
    assert!(!before.contains(&"ip_forward".to_owned()), "{before:?}");
    {
        let a = Guest::start(&daemon, "a", "busybox");
        let b = Guest::create_with(
            &daemon,
            "b",
            "busybox",
            &["--memory", "256M", "--vcpus", "1", "--no-nat"],
        );
        b.banger("start").ok();
        wait_taps(4);
        let (at_a, at_b) = (address(&a), address(&b));
        assert_eq!((at_a.as_str(), at_b.as_str()), ("10.209.0.2", "10.209.0.3"));
        assert!(
            a.show()["running"]["tap"]
                .as_str()
                .is_some_and(|tap| tap.starts_with("bgr0t"))
        );

        // Out, behind the host's address; without NAT not at all.
        assert_eq!(answer(&a, INTERNET), HOST);
        assert_eq!(ask(&b, INTERNET), None);
        set(&b, &["--nat"]);
        assert_eq!(answer(&b, INTERNET), HOST);
        set(&b, &["--no-nat"]);
        assert_eq!(ask(&b, INTERNET), None);

        // Neither each other, nor the host's services, nor its neighbours. A ping of the bridge is answered.
        reaches(&a, GATEWAY);
        for closed in [at_b.as_str(), GATEWAY, HOST, LAN] {
            assert_eq!(ask(&a, closed), None, "{closed}");
        }
        assert!(!pings(&a, &at_b) && !pings(&a, LAN));
        // Nor by way of the host.
        a.sh(&format!("ip route add {at_b}/32 via {GATEWAY}"));
        assert!(!pings(&a, &at_b));
        a.sh(&format!("ip route del {at_b}/32"));
        // From the host they are reached.
        host_reaches(&at_a);
        host_reaches(&at_b);

        spoofs(&a, &at_a, &at_b);
        allows(&a, &b, &at_a, &at_b);

        // All of it stays without a daemon, and is taken over by the next.
        let tap = a.show()["running"]["tap"].clone();
        let mut after = objects();
        after.sort();
        let (name_a, name_b) = (a.name.clone(), b.name.clone());
        daemon.kill();
        host_reaches(&at_a);
        daemon.launch();
        wait_taps(4);
        let (a, b) = (Guest::of(&daemon, &name_a), Guest::of(&daemon, &name_b));
        let mut now = objects();
        now.sort();
        assert_eq!(now, after);
        assert_eq!((address(&a), &a.show()["running"]["tap"]), (at_a.clone(), &tap));
        assert_eq!(answer(&a, INTERNET), HOST);
        assert_eq!(ask(&b, INTERNET), None);
        assert_eq!(ask(&a, LAN), None);

        // An address stays over a restart of its machine.
        b.banger("stop").ok();
        wait_taps(3);
        b.banger("start").ok();
        assert_eq!(address(&b), at_b);
        reaches(&b, GATEWAY);

        // An end in order with machines running takes nothing away.
        daemon.terminate();
        assert!(objects().contains(&"table bridge banger".to_owned()));
        host_reaches(&at_a);
        daemon.launch();
        daemon.banger(["vm", "rm", "--force", "a", "b"]).ok();
    }
    wait_taps(2);
    let gone = e2e::wait_for(std::time::Duration::from_secs(60), || {
        (!objects().contains(&"ip_forward".to_owned())).then_some(())
    });
    assert!(gone.is_some(), "{:?}", objects());
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

/// Frames of somebody else's address, hardware address or ARP reach nobody.
fn spoofs(a: &Guest<'_>, at_a: &str, at_b: &str) {
    let prefix = "dev eth0";
    // The address of another machine.
    let readdress = |address: &str| {
        a.sh(&format!(
            "ip addr flush {prefix}; ip addr add {address}/20 {prefix}; ip route add default via {GATEWAY}"
        ));
    };
    readdress(at_b);
    assert!(!pings(a, GATEWAY), "with another's address");
    assert_eq!(ask(a, INTERNET), None, "with another's address");
    readdress(at_a);
    reaches(a, GATEWAY);
    // The hardware address of another machine.
    let mac = a.sh("cat /sys/class/net/eth0/address");
    let other = "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up";
    a.sh(&format!("{other}; ip route add default via {GATEWAY}"));
    assert!(!pings(a, GATEWAY), "with another hardware address");
    a.sh(&format!("ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up; ip route add default via {GATEWAY}"));
    reaches(a, GATEWAY);
    // ARP for an address that it does not have: the host's neighbour table does not hear of it.
    sh("ip neigh flush dev bgr0");
    a.sh(&format!("ip addr add 10.209.9.9/32 {prefix}; arping -U -c 2 -I eth0 -s 10.209.9.9 {GATEWAY} >/dev/null 2>&1 || true; ip addr del 10.209.9.9/32 {prefix}"));
    let heard = sh("ip neigh show dev bgr0");
    assert!(!heard.contains("10.209.9.9"), "{heard}");
    // No IPv6 at all.
    let counted = sh("ip -6 neigh show dev bgr0");
    assert_eq!(counted, "");
}

/// What is allowed, and only that, and at once.
fn allows(a: &Guest<'_>, b: &Guest<'_>, at_a: &str, at_b: &str) {
    set(a, &["--allow", "host"]);
    assert_eq!(answer(a, GATEWAY), at_a);
    assert_eq!(answer(a, HOST), at_a);
    assert_eq!(ask(a, LAN), None);
    set(a, &["--allow", "lan"]);
    assert_eq!(answer(a, LAN), HOST);
    assert_eq!(ask(a, GATEWAY), None);
    // Both must allow it.
    set(a, &["--allow", "guests"]);
    assert!(!pings(a, at_b));
    set(b, &["--allow", "guests"]);
    reaches(a, at_b);
    reaches(b, at_a);
    set(a, &["--allow", "none"]);
    assert!(!pings(a, at_b) && !pings(b, at_a));
    set(b, &["--allow", "none"]);
}
