use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use super::*;
use crate::error::Kind;

fn publication(transport: Transport, host: impl Into<SocketAddr>) -> Publication {
    Publication {
        transport,
        host: host.into(),
        guest_port: 80,
    }
}

fn any(transport: Transport) -> Publication {
    publication(transport, (Ipv4Addr::LOCALHOST, 0))
}

#[tokio::test]
async fn a_free_port_is_chosen_and_kept() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let reserved = reserve(&[any(transport), any(transport)]).await.unwrap();
        let ports: Vec<_> = reserved
            .iter()
            .map(|(publication, _)| publication.host.port())
            .collect();
        assert!(
            ports[0] != 0 && ports[1] != 0 && ports[0] != ports[1],
            "{ports:?}"
        );
        let again = publication(transport, (Ipv4Addr::LOCALHOST, ports[0]));
        assert!(bind(&again).is_err(), "{transport:?}");
        drop(reserved);
        assert!(bind(&again).is_ok(), "{transport:?}");
    }
}

#[tokio::test]
async fn a_taken_port_names_its_holder() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (transport, at) in [
        (Transport::Tcp, listener.local_addr().unwrap()),
        (Transport::Udp, socket.local_addr().unwrap()),
    ] {
        // At all addresses is where it is too.
        for host in [at, (Ipv4Addr::UNSPECIFIED, at.port()).into()] {
            let wanted = publication(transport, host);
            let error = reserve(&[wanted]).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), Kind::InUse);
            assert_eq!(
                error.to_string(),
                format!("port {wanted} is taken by this daemon itself")
            );
        }
    }
}

#[tokio::test]
async fn an_address_of_another_host_is_a_mistake() {
    // RFC 5737, TEST-NET-1.
    let error = reserve(&[publication(Transport::Tcp, ([192, 0, 2, 1], 8080))]).await;
    let error = error.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert_eq!(
        error.to_string(),
        "port 192.0.2.1:8080/tcp cannot be had: this host has no address 192.0.2.1"
    );
}

/// An agent that nobody is behind: what is tested here is who listens when.
fn nobody() -> AgentClient {
    AgentClient::new(std::path::Path::new("/nonexistent/vsock.sock"))
}

fn listens(at: SocketAddr) -> bool {
    std::net::TcpStream::connect(at).is_ok()
}

/// A listener ends when its task does, which is a moment after it was told to.
async fn is_free(publication: &Publication) {
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while bind(publication).is_err() {
        assert!(tokio::time::Instant::now() < end, "{publication} is taken still");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn listeners_come_and_go_with_the_guest() {
    let ports = Ports::default();
    let (one, two) = (
        reserve(&[any(Transport::Tcp)]).await,
        reserve(&[any(Transport::Tcp)]).await,
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    let (first, second) = (one[0].0, two[0].0);

    // Of a machine that rests nothing listens.
    ports.add("v", one);
    assert!(!ports.is_open("v") && !listens(first.host));
    ports.follow("v", None);
    assert_eq!(ports.of("v").len(), 1);

    let agent = nobody();
    ports.follow("v", Some(&agent));
    ports.follow("v", Some(&agent));
    assert!(ports.is_open("v") && listens(first.host));
    // While it runs: at once.
    ports.add("v", two);
    assert!(listens(second.host));
    ports.remove("v", &first);
    is_free(&first).await;
    assert!(listens(second.host));

    ports.follow("v", None);
    is_free(&second).await;
    assert_eq!(ports.of("v").len(), 1, "it stays published");
    // What the start has bound is what is used.
    let bound = reserve(&[second]).await.unwrap();
    ports.open("v", &agent, bound);
    assert!(listens(second.host));
    ports.forget("v");
    is_free(&second).await;
    assert!(ports.of("v").is_empty());
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_tried_again() {
    let ports = Ports::default();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = publication(Transport::Tcp, holder.local_addr().unwrap());
    ports.load(&[wanted.row("v")]);
    ports.follow("v", Some(&nobody()));
    assert_eq!(
        ports.of("v")[0].problem.as_deref(),
        Some("taken by another program")
    );
    assert_eq!(
        ports.explained("v").await[0].problem.as_deref(),
        Some("taken by this daemon itself")
    );
    ports.retry("v");
    assert!(ports.of("v")[0].problem.is_some());
    drop(holder);
    ports.retry("v");
    assert_eq!(ports.of("v")[0].problem, None);
    assert!(listens(wanted.host));
}

#[test]
fn rows_come_back() {
    let one = publication(Transport::Udp, (std::net::Ipv6Addr::LOCALHOST, 53));
    assert_eq!(Publication::of(&one.row("v")), Some(one));
    assert_eq!(one.to_string(), "[::1]:53/udp");
    let unknown = PublicationRow {
        protocol: "sctp".into(),
        ..one.row("v")
    };
    assert_eq!(Publication::of(&unknown), None);
}
