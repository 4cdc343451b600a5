//! What of the host stands against a bridge: looked at, never changed.
//!
//! Whose a bridge is, its alias says. One of that name that is somebody else's is left alone, and so are addresses that
//! the host uses already for something else.

use std::net::{IpAddr, Ipv4Addr};

use hostkit::link::{Address, Link, LinkError, Links, Route};
use ipnet::IpNet;

use super::bridge::Obstacle;
use crate::settings::NetworkSettings;

/// A route to half of all addresses, or to all, is a default route: VPNs have two halves, so as to go before another one.
const HALF: u8 = 1;

/// What the host has, as far as a bridge is concerned.
pub(crate) struct Scene {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
}

impl Scene {
    /// Looks. Needs no privileges.
    pub(crate) async fn look(links: &Links) -> Result<Self, LinkError> {
        Ok(Self {
            links: links.list().await?,
            addresses: links.addresses().await?,
            routes: links.routes().await?,
        })
    }

    /// Our bridge, where it is there.
    pub(crate) fn ours(
        &self,
        settings: &NetworkSettings,
        alias: &str,
        entered: bool,
    ) -> Result<Option<&Link>, Obstacle> {
        let Some(link) = self.links.iter().find(|link| link.name == settings.bridge) else {
            return Ok(None);
        };
        // One that its daemon did not live to name is known by its row.
        let named = link.alias == alias || (link.alias.is_empty() && entered);
        if link.kind == "bridge" && named {
            return Ok(Some(link));
        }
        let kind = if link.kind.is_empty() {
            "an interface"
        } else {
            link.kind.as_str()
        };
        Err(Obstacle::Foreign {
            name: link.name.clone(),
            what: match link.alias.as_str() {
                "" => format!("{kind} without an alias"),
                alias => format!("{kind} with the alias {alias:?}"),
            },
        })
    }

    /// Whether the link is up and has the bridge's address.
    pub(super) fn stands(&self, settings: &NetworkSettings, index: u32) -> bool {
        let gateway = settings.subnet.gateway();
        let has = |a: &Address| a.index == index && a.address.addr() == gateway;
        let up = self.links.iter().any(|link| link.index == index && link.up);
        up && self.addresses.iter().any(has)
    }

    /// What the host has in our network and on another interface.
    pub(crate) fn clash(&self, settings: &NetworkSettings) -> Option<Obstacle> {
        let (subnet, bridge) = (settings.subnet, &settings.bridge);
        let overlaps = |net: &IpNet| match net {
            IpNet::V4(net) => net.prefix_len() > HALF && subnet.overlaps(net.network(), net.prefix_len()),
            IpNet::V6(_) => false,
        };
        let address = self.addresses.iter().filter(|a| a.interface != *bridge);
        let address = address.filter(|a| overlaps(&a.address)).map(|a| Obstacle::Clash {
            subnet,
            what: format!("the address {}", a.address),
            interface: a.interface.clone(),
        });
        let route = self.routes.iter().filter(|r| r.interface != *bridge);
        let route = route.filter(|r| overlaps(&r.prefix)).map(|r| Obstacle::Clash {
            subnet,
            what: format!("the route {}", r.prefix),
            interface: r.interface.clone(),
        });
        address.chain(route).next()
    }

    /// The host's own networks: what it reaches without a gateway, other than by the bridge or the loopback.
    pub(crate) fn on_link(&self, bridge: &str) -> Vec<(Ipv4Addr, u8)> {
        let other = |interface: &str| interface != bridge && interface != "lo";
        let v4 = |net: &IpNet| match net {
            IpNet::V4(net) => Some((net.network(), net.prefix_len())),
            IpNet::V6(_) => None,
        };
        let addresses = self.addresses.iter().filter(|a| other(&a.interface));
        let addresses = addresses.flat_map(|a| {
            let peer = a.peer.and_then(|peer| match peer {
                IpAddr::V4(peer) => Some((peer, 32)),
                IpAddr::V6(_) => None,
            });
            v4(&a.address).into_iter().chain(peer)
        });
        let routes = self
            .routes
            .iter()
            .filter(|r| other(&r.interface) && r.gateway.is_none());
        let mut all: Vec<_> = addresses.chain(routes.filter_map(|r| v4(&r.prefix))).collect();
        all.retain(|(_, prefix)| *prefix > HALF);
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use hostkit::link::Scope;

    use super::*;
    use crate::net::subnet::Subnet;
    use crate::settings::NetworkMode;

    fn settings() -> NetworkSettings {
        NetworkSettings {
            passt: crate::settings::PasstChoice::Off,
            mode: NetworkMode::Bridge,
            bridge: "bgr0".to_owned(),
            subnet: Subnet::DEFAULT,
            pool: 4,
        }
    }

    fn link(name: &str, kind: &str, alias: &str) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            alias: alias.to_owned(),
            kind: kind.to_owned(),
            up: true,
            carrier: true,
            master: None,
            isolated: false,
            mtu: 1500,
            mac: None,
            received: 0,
            sent: 0,
        }
    }

    fn scene(addresses: &[(&str, &str)], routes: &[(&str, &str, Option<&str>)]) -> Scene {
        let address = |(interface, address): &(&str, &str)| Address {
            index: 7,
            interface: (*interface).to_owned(),
            address: address.parse().unwrap(),
            peer: None,
        };
        let route = |(interface, prefix, gateway): &(&str, &str, Option<&str>)| Route {
            prefix: prefix.parse().unwrap(),
            index: 7,
            interface: (*interface).to_owned(),
            gateway: gateway.map(|g| g.parse().unwrap()),
            scope: Scope::Universe,
            table: 254,
        };
        Scene {
            links: Vec::new(),
            addresses: addresses.iter().map(address).collect(),
            routes: routes.iter().map(route).collect(),
        }
    }

    #[test]
    fn a_bridge_is_ours_by_its_alias() {
        let of = |found: Link, entered| {
            let scene = Scene {
                links: vec![found],
                ..scene(&[], &[])
            };
            scene
                .ours(&settings(), "banger 0123", entered)
                .map(|link| link.is_some())
                .map_err(|e| e.to_string())
        };
        assert_eq!(of(link("eth0", "", ""), false), Ok(false));
        assert_eq!(of(link("bgr0", "bridge", "banger 0123"), false), Ok(true));
        assert_eq!(of(link("bgr0", "bridge", ""), true), Ok(true));
        let said = [
            of(link("bgr0", "bridge", ""), false),
            of(link("bgr0", "bridge", "banger 4567"), true),
            of(link("bgr0", "dummy", "banger 0123"), true),
        ]
        .map(|outcome| outcome.unwrap_err());
        insta::assert_snapshot!(said.join("\n"), @r#"
        there is an interface bgr0 already, which is not this daemon's (bridge without an alias)
        there is an interface bgr0 already, which is not this daemon's (bridge with the alias "banger 4567")
        there is an interface bgr0 already, which is not this daemon's (dummy with the alias "banger 0123")
        "#);
    }

    #[test]
    fn what_the_host_uses_already_is_named() {
        let clash = |scene: Scene| scene.clash(&settings()).map(|o| o.to_string());
        assert_eq!(
            clash(scene(
                &[
                    ("bgr0", "10.209.0.1/20"),
                    ("eth0", "192.168.0.7/16"),
                    ("eth0", "fd00::1/64")
                ],
                &[
                    ("eth0", "0.0.0.0/0", Some("192.168.0.1")),
                    ("bgr0", "10.209.0.0/20", None)
                ]
            )),
            None
        );
        let said = [
            scene(&[("tun0", "10.209.3.4/24")], &[]),
            scene(&[], &[("wg0", "10.0.0.0/8", None)]),
            scene(&[], &[("eth0", "10.209.9.9/32", Some("192.168.0.1"))]),
        ]
        .map(|scene| clash(scene).unwrap());
        insta::assert_snapshot!(said.join("\n"), @r"
        the subnet 10.209.0.0/20 overlaps the address 10.209.3.4/24 of tun0
        the subnet 10.209.0.0/20 overlaps the route 10.0.0.0/8 of wg0
        the subnet 10.209.0.0/20 overlaps the route 10.209.9.9/32 of eth0
        ");
    }

    #[test]
    fn the_hosts_own_networks_are_those_without_a_gateway() {
        let scene = scene(
            &[
                ("eth0", "203.0.113.9/24"),
                ("bgr0", "10.209.0.1/20"),
                ("lo", "127.0.0.1/8"),
            ],
            &[
                ("eth0", "0.0.0.0/0", Some("203.0.113.1")),
                ("eth0", "198.51.100.0/24", Some("203.0.113.1")),
                ("wg0", "192.0.2.0/24", None),
                ("wg1", "0.0.0.0/0", None),
            ],
        );
        let shown: Vec<_> = scene
            .on_link("bgr0")
            .iter()
            .map(|(a, p)| format!("{a}/{p}"))
            .collect();
        assert_eq!(shown, ["192.0.2.0/24", "203.0.113.0/24"]);
    }
}
