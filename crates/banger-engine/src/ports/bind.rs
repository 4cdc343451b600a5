//! A socket at a port of the host, or why there is none.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use banger_agent_api::Transport;
use hostkit::sockets::{self, Protocol};
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::Publication;
use crate::error::{Error, Kind};

/// Connections that the kernel keeps until they are taken.
const BACKLOG: i32 = 1024;

/// Ports that a user may not have (ip(7), `ip_unprivileged_port_start`).
const PRIVILEGED: u16 = 1024;

/// A socket that has its port.
pub(crate) enum Bound {
    /// It listens: who connects waits.
    Tcp(tokio::net::TcpListener),
    /// It is bound.
    Udp(tokio::net::UdpSocket),
}

impl Bound {
    /// Where it is.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Udp(socket) => socket.local_addr().ok(),
        }
    }
}

/// The kernel's refusal.
#[derive(Debug, thiserror::Error)]
#[error("listen at {publication}: {source}")]
pub(crate) struct BindError {
    publication: Publication,
    source: io::Error,
}

/// Takes a port, or a free one for port 0. To be called within the runtime.
pub(crate) fn bind(publication: &Publication) -> Result<Bound, BindError> {
    open(publication.transport, publication.host).map_err(|source| BindError {
        publication: *publication,
        source,
    })
}

fn open(transport: Transport, host: SocketAddr) -> io::Result<Bound> {
    let family = match host {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family, kind, flags, None)?;
    if host.is_ipv6() {
        // `::` is all of IPv6 and nothing else: whoever wants both publishes both.
        set_ipv6_v6only(&socket, true)?;
    }
    match transport {
        Transport::Tcp => {
            // Connections of a listener before this one may linger (tcp(7), TIME_WAIT); two listeners still cannot be.
            set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &host)?;
            rustix::net::listen(&socket, BACKLOG)?;
            tokio::net::TcpListener::from_std(TcpListener::from(socket)).map(Bound::Tcp)
        }
        Transport::Udp => {
            rustix::net::bind(&socket, &host)?;
            tokio::net::UdpSocket::from_std(UdpSocket::from(socket)).map(Bound::Udp)
        }
    }
}

/// Why nothing listens at a port of a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// Somebody else has it. Who, is asked when somebody wants to know: it takes a look at every process.
    Taken,
    /// The kernel's words.
    Refused(String),
}

impl Problem {
    /// For people, as far as it is known at once.
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Taken => "taken by another program".to_owned(),
            Self::Refused(words) => words.clone(),
        }
    }

    /// For people, with the program.
    pub(super) async fn explained(&self, publication: Publication) -> String {
        match self {
            Self::Taken => format!("taken by {}", taken_by(publication).await),
            Self::Refused(words) => words.clone(),
        }
    }
}

impl From<&BindError> for Problem {
    fn from(error: &BindError) -> Self {
        if error.source.kind() == io::ErrorKind::AddrInUse {
            Self::Taken
        } else {
            Self::Refused(error.to_string())
        }
    }
}

impl BindError {
    /// For people: who has the port, or what it takes to have it.
    pub(super) async fn explained(self, wanted: &Publication) -> Error {
        let Self { publication, source } = self;
        let port = wanted.to_string();
        let reason = source.kind();
        let (problem, kind, fix) = if reason == io::ErrorKind::AddrInUse {
            (
                format!("is taken by {}", taken_by(publication).await),
                Kind::InUse,
                "take another port of the host, or 0 for any that is free".to_owned(),
            )
        } else if reason == io::ErrorKind::PermissionDenied && wanted.host.port() < PRIVILEGED {
            (
                "is for root alone".to_owned(),
                Kind::MissingPrerequisite,
                format!(
                    "take a port from {PRIVILEGED} on, or let users have it: sysctl net.ipv4.ip_unprivileged_port_start={}",
                    wanted.host.port()
                ),
            )
        } else if reason == io::ErrorKind::AddrNotAvailable {
            (
                format!("cannot be had: this host has no address {}", wanted.host.ip()),
                Kind::InvalidArgument,
                "take one that it has (`ip address`), 127.0.0.1, or 0.0.0.0 for all".to_owned(),
            )
        } else {
            (
                format!("cannot be had: {source}"),
                Kind::MissingPrerequisite,
                "take another port or address of the host".to_owned(),
            )
        };
        Error::Port {
            port,
            problem,
            kind,
            fix,
        }
    }
}

async fn taken_by(publication: Publication) -> String {
    let protocol = match publication.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    };
    let looked = tokio::task::spawn_blocking(move || sockets::holder(protocol, publication.host));
    match looked.await {
        Ok(Some(holder)) if holder.pid == std::process::id() => "this daemon itself".to_owned(),
        Ok(Some(holder)) => format!("{} (process {})", holder.name, holder.pid),
        Ok(None) | Err(_) => "a process that cannot be seen, another user's most likely".to_owned(),
    }
}
