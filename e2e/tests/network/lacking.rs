//! What a host may be without, or may lose: each machine has the network that can be had, and is told why it is no other.

use std::path::PathBuf;
use std::time::Duration;

use e2e::{Daemon, Guest, Settings, wait_for};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::world::{
    CONFIG, GATEWAY, HOST, INTERNET, World, answer, ask, checks, hide, objects, reaches, sh, status,
    wait_taps,
};

const SMALL: [&str; 4] = ["--memory", "256M", "--vcpus", "1"];

fn auto() -> String {
    CONFIG.replace("\"bridge\"", "\"auto\"")
}

/// Restarts the daemon with another way of connecting machines.
fn remode(daemon: &mut Daemon, from: &str, to: &str) {
    daemon.terminate();
    let config = daemon
        .config()
        .replace(&format!("\"{from}\""), &format!("\"{to}\""));
    daemon.configure(&config);
    daemon.launch();
}

/// A daemon that may choose has no bridge, and says why with these words; one that is to have a bridge starts no machine,
/// says so with the same words and with this way out, and goes on without. Left with the latter.
fn goes_without(daemon: &mut Daemon, words: &str, fix: &str) {
    let now = status(daemon);
    assert_eq!(now["mode"], "user", "{now:#}");
    assert!(
        now["reason"].as_str().is_some_and(|why| why.contains(words)),
        "{now:#}"
    );
    let found = checks(daemon, "mode");
    assert!(found.iter().any(|(_, why, _)| why.contains(words)), "{found:?}");
    remode(daemon, "auto", "bridge");
    let guest = Guest::create_with(daemon, "refused", "busybox", &SMALL);
    let said = guest.banger("start").run();
    assert_ne!(said.code(), 0, "{said}");
    let text = said.err().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(words) && text.contains(fix), "{said}");
    assert_eq!(guest.state(), "stopped");
    let now = status(daemon);
    assert_eq!((&now["mode"], &now["up"]), (&"bridge".into(), &false.into()));
    assert!(
        now["problem"].as_str().is_some_and(|why| why.contains(words)),
        "{now:#}"
    );
    guest.banger("rm").ok();
}

/// All places where `nft` is looked for.
fn nft() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places: Vec<_> = std::env::split_paths(&path)
        .chain(system)
        .filter_map(|place| place.join("nft").canonicalize().ok())
        .collect();
    places.sort();
    places.dedup();
    places
}

/// Waits until the daemon has looked again, which it does by itself.
#[track_caller]
fn no_problem(daemon: &Daemon) {
    let mended = wait_for(Duration::from_secs(90), || {
        status(daemon)["problem"].is_null().then_some(())
    });
    assert!(mended.is_some(), "{:#}", status(daemon));
}

#[test]
fn a_host_without_nft() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let nft = nft();
    let uninstall = || nft.iter().for_each(|program| hide(program));
    let install = || {
        for program in &nft {
            sh(&format!("umount {}", program.display()));
        }
    };

    uninstall();
    let mut daemon = Daemon::start(&bed, Settings::prepared().config(auto()));
    drop(Guest::start(&daemon, "before", "busybox"));
    goes_without(&mut daemon, "nft", "apt-get install nftables");
    let before = Guest::of(&daemon, "before");
    assert_eq!(before.sh("ip -o -4 addr show eth0 | grep -c 10.0.2.15"), "1");
    // Nobody has to tell the daemon that it is there now.
    install();
    let after = Guest::start(&daemon, "after", "busybox");
    reaches(&after, GATEWAY);
    assert_eq!(answer(&after, INTERNET), HOST);
    assert_eq!(before.sh("ip -o -4 addr show eth0 | grep -c 10.0.2.15"), "1");

    // Removed while machines use it: the rules in force stay in force, what would need others says that it does not.
    uninstall();
    let said = after.banger("set").args(["--no-nat"]).run();
    assert!(said.err().contains("nft"), "{said}");
    reaches(&after, GATEWAY);
    assert_eq!(answer(&after, INTERNET), HOST);
    assert!(
        status(&daemon)["problem"]
            .as_str()
            .is_some_and(|why| why.contains("nft"))
    );
    install();
    // What was kept is put in force without being asked for again.
    no_problem(&daemon);
    assert_eq!(ask(&after, INTERNET), None);
    let (one, other) = ("before", "after");
    daemon.banger(["vm", "rm", "--force", one, other]).ok();
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

#[test]
fn a_host_without_taps() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let hosts = [
        ("mount -t tmpfs none /dev/net", "no TUN device", "modprobe tun"),
        (
            "mount --bind /dev/net /dev/net; mount -o remount,bind,nodev /dev/net",
            "access to /dev/net/tun",
            "/dev/net/tun",
        ),
    ];
    for (make, words, fix) in hosts {
        sh(make);
        let mut daemon = Daemon::start(&bed, Settings::prepared().config(auto()));
        goes_without(&mut daemon, words, fix);
        sh("umount /dev/net");
        // Looked at again by whoever wants a start.
        let guest = Guest::create_with(&daemon, "x", "busybox", &SMALL);
        guest.banger("start").ok();
        reaches(&guest, GATEWAY);
        guest.banger("rm").args(["--force"]).ok();
        daemon.finish();
        assert_eq!(objects(), [""; 0]);
    }
}

#[test]
fn a_daemon_without_the_capability() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    // For whatever this thread starts from here on (capabilities(7)).
    remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN).expect("one capability less");
    let mut daemon = Daemon::start(&bed, Settings::prepared().config(auto()));
    drop(Guest::start(&daemon, "user", "busybox"));
    goes_without(&mut daemon, "CAP_NET_ADMIN", "run the daemon as root");
    let guest = Guest::of(&daemon, "user");
    // On the user-mode network, which asks nobody.
    assert_eq!(guest.sh("ip -o -4 addr show eth0 | grep -c 10.0.2.15"), "1");
    guest.banger("rm").args(["--force"]).ok();
    daemon.finish();
}

#[test]
fn machines_that_run_on_addresses_of_before() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let mut daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    drop(Guest::start(&daemon, "old", "busybox"));
    Guest::of(&daemon, "old").sh("echo kept > /etc/kept; sync");
    daemon.terminate();
    daemon.configure(&format!("{}subnet = \"10.77.0.0/24\"\n", daemon.config()));
    daemon.launch();
    {
        let (old, new) = (Guest::of(&daemon, "old"), Guest::start(&daemon, "new", "busybox"));
        assert_eq!(new.show()["address"], "10.77.0.2");
        reaches(&new, "10.77.0.1");
        assert_eq!(answer(&new, INTERNET), HOST);
        // The old one runs, and can be used; where its network went is said.
        assert_eq!(
            (old.state().as_str(), old.sh("cat /etc/kept").as_str()),
            ("running", "kept")
        );
        assert_eq!(ask(&old, INTERNET), None);
        let said = status(&daemon)["problem"].as_str().unwrap_or_default().to_owned();
        assert!(said.contains("10.209.0.2") && said.contains("old"), "{said}");
        old.banger("stop").ok();
        let refused = old.banger("start").run();
        assert_ne!(refused.code(), 0, "{refused}");
        for word in ["10.209.0.2", "10.77.0.0/24", "`subnet`"] {
            assert!(refused.err().contains(word), "{refused}");
        }
        new.banger("rm").args(["--force"]).ok();
    }
    // As it was.
    daemon.terminate();
    daemon.configure(&daemon.config().replace("subnet = \"10.77.0.0/24\"\n", ""));
    daemon.launch();
    let old = Guest::of(&daemon, "old");
    old.banger("start").ok();
    assert_eq!(old.show()["address"], "10.209.0.2");
    assert_eq!(answer(&old, INTERNET), HOST);
    assert_eq!(old.sh("cat /etc/kept"), "kept");
    old.banger("rm").args(["--force"]).ok();
    wait_taps(2);
    no_problem(&daemon);
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}
