//! Network links, addresses and routes (rtnetlink(7)): bridges made and removed, taps put into them, and what the host
//! has already, to see what would clash.
//!
//! Requests go over a socket of this module's own: they are few, and none of the host's links may be in the way because
//! it has an attribute that a library does not know. `message` has the encodings, `socket` the conversation.
//!
//! The kernel serves requests one at a time under a lock, and some (the removal of a link) take tens of milliseconds; so
//! they are made on threads for blocking work. A request whose future is dropped is still made.
//!
//! All is about one network namespace: that of the thread which called [`Links::connect`].

mod message;
mod socket;
mod watch;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::Digest;
use ipnet::IpNet;
use message::{Message, Request, flags, kind};
use socket::{Refusal, Socket};
pub use watch::Watch;

/// Longest name of a link in bytes: `IFNAMSIZ` less the zero.
pub const NAME: usize = 15;
/// Longest alias in bytes: `IFALIASZ` less the zero.
pub const ALIAS: usize = 255;
/// The routing table of the host's own and broadcast addresses, `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

/// Why links could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no netlink to talk to.
    #[error("open a netlink socket")]
    Socket {
        /// The kernel's word.
        source: io::Error,
    },
    /// It takes `CAP_NET_ADMIN`.
    #[error("{action} {link}: this takes the capability CAP_NET_ADMIN")]
    Permission {
        /// `make the bridge`, `delete`, …
        action: &'static str,
        /// Its name, or `link NUMBER`.
        link: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// A link of that name is there already.
    #[error("make {name}: a link of that name exists")]
    Exists {
        /// Its name.
        name: String,
    },
    /// There is no such link (any more).
    #[error("{action} {link}: there is no such link")]
    NoLink {
        /// `bring up`, …
        action: &'static str,
        /// Its name, or `link NUMBER`.
        link: String,
    },
    /// The kernel was built without it, or its module is missing.
    #[error("{action} {link}: this kernel cannot{}", explained(words))]
    Lacking {
        /// `make the bridge`, `isolate`, …
        action: &'static str,
        /// Its name, or `link NUMBER`.
        link: String,
        /// The kernel's explanation; may be empty.
        words: String,
        /// Its word.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("{action} {link}{}", explained(words))]
    Refused {
        /// `bring up`, …
        action: &'static str,
        /// Its name, or `link NUMBER`.
        link: String,
        /// The kernel's explanation; may be empty.
        words: String,
        /// Its word.
        source: io::Error,
    },
    /// A name or alias that no link can have.
    #[error("use {value:?} as a link's {what}: {why}")]
    Invalid {
        /// `name`, `alias`.
        what: &'static str,
        /// As given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

fn explained(words: &str) -> String {
    if words.is_empty() {
        String::new()
    } else {
        format!(" ({words})")
    }
}

impl LinkError {
    fn of(action: &'static str, link: String, refusal: Refusal) -> Self {
        let Refusal { source, words } = refusal;
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { action, link, source },
            Some(libc::EEXIST) => Self::Exists { name: link },
            Some(libc::ENODEV | libc::ENXIO) => Self::NoLink { action, link },
            Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => Self::Lacking {
                action,
                link,
                words,
                source,
            },
            Some(_) | None => Self::Refused {
                action,
                link,
                words,
                source,
            },
        }
    }
}

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace; never given to another while the namespace lives, but for wrapping around.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// A text that its owner has left with it (`IFLA_IFALIAS`); may be empty.
    pub alias: String,
    /// `bridge`, `tun` (taps too), `veth`, `wireguard` …; empty for hardware and loopback.
    pub kind: String,
    /// Switched on.
    pub up: bool,
    /// Connected: for a tap, somebody has it open; for a bridge, one of its ports has a carrier.
    pub carrier: bool,
    /// The bridge (or bond …) that it is a port of.
    pub master: Option<u32>,
    /// As a port of a bridge: exchanges no frames with other isolated ports.
    pub isolated: bool,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its hardware address, where it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Bytes received since it was made, seen from the host: what comes out of a tap is what its guest has sent.
    pub received: u64,
    /// Bytes sent, seen from the host.
    pub sent: u64,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link's number.
    pub index: u32,
    /// The link's name; empty where it went meanwhile.
    pub interface: String,
    /// The host's own address, and the network that it is in.
    pub address: IpNet,
    /// The other end's, where the link has only two.
    pub peer: Option<IpAddr>,
}

/// How far away a route's destinations are (`rtm_scope`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// On the link itself.
    Link,
    /// Anywhere (and what else there may be between: `site`, numbers of administrators).
    Universe,
    /// On this host.
    Host,
}

/// A way to a network, for ordinary (unicast) packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The network; all of it (`/0`) for a default route.
    pub prefix: IpNet,
    /// Number of the link that it goes out of; 0 for a route without.
    pub index: u32,
    /// That link's name; may be empty.
    pub interface: String,
    /// The next router, where there is one.
    pub gateway: Option<IpAddr>,
    /// How far.
    pub scope: Scope,
    /// The table that it is in: 254 is the main one; VPNs often have one of their own.
    pub table: u32,
}

/// Whether a link can have this name.
pub fn check_name(name: &str) -> Result<(), LinkError> {
    let invalid = |why| {
        Err(LinkError::Invalid {
            what: "name",
            value: name.to_owned(),
            why,
        })
    };
    // dev_valid_name() of the kernel's net/core/dev.c, but that only visible ASCII passes here, and no `%`, at which the
    // kernel would make up a name.
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    match name {
        "" => invalid("it is empty"),
        "." | ".." => invalid("it names a directory"),
        name if name.len() > NAME => invalid("it has more than 15 bytes"),
        name if !name.bytes().all(plain) => invalid("only visible ASCII characters without `/`, `:`, `%`"),
        _ => Ok(()),
    }
}

/// A connection to the kernel about the links of a network namespace. Clones share it; it serves one request at a time.
#[derive(Debug, Clone)]
pub struct Links {
    socket: Arc<Mutex<Socket>>,
}

impl Links {
    /// Connects, in the network namespace of the calling thread. Needs no privileges, nor does looking.
    pub fn connect() -> Result<Self, LinkError> {
        let socket = Socket::open().map_err(|source| LinkError::Socket { source })?;
        Ok(Self {
            socket: Arc::new(Mutex::new(socket)),
        })
    }

    /// All links, in the order of their numbers.
    pub async fn list(&self) -> Result<Vec<Link>, LinkError> {
        self.run(|socket| list(socket).map_err(|refusal| looking("links", refusal)))
            .await
    }

    /// The link of that name, if there is one.
    pub async fn get(&self, name: &str) -> Result<Option<Link>, LinkError> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |socket| {
            let request = Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, 0)
                .text(message::link::NAME, &name);
            let mut found = None;
            match socket.ask(request, |message| found = found.take().or(parse_link(message))) {
                Ok(()) => Ok(found),
                Err(refusal) if is_no_link(&refusal) => Ok(None),
                Err(refusal) => Err(LinkError::of("look at", name, refusal)),
            }
        })
        .await
    }

    /// Makes a bridge that forwards at once (no spanning tree, no delay), has a hardware address that stays whatever ports
    /// it gets, and no IPv6 address of its own making. It is down. Returns its number.
    ///
    /// The kernel takes the alias in a second request: a process that is killed between the two leaves a bridge without.
    pub async fn make_bridge(&self, name: &str, alias: &str) -> Result<u32, LinkError> {
        check_name(name)?;
        check_alias(alias)?;
        let (name, alias) = (name.to_owned(), alias.to_owned());
        self.run(move |socket| {
            make_bridge(socket, &name, &alias)
                .map_err(|refusal| LinkError::of("make the bridge", name, refusal))
        })
        .await
    }

    /// Leaves a text with a link.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), LinkError> {
        check_alias(alias)?;
        let request = change(index).text(message::link::ALIAS, alias);
        self.ask("name the owner of", index, request).await
    }

    /// Gives a link an address in a network; one that it has already is fine.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), LinkError> {
        let request = add_address(index, address);
        match self.ask("add an address to", index, request).await {
            Err(LinkError::Exists { .. }) => Ok(()),
            other => other,
        }
    }

    /// Switches a link on.
    pub async fn set_up(&self, index: u32) -> Result<(), LinkError> {
        self.ask("bring up", index, Request::link_up(index, true)).await
    }

    /// Switches a link off.
    pub async fn set_down(&self, index: u32) -> Result<(), LinkError> {
        self.ask("bring down", index, Request::link_up(index, false))
            .await
    }

    /// Sets the largest packet in bytes.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), LinkError> {
        let request = change(index).number(message::link::MTU, mtu);
        self.ask("set the MTU of", index, request).await
    }

    /// Makes a link a port of a bridge, isolated or not, without an IPv6 address of its own making, and without frames that
    /// the bridge treats specially. It becomes a port first and isolated then, so one that is up is brought down for that
    /// long: nothing passes in between.
    pub async fn enslave(&self, index: u32, bridge: u32, isolated: bool) -> Result<(), LinkError> {
        self.run(move |socket| {
            enslave(socket, index, bridge, isolated)
                .map_err(|refusal| LinkError::of("put into its bridge", number(index), refusal))
        })
        .await
    }

    /// Whether a port of a bridge exchanges no frames with other isolated ports.
    pub async fn set_isolated(&self, index: u32, isolated: bool) -> Result<(), LinkError> {
        let action = if isolated { "isolate" } else { "connect" };
        self.ask(action, index, isolate(index, isolated)).await
    }

    /// Whether a port of a bridge passes frames; if not, none at all, in neither direction. One without a carrier passes none
    /// whatever is said here, and all once it has one again.
    pub async fn set_forwarding(&self, index: u32, forwarding: bool) -> Result<(), LinkError> {
        let state = match forwarding {
            true => message::link::FORWARDING,
            // One that is merely blocked a bridge without a spanning tree makes forward at once. One that is disabled it
            // enables when the link changes (br_port_carrier_check() of the kernel's net/bridge/br_if.c), which this is not.
            false => message::link::DISABLED,
        };
        let request = Request::bridge_port(index).nested(message::link::PROTOCOL_INFO, |request| {
            request.attribute(message::link::PORT_STATE, &[state])
        });
        let action = if forwarding { "open" } else { "close" };
        self.run(move |socket| match socket.tell(request) {
            // br_set_port_state() of the kernel's net/bridge/br_netlink.c, of a port without a carrier.
            Err(refusal) if refusal.source.raw_os_error() == Some(libc::ENETDOWN) => Ok(()),
            told => told.map_err(|refusal| LinkError::of(action, number(index), refusal)),
        })
        .await
    }

    /// Deletes a link; one that is gone already is fine. Ports of a bridge stay, without it.
    pub async fn delete(&self, name: &str) -> Result<(), LinkError> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |socket| {
            let request = Request::link(kind::DELETE_LINK, flags::REQUEST | flags::ACK, 0)
                .text(message::link::NAME, &name);
            match socket.tell(request) {
                Ok(()) => Ok(()),
                Err(refusal) if is_no_link(&refusal) => Ok(()),
                Err(refusal) => Err(LinkError::of("delete", name, refusal)),
            }
        })
        .await
    }

    /// All addresses of all links.
    pub async fn addresses(&self) -> Result<Vec<Address>, LinkError> {
        self.run(|socket| addresses(socket).map_err(|refusal| looking("addresses", refusal)))
            .await
    }

    /// All ways to other hosts, of all tables but the kernel's own for this host's addresses. One with several next hops
    /// is there once for each.
    pub async fn routes(&self) -> Result<Vec<Route>, LinkError> {
        self.run(|socket| routes(socket).map_err(|refusal| looking("routes", refusal)))
            .await
    }

    /// The link that packets of this host to `destination` leave by, rules of policy routing (as VPNs have) included; none
    /// where there is no way. Nothing is sent.
    pub async fn outgoing(&self, destination: IpAddr) -> Result<Option<Link>, LinkError> {
        self.run(move |socket| {
            let mut index = None;
            let asked = socket.ask(Request::way_to(destination), |message| {
                index = index.or(parse_way(message));
            });
            let index = match asked {
                Ok(()) => index,
                Err(refusal) if is_no_way(&refusal) => None,
                Err(refusal) => return Err(looking("routes", refusal)),
            };
            let Some(index) = index else { return Ok(None) };
            let mut found = None;
            let request = Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, index);
            match socket.ask(request, |message| found = found.take().or(parse_link(message))) {
                Ok(()) => Ok(found),
                Err(refusal) if is_no_link(&refusal) => Ok(None),
                Err(refusal) => Err(LinkError::of("look at", number(index), refusal)),
            }
        })
        .await
    }

    async fn ask(&self, action: &'static str, index: u32, request: Request) -> Result<(), LinkError> {
        self.run(move |socket| {
            let asked = socket.tell(request);
            asked.map_err(|refusal| LinkError::of(action, number(index), refusal))
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, LinkError> + Send + 'static,
    ) -> Result<T, LinkError> {
        let socket = Arc::clone(&self.socket);
        let done = tokio::task::spawn_blocking(move || {
            // What a panic leaves of a conversation is told from the next by its number.
            work(&mut socket.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(outcome) => outcome,
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(failed) => Err(LinkError::Socket {
                source: io::Error::other(failed),
            }),
        }
    }
}

fn looking(what: &'static str, refusal: Refusal) -> LinkError {
    LinkError::of("list", what.to_owned(), refusal)
}

fn number(index: u32) -> String {
    format!("link {index}")
}

fn is_no_link(refusal: &Refusal) -> bool {
    refusal.source.raw_os_error() == Some(libc::ENODEV)
}

/// Nothing in the tables, or a route that says so (`unreachable`, `prohibit`, `blackhole`).
fn is_no_way(refusal: &Refusal) -> bool {
    let code = refusal.source.raw_os_error();
    matches!(
        code,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
    )
}

fn check_alias(alias: &str) -> Result<(), LinkError> {
    if alias.len() > ALIAS || alias.contains('\0') {
        return Err(LinkError::Invalid {
            what: "alias",
            value: alias.to_owned(),
            why: "at most 255 bytes, none of them zero",
        });
    }
    Ok(())
}

/// The start of a request that changes a link.
fn change(index: u32) -> Request {
    Request::link(kind::NEW_LINK, flags::REQUEST | flags::ACK, index)
}

fn make_bridge(socket: &mut Socket, name: &str, alias: &str) -> Result<u32, Refusal> {
    // Always the same, so that whoever has it in mind finds a bridge that was made anew. Without one that was set the bridge
    // would take its smallest port's, another with each guest that comes or goes.
    let digest = Digest::of_bytes(format!("{name} {alias}").as_bytes());
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest.as_bytes()[..6]);
    // Of one host (IEEE 802: locally administered), and no group's.
    mac[0] = mac[0] & 0xfc | 0x02;
    let create = flags::REQUEST | flags::ACK | flags::CREATE | flags::EXCLUSIVE;
    let request = Request::link(kind::NEW_LINK, create, 0)
        .text(message::link::NAME, name)
        .attribute(message::link::ADDRESS, &mac)
        .nested(message::link::INFO, |request| {
            request
                .text(message::link::INFO_KIND, "bridge")
                .nested(message::link::INFO_DATA, |request| {
                    request
                        .number(message::link::BRIDGE_STP, 0)
                        .number(message::link::BRIDGE_FORWARD_DELAY, 0)
                })
        });
    socket.tell(request)?;
    let finished = finish_bridge(socket, name, alias);
    if finished.is_err() {
        let request =
            Request::link(kind::DELETE_LINK, flags::REQUEST | flags::ACK, 0).text(message::link::NAME, name);
        // What counts is why it was not finished.
        drop(socket.tell(request));
    }
    finished
}

fn finish_bridge(socket: &mut Socket, name: &str, alias: &str) -> Result<u32, Refusal> {
    let request = Request::link(kind::NEW_LINK, flags::REQUEST | flags::ACK, 0)
        .text(message::link::NAME, name)
        .text(message::link::ALIAS, alias);
    socket.tell(request)?;
    let mut index = None;
    let request =
        Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, 0).text(message::link::NAME, name);
    socket.ask(request, |message| {
        index = index.or(parse_link(message).map(|link| link.index));
    })?;
    let index = index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    no_inet6(socket, index)?;
    Ok(index)
}

/// Keeps the kernel from giving a link an IPv6 address by itself. A kernel without IPv6 does not anyway.
fn no_inet6(socket: &mut Socket, index: u32) -> Result<(), Refusal> {
    let request = change(index).nested(message::link::FAMILIES, |request| {
        request.nested(message::link::INET6, |request| {
            request.attribute(message::link::INET6_ADDRESSES, &[message::link::INET6_NO_ADDRESS])
        })
    });
    match socket.tell(request) {
        Err(refusal)
            if matches!(
                refusal.source.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn enslave(socket: &mut Socket, index: u32, bridge: u32, isolated: bool) -> Result<(), Refusal> {
    let mut found = None;
    let request = Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, index);
    socket.ask(request, |message| found = found.take().or(parse_link(message)))?;
    // One that is in the bridge already is not interrupted.
    let interrupt = found.is_some_and(|link| link.up && link.master != Some(bridge));
    no_inet6(socket, index)?;
    if interrupt {
        socket.tell(Request::link_up(index, false))?;
    }
    socket.tell(change(index).number(message::link::MASTER, bridge))?;
    socket.tell(isolate(index, isolated))?;
    if interrupt {
        socket.tell(Request::link_up(index, true))?;
    }
    Ok(())
}

/// Of the group addresses 01:80:C2:00:00:0X that a bridge keeps to itself (IEEE 802.1D, table 7-10), those that it treats as
/// any other on our ports: all but that of pause frames, which the kernel insists on. Otherwise such frames are handed to
/// the host as if they had come in at the port and not by the bridge, past every rule for bridges, and with them whatever
/// they carry.
const FORWARDED: u16 = 0xfffd;

fn isolate(index: u32, isolated: bool) -> Request {
    change(index).nested(message::link::INFO, |request| {
        request.text(message::link::INFO_PORT_KIND, "bridge").nested(
            message::link::INFO_PORT_DATA,
            |request| {
                request
                    .attribute(message::link::PORT_GROUP_FORWARD_MASK, &FORWARDED.to_ne_bytes())
                    .attribute(message::link::PORT_ISOLATED, &[u8::from(isolated)])
            },
        )
    })
}

fn add_address(index: u32, address: IpNet) -> Request {
    let create = flags::REQUEST | flags::ACK | flags::CREATE | flags::EXCLUSIVE;
    let request = |family: libc::c_int| {
        let family = u8::try_from(family).unwrap_or_default();
        Request::address(kind::NEW_ADDRESS, create, family, address.prefix_len(), index)
    };
    match address {
        IpNet::V4(net) => {
            let octets = net.addr().octets();
            request(libc::AF_INET)
                .attribute(message::address::LOCAL, &octets)
                .attribute(message::address::ADDRESS, &octets)
                .attribute(message::address::BROADCAST, &net.broadcast().octets())
        }
        IpNet::V6(net) => {
            let octets = net.addr().octets();
            request(libc::AF_INET6)
                .attribute(message::address::LOCAL, &octets)
                .attribute(message::address::ADDRESS, &octets)
        }
    }
}

fn list(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let request = Request::link(kind::GET_LINK, flags::REQUEST | flags::DUMP, 0);
    let mut links = socket.list(&request, |message, links| links.extend(parse_link(message)))?;
    links.sort_by_key(|link| link.index);
    Ok(links)
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

fn addresses(socket: &mut Socket) -> Result<Vec<Address>, Refusal> {
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

fn routes(socket: &mut Socket) -> Result<Vec<Route>, Refusal> {
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
            Err(refusal)
                if family == libc::AF_INET6
                    && matches!(
                        refusal.source.raw_os_error(),
                        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
                    ) => {}
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
fn parse_way(message: Message<'_>) -> Option<u32> {
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
