//! Published ports and what listens in guests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use banger_agent_api::{Listener, Transport};
use banger_api::types;
use banger_engine::ports::{Publication, Published};
use banger_engine::{Direct, HostPort, Unpublish, VmPorts};
use jiff::Timestamp;

fn protocol(transport: Transport) -> types::Protocol {
    match transport {
        Transport::Tcp => types::Protocol::Tcp,
        Transport::Udp => types::Protocol::Udp,
    }
}

fn transport_of(protocol: types::Protocol) -> Transport {
    match protocol {
        types::Protocol::Tcp => Transport::Tcp,
        types::Protocol::Udp => Transport::Udp,
    }
}

pub(crate) fn publication(publication: Publication) -> types::Publication {
    let Publication {
        transport,
        host,
        guest_port,
    } = publication;
    types::Publication {
        protocol: protocol(transport),
        host_address: host.ip(),
        host_port: host.port(),
        guest_port,
        problem: None,
    }
}

pub(crate) fn published(published: Published) -> types::Publication {
    let Published {
        publication: which,
        problem,
    } = published;
    types::Publication {
        problem,
        ..publication(which)
    }
}

/// Where loopback is what nobody has asked otherwise.
pub(crate) fn publication_of(port: types::PublishPort) -> Publication {
    let types::PublishPort {
        protocol,
        host_address,
        host_port,
        guest_port,
    } = port;
    let address = host_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
    Publication {
        transport: transport_of(protocol),
        host: SocketAddr::new(address, host_port),
        guest_port,
    }
}

pub(crate) fn unpublish_of(ports: Option<Vec<types::HostPort>>) -> Unpublish {
    let place = |port: types::HostPort| HostPort {
        transport: transport_of(port.protocol),
        address: port.host_address,
        port: port.host_port,
        guest_port: port.guest_port,
    };
    match ports {
        None => Unpublish::All,
        Some(ports) => Unpublish::At(ports.into_iter().map(place).collect()),
    }
}

/// What listens, each with what leads there; then what leads to where nothing listens.
pub(crate) fn ports(ports: VmPorts, now: Timestamp) -> types::VmPorts {
    let VmPorts {
        vm,
        listeners,
        incomplete,
        published: all,
        direct,
    } = ports;
    let leads_to = |transport: Transport, port: u16| {
        let leads = move |published: &&Published| {
            let Publication {
                transport: of,
                guest_port,
                ..
            } = published.publication;
            (of, guest_port) == (transport, port)
        };
        all.iter()
            .filter(leads)
            .cloned()
            .map(published)
            .collect::<Vec<_>>()
    };
    let mut ports: Vec<types::VmPort> = Vec::new();
    for listener in listeners {
        let Listener {
            transport,
            address,
            port,
            pid,
            process,
            command,
            age,
        } = listener;
        let direct = direct.as_ref().filter(|direct| is_direct(direct, address));
        // What is published is reached on the guest's loopback.
        let is_reached = address.is_loopback() || address.is_unspecified();
        let published = if is_reached {
            leads_to(transport, port)
        } else {
            Vec::new()
        };
        ports.push(types::VmPort {
            protocol: protocol(transport),
            address: Some(address),
            port,
            pid,
            process: Some(process).filter(|process| !process.is_empty()),
            command: Some(command).filter(|command| !command.is_empty()),
            since: age.and_then(|age| now.checked_sub(age).ok()),
            url: url(transport, port, direct, &published),
            reached_at: direct.map(|direct| match &direct.name {
                Some(name) => format!("{name}:{port}"),
                None => SocketAddr::new(direct.address.into(), port).to_string(),
            }),
            published,
        });
    }
    for Published { publication, .. } in &all {
        let (of, port) = (protocol(publication.transport), publication.guest_port);
        let is_there =
            |there: &types::VmPort| (there.protocol, there.port) == (of, port) && !there.published.is_empty();
        if !ports.iter().any(is_there) {
            ports.push(types::VmPort {
                protocol: of,
                address: None,
                port,
                pid: None,
                process: None,
                command: None,
                since: None,
                url: None,
                reached_at: None,
                published: leads_to(publication.transport, port),
            });
        }
    }
    ports.sort_by_key(|port| (port.port, port.protocol));
    types::VmPorts {
        vm,
        ports,
        incomplete,
    }
}

/// Whether the host reaches a socket on the bridge: one at all addresses, of IPv4 with IPv6 too, or at the machine's own.
fn is_direct(direct: &Direct, address: IpAddr) -> bool {
    address.is_unspecified() || address == IpAddr::V4(direct.address)
}

/// Where people would go: what the port's number promises, HTTP unless it promises something else.
fn url(
    transport: Transport,
    port: u16,
    direct: Option<&Direct>,
    published: &[types::Publication],
) -> Option<String> {
    let scheme = match (transport, port) {
        (Transport::Udp, _) => return None,
        (Transport::Tcp, 22) => "ssh",
        (Transport::Tcp, 443 | 8443) => "https",
        (Transport::Tcp, 3306) => "mysql",
        (Transport::Tcp, 5432) => "postgresql",
        (Transport::Tcp, 6379) => "redis",
        (Transport::Tcp, _) => "http",
    };
    let by_name = direct.and_then(|direct| direct.name.as_ref());
    let by_name = by_name.map(|name| format!("{name}:{port}"));
    let at_host = || {
        let first = published.iter().find(|published| published.problem.is_none())?;
        let address = match first.host_address {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address @ (IpAddr::V4(_) | IpAddr::V6(_)) => address,
        };
        Some(SocketAddr::new(address, first.host_port).to_string())
    };
    let by_address = || direct.map(|direct| SocketAddr::new(direct.address.into(), port).to_string());
    let place = by_name.or_else(at_host).or_else(by_address)?;
    Some(format!("{scheme}://{place}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn listeners_and_publications_meet() {
        let listener = |address: &str, port| Listener {
            transport: Transport::Tcp,
            address: address.parse().unwrap(),
            port,
            pid: Some(7),
            process: "httpd".into(),
            command: String::new(),
            age: Some(Duration::from_secs(60)),
        };
        let published = |host: &str, guest_port, problem: Option<&str>| Published {
            publication: Publication {
                transport: Transport::Tcp,
                host: host.parse().unwrap(),
                guest_port,
            },
            problem: problem.map(str::to_owned),
        };
        let now: Timestamp = "2026-02-03T04:05:06Z".parse().unwrap();
        let found = VmPorts {
            vm: "dev".into(),
            listeners: vec![
                listener("0.0.0.0", 80),
                listener("10.0.2.15", 81),
                listener("::1", 443),
            ],
            incomplete: false,
            published: vec![
                published("127.0.0.1:8080", 80, None),
                published("127.0.0.1:8081", 81, None),
                published("[::]:8443", 443, None),
                published("127.0.0.1:9", 443, Some("taken")),
            ],
            direct: None,
        };
        let ports = ports(found, now);
        let shown: Vec<_> = ports
            .ports
            .iter()
            .map(|port| {
                (
                    port.port,
                    port.address.is_some(),
                    port.url.as_deref(),
                    port.published.len(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (80, true, Some("http://127.0.0.1:8080"), 1),
                (81, true, None, 0),
                (81, false, None, 1),
                (443, true, Some("https://[::1]:8443"), 2),
            ]
        );
        assert_eq!(ports.ports[0].since, "2026-02-03T04:04:06Z".parse().ok());
        assert_eq!(
            (ports.ports[0].command.as_ref(), ports.ports[0].pid),
            (None, Some(7))
        );
    }
    #[test]
    fn a_machine_on_the_bridge_is_reached_by_name_or_by_address() {
        let listener = |transport, address: &str, port| Listener {
            transport,
            address: address.parse().unwrap(),
            port,
            pid: None,
            process: String::new(),
            command: String::new(),
            age: None,
        };
        let shown = |name: Option<&str>| {
            let found = VmPorts {
                vm: "dev".into(),
                listeners: vec![
                    listener(Transport::Tcp, "127.0.0.1", 79),
                    listener(Transport::Tcp, "::", 80),
                    listener(Transport::Tcp, "10.209.0.2", 81),
                    listener(Transport::Tcp, "172.17.0.1", 82),
                    listener(Transport::Udp, "0.0.0.0", 53),
                ],
                incomplete: false,
                published: vec![Published {
                    publication: Publication {
                        transport: Transport::Tcp,
                        host: "127.0.0.1:8080".parse().unwrap(),
                        guest_port: 80,
                    },
                    problem: None,
                }],
                direct: Some(Direct {
                    address: [10, 209, 0, 2].into(),
                    name: name.map(str::to_owned),
                }),
            };
            let ports = ports(found, Timestamp::UNIX_EPOCH).ports;
            let of = |port: types::VmPort| (port.port, port.url, port.reached_at);
            ports.into_iter().map(of).collect::<Vec<_>>()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            shown(Some("dev.vm")),
            [
                (53, None, some("dev.vm:53")),
                (79, None, None),
                (80, some("http://dev.vm:80"), some("dev.vm:80")),
                (81, some("http://dev.vm:81"), some("dev.vm:81")),
                (82, None, None),
            ]
        );
        assert_eq!(
            shown(None),
            [
                (53, None, some("10.209.0.2:53")),
                (79, None, None),
                (80, some("http://127.0.0.1:8080"), some("10.209.0.2:80")),
                (81, some("http://10.209.0.2:81"), some("10.209.0.2:81")),
                (82, None, None),
            ]
        );
    }
}
