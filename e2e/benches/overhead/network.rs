//! The network's figures, in network namespaces that end with the bench: the host's own network is not touched.
//!
//! ```text
//!   guest -- tap -- bgr0, rules -- host     a namespace with a daemon that keeps a bridge
//!   guest -- tap ----------------- host     another one: the same guest by the raw VMM, its tap and nothing else
//! ```
//! Both guests run all the time and are measured in turn; a processor that one of them does not need is the other's.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use e2e::{Banger, Daemon, Guest, Settings, Testbed, Wire, testbed, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::pairs::Pairs;
use crate::raw::Recipe;
use crate::report::{Budget, Report, median};
use crate::rows::{MACHINE, copy};
use crate::{dns, stream, warm};

/// The configuration of a daemon with a bridge.
const CONFIG: &str = "[vmm]\nchoice = \"qemu\"\n[network]\nmode = \"bridge\"\n";
/// Pairs of each figure.
const ROUNDS: usize = 50;
/// Round trips of a round.
const PINGS: usize = 10;
/// Where the guests' services listen: who sends there, and who takes.
const SOURCE: u16 = 9001;
const SINK: u16 = 9002;
/// For what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its name, what it is about, what measures it.
type Group = (&'static str, &'static str, fn(&mut Report, &Daemon));

const GROUPS: [Group; 3] = [
    ("dns", "machines' names, in pairs", dns::answers),
    ("warm", "starts with a warm pool, in pairs", warm::starts),
    (
        "bridge",
        "a guest on the bridge and one on a tap, in pairs",
        traffic,
    ),
];

/// Those of the groups that are wanted, or why there are none.
pub(crate) fn measure(report: &mut Report, bed: &Testbed, wanted: impl Fn(&str) -> bool) {
    let groups: Vec<Group> = GROUPS.into_iter().filter(|(name, ..)| wanted(name)).collect();
    if let (Some(why), false) = (obstacle(), groups.is_empty()) {
        for (_, what, _) in groups {
            report.left_out(what, &why);
        }
        return;
    }
    if groups.is_empty() {
        return;
    }
    let measured = testkit::in_network_namespace(|| {
        let daemon = Daemon::start(bed, Settings::prepared().config(CONFIG));
        for (_, what, measure) in groups {
            println!("{what}");
            measure(report, &daemon);
        }
        daemon.finish();
    });
    measured.expect("who is root may have a network namespace");
}

/// What this host has not got that a bridge takes.
fn obstacle() -> Option<String> {
    if !testbed::is_root() {
        return Some("taps and network namespaces need root".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun does not open: {error}"));
    }
    let missing = ["nft", "ip"]
        .iter()
        .find(|program| testbed::find_program(program).is_none());
    missing.map(|program| format!("{program} is missing: make setup"))
}

/// What `net.status` says, as soon as the pool is full, the rules are in force and names are served.
pub(crate) fn settled(daemon: &Daemon) -> Value {
    let mut wire = Wire::connect(daemon);
    let settled = wait_for(PATIENCE, || {
        let status = wire.call("net.status", &json!({})).expect("its standing");
        let taps = &status["taps"];
        let full = taps["spare"].as_u64() >= taps["size"].as_u64();
        let rests = status["rules_current"] == true && status["names"]["served"].is_string();
        (full && rests).then_some(status)
    });
    settled.expect("a network that is at rest")
}

/// Bytes both ways and round trips: a guest on the bridge, and the same one on a tap of its own.
fn traffic(report: &mut Report, daemon: &Daemon) {
    let status = settled(daemon);
    let (_, prefix) = status["subnet"]
        .as_str()
        .and_then(|subnet| subnet.split_once('/'))
        .expect("a subnet");
    let gateway = status["gateway"].as_str().expect("an address");

    let options = [&MACHINE[..], &["--system-disk", "overlay"]].concat();
    let guest = Guest::create_with(daemon, "bridged", "busybox", &options);
    let home = tempfile::Builder::new()
        .prefix("bgt-raw-")
        .tempdir_in("/tmp")
        .expect("make a directory");
    let id = guest.show()["id"].as_str().expect("an id").to_owned();
    let disks = daemon.state().join("vms").join(format!("bgr{id}"));
    copy(&disks.join("overlay.img"), &home.path().join("overlay.img"));
    guest.banger("start").ok();
    let recipe = Recipe::of(daemon, &guest);
    let shown = guest.show();
    let tap = shown["running"]["tap"].as_str().expect("a tap");
    let address: Ipv4Addr = shown["address"]
        .as_str()
        .and_then(|address| address.parse().ok())
        .expect("an address");

    // The names and addresses of the other namespace, so that the raw guest is started and addressed by the same words.
    let apart = testkit::in_network_namespace(|| {
        let script = format!(
            "PATH=$PATH:/usr/sbin:/sbin; ip tuntap add dev {tap} mode tap; ip addr add {gateway}/{prefix} dev {tap}; \
             ip link set {tap} up"
        );
        Banger::new("sh").args(["-euc", &script]).ok();
        namespace()
    });
    let (own, apart) = (namespace(), apart.expect("who is root may have a namespace"));
    enter(&apart);
    let raw = recipe.boot(home.path());
    enter(&own);
    let services = format!(
        "setsid nc -ll -p {SOURCE} -e sh -c '{}' </dev/null >/dev/null 2>&1 & \
         setsid nc -ll -p {SINK} -e sh -c '{}' </dev/null >/dev/null 2>&1 &",
        stream::SOURCE,
        stream::SINK
    );
    guest.sh(&services);
    raw.sh(&services);

    let [mut from, mut to, mut trips] = <[Pairs; 3]>::default();
    for round in 0..=ROUNDS {
        for (pairs, measure) in [
            (
                &mut from,
                (|guest| stream::take(&mut connect(guest, SOURCE))) as fn(Ipv4Addr) -> f64,
            ),
            (&mut to, |guest| stream::give(&mut connect(guest, SINK))),
            (&mut trips, ping),
        ] {
            let raw = || {
                enter(&apart);
                let sample = measure(address);
                enter(&own);
                sample
            };
            pairs.take(round, || measure(address), raw);
        }
    }
    drop(raw);
    guest.banger("rm").args(["--force"]).ok();
    let stream = Budget::Share(0.8);
    report.add(
        "guest to host, bridge (raw: tap)",
        "MiB/s",
        from.ours,
        from.raw,
        stream,
    );
    report.add(
        "host to guest, bridge (raw: tap)",
        "MiB/s",
        to.ours,
        to.raw,
        stream,
    );
    let trip = Budget::Ratio(1.25);
    report.add(
        "ping of a guest, bridge (raw: tap)",
        "ms",
        trips.ours,
        trips.raw,
        trip,
    );
}

fn connect(guest: Ipv4Addr, port: u16) -> TcpStream {
    let address = SocketAddr::from((guest, port));
    // A service that was begun a moment ago may not listen yet.
    let connected = wait_for(PATIENCE, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()
    });
    let stream = connected.unwrap_or_else(|| panic!("nothing listens at {address}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Milliseconds of a round trip, the median of some: answered by the guest's kernel.
fn ping(address: Ipv4Addr) -> f64 {
    let said = Banger::new("busybox")
        .args(["ping", "-c", &PINGS.to_string(), "-i", "0.02", "-W", "5"])
        .args([address.to_string()])
        .ok();
    let trips: Vec<f64> = said
        .lines()
        .filter_map(|line| {
            let (_, time) = line.split_once("time=")?;
            time.trim_end_matches(" ms").parse().ok()
        })
        .collect();
    assert_eq!(trips.len(), PINGS, "{said}");
    median(&trips)
}

/// This thread's network namespace.
fn namespace() -> File {
    File::open("/proc/thread-self/ns/net").expect("open a namespace")
}

/// This thread, and what it starts from here on, is in that namespace.
fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("enter a namespace");
}
