//! The server's sockets. UDP and TCP on one address; whoever is neither a guest nor the host is not answered.
//!
//! The address need not be there yet, or still: the sockets are bound to it all the same (`IP_FREEBIND`, ip(7)), so that
//! a bridge which is made anew finds its server at work.
//!
//! Long-lived tasks: one that answers datagrams, one that accepts connections, one for each connection, one for each
//! query that is forwarded. All end with [`Server`].

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{Action, answer};
use super::forward::{Forwarder, framed};
use super::limit::Limit;
use super::lookup::Lookup;
use super::upstreams::Upstreams;
use crate::net::names::Zone;

/// The longest query by UDP: any real one is shorter, and what is longer is ignored.
const LONGEST: usize = 4096;

/// Connections at once, in all and of one guest, and how long one may have nothing to say.
const CONNECTIONS: usize = 64;
const CONNECTIONS_EACH: usize = 8;
const IDLE: Duration = Duration::from_secs(10);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// How long accepting rests after it failed: for want of file descriptors, which others give back.
const REST: Duration = Duration::from_millis(100);

/// What it did since it began.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    /// Queries answered from the zone.
    pub(crate) answered: u64,
    /// Queries passed on to the host's servers.
    pub(crate) forwarded: u64,
    /// Not answered: of strangers, no queries, too many at once.
    pub(crate) dropped: u64,
}

/// The server, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    zone: watch::Receiver<Arc<Lookup>>,
    forwarder: Arc<Forwarder>,
    answered: AtomicU64,
    forwarded: AtomicU64,
    dropped: AtomicU64,
    connections: Arc<Limit>,
}

impl Server {
    /// Serves a zone, as it is at each moment. Port 0: one that is free.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] where another program serves that address or all addresses,
    /// [`io::ErrorKind::PermissionDenied`] for want of the right to a port below 1024.
    pub(crate) fn start(
        address: SocketAddrV4,
        zones: watch::Receiver<Arc<Zone>>,
        upstreams: Upstreams,
    ) -> io::Result<Self> {
        let udp: std::net::UdpSocket = bound(address, SocketType::DGRAM)?.into();
        let udp = UdpSocket::from_std(udp)?;
        let address = udp.local_addr()?;
        let SocketAddr::V4(same) = address else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let tcp = bound(same, SocketType::STREAM)?;
        rustix::net::listen(&tcp, BACKLOG)?;
        let tcp = TcpListener::from_std(tcp.into())?;

        let lookup =
            |zones: &mut watch::Receiver<Arc<Zone>>| Arc::new(Lookup::new(&zones.borrow_and_update()));
        let mut zones = zones;
        let (now, zone) = watch::channel(lookup(&mut zones));
        let shared = Arc::new(Shared {
            zone,
            forwarder: Arc::new(Forwarder::new(upstreams)),
            answered: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            connections: Limit::new(CONNECTIONS, CONNECTIONS_EACH),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while zones.changed().await.is_ok() {
                now.send_replace(lookup(&mut zones));
            }
            // The last zone is served on.
            now.closed().await;
        });
        tasks.spawn(datagrams(Arc::new(udp), Arc::clone(&shared)));
        tasks.spawn(connections(tcp, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            tasks,
        })
    }

    /// Ends it. Its address is free afterwards, but for queries that are being forwarded, which end a moment later.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The servers that it forwards to, as of now.
    pub(crate) fn upstreams(&self) -> Arc<[SocketAddr]> {
        self.shared.forwarder.servers()
    }

    pub(crate) fn count(&self) -> Count {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Count {
            answered: of(&self.shared.answered),
            forwarded: of(&self.shared.forwarded),
            dropped: of(&self.shared.dropped),
        }
    }
}

/// A socket on an address that need not be there.
fn bound(address: SocketAddrV4, kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
    rustix::net::sockopt::set_ip_freebind(&socket, true)?;
    if kind == SocketType::STREAM {
        // Connections of the daemon before may still be closing.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

impl Shared {
    /// What to do with a query from there.
    fn decide(&self, source: IpAddr, query: &[u8]) -> Action {
        let zone = self.zone.borrow();
        let asker = match source {
            IpAddr::V4(source) => zone.asker(source),
            IpAddr::V6(_) => None,
        };
        let action = asker.map_or(Action::Ignore, |asker| answer(&zone, asker, query));
        let counter = match &action {
            Action::Reply(_) => &self.answered,
            Action::Forward => &self.forwarded,
            Action::Ignore => &self.dropped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        action
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

async fn datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; LONGEST + 1];
    loop {
        while forwards.try_join_next().is_some() {}
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // Of an earlier reply that did not arrive (udp(7)); the socket goes on.
            Err(error) => {
                tracing::debug!(%error, "a query was not received");
                continue;
            }
        };
        if length > LONGEST {
            shared.drop_one();
            continue;
        }
        let query = &buffer[..length];
        match shared.decide(source.ip(), query) {
            Action::Ignore => {}
            // Where the queue is full the guest asks again.
            Action::Reply(reply) => drop(socket.try_send_to(&reply, source)),
            Action::Forward => {
                let Some(turn) = shared.forwarder.turn(source.ip()) else {
                    shared.drop_one();
                    continue;
                };
                let (query, socket) = (query.to_vec(), Arc::clone(&socket));
                forwards.spawn(async move {
                    let answer = turn.udp(&query).await;
                    let reply = match answer {
                        Some(answer) if answer.len() <= room(&query) => Some(answer),
                        Some(_) => short(&query, Rcode::NOERROR, true),
                        None => short(&query, Rcode::SERVFAIL, false),
                    };
                    if let Some(reply) = reply {
                        drop(socket.send_to(&reply, source).await);
                    }
                });
            }
        }
    }
}

/// How long a reply by UDP the asker can take (RFC 6891, 6.2.3).
fn room(query: &[u8]) -> usize {
    let opt = Message::from_slice(query).ok().and_then(|query| query.opt());
    opt.map_or(512, |opt| usize::from(opt.udp_payload_size().max(512)))
}

/// The question and a code; with `cut`, the asker is to ask again by TCP.
fn short(query: &[u8], rcode: Rcode, cut: bool) -> Option<Vec<u8>> {
    let query = Message::from_slice(query).ok()?;
    let mut reply = MessageBuilder::new_vec().start_answer(query, rcode).ok()?;
    reply.header_mut().set_ra(true);
    reply.header_mut().set_tc(cut);
    Some(reply.finish())
}

async fn connections(listener: TcpListener, shared: Arc<Shared>) {
    let mut serving = JoinSet::new();
    loop {
        while serving.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, source)) => {
                let known = match source.ip() {
                    IpAddr::V4(source) => shared.zone.borrow().asker(source).is_some(),
                    IpAddr::V6(_) => false,
                };
                let Some(place) = shared.connections.take(source.ip()).filter(|_| known) else {
                    shared.drop_one();
                    continue;
                };
                let shared = Arc::clone(&shared);
                serving.spawn(async move {
                    let _place = place;
                    // It ends when the guest has nothing more to say, or breaks off.
                    drop(connection(stream, source.ip(), &shared).await);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection taken for names");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn connection(mut stream: TcpStream, source: IpAddr, shared: &Shared) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await?;
            io::Result::Ok(query)
        });
        let query = query.await??;
        let reply = match shared.decide(source, &query) {
            Action::Ignore => return Ok(()),
            Action::Reply(reply) => Some(reply),
            Action::Forward => match shared.forwarder.turn(source) {
                Some(turn) => {
                    let answer = turn.tcp(&query).await;
                    answer.or_else(|| short(&query, Rcode::SERVFAIL, false))
                }
                None => short(&query, Rcode::SERVFAIL, false),
            },
        };
        let Some(reply) = reply else { return Ok(()) };
        timeout(IDLE, stream.write_all(&framed(&reply)?)).await??;
    }
}
