//! The keeper against a kernel: real links and rules in a network namespace, and somebody who tampers with them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_store::Store;
use hostkit::link::Links;
use hostkit::nft::{self, Nft};
use testkit::Card;

use super::*;
use crate::ledger::Ledger;
use crate::net::Mode;
use crate::net::subnet::Subnet;
use crate::rows::Rows;
use crate::settings::{NetworkMode, NetworkSettings};

/// A test that waits as long has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// A host with a state directory and, before its own, a program `nft` that can be made to wait.
struct Place {
    directory: tempfile::TempDir,
    nft: Nft,
    links: Links,
}

/// A daemon's network on it.
struct Net {
    network: Arc<Network>,
    ledger: Ledger,
}

fn settings(mode: NetworkMode, pool: u16) -> NetworkSettings {
    NetworkSettings {
        passt: crate::settings::PasstChoice::Off,
        mode,
        bridge: "bgr0".to_owned(),
        subnet: Subnet::DEFAULT,
        pool,
    }
}

/// Runs a test in a namespace of its own, where there is `nft`.
fn at_a_place(test: impl AsyncFnOnce(Place) + Send) {
    testkit::in_network_namespace_async(async || {
        let Some(program) = testkit::program("BANGER_TEST_NFT", "nft") else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        // Each call is noted; while there is a file `fail`, it fails, with `hold` one waits for a word through the pipe.
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {at}/calls\n[ -e {at}/fail ] && exit 1\n[ -e {at}/hold ] && read -r word < {at}/pipe\n\
             exec {} \"$@\"\n",
            program.display()
        );
        let bin = directory.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::write(bin.join("nft"), script).unwrap();
        std::fs::set_permissions(bin.join("nft"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let made = Command::new("mkfifo").arg(directory.path().join("pipe")).status();
        assert!(made.unwrap().success());
        let place = Place {
            directory,
            nft: Nft::find(program.parent().map(Path::as_os_str)).unwrap(),
            links: Links::connect().unwrap(),
        };
        // With the machine of `row`.
        drop(crate::host::tests::host(place.directory.path()).await);
        test(place).await;
    });
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn open(&self, settings: NetworkSettings) -> Net {
        let store = Store::open(&self.path("banger.db")).unwrap();
        let hands = Hands::new(&settings.bridge, "test", &[self.path("bin")]);
        let ledger = Ledger::new(store.clone(), hands.clone());
        let network = Network::open(settings, hands, ledger.clone(), Rows::new(store)).await;
        Net {
            network: network.unwrap(),
            ledger,
        }
    }

    /// Keeps a bridge with two spare taps, and waits until they are there.
    async fn keep(&self) -> Net {
        let net = self.open(settings(NetworkMode::Bridge, 2)).await;
        net.start();
        until("two spare taps", async || net.network.levels().spare == 2).await;
        net
    }

    async fn tables(&self) -> Vec<nft::Table> {
        self.nft.tables().await.unwrap()
    }

    async fn exists(&self, link: &str) -> bool {
        self.links.get(link).await.unwrap().is_some()
    }

    /// In the bridge and passing frames.
    async fn passes(&self, tap: &str) -> bool {
        let tap = self.links.get(tap).await.unwrap();
        let bridge = self.links.get("bgr0").await.unwrap();
        match (tap, bridge) {
            (Some(tap), Some(bridge)) => tap.master == Some(bridge.index) && state(&tap.name) == "3",
            (_, None) | (None, _) => false,
        }
    }
}

impl Net {
    /// Begins to keep it, and tells nobody's resolver: the machine's own may run outside of the namespace.
    fn start(&self) {
        let task = tokio::spawn(run(self.network.clone()));
        *self.network.keeper.lock().unwrap() = Some(task);
    }

    /// Takes a tap for the machine of `row`, as a start does, with a card at its end.
    async fn connect(&self) -> (String, Card) {
        let vm = crate::vm::change::tests::row().id;
        self.network.lease(&vm, "dev").await.unwrap();
        let tap = self.network.take_tap(&vm).await.unwrap();
        self.network.changed();
        self.network.applied(&vm).await.unwrap();
        let card = Card::open(&tap);
        (tap, card)
    }

    async fn disconnect(&self) {
        let vm = crate::vm::change::tests::row().id;
        self.ledger.collect(&Owner::Run(vm)).await.unwrap();
    }

    /// Waits until the keeper has looked at all there is.
    async fn settle(&self) {
        self.network.changed();
        let wanted = *self.network.changes.borrow();
        let mut standing = self.network.standing.subscribe();
        let seen = standing.wait_for(|standing| standing.seen >= wanted);
        let seen = tokio::time::timeout(DEADLINE, seen).await;
        drop(seen.expect("a look").unwrap());
    }

    /// As a daemon that is killed.
    fn kill(self) {
        let task = self.network.keeper.lock().unwrap().take();
        task.unwrap().abort();
    }
}

/// A port's state in its bridge: `3` is forwarding, `0` disabled.
fn state(tap: &str) -> String {
    let state = std::fs::read_to_string(format!("/sys/class/net/{tap}/brport/state"));
    state.unwrap_or_default().trim().to_owned()
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn while_flushed_rules_are_put_back_nothing_passes() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let (tap, _card) = net.connect().await;
        net.settle().await;
        let before = place.tables().await;
        assert_eq!(before.len(), 2);
        for script in [
            "flush ruleset",
            "delete table inet banger",
            "flush chain bridge banger sent",
        ] {
            std::fs::write(place.path("hold"), "").unwrap();
            place.nft.apply(script).await.unwrap();
            until("a closed port", async || state(&tap) == "0").await;
            // Whoever opens the pipe finds the program waiting in it, before it does anything.
            let pipe = place.path("pipe");
            let pipe = tokio::task::spawn_blocking(|| std::fs::File::options().write(true).open(pipe));
            let mut pipe = pipe.await.unwrap().unwrap();
            assert_eq!(state(&tap), "0");
            std::fs::remove_file(place.path("hold")).unwrap();
            std::io::Write::write_all(&mut pipe, b"go\n").unwrap();
            until("an open port", async || state(&tap) == "3").await;
            assert_eq!(place.tables().await, before, "{script}");
            let rules = place.nft.table(nft::Family::Bridge, "banger").await.unwrap();
            assert!(rules.unwrap().contains("@sources accept"), "{script}");
        }
        net.network.close().await;
    });
}

#[test]
fn what_the_keeper_changes_itself_is_no_tampering() {
    at_a_place(async |place| {
        let net = place.keep().await;
        for _ in 0..5 {
            drop(net.connect().await);
            net.disconnect().await;
            net.settle().await;
        }
        let calls = std::fs::read_to_string(place.path("calls")).unwrap();
        let applied = calls.lines().filter(|line| *line == "-f -").count();
        // The first, with the machine and without it.
        assert_eq!(applied, 11, "{calls}");
        net.network.close().await;
    });
}

#[test]
fn a_spare_tap_that_somebody_deletes_is_made_anew() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let before = place.links.get("bgr0t0").await.unwrap().unwrap().index;
        place.links.delete("bgr0t0").await.unwrap();
        until("another tap", async || {
            let now = place.links.get("bgr0t0").await.unwrap();
            now.is_some_and(|link| link.index != before) && net.network.levels().spare == 2
        })
        .await;
        let (tap, _card) = net.connect().await;
        until("a port that passes", async || place.passes(&tap).await).await;
        net.network.close().await;
    });
}

#[test]
fn a_bridge_that_somebody_deletes_comes_back_with_its_ports() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let (tap, _card) = net.connect().await;
        net.settle().await;
        for script in [
            "ip link del bgr0",
            "ip link set TAP nomaster",
            "ip link set bgr0 down",
        ] {
            let script = script.replace("TAP", &tap);
            let run = Command::new("sh").args(["-c", &script]).status();
            assert!(run.unwrap().success(), "{script}");
            until(&script, async || {
                let link = place.links.get(&tap).await.unwrap();
                place.passes(&tap).await && link.is_some_and(|link| link.isolated)
            })
            .await;
        }
        net.network.close().await;
    });
}

#[test]
fn a_tap_that_is_still_open_is_not_handed_out() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let (tap, card) = net.connect().await;
        // Its VMM was killed, and is not dead.
        net.disconnect().await;
        net.settle().await;
        assert!(!net.network.hands.pool.spare().contains(&tap));
        // Nor by the next daemon.
        net.kill();
        let net = place.keep().await;
        assert!(!net.network.hands.pool.spare().contains(&tap));
        drop(card);
        until("the tap is spare", async || {
            net.network.hands.pool.spare().contains(&tap)
        })
        .await;
        net.network.close().await;
    });
}

#[test]
fn closing_leaves_no_tap_that_was_being_made() {
    at_a_place(async |place| {
        for round in 0..20 {
            let net = place.open(settings(NetworkMode::Bridge, 16)).await;
            net.start();
            until("the first tap", async || net.network.levels().spare > round % 16).await;
            net.network.close().await;
            let left = place.links.list().await.unwrap();
            let mut left = left.into_iter().map(|link| link.name);
            assert_eq!(left.find(|name| name.starts_with("bgr0")), None, "round {round}");
        }
    });
}

#[test]
fn machines_on_a_bridge_keep_their_rules_when_new_ones_get_none() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let (tap, _card) = net.connect().await;
        net.settle().await;
        net.kill();
        let net = place.open(settings(NetworkMode::User, 2)).await;
        net.start();
        net.settle().await;
        assert!(matches!(net.network.mode(), Mode::User(_)));
        place.nft.apply("flush ruleset").await.unwrap();
        until("rules", async || place.tables().await.len() == 2).await;
        let vm = crate::vm::change::tests::row().id;
        net.network.applied(&vm).await.unwrap();
        until("a port that passes", async || place.passes(&tap).await).await;
        assert_eq!(net.network.levels().spare, 0);
        // With the last of them all of it goes.
        net.disconnect().await;
        until("no bridge", async || !place.exists("bgr0").await).await;
        until("no rules", async || place.tables().await.is_empty()).await;
        assert!(!place.exists(&tap).await);
        net.network.close().await;
    });
}

#[test]
fn a_network_that_the_host_joins_is_inside_at_once() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let (_tap, _card) = net.connect().await;
        net.settle().await;
        let applied = || {
            std::fs::read_to_string(place.path("calls"))
                .unwrap()
                .lines()
                .filter(|line| *line == "-f -")
                .count()
        };
        let before = applied();
        let index = place.links.make_bridge("vpn0", "").await.unwrap();
        place
            .links
            .add_address(index, "192.0.2.1/24".parse().unwrap())
            .await
            .unwrap();
        place.links.set_up(index).await.unwrap();
        let began = Instant::now();
        until("rules with the network", async || applied() > before).await;
        assert!(
            began.elapsed() < LOOK / 2,
            "only by the look now and then: {:?}",
            began.elapsed()
        );
        net.network.close().await;
    });
}

#[test]
fn a_bridge_in_use_stays_whatever_comes_to_overlap_it() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let (tap, _card) = net.connect().await;
        net.settle().await;
        let index = place.links.make_bridge("vpn0", "").await.unwrap();
        let address = "10.209.7.1/24".parse().unwrap();
        place.links.add_address(index, address).await.unwrap();
        place.links.set_up(index).await.unwrap();
        // The next daemon takes it over all the same, for the machine that runs.
        net.kill();
        let net = place.keep().await;
        let vm = crate::vm::change::tests::row().id;
        net.network.applied(&vm).await.unwrap();
        assert!(place.passes(&tap).await);
        // Without a machine it is as at first.
        net.disconnect().await;
        net.settle().await;
        net.kill();
        let net = place.open(settings(NetworkMode::Bridge, 2)).await;
        net.start();
        net.settle().await;
        assert!(matches!(
            net.network.standing().obstacle,
            Some(Obstacle::Clash { .. })
        ));
        net.network.close().await;
    });
}

#[test]
fn a_bridge_that_is_configured_no_more_goes_with_its_last_machine() {
    at_a_place(async |place| {
        let net = place.keep().await;
        let (_, card) = net.connect().await;
        net.settle().await;
        net.kill();
        let renamed = NetworkSettings {
            bridge: "lab0".to_owned(),
            ..settings(NetworkMode::Bridge, 2)
        };
        let net = place.open(renamed).await;
        net.start();
        net.settle().await;
        let vm = crate::vm::change::tests::row().id;
        let told = net.network.applied(&vm).await.unwrap_err();
        assert!(told.contains("bgr0t"), "{told}");
        assert!(place.exists("bgr0").await);
        drop(card);
        net.disconnect().await;
        until("the new bridge", async || net.network.levels().spare == 2).await;
        assert!(place.exists("lab0").await && !place.exists("bgr0").await);
        net.network.close().await;
    });
}

#[test]
fn forwarding_is_set_back_unless_somebody_else_has_come_to_forward() {
    const FORWARD: &str = "net/ipv4/ip_forward";
    at_a_place(async |place| {
        let forwards = || hostkit::sysctl::read(FORWARD).unwrap();
        hostkit::sysctl::write(FORWARD, "0").unwrap();
        // A firewall that was there before does not need it.
        place.nft.apply("table inet firewall { }").await.unwrap();
        let net = place.keep().await;
        for (others, after) in [("", "0"), ("ip link add docker0 type bridge", "1")] {
            drop(net.connect().await);
            until("forwarding", async || forwards() == "1").await;
            let run = Command::new("sh").args(["-c", others]).status();
            assert!(run.unwrap().success());
            net.disconnect().await;
            net.settle().await;
            assert_eq!(forwards(), after, "{others:?}");
            assert!(!net.network.standing().forwarding);
        }
        hostkit::sysctl::write(FORWARD, "0").unwrap();
        place.nft.apply("delete table inet firewall").await.unwrap();
        drop(net.connect().await);
        until("forwarding", async || forwards() == "1").await;
        place.nft.apply("table ip nat { }").await.unwrap();
        // At the end of the daemon as well.
        net.disconnect().await;
        net.network.close().await;
        assert_eq!(forwards(), "1");
    });
}

#[test]
fn another_bangers_machines_keep_what_they_need_of_the_host() {
    const FORWARD: &str = "net/ipv4/ip_forward";
    at_a_place(async |place| {
        let forwards = || hostkit::sysctl::read(FORWARD).unwrap();
        hostkit::sysctl::write(FORWARD, "0").unwrap();
        let bridge = place.links.make_bridge("lab0", "banger other").await.unwrap();
        place.links.set_up(bridge).await.unwrap();
        hostkit::tap::make("lab0t0", None).unwrap();
        let port = place.links.get("lab0t0").await.unwrap().unwrap().index;
        place.links.enslave(port, bridge, true).await.unwrap();
        place.links.set_up(port).await.unwrap();
        let net = place.keep().await;
        // Without a machine it needs nothing, whenever it came.
        drop(net.connect().await);
        until("forwarding", async || forwards() == "1").await;
        place.links.make_bridge("lab1", "banger third").await.unwrap();
        place.nft.apply("table inet banger_lab1 { }").await.unwrap();
        net.disconnect().await;
        net.settle().await;
        assert_eq!(forwards(), "0");
        drop(net.connect().await);
        until("forwarding", async || forwards() == "1").await;
        let card = Card::open("lab0t0");
        until("a machine of another's", async || {
            place.links.get("lab0").await.unwrap().unwrap().carrier
        })
        .await;
        net.disconnect().await;
        net.settle().await;
        assert_eq!(forwards(), "1");
        drop(card);
        net.network.close().await;
    });
}

#[test]
fn links_that_only_have_a_name_of_ours_are_left_alone() {
    at_a_place(async |place| {
        place.links.make_bridge("bgr0t0", "").await.unwrap();
        hostkit::tap::make("bgr0t2", None).unwrap();
        let others = async || {
            let links = place.links.list().await.unwrap();
            let named = links
                .into_iter()
                .filter(|link| ["bgr0t0", "bgr0t2"].contains(&link.name.as_str()));
            named.collect::<Vec<_>>()
        };
        let before = others().await;
        assert_eq!(before.len(), 2);
        let net = place.keep().await;
        let spare: Vec<_> = net.network.hands.pool.spare().into_iter().collect();
        assert_eq!(spare, ["bgr0t1", "bgr0t3"]);
        net.network.close().await;
        assert_eq!(others().await, before);
        assert_eq!(net.ledger.objects(&Owner::Host).await.unwrap(), []);
    });
}

#[test]
fn what_has_an_old_name_after_the_hosts_boot_is_somebody_elses() {
    at_a_place(async |place| {
        let net = place.keep().await;
        net.kill();
        // In the same boot a bridge without an alias is one that was being made.
        let bridge = place.links.get("bgr0").await.unwrap().unwrap().index;
        place.links.set_alias(bridge, "").await.unwrap();
        let net = place.keep().await;
        net.kill();
        place.links.set_alias(bridge, "").await.unwrap();
        place
            .nft
            .apply("delete table inet banger\ntable inet banger { }")
            .await
            .unwrap();
        let store = Store::open(&place.path("banger.db")).unwrap();
        let before = store.write(|tx| banger_store::facts::replace(tx, "network_boot_id", "before"));
        assert!(before.await.unwrap().is_some());
        let net = place.open(settings(NetworkMode::Bridge, 2)).await;
        net.start();
        net.settle().await;
        assert!(matches!(
            net.network.standing().obstacle,
            Some(Obstacle::Foreign { .. })
        ));
        net.network.close().await;
        let net = place.open(settings(NetworkMode::User, 0)).await;
        net.start();
        net.settle().await;
        net.network.close().await;
        assert!(place.exists("bgr0").await);
        assert_eq!(place.tables().await.len(), 2);
    });
}

#[test]
fn a_table_of_our_name_without_our_word_in_it_stays() {
    at_a_place(async |place| {
        let net = place.keep().await;
        net.kill();
        let script = "delete table inet banger\ntable inet banger { }";
        place.nft.apply(script).await.unwrap();
        let net = place.open(settings(NetworkMode::User, 0)).await;
        net.start();
        net.settle().await;
        net.network.close().await;
        assert!(!place.exists("bgr0").await);
        let left = place.tables().await;
        let left: Vec<_> = left.iter().map(|table| table.family.as_str()).collect();
        assert_eq!(left, ["inet"]);
    });
}

#[test]
fn what_fails_is_tried_again_soon_and_ever_later() {
    let pauses = [1, 2, 3, 9, 10, u32::MAX].map(|failures| pause(failures).as_millis());
    assert_eq!(pauses, [100, 200, 400, 25_600, 30_000, 30_000]);
    at_a_place(async |place| {
        std::fs::write(place.path("fail"), "").unwrap();
        let net = place.open(settings(NetworkMode::Bridge, 2)).await;
        net.start();
        // Nobody changes anything meanwhile.
        until("four attempts", async || {
            let calls = std::fs::read_to_string(place.path("calls")).unwrap_or_default();
            calls.lines().filter(|line| *line == "-f -").count() >= 4
        })
        .await;
        assert!(net.network.standing().problem.is_some());
        std::fs::remove_file(place.path("fail")).unwrap();
        until("two spare taps", async || net.network.levels().spare == 2).await;
        net.settle().await;
        assert_eq!(net.network.standing().problem, None);
        net.network.close().await;
    });
}
