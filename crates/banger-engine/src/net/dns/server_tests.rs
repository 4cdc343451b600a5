//! The server with real sockets, in a network namespace of its own: there port 53 is free, and the servers that it
//! forwards to are ours.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder, Name, Rtype};
use domain::rdata::A;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::server::Server;
use super::upstreams::Upstreams;
use crate::net::names::{Named, Names};
use crate::net::subnet::Subnet;

/// How long anything may take that is not meant to take long.
const SOON: Duration = Duration::from_secs(5);

/// Runs a test where nothing but itself is on the network.
fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    testkit::in_network_namespace_async(async move || {
        timeout(Duration::from_secs(60), test()).await.expect("an end");
    });
}

struct Bed {
    server: Server,
    names: Names,
    _dir: tempfile::TempDir,
}

/// A server on 10.209.0.1, which is an address of the loopback here, with these upstreams.
fn bed(upstreams: &[&str]) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resolv.conf");
    let lines: String = upstreams.iter().map(|s| format!("nameserver {s}\n")).collect();
    std::fs::write(&file, lines).unwrap();
    let names = Names::new(Subnet::DEFAULT);
    names.publish(vec![named("web", 3), named("asks", 2)]);
    let address = SocketAddrV4::new(Subnet::DEFAULT.gateway(), 53);
    // Before the address is there.
    let server = Server::start(address, names.subscribe(), Upstreams::new(&file, Subnet::DEFAULT)).unwrap();
    for last in [1, 2, 3] {
        ip(&format!("addr add 10.209.0.{last}/32 dev lo"));
    }
    Bed {
        server,
        names,
        _dir: dir,
    }
}

fn named(name: &str, last: u8) -> Named {
    Named {
        name: name.to_owned(),
        address: Ipv4Addr::new(10, 209, 0, last),
        guests: false,
        out: true,
    }
}

fn ip(arguments: &str) {
    let status = std::process::Command::new("ip")
        .args(arguments.split(' '))
        .status();
    assert!(status.expect("ip").success(), "ip {arguments}");
}

fn query(of: &str, payload: Option<u16>) -> Vec<u8> {
    let name: Name<Vec<u8>> = of.parse().unwrap();
    let mut query = MessageBuilder::new_vec();
    query.header_mut().set_id(4711);
    query.header_mut().set_rd(true);
    let mut query = query.question();
    query.push((name, Rtype::A)).unwrap();
    let mut query = query.additional();
    if let Some(payload) = payload {
        query
            .opt(|opt| {
                opt.set_udp_payload_size(payload);
                Ok(())
            })
            .unwrap();
    }
    query.finish()
}

/// Addresses in the answer, of `records` of them.
fn answered(query: &[u8], records: u8) -> Vec<u8> {
    let query = Message::from_octets(query.to_vec()).unwrap();
    let name = query.sole_question().unwrap().into_qname();
    let mut answer = MessageBuilder::new_vec()
        .start_answer(&query, Rcode::NOERROR)
        .unwrap();
    for last in 1..=records {
        answer
            .push((&name, 60, A::new(Ipv4Addr::new(192, 0, 2, last))))
            .unwrap();
    }
    answer.finish()
}

/// Sends from an address and gives what comes back.
async fn ask_from(source: [u8; 4], query: &[u8]) -> Option<Message<Vec<u8>>> {
    let socket = UdpSocket::bind((Ipv4Addr::from(source), 0)).await.unwrap();
    socket.connect((Subnet::DEFAULT.gateway(), 53)).await.unwrap();
    socket.send(query).await.unwrap();
    let mut reply = vec![0; 65535];
    let length = timeout(SOON, socket.recv(&mut reply)).await.ok()?.unwrap();
    reply.truncate(length);
    Some(Message::from_octets(reply).unwrap())
}

async fn ask(query: &[u8]) -> Message<Vec<u8>> {
    ask_from([10, 209, 0, 2], query).await.expect("an answer")
}

fn addresses(message: &Message<Vec<u8>>) -> Vec<String> {
    let answers = message.answer().unwrap().limit_to::<A>();
    answers.map(|record| record.unwrap().data().to_string()).collect()
}

/// An upstream that answers by UDP and TCP as it is told to.
async fn upstream(address: &str, reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static) {
    let address: SocketAddr = format!("{address}:53").parse().unwrap();
    let reply = Arc::new(reply);
    let udp = UdpSocket::bind(address).await.unwrap();
    let for_udp = Arc::clone(&reply);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            for message in for_udp(&buffer[..length]) {
                udp.send_to(&message, from).await.unwrap();
            }
        }
    });
    let tcp = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            for message in reply(&query) {
                stream.write_u16(message.len().try_into().unwrap()).await.unwrap();
                stream.write_all(&message).await.unwrap();
            }
        }
    });
}

#[test]
fn machines_are_named_as_they_come_and_go() {
    alone(|| async {
        let bed = bed(&[]);
        let web = query("web.vm", None);
        assert_eq!(
            ask(&web).await.header().rcode(),
            Rcode::NXDOMAIN,
            "a guest does not see another"
        );
        for host in [[10, 209, 0, 1], [127, 0, 0, 1], [10, 209, 0, 3]] {
            assert_eq!(addresses(&ask_from(host, &web).await.unwrap()), ["10.209.0.3"]);
        }
        let mut zone = bed.names.subscribe();
        bed.names.publish(vec![named("db", 3)]);
        zone.changed().await.unwrap();
        let begun = Instant::now();
        while ask_from([127, 0, 0, 1], &web).await.unwrap().header().rcode() != Rcode::NXDOMAIN {
            assert!(begun.elapsed() < SOON);
        }
        // Nobody but guests and the host: that nothing comes is seen by what comes for somebody else, asked later.
        ip("addr add 198.51.100.7/32 dev lo");
        let stranger = UdpSocket::bind("198.51.100.7:0").await.unwrap();
        stranger.connect("10.209.0.1:53").await.unwrap();
        stranger.send(&web).await.unwrap();
        ask(&web).await;
        assert!(stranger.try_recv(&mut [0; 512]).is_err());
        assert_eq!(bed.server.count().dropped, 1);
        assert_eq!(bed.server.count().forwarded, 0);
    });
}

#[test]
fn the_rest_is_asked_of_the_hosts_servers() {
    alone(|| async {
        // The first is dead, and says nothing; the second lies before it answers.
        let bed = bed(&["127.0.0.8", "127.0.0.9"]);
        let _dead = UdpSocket::bind("127.0.0.8:53").await.unwrap();
        upstream("127.0.0.9", |query| {
            let mut other_number = answered(query, 1);
            other_number[0] ^= 0xff;
            let mut other_question = answered(query, 1);
            // The first letter of the name.
            other_question[13] ^= 1;
            vec![other_number, other_question, vec![0; 3], answered(query, 2)]
        })
        .await;
        let world = query("example.com", None);
        let reply = ask(&world).await;
        assert_eq!(reply.header().id(), 4711);
        assert_eq!(addresses(&reply), ["192.0.2.1", "192.0.2.2"]);
        // The one that answered is asked first by now.
        let begun = Instant::now();
        ask(&world).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(bed.server.count().forwarded, 2);
    });
}

#[test]
fn what_is_too_long_for_a_datagram_is_had_by_tcp() {
    alone(|| async {
        let _bed = bed(&["127.0.0.9"]);
        upstream("127.0.0.9", |query| vec![answered(query, 100)]).await;
        let reply = ask(&query("example.com", None)).await;
        assert!(reply.header().tc() && addresses(&reply).is_empty());
        assert_eq!(
            addresses(&ask(&query("example.com", Some(4096))).await).len(),
            100
        );

        let mut stream = TcpStream::connect("10.209.0.1:53").await.unwrap();
        for of in ["example.com", "web.vm"] {
            let query = query(of, None);
            stream.write_u16(query.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&query).await.unwrap();
            let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut reply).await.unwrap();
            let expected = if of == "web.vm" { 1 } else { 100 };
            assert_eq!(
                addresses(&Message::from_octets(reply).unwrap()).len(),
                expected,
                "{of}"
            );
        }
    });
}

#[test]
fn without_servers_that_answer_a_guest_is_told_so() {
    alone(|| async {
        let _bed = bed(&["127.0.0.8", "10.209.0.1"]);
        // Nobody listens there, which is told at once.
        let begun = Instant::now();
        let reply = ask(&query("example.com", None)).await;
        assert_eq!(reply.header().rcode(), Rcode::SERVFAIL);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_guest_that_floods_leaves_room_for_others() {
    alone(|| async {
        let bed = bed(&["127.0.0.8"]);
        let _dead = UdpSocket::bind("127.0.0.8:53").await.unwrap();
        let flood = UdpSocket::bind("10.209.0.2:0").await.unwrap();
        flood.connect("10.209.0.1:53").await.unwrap();
        for _ in 0..500 {
            flood.send(&query("example.com", None)).await.unwrap();
            // The server is on this thread too.
            tokio::task::yield_now().await;
        }
        flood.send(&vec![b'x'; 9000]).await.unwrap();
        let held: Vec<_> = futures_util::future::join_all(
            (0..20).map(|_| async { TcpStream::connect("10.209.0.1:53").await.unwrap() }),
        )
        .await;
        let web = query("web.vm", None);
        assert_eq!(
            addresses(&ask_from([10, 209, 0, 3], &web).await.unwrap()),
            ["10.209.0.3"]
        );
        assert!(bed.server.count().dropped >= 500 - 64, "{:?}", bed.server.count());
        drop(held);
        // Its address goes and comes back.
        ip("addr del 10.209.0.1/32 dev lo");
        ip("addr add 10.209.0.1/32 dev lo");
        assert_eq!(
            addresses(&ask_from([10, 209, 0, 3], &web).await.unwrap()),
            ["10.209.0.3"]
        );
    });
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    alone(|| async {
        let _other = UdpSocket::bind("0.0.0.0:53").await.unwrap();
        let names = Names::new(Subnet::DEFAULT);
        let address = SocketAddrV4::new(Subnet::DEFAULT.gateway(), 53);
        let upstreams = Upstreams::new(std::path::Path::new("/nonexistent"), Subnet::DEFAULT);
        let error = Server::start(address, names.subscribe(), upstreams).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    });
}
