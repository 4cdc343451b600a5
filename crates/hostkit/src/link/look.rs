//! What there is: the kernel's lists of links, addresses and routes, and how they are read.

use std::net::IpAddr;

use ipnet::IpNet;

use super::message::{self, Message, Request, flags, kind};
use super::socket::{Refusal, Socket};
use super::{Address, Link, Route, Scope, lacks_family};

/// The routing table of the host's own and broadcast addresses, `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

pub(super) fn list(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let request = Request::link(kind::GET_LINK, flags::REQUEST | flags::DUMP, 0);
    let mut links = socket.list(&request, |message, links| links.extend(parse_link(message)))?;
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// The link in the answer to a question for one.
pub(super) fn one(socket: &mut Socket, request: Request) -> Result<Option<Link>, Refusal> {
    let mut found = None;
    socket.ask(request, |message| found = found.take().or(parse_link(message)))?;
    Ok(found)
}

fn parse_link(message: Message<'_>) -> Option<Link> {
    use message::{link, text, u32_at, u64_at};
    if message.kind != kind::NEW_LINK {
        return None;
    }
    let up = u32_at(message.body, 8)? & libc::IFF_UP.cast_unsigned() != 0;
    let mut parsed = Link {
        index: u32_at(message.body, 4)?,
        name: String::new(),
        alias: String::new(),
        kind: String::new(),
        up,
        carrier: false,
        master: None,
        isolated: false,
        mtu: 0,
        mac: None,
        received: 0,
        sent: 0,
    };
    for (kind, contents) in message::attributes_after(message::LINK_HEADER, message.body) {
        match kind {
            link::NAME => parsed.name = text(contents),
            link::ALIAS => parsed.alias = text(contents),
            link::ADDRESS => parsed.mac = contents.try_into().ok(),
            link::MTU => parsed.mtu = u32_at(contents, 0)?,
            link::MASTER => parsed.master = u32_at(contents, 0),
            link::CARRIER => parsed.carrier = contents.first() == Some(&1),
            link::STATISTICS => {
                parsed.received = u64_at(contents, link::STATISTICS_BYTES)?;
                parsed.sent = u64_at(contents, link::STATISTICS_BYTES + 8)?;
            }
            link::INFO => parse_info(contents, &mut parsed),
            _ => {}
        }
    }
    Some(parsed)
}

fn parse_info(contents: &[u8], parsed: &mut Link) {
    use message::link;
    let mut port = Vec::new();
    let mut of_bridge = false;
    for (kind, contents) in message::attributes(contents) {
        match kind {
            link::INFO_KIND => parsed.kind = message::text(contents),
            link::INFO_PORT_KIND => of_bridge = message::text(contents) == "bridge",
            link::INFO_PORT_DATA => port.extend(message::attributes(contents)),
            _ => {}
        }
    }
    parsed.isolated = of_bridge
        && port
            .iter()
            .any(|(kind, contents)| *kind == link::PORT_ISOLATED && contents.first() == Some(&1));
}

/// The names of all links, by number.
fn names(socket: &mut Socket) -> Result<std::collections::HashMap<u32, String>, Refusal> {
    Ok(list(socket)?
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect())
}

pub(super) fn addresses(socket: &mut Socket) -> Result<Vec<Address>, Refusal> {
    let names = names(socket)?;
    let request = Request::address(kind::GET_ADDRESS, flags::REQUEST | flags::DUMP, 0, 0, 0);
    socket.list(&request, |message, found| {
        found.extend(parse_address(message).map(|mut address| {
            address.interface = names.get(&address.index).cloned().unwrap_or_default();
            address
        }));
    })
}

fn parse_address(message: Message<'_>) -> Option<Address> {
    if message.kind != kind::NEW_ADDRESS {
        return None;
    }
    let prefix = *message.body.get(1)?;
    let (mut local, mut other) = (None, None);
    for (kind, contents) in message::attributes_after(message::ADDRESS_HEADER, message.body) {
        match kind {
            message::address::LOCAL => local = ip(contents),
            message::address::ADDRESS => other = ip(contents),
            _ => {}
        }
    }
    // IPv6 has LOCAL only where there is a peer (if_addr.h).
    let own = local.or(other)?;
    Some(Address {
        index: message::u32_at(message.body, 4)?,
        interface: String::new(),
        address: IpNet::new(own, prefix).ok()?,
        peer: other.filter(|other| *other != own),
    })
}

pub(super) fn routes(socket: &mut Socket) -> Result<Vec<Route>, Refusal> {
    let names = names(socket)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = Request::routes(u8::try_from(family).unwrap_or_default());
        let listed = socket.list(&request, |message, routes| {
            routes.extend(parse_route(message).unwrap_or_default());
        });
        match listed {
            Ok(routes) => found.extend(routes),
            // A kernel without IPv6.
            Err(refusal) if family == libc::AF_INET6 && lacks_family(&refusal) => {}
            Err(refusal) => return Err(refusal),
        }
    }
    for route in &mut found {
        route.interface = names.get(&route.index).cloned().unwrap_or_default();
    }
    Ok(found)
}

fn parse_route(message: Message<'_>) -> Option<Vec<Route>> {
    use message::{route, u16_at, u32_at};
    if message.kind != kind::NEW_ROUTE {
        return None;
    }
    let [family, prefix, _, _, table, _, scope, kind] = *message.body.first_chunk()?;
    if kind != route::UNICAST || u32_at(message.body, 8)? & route::CLONED != 0 {
        return None;
    }
    let mut table = u32::from(table);
    let (mut destination, mut index, mut gateway) = (None, 0, None);
    let mut hops = Vec::new();
    for (kind, contents) in message::attributes_after(message::ROUTE_HEADER, message.body) {
        match kind {
            route::DESTINATION => destination = ip(contents),
            route::INTERFACE => index = u32_at(contents, 0)?,
            route::GATEWAY => gateway = ip(contents),
            route::VIA => gateway = contents.get(2..).and_then(ip),
            route::TABLE => table = u32_at(contents, 0)?,
            route::MULTIPATH => {
                let mut rest = contents;
                while let Some(length) = u16_at(rest, 0).map(usize::from) {
                    let Some(hop) = rest.get(..length).filter(|hop| hop.len() >= route::NEXT_HOP) else {
                        break;
                    };
                    let gateway = message::attributes(&hop[route::NEXT_HOP..]).find_map(
                        |(kind, contents)| match kind {
                            route::GATEWAY => ip(contents),
                            route::VIA => contents.get(2..).and_then(ip),
                            _ => None,
                        },
                    );
                    hops.push((u32_at(hop, 4)?, gateway));
                    rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    if table == LOCAL_TABLE {
        return None;
    }
    let destination = match destination {
        Some(destination) => destination,
        None if i32::from(family) == libc::AF_INET => IpAddr::from([0; 4]),
        None => IpAddr::from([0_u8; 16]),
    };
    if hops.is_empty() {
        hops.push((index, gateway));
    }
    let prefix = IpNet::new(destination, prefix).ok()?;
    let scope = match scope {
        libc::RT_SCOPE_LINK => Scope::Link,
        libc::RT_SCOPE_HOST => Scope::Host,
        _ => Scope::Universe,
    };
    let routes = hops.into_iter().map(|(index, gateway)| Route {
        prefix,
        index,
        interface: String::new(),
        gateway,
        scope,
        table,
    });
    Some(routes.collect())
}

/// The number of the link in the answer to a question for a way.
pub(super) fn parse_way(message: Message<'_>) -> Option<u32> {
    if message.kind != kind::NEW_ROUTE {
        return None;
    }
    let mut attributes = message::attributes_after(message::ROUTE_HEADER, message.body);
    attributes
        .find(|(kind, _)| *kind == message::route::INTERFACE)
        .and_then(|(_, contents)| message::u32_at(contents, 0))
}

/// An address of four or sixteen bytes.
fn ip(contents: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(contents)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(contents).map(IpAddr::from))
        .ok()
}
