//! Ports of this machine, reached through an agent: both ways, half-closed, reset, refused, in bulk.

use crate::common::{Agent, DEADLINE, eventually, failure};
use banger_agent_api::{AgentClient, FailureKind, ForwardOutput, MAX_FLOWS, MAX_FORWARDS, Transport};
use bytes::Bytes;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

async fn all(output: &mut ForwardOutput) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(more) = output.next().await.expect("no reset") {
        bytes.extend_from_slice(&more);
    }
    bytes
}

#[tokio::test]
async fn each_half_ends_by_itself() {
    let agent = Agent::start().await;
    let (listener, port) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.expect("its end");
        // After the question's end, so that this half was open all the while.
        stream.write_all(b"answer to ").await.expect("write");
        stream.write_all(&question).await.expect("write");
    });
    let connected = agent.client().forward(Transport::Tcp, None, port).await;
    let (input, mut output) = connected.expect("connected");
    input.send(Bytes::from_static(b"all of it")).await.expect("sent");
    input.finish().await.expect("ended");
    assert_eq!(all(&mut output).await, b"answer to all of it");
    server.await.expect("served");

    // And the other way round: the port says its last word first.
    let (listener, port) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"first").await.expect("write");
        stream.shutdown().await.expect("half-close");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("its end");
        rest
    });
    let connected = agent.client().forward(Transport::Tcp, Some(LOOPBACK), port).await;
    let (input, mut output) = connected.expect("connected");
    assert_eq!(all(&mut output).await, b"first");
    // So much that most of it is on its way when it has all been sent.
    let rest = Bytes::from(vec![7; 4 << 20]);
    input.send(rest.clone()).await.expect("sent");
    input.finish().await.expect("ended");
    output.closed().await.expect("handed over");
    drop(output);
    assert_eq!(server.await.expect("served"), rest);
}

#[tokio::test]
async fn bulk_is_whole_and_waits_for_its_reader() {
    const SIZE: usize = 48 << 20;
    let agent = Agent::start().await;
    let (listener, port) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut sum = 0_u64;
        let mut sent = 0;
        let chunk: Vec<u8> = (0..65_521_u32).map(|n| n.to_le_bytes()[0]).collect();
        while sent < SIZE {
            let part = &chunk[..chunk.len().min(SIZE - sent)];
            stream.write_all(part).await.expect("write");
            sum += part.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            sent += part.len();
        }
        sum
    });
    let connected = agent.client().forward(Transport::Tcp, None, port).await;
    let (_input, mut output) = connected.expect("connected");
    // Nobody reads: the port's side comes to a stop, and the agent holds a little and no more.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(!server.is_finished());
    assert!(agent.resident_kib() < 40 * 1024, "{} KiB", agent.resident_kib());
    let (mut length, mut sum) = (0, 0_u64);
    while length < SIZE {
        let bytes = output.next().await.expect("no reset").expect("more");
        length += bytes.len();
        sum += bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    }
    assert_eq!((length, sum), (SIZE, server.await.expect("served")));
}

#[tokio::test]
async fn a_connection_that_breaks_is_reset_on_both_sides() {
    let agent = Agent::start().await;
    let (listener, port) = listen().await;
    let client = agent.client();
    // The port's side resets.
    let connected = client.forward(Transport::Tcp, None, port).await;
    let (_input, mut output) = connected.expect("connected");
    let (stream, _) = listener.accept().await.expect("a connection");
    stream.set_zero_linger().expect("to be reset");
    drop(stream);
    assert_eq!(failure(output.next().await), FailureKind::Reset);
    // The caller goes away, either half of it: that is no end in order.
    for drop_input in [true, false] {
        let connected = client.forward(Transport::Tcp, None, port).await;
        let (input, output) = connected.expect("connected");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        input.send(Bytes::from_static(b"part")).await.expect("sent");
        let mut part = [0; 4];
        stream.read_exact(&mut part).await.expect("the part");
        let kept = match drop_input {
            true => {
                drop(input);
                (None, Some(output))
            }
            false => {
                drop(output);
                (Some(input), None)
            }
        };
        let error = stream.read(&mut part).await.expect_err("reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{drop_input}");
        drop(kept);
    }
}

#[tokio::test]
async fn failures_have_names() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (listener, port) = listen().await;
    drop(listener);
    let refused = client.forward(Transport::Tcp, None, port).await.map(drop);
    assert_eq!(failure(refused), FailureKind::Refused);
    let none = client.forward(Transport::Tcp, None, 0).await.map(drop);
    assert_eq!(failure(none), FailureKind::InvalidRequest);
}

#[tokio::test]
async fn a_server_of_ipv6_alone_is_found() {
    let agent = Agent::start().await;
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
        println!("skipped: this machine has no IPv6");
        return;
    };
    let port = listener.local_addr().expect("bound").port();
    let connected = agent.client().forward(Transport::Tcp, None, port).await;
    assert!(connected.is_ok(), "{connected:?}");
    listener.accept().await.expect("it has come");
}

#[tokio::test]
async fn datagrams_stay_whole() {
    let agent = Agent::start().await;
    let socket = UdpSocket::bind((LOOPBACK, 0)).await.expect("a port");
    let port = socket.local_addr().expect("bound").port();
    let connected = agent.client().forward(Transport::Udp, None, port).await;
    let (input, mut output) = connected.expect("connected");
    let mut buffer = vec![0; 65_536];
    let mut from = SocketAddr::from((LOOPBACK, 0));
    for size in [1, 0, 1_500, 65_507] {
        let datagram = Bytes::from(vec![7_u8; size]);
        input.datagram(datagram.clone()).await.expect("sent");
        let (length, sender) = socket.recv_from(&mut buffer).await.expect("it arrives");
        assert_eq!(&buffer[..length], &datagram);
        from = sender;
        socket.send_to(&datagram, sender).await.expect("answered");
        assert_eq!(output.next().await.expect("an answer"), Some(datagram));
    }
    // Nobody there for a moment is no end.
    drop(socket);
    input.datagram(Bytes::from_static(b"lost")).await.expect("sent");
    let socket = UdpSocket::bind((LOOPBACK, port)).await.expect("the port again");
    socket.send_to(b"late", from).await.expect("sent");
    let late = output.next().await.expect("an answer");
    assert_eq!(late, Some(Bytes::from_static(b"late")));
    input.finish().await.expect("ended");
}

#[tokio::test]
async fn there_is_a_limit_and_nothing_is_left() {
    let agent = Agent::start().await;
    let client = agent.client();
    let (listener, port) = listen().await;
    let before = agent.descriptors();
    let mut open = Vec::new();
    for _ in 0..MAX_FORWARDS {
        let connected = client
            .forward(Transport::Tcp, None, port)
            .await
            .expect("connected");
        open.push((connected, listener.accept().await.expect("accepted")));
    }
    let busy = client.forward(Transport::Tcp, None, port).await.map(drop);
    assert_eq!(failure(busy), FailureKind::Busy);
    // Flows of datagrams have room of their own.
    let mut flows = Vec::new();
    for _ in 0..MAX_FLOWS {
        let flow = client.forward(Transport::Udp, None, port).await;
        flows.push(flow.expect("room"));
    }
    let busy = client.forward(Transport::Udp, None, port).await.map(drop);
    assert_eq!(failure(busy), FailureKind::Busy);
    // Commands, pings and figures go on beside them.
    client.ping(DEADLINE).await.expect("an answer");
    drop((open, flows));
    eventually("the agent's descriptors", || agent.descriptors() <= before + 1).await;
    let again = client.forward(Transport::Tcp, None, port).await;
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test]
async fn what_listens_is_told() {
    let agent = Agent::start().await;
    let client: AgentClient = agent.client();
    let (_listener, port) = listen().await;
    let socket = UdpSocket::bind((LOOPBACK, 0)).await.expect("a port");
    let udp = socket.local_addr().expect("bound").port();
    // Neither end of a connection listens.
    let (other, there) = listen().await;
    let connected = TcpStream::connect((LOOPBACK, there)).await.expect("connected");
    let here = connected.local_addr().expect("bound").port();
    let listening = client.listening(DEADLINE).await.expect("an answer");
    let find = |transport, port| {
        let mut found = listening.listeners.iter();
        found.find(|found| (found.transport, found.port) == (transport, port))
    };
    if listening.incomplete {
        println!("skipped: too much listens on this machine");
        return;
    }
    for (transport, port) in [(Transport::Tcp, port), (Transport::Udp, udp)] {
        let found = find(transport, port).unwrap_or_else(|| panic!("{port} in {listening:?}"));
        assert_eq!((found.address, found.pid), (LOOPBACK, Some(std::process::id())));
        assert!(found.age.is_some_and(|age| age < DEADLINE), "{found:?}");
        assert!(found.command.contains("what_listens_is_told") || !found.command.is_empty());
    }
    assert!(find(Transport::Tcp, there).is_some());
    assert_eq!(find(Transport::Tcp, here), None);
    drop(other);
}
