//! Asking the host's servers what is not ours to know, on behalf of guests.
//!
//! A query goes on as it came, but for its number, which is drawn anew, from a socket of its own, whose port the kernel
//! draws: that is what a forger would have to guess (RFC 5452). What comes back is passed on if it answers the question.
//! Nothing is kept: the host's own servers do that. Bounded in number, for each guest and in all, and in time.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use domain::base::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::limit::{Limit, Place};
use super::upstreams::Upstreams;

/// Queries under way, in all and for one asker.
const IN_FLIGHT: usize = 512;
const IN_FLIGHT_EACH: usize = 64;

/// How long one server has for its answer, and how often all are asked. With three servers that is longer than a guest's
/// resolver waits, which then asks again.
const PATIENCE: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 2;

/// How long a server has for its answer by TCP, with connecting.
const PATIENCE_TCP: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Upstreams,
    /// The server that answered last: the first to be asked.
    good: AtomicUsize,
    under_way: Arc<Limit>,
}

/// The right to have one query under way.
#[derive(Debug)]
pub(crate) struct Turn {
    forwarder: Arc<Forwarder>,
    _place: Place,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Upstreams) -> Self {
        Self {
            upstreams,
            good: AtomicUsize::new(0),
            under_way: Limit::new(IN_FLIGHT, IN_FLIGHT_EACH),
        }
    }

    /// The servers that are asked now.
    pub(crate) fn servers(&self) -> Arc<[SocketAddr]> {
        self.upstreams.now()
    }

    /// The right to ask; `None` where there are too many queries under way already.
    pub(crate) fn turn(self: &Arc<Self>, asker: IpAddr) -> Option<Turn> {
        Some(Turn {
            _place: self.under_way.take(asker)?,
            forwarder: Arc::clone(self),
        })
    }
}

impl Turn {
    /// The answer to a query that came by UDP, at most as long as UDP can carry; `None`: nobody has answered.
    pub(crate) async fn udp(&self, query: &[u8]) -> Option<Vec<u8>> {
        for _ in 0..ROUNDS {
            if let Some(answer) = self.round(query, ask_udp, PATIENCE).await {
                return Some(answer);
            }
        }
        None
    }

    /// The answer to a query that came by TCP; `None`: nobody has answered.
    pub(crate) async fn tcp(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.round(query, ask_tcp, PATIENCE_TCP).await
    }

    /// Asks one server after the other, the one that answered last before the others.
    async fn round<F>(
        &self,
        query: &[u8],
        ask: impl Fn(SocketAddr, Vec<u8>) -> F,
        patience: Duration,
    ) -> Option<Vec<u8>>
    where
        F: Future<Output = io::Result<Vec<u8>>>,
    {
        let servers = self.forwarder.servers();
        let first = self.forwarder.good.load(Ordering::Relaxed);
        for step in 0..servers.len() {
            let index = (first + step) % servers.len();
            let mut own = query.to_vec();
            own.get_mut(..2)?.copy_from_slice(&number()?);
            match timeout(patience, ask(servers[index], own)).await {
                Ok(Ok(mut answer)) => {
                    self.forwarder.good.store(index, Ordering::Relaxed);
                    answer[..2].copy_from_slice(&query[..2]);
                    return Some(answer);
                }
                Ok(Err(error)) => {
                    tracing::debug!(server = %servers[index], %error, "a query was not answered");
                }
                Err(_) => tracing::debug!(server = %servers[index], "a query was not answered in time"),
            }
        }
        None
    }
}

/// A query's number, drawn.
fn number() -> Option<[u8; 2]> {
    let mut number = [0; 2];
    // Two bytes come whole (getrandom(2)).
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty()).ok()?;
    Some(number)
}

/// Whether it answers the query: number and question are the query's.
fn answers(reply: &[u8], query: &[u8]) -> bool {
    match (Message::from_slice(reply), Message::from_slice(query)) {
        (Ok(reply), Ok(query)) => reply.header().qr() && reply.is_answer(query),
        (_, Err(_)) | (Err(_), _) => false,
    }
}

async fn ask_udp(server: SocketAddr, query: Vec<u8>) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Then nothing arrives that is not from there, and that nobody listens there is told.
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut reply = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut reply).await?;
        if answers(&reply[..length], &query) {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(&query)?).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    match answers(&reply, &query) {
        true => Ok(reply),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it answers another question",
        )),
    }
}

/// With its length before it, as on a stream (RFC 1035, 4.2.2).
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Ok(framed)
}
