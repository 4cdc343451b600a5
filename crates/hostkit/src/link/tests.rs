use super::*;
use crate::tap;

/// Runs a test in a network namespace of its own, connected to it.
fn in_namespace(work: impl AsyncFnOnce(Links) + Send) {
    testkit::in_network_namespace_async(async || work(Links::connect().unwrap()).await);
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn names_that_no_link_can_have() {
    for good in ["bgr0", "a", "eth0.100", "abcdefghijklmno"] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "bgr%d",
        "abcdefghijklmnop",
        "ä",
    ] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_bridge_with_its_owners_mark_and_an_address() {
    in_namespace(async |links| {
        let index = links.make_bridge("bgr0", "banger abc").await.unwrap();
        let bridge = links.get("bgr0").await.unwrap().unwrap();
        assert_eq!(bridge.index, index);
        assert_eq!(
            (bridge.alias.as_str(), bridge.kind.as_str()),
            ("banger abc", "bridge")
        );
        assert!(!bridge.up && !bridge.carrier && bridge.master.is_none());
        // Made anew it is the same to its neighbours.
        links.delete("bgr0").await.unwrap();
        let index = links.make_bridge("bgr0", "banger abc").await.unwrap();
        assert_eq!(links.get("bgr0").await.unwrap().unwrap().mac, bridge.mac);
        let settings = |name: &str| {
            let path = format!("/sys/class/net/bgr0/bridge/{name}");
            std::fs::read_to_string(path).unwrap().trim().to_owned()
        };
        assert_eq!(
            (settings("stp_state"), settings("forward_delay")),
            ("0".into(), "0".into())
        );

        let again = links.make_bridge("bgr0", "banger def").await.unwrap_err();
        assert!(
            matches!(&again, LinkError::Exists { name } if name == "bgr0"),
            "{again:?}"
        );
        assert_eq!(links.get("bgr0").await.unwrap().unwrap().alias, "banger abc");

        for _ in 0..2 {
            links.add_address(index, net("10.209.0.1/20")).await.unwrap();
            links.set_up(index).await.unwrap();
        }
        assert!(links.get("bgr0").await.unwrap().unwrap().up);
        let addresses = links.addresses().await.unwrap();
        let of_bridge: Vec<_> = addresses.iter().filter(|a| a.interface == "bgr0").collect();
        assert_eq!(
            of_bridge,
            [&Address {
                index,
                interface: "bgr0".to_owned(),
                address: net("10.209.0.1/20"),
                peer: None,
            }],
            "and none of IPv6"
        );
        assert!(
            addresses
                .iter()
                .any(|a| a.address == net("127.0.0.1/8") && a.interface == "lo")
        );

        links.set_down(index).await.unwrap();
        assert!(!links.get("bgr0").await.unwrap().unwrap().up);
        links.set_alias(index, "").await.unwrap();
        assert_eq!(links.get("bgr0").await.unwrap().unwrap().alias, "");
        links.delete("bgr0").await.unwrap();
        links.delete("bgr0").await.unwrap();
        assert_eq!(links.get("bgr0").await.unwrap(), None);
    });
}

#[test]
fn ports_come_and_go_and_the_bridge_keeps_its_address() {
    in_namespace(async |links| {
        let bridge = links.make_bridge("bgr0", "").await.unwrap();
        links.set_up(bridge).await.unwrap();
        let mac = links.get("bgr0").await.unwrap().unwrap().mac.unwrap();
        assert_eq!(mac[0] & 0b11, 0b10, "local, of no group");
        for number in 0..8 {
            let name = format!("bgr0t{number}");
            tap::make(&name, None).unwrap();
            let index = links.get(&name).await.unwrap().unwrap().index;
            links.set_mtu(index, 1400).await.unwrap();
            links.enslave(index, bridge, number % 2 == 0).await.unwrap();
            links.set_up(index).await.unwrap();
        }
        let all = links.list().await.unwrap();
        let ports: Vec<_> = all.iter().filter(|link| link.master == Some(bridge)).collect();
        assert_eq!(ports.len(), 8);
        assert!(all.is_sorted_by_key(|link| link.index));
        for port in &ports {
            let even = port.name.ends_with(['0', '2', '4', '6']);
            assert_eq!((port.isolated, port.mtu, port.up), (even, 1400, true), "{port:?}");
            links.set_isolated(port.index, !even).await.unwrap();
        }
        for port in &ports {
            let now = links.get(&port.name).await.unwrap().unwrap();
            assert_eq!(now.isolated, !port.isolated);
        }
        links.delete("bgr0t0").await.unwrap();
        assert_eq!(links.get("bgr0").await.unwrap().unwrap().mac, Some(mac));
        let addresses = links.addresses().await.unwrap();
        assert!(
            addresses.iter().all(|address| address.interface == "lo"),
            "{addresses:?}"
        );
    });
}

#[test]
fn a_link_that_is_up_becomes_a_port_and_is_up_again() {
    in_namespace(async |links| {
        let bridge = links.make_bridge("bgr0", "").await.unwrap();
        tap::make("bgr0t0", None).unwrap();
        let index = links.get("bgr0t0").await.unwrap().unwrap().index;
        links.set_up(index).await.unwrap();
        for isolated in [true, false] {
            links.enslave(index, bridge, isolated).await.unwrap();
            let port = links.get("bgr0t0").await.unwrap().unwrap();
            assert_eq!(
                (port.master, port.isolated, port.up),
                (Some(bridge), isolated, true)
            );
        }
    });
}

#[test]
fn what_is_not_there_or_not_possible_is_said() {
    in_namespace(async |links| {
        let gone = links.set_up(4711).await.unwrap_err();
        assert_eq!(gone.to_string(), "bring up link 4711: there is no such link");
        let gone = links.add_address(4711, net("10.0.0.1/8")).await.unwrap_err();
        assert!(matches!(gone, LinkError::NoLink { .. }), "{gone:?}");
        tap::make("t0", None).unwrap();
        let tap = links.get("t0").await.unwrap().unwrap().index;
        let loose = links.set_isolated(tap, true).await.unwrap_err();
        assert!(matches!(loose, LinkError::Lacking { .. }), "{loose:?}");
        let no_bridge = links.enslave(tap, 1, true).await.unwrap_err();
        eprintln!("{no_bridge}");
        assert!(
            matches!(no_bridge, LinkError::Lacking { .. } | LinkError::Refused { .. }),
            "{no_bridge:?}"
        );
        let mtu = links.set_mtu(tap, 1).await.unwrap_err();
        let LinkError::Refused { words, .. } = &mtu else {
            panic!("{mtu:?}");
        };
        assert!(words.contains("mtu"), "the kernel's words: {words}");
        for (name, alias) in [("no/name", ""), ("name", "a\0b"), ("name", &"a".repeat(256))] {
            let invalid = links.make_bridge(name, alias).await;
            assert!(matches!(invalid, Err(LinkError::Invalid { .. })), "{invalid:?}");
        }
        // A conversation goes on after refusals.
        assert_eq!(links.list().await.unwrap().len(), 2);
    });
}

#[test]
fn routes_of_all_tables_with_their_ways() {
    in_namespace(async |links| {
        let index = links.make_bridge("br", "").await.unwrap();
        links.add_address(index, net("10.1.0.1/16")).await.unwrap();
        links.set_up(index).await.unwrap();
        let ip = testkit::program("BANGER_TEST_IP", "ip").unwrap();
        for line in [
            "route add default via 10.1.0.9",
            "route add 10.209.0.0/16 via 10.1.0.3 table 51820",
            "route add 192.168.7.0/24 nexthop via 10.1.0.4 nexthop via 10.1.0.5",
            "route add 172.16.0.0/12 dev br scope link",
            "route add unreachable 10.3.0.0/16",
        ] {
            let status = std::process::Command::new(&ip).args(line.split(' ')).status();
            assert!(status.unwrap().success(), "{line}");
        }
        let routes = links.routes().await.unwrap();
        let mut shown: Vec<_> = routes
            .iter()
            .filter(|route| matches!(route.prefix, IpNet::V4(_)))
            .map(|route| {
                let gateway = route
                    .gateway
                    .map_or("-".to_owned(), |gateway| gateway.to_string());
                format!(
                    "{} {} {gateway} {:?} {}",
                    route.prefix, route.interface, route.scope, route.table
                )
            })
            .collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "0.0.0.0/0 br 10.1.0.9 Universe 254",
                "10.1.0.0/16 br - Link 254",
                "10.209.0.0/16 br 10.1.0.3 Universe 51820",
                "172.16.0.0/12 br - Link 254",
                "192.168.7.0/24 br 10.1.0.4 Universe 254",
                "192.168.7.0/24 br 10.1.0.5 Universe 254",
            ]
        );
    });
}

#[test]
fn the_way_out_is_what_the_rules_say() {
    in_namespace(async |links| {
        let anywhere = "192.0.2.1".parse().unwrap();
        assert_eq!(links.outgoing(anywhere).await.unwrap(), None);
        let index = links.make_bridge("br", "").await.unwrap();
        links.add_address(index, net("10.1.0.1/16")).await.unwrap();
        links.set_up(index).await.unwrap();
        let vpn = links.make_bridge("vpn", "").await.unwrap();
        links.set_mtu(vpn, 1420).await.unwrap();
        links.set_up(vpn).await.unwrap();
        let ip = testkit::program("BANGER_TEST_IP", "ip").unwrap();
        let run = |line: &str| {
            let status = std::process::Command::new(&ip).args(line.split(' ')).status();
            assert!(status.unwrap().success(), "{line}");
        };
        run("route add default via 10.1.0.9");
        assert_eq!(links.outgoing(anywhere).await.unwrap().unwrap().name, "br");
        // As WireGuard's wg-quick does it.
        run("route add default dev vpn table 51820");
        run("rule add not fwmark 51820 table 51820");
        let way = links.outgoing(anywhere).await.unwrap().unwrap();
        assert_eq!((way.name.as_str(), way.mtu), ("vpn", 1420));
        let own = links
            .outgoing("10.1.0.1".parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(own.name, "lo");
        run("route add blackhole 203.0.113.0/24 table 51820");
        run("route add prohibit 198.51.100.0/24 table 51820");
        for closed in ["203.0.113.1", "198.51.100.1"] {
            assert_eq!(
                links.outgoing(closed.parse().unwrap()).await.unwrap(),
                None,
                "{closed}"
            );
        }
    });
}

#[test]
fn a_list_longer_than_one_read() {
    in_namespace(async |links| {
        for number in 0..150 {
            tap::make(&format!("t{number}"), None).unwrap();
        }
        let list = links.list().await.unwrap();
        assert_eq!(list.len(), 151);
        assert!(list.iter().all(|link| link.mtu > 0 && !link.name.is_empty()));
    });
}

#[test]
fn changing_takes_a_capability() {
    testkit::in_network_namespace(|| {
        // Threads have capabilities of their own, and those that they start have the same.
        let mut held = rustix::thread::capabilities(None).unwrap();
        held.effective.remove(rustix::thread::CapabilitySet::NET_ADMIN);
        rustix::thread::set_capabilities(None, held).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let links = Links::connect().unwrap();
            for refused in [
                links.make_bridge("bgr0", "").await.unwrap_err(),
                links.set_up(1).await.unwrap_err(),
                links.add_address(1, net("10.0.0.1/8")).await.unwrap_err(),
                links.delete("lo").await.unwrap_err(),
            ] {
                assert!(matches!(refused, LinkError::Permission { .. }), "{refused:?}");
            }
            assert_eq!(links.list().await.unwrap().len(), 1);
        });
        assert!(matches!(tap::usable(), Err(tap::TapError::Permission { .. })));
        let refused = tap::make("t0", None).unwrap_err();
        assert!(matches!(refused, tap::TapError::Permission { .. }), "{refused:?}");
    });
}

#[test]
fn looking_takes_no_privileges() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let links = Links::connect().unwrap();
        let lo = links.get("lo").await.unwrap().unwrap();
        assert_eq!((lo.index, lo.kind.as_str()), (1, ""));
        links.routes().await.unwrap();
    });
}

#[test]
fn what_comes_goes_and_changes_is_told() {
    in_namespace(async |links| {
        let mut watch = Watch::open().unwrap();
        let index = links.make_bridge("bgr0", "").await.unwrap();
        links.make_bridge("bgr1", "").await.unwrap();
        watch.changed(|name| name == "bgr1").await.unwrap();
        links.set_up(index).await.unwrap();
        watch.changed(|name| name == "bgr0").await.unwrap();
        tap::make("bgr0t1", None).unwrap();
        watch.changed(|name| name.starts_with("bgr0t")).await.unwrap();
        links.delete("bgr0t1").await.unwrap();
        watch.changed(|name| name == "bgr0t1").await.unwrap();
    });
}

#[test]
fn networks_that_come_and_go_are_told() {
    in_namespace(async |links| {
        let index = links.make_bridge("bgr0", "").await.unwrap();
        let mut watch = NetworkWatch::open().unwrap();
        let soon = std::time::Duration::from_millis(50);
        // A link alone is no network.
        links.make_bridge("bgr1", "").await.unwrap();
        tokio::time::timeout(soon, watch.changed()).await.unwrap_err();
        links
            .add_address(index, "192.0.2.1/24".parse().unwrap())
            .await
            .unwrap();
        watch.changed().await.unwrap();
        links.set_up(index).await.unwrap();
        watch.changed().await.unwrap();
        links.delete("bgr0").await.unwrap();
        watch.changed().await.unwrap();
    });
}

#[test]
fn a_port_is_closed_and_opened() {
    in_namespace(async |links| {
        let bridge = links.make_bridge("bgr0", "").await.unwrap();
        links.set_up(bridge).await.unwrap();
        tap::make("bgr0t1", None).unwrap();
        let port = links.get("bgr0t1").await.unwrap().unwrap().index;
        links.enslave(port, bridge, true).await.unwrap();
        links.set_up(port).await.unwrap();
        // Nobody has it open: it is closed as it is.
        links.set_forwarding(port, false).await.unwrap();
        let card = testkit::Card::open("bgr0t1");
        let state = || std::fs::read_to_string("/sys/class/net/bgr0t1/brport/state").unwrap();
        assert_eq!(state().trim(), "3");
        links.set_forwarding(port, false).await.unwrap();
        assert_eq!(state().trim(), "0");
        links.set_forwarding(port, true).await.unwrap();
        assert_eq!(state().trim(), "3");
        assert!(links.get("bgr0t1").await.unwrap().unwrap().isolated);
        drop(card);
        let error = links.set_forwarding(bridge, true).await.unwrap_err();
        assert!(
            matches!(error, LinkError::Lacking { .. } | LinkError::Refused { .. }),
            "{error:?}"
        );
    });
}
