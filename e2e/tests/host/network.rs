//! The network of machines on a host as people have it: systemd-resolved installed and asked by all programs, a bridge
//! because nobody said otherwise.
//!
//! No machine is started for this: those of the other rooms are on the bridge, as the service's machines are.

use std::time::Duration;

use e2e::Host;

use crate::disks;

/// Whose addresses are looked at; both run when this begins.
const MACHINES: [&str; 2] = ["ref", "mapped"];
/// What is beyond the host, and the host's address on the way there.
const INTERNET: &str = "203.0.113.5";
const OUTSIDE: &str = "192.0.2.2";
const NEIGHBOUR: &str = "192.0.2.1";
const GATEWAY: &str = "10.209.0.1";
/// A test that waits as long for what shall be has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Addresses, as they are to stay.
#[derive(Debug)]
pub(crate) struct Leases([String; 2]);

pub(crate) fn steps(host: &Host<'_>) -> Leases {
    host.step("a network beyond the host", || beyond(host));
    let leases = host.step("machines are on a bridge", || connected(host));
    host.step("their names on the host", || names(host, &leases));
    host.step("what they reach, and what not", || reach(host, &leases));
    host.step("ssh by name", || ssh(host));
    host.step("the service stops, machines stay connected", || {
        stops(host, &leases);
    });
    leases
}

/// After the host's boot: the machine that started by itself is where it was.
pub(crate) fn again(host: &Host<'_>, leases: &Leases) {
    host.step("a machine is back at its address", || {
        assert_eq!(&addresses(host), leases);
        routed(host);
        named(host, "mapped", &leases.0[1]);
        assert_eq!(host.sh("cat /proc/sys/net/ipv4/ip_forward"), "1");
        // Its tap and the spare ones: none is left of the time before.
        let status = status(host);
        let taps = status["taps"]["spare"]
            .as_u64()
            .zip(status["taps"]["used"].as_u64());
        let (spare, used) = taps.expect("taps");
        let there = host.sh("ls /sys/class/net | grep -c '^bgr0t'");
        assert_eq!((used, there), (1, (spare + used).to_string()), "{status:#}");
    });
}

/// After the service was uninstalled.
pub(crate) fn gone(host: &Host<'_>) {
    assert_eq!(host.sh("ls /sys/class/net | grep bgr || true"), "");
    assert_eq!(host.sh("nft list tables"), "");
    assert_eq!(host.sh("cat /proc/sys/net/ipv4/ip_forward"), "0");
    let domains = host.sh("resolvectl domain");
    assert!(!domains.contains("vm"), "{domains}");
    let found = host.exec(["getent", "hosts", "ref.vm"]).run();
    assert_ne!(found.code(), 0, "{found}");
}

fn status(host: &Host<'_>) -> serde_json::Value {
    host.banger(["net", "status", "--output", "json"]).json()
}

fn addresses(host: &Host<'_>) -> Leases {
    Leases(MACHINES.map(|name| host.vm(name)["address"].as_str().expect("an address").to_owned()))
}

impl PartialEq for Leases {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// A router in a namespace of the host's, and a server behind it that says who asks.
fn beyond(host: &Host<'_>) {
    host.sh(&format!(
        "ip netns add beyond; ip link add up0 type veth peer name far0 netns beyond; \
         ip addr add {OUTSIDE}/24 dev up0; ip link set up0 up; \
         ip -n beyond link set lo up; ip -n beyond addr add {NEIGHBOUR}/24 dev far0; ip -n beyond link set far0 up; \
         ip -n beyond addr add {INTERNET}/32 dev lo; ip route add 203.0.113.0/24 via {NEIGHBOUR}; \
         mkdir -p /srv/www; echo beyond > /srv/www/guest; cp /srv/www/guest /srv/www/hello; \
         systemd-run --quiet --unit beyond ip netns exec beyond busybox httpd -f -vv -p 7777 -h /srv/www; \
         systemd-run --quiet --unit here busybox httpd -f -vv -p 7777 -h /srv/www"
    ));
    host.wait(
        "both servers answer",
        &format!(
            "busybox wget -q -O /dev/null http://{INTERNET}:7777/hello && \
             busybox wget -q -O /dev/null http://{OUTSIDE}:7777/hello"
        ),
    );
}

fn connected(host: &Host<'_>) -> Leases {
    let status = status(host);
    assert_eq!(
        (&status["mode"], &status["up"], &status["rules_current"]),
        (&"bridge".into(), &true.into(), &true.into()),
        "{status:#}"
    );
    assert!(status["problem"].is_null(), "{status:#}");
    assert_eq!(status["taps"]["used"], 2, "{status:#}");
    let leases = addresses(host);
    for (name, address) in MACHINES.iter().zip(&leases.0) {
        let shown = host.vm(name)["running"]["tap"].clone();
        let tap = shown.as_str().expect("a tap");
        host.sh(&format!("test -e /sys/class/net/bgr0/brif/{tap}"));
        let inside = host.vm_sh(name, "ip -o -4 addr show eth0");
        assert!(inside.contains(address.as_str()), "{name}: {inside}");
    }
    leases
}

/// resolved knows whom to ask, and for what alone.
fn routed(host: &Host<'_>) {
    host.wait(
        "resolved is told",
        "resolvectl domain bgr0 | grep -q '~vm' && resolvectl dns bgr0 | grep -qF 10.209.0.1",
    );
}

/// All the host's programs find it.
fn named(host: &Host<'_>, name: &str, address: &str) {
    let found = host.sh(&format!("getent hosts {name}.vm"));
    assert_eq!(found.split_whitespace().next(), Some(address), "{found}");
    host.sh(&format!("ping -c 3 -W 10 {name}.vm"));
}

fn names(host: &Host<'_>, leases: &Leases) {
    routed(host);
    for (name, address) in MACHINES.iter().zip(&leases.0) {
        named(host, name, address);
    }
    let unknown = host.exec(["getent", "hosts", "nobody.vm"]).run();
    assert_ne!(unknown.code(), 0, "{unknown}");
    assert!(host.sh("resolvectl default-route bgr0").ends_with("no"));
    // It has forgotten when it comes back, and is told again.
    host.sh("systemctl restart systemd-resolved");
    routed(host);
    named(host, MACHINES[0], &leases.0[0]);
    let doctor = host.banger(["doctor", "--output", "json"]).json();
    let checks = doctor["checks"].as_array().expect("checks").iter();
    for check in checks.filter(|check| check["group"] == "network") {
        assert_eq!(check["state"], "ok", "{check:#}");
    }
}

fn reach(host: &Host<'_>, leases: &Leases) {
    // By hand: the program that a guest of one static file would ask with needs libraries.
    let asks = |address: &str| {
        let script = format!(
            "printf 'GET /guest HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {address} 7777 2>/dev/null | tail -n 1 || true"
        );
        host.vm_sh("ref", &script)
    };
    // Open is waited for: a guest of a guest may need more than one question.
    let open = || {
        let said = e2e::wait_for(PATIENCE, || Some(asks(INTERNET)).filter(|said| !said.is_empty()));
        assert_eq!(said.as_deref(), Some("beyond"));
    };
    open();
    // Behind the host's address.
    host.wait(
        "the server has said who asked",
        &format!("journalctl --unit beyond --no-pager --output cat | grep -q '{OUTSIDE}.*url:/guest'"),
    );
    let seen = host.sh("journalctl --unit beyond --no-pager --output cat");
    assert!(!seen.contains("10.209."), "{seen}");
    // Not the host's services, not its neighbour, not the other machine; of the host its ping and the guest's own name.
    for closed in [GATEWAY, OUTSIDE, NEIGHBOUR] {
        assert_eq!(asks(closed), "", "{closed}");
    }
    let other = &leases.0[1];
    let expected = format!("host\nAddress: {}", leases.0[0]);
    let mut said = String::new();
    let found = e2e::wait_for(PATIENCE, || {
        said = host.vm_sh("ref", &format!(
            "ping -c 3 -W 5 {GATEWAY} >/dev/null && echo host; ping -c 1 -W 5 {other} >/dev/null && echo other; \
             nslookup ref.vm 2>/dev/null | grep {}; true",
            leases.0[0]
        ));
        (said == expected).then_some(())
    });
    assert!(found.is_some(), "{said}");
    host.banger(["vm", "set", "ref", "--no-nat"]).ok();
    assert_eq!(asks(INTERNET), "");
    host.banger(["vm", "set", "ref", "--nat"]).ok();
    open();
}

/// The machine's image has no ssh server; it gets the host's, as it would by a package.
fn ssh(host: &Host<'_>) {
    host.sh("libraries=$(ldd /usr/sbin/sshd | grep -o '/[^ ]*'); cd /; \
         tar --create --dereference --file - usr/sbin/sshd $(printf '%s\\n' $libraries | sed 's|^/||') | \
         banger exec -i ref -- tar -x -C / -f -");
    host.vm_sh(
        "ref",
        "echo 'sshd:x:100:65534::/run/sshd:/bin/false' >> /etc/passwd; mkdir -p /run/sshd",
    );
    let said = host.sh("banger ssh ref -- 'hostname; exit 7' || echo $?");
    assert_eq!(said, "ref\n7");
    host.sh("banger ssh-config install");
    assert_eq!(host.sh("ssh ref.vm hostname"), "ref");
    host.sh("banger ssh-config remove");
}

/// Nobody answers for names while there is no daemon, and nobody asks.
fn stops(host: &Host<'_>, leases: &Leases) {
    host.sh("systemctl stop bangerd");
    host.wait(
        "resolved is told no longer",
        "! resolvectl domain bgr0 | grep -q vm",
    );
    for address in &leases.0 {
        host.sh(&format!("ping -c 3 -W 10 {address}"));
    }
    host.sh("systemctl start bangerd");
    disks::back(host);
    routed(host);
    assert_eq!(&addresses(host), leases);
    named(host, MACHINES[0], &leases.0[0]);
}
