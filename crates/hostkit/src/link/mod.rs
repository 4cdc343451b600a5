//! Network links, addresses and routes (rtnetlink(7)): bridges made and removed, taps put into them, and what the host
//! has already, to see what would clash.
//!
//! Requests go over a socket of this module's own: they are few, and none of the host's links may be in the way because
//! it has an attribute that a library does not know. `change` has the requests that change something, `look` the lists and
//! how they are read, `message` the encodings, `socket` the conversation.
//!
//! The kernel serves requests one at a time under a lock, and some (the removal of a link) take tens of milliseconds; so
//! they are made on threads for blocking work. A request whose future is dropped is still made.
//!
//! All is about one network namespace: that of the thread which called [`Links::connect`].

mod change;
mod look;
mod message;
mod socket;
mod watch;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use message::{Request, flags, kind};
use socket::{Refusal, Socket};
pub use watch::{NetworkWatch, Watch};

/// Longest name of a link in bytes: `IFNAMSIZ` less the zero.
pub const NAME: usize = 15;
/// Longest alias in bytes: `IFALIASZ` less the zero.
pub const ALIAS: usize = 255;

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
        self.run(|socket| look::list(socket).map_err(|refusal| looking("links", refusal)))
            .await
    }

    /// The link of that name, if there is one.
    pub async fn get(&self, name: &str) -> Result<Option<Link>, LinkError> {
        check_name(name)?;
        let name = name.to_owned();
        self.run(move |socket| {
            let request = Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, 0)
                .text(message::link::NAME, &name);
            match look::one(socket, request) {
                Ok(found) => Ok(found),
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
            change::make_bridge(socket, &name, &alias)
                .map_err(|refusal| LinkError::of("make the bridge", name, refusal))
        })
        .await
    }

    /// Leaves a text with a link.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), LinkError> {
        check_alias(alias)?;
        let request = change::of(index).text(message::link::ALIAS, alias);
        self.ask("name the owner of", index, request).await
    }

    /// Gives a link an address in a network; one that it has already is fine.
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), LinkError> {
        let request = change::add_address(index, address);
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
        let request = change::of(index).number(message::link::MTU, mtu);
        self.ask("set the MTU of", index, request).await
    }

    /// Makes a link a port of a bridge, isolated or not, without an IPv6 address of its own making, and without frames that
    /// the bridge treats specially. It becomes a port first and isolated then, so one that is up is brought down for that
    /// long: nothing passes in between.
    pub async fn enslave(&self, index: u32, bridge: u32, isolated: bool) -> Result<(), LinkError> {
        self.run(move |socket| {
            change::enslave(socket, index, bridge, isolated)
                .map_err(|refusal| LinkError::of("put into its bridge", number(index), refusal))
        })
        .await
    }

    /// Whether a port of a bridge exchanges no frames with other isolated ports.
    pub async fn set_isolated(&self, index: u32, isolated: bool) -> Result<(), LinkError> {
        let action = if isolated { "isolate" } else { "connect" };
        self.ask(action, index, change::isolate(index, isolated)).await
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
        self.run(|socket| look::addresses(socket).map_err(|refusal| looking("addresses", refusal)))
            .await
    }

    /// All ways to other hosts, of all tables but the kernel's own for this host's addresses. One with several next hops
    /// is there once for each.
    pub async fn routes(&self) -> Result<Vec<Route>, LinkError> {
        self.run(|socket| look::routes(socket).map_err(|refusal| looking("routes", refusal)))
            .await
    }

    /// The link that packets of this host to `destination` leave by, rules of policy routing (as VPNs have) included; none
    /// where there is no way. Nothing is sent.
    pub async fn outgoing(&self, destination: IpAddr) -> Result<Option<Link>, LinkError> {
        self.run(move |socket| {
            let mut index = None;
            let asked = socket.ask(Request::way_to(destination), |message| {
                index = index.or(look::parse_way(message));
            });
            let index = match asked {
                Ok(()) => index,
                Err(refusal) if is_no_way(&refusal) => None,
                Err(refusal) => return Err(looking("routes", refusal)),
            };
            let Some(index) = index else { return Ok(None) };
            let request = Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, index);
            match look::one(socket, request) {
                Ok(found) => Ok(found),
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

/// The kernel is without a family of addresses, IPv6 most likely.
fn lacks_family(refusal: &Refusal) -> bool {
    let code = refusal.source.raw_os_error();
    matches!(code, Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
