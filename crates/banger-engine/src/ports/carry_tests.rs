//! Connections and datagrams through a listener of ours, to a guest that does as these tests like.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use banger_agent_api::proto::forward_input::Input;
use banger_agent_api::proto::forward_output::Output;
use banger_agent_api::proto::{ForwardConnected, ForwardEof, ForwardInput, ForwardOutput};
use banger_agent_api::{Failure, FailureKind, Transport};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tonic::Streaming;

use super::*;
use crate::older_agent::{Answers, Forward, guest_with};

/// Ends a test that has failed.
const DEADLINE: Duration = Duration::from_secs(60);

async fn say(answers: &Answers, output: Output) {
    let output = ForwardOutput { output: Some(output) };
    // The host's side may have gone, which is for the test to see.
    let _gone = answers.send(Ok(output)).await;
}

/// What comes next: bytes, or `None` for the end of the caller's half; `Err` where the call is no more.
async fn hear(inputs: &mut Streaming<ForwardInput>) -> Result<Option<bytes::Bytes>, ()> {
    loop {
        match inputs
            .message()
            .await
            .map(|input| input.and_then(|input| input.input))
        {
            Ok(Some(Input::Start(_))) => {}
            Ok(Some(Input::Data(data))) => return Ok(Some(data)),
            Ok(Some(Input::Eof(ForwardEof {}))) => return Ok(None),
            Ok(None) | Err(_) => return Err(()),
        }
    }
}

async fn until_eof(inputs: &mut Streaming<ForwardInput>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Ok(Some(more)) = hear(inputs).await {
        all.extend_from_slice(&more);
    }
    all
}

fn connected() -> Output {
    Output::Connected(ForwardConnected {})
}

fn eof() -> Output {
    Output::Eof(ForwardEof {})
}

/// A guest behind a listener, and the address of the latter. What is returned besides is to be kept.
async fn published(forward: Forward) -> (SocketAddr, impl Sized) {
    let (directory, agent) = guest_with(Some(forward));
    let publication = Publication {
        transport: Transport::Tcp,
        host: (Ipv4Addr::LOCALHOST, 0).into(),
        guest_port: 80,
    };
    let mut reserved = reserve(&[publication]).await.unwrap();
    let (publication, bound) = reserved.remove(0);
    let listener = Listener::serve(bound, 80, &Guest::new(agent));
    (publication.host, (directory, listener))
}

/// A connection, and what carries it into the guest, which ends with the result.
async fn carried(
    forward: Forward,
    lingering: Duration,
) -> (TcpStream, impl Future<Output = Result<(), tcp::CarryError>>) {
    let (directory, agent) = guest_with(Some(forward));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let carrying = async move {
        let _directory = directory;
        let mut stream = tcp::Resetting(Some(stream));
        let (input, output) = agent.forward(Transport::Tcp, None, 80).await.unwrap();
        stream.carry(input, output, lingering).await
    };
    (client, carrying)
}

async fn read_to_end(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(DEADLINE, client.read_to_end(&mut all))
        .await
        .expect("an end")?;
    Ok(all)
}

#[tokio::test]
async fn either_half_may_end_first() {
    // The guest answers when the question has ended.
    let answer: Forward = |mut inputs, answers| {
        async move {
            say(&answers, connected()).await;
            let question = until_eof(&mut inputs).await;
            say(&answers, Output::Data(question.into())).await;
            say(&answers, eof()).await;
        }
        .boxed()
    };
    let (at, _kept) = published(answer).await;
    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"question");

    // The guest ends its half first, and hears the rest: it lets go only when it has heard all of it.
    let listen: Forward = |mut inputs, answers| {
        async move {
            say(&answers, connected()).await;
            say(&answers, eof()).await;
            if until_eof(&mut inputs).await != vec![7; 1 << 20] {
                answers.closed().await;
            }
        }
        .boxed()
    };
    let (mut client, carrying) = carried(listen, DEADLINE).await;
    let carrying = tokio::spawn(carrying);
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
    client.write_all(&vec![7; 1 << 20]).await.unwrap();
    client.shutdown().await.unwrap();
    carrying.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_lets_go_after_its_end_resets_the_client() {
    // In order, and with a reason: a port that is closed answers what comes by a reset.
    let drops: Forward = |_inputs, answers| {
        async move {
            say(&answers, connected()).await;
            say(&answers, eof()).await;
        }
        .boxed()
    };
    let resets: Forward = |mut inputs, answers| {
        async move {
            say(&answers, connected()).await;
            say(&answers, eof()).await;
            let _byte = hear(&mut inputs).await;
            let failure = Failure::new(FailureKind::Reset, "80", "the connection was reset");
            let _gone = answers.send(Err(failure.into_status())).await;
        }
        .boxed()
    };
    for forward in [drops, resets] {
        let (at, _kept) = published(forward).await;
        let mut client = TcpStream::connect(at).await.unwrap();
        assert_eq!(read_to_end(&mut client).await.ok().unwrap_or_default(), b"");
        let _reset_already = client.write_all(b"?").await;
        // The client's half is open still: it learns of the reset without a further word.
        let broken = timeout(DEADLINE, client.ready(Interest::ERROR)).await;
        broken.expect("a reset").unwrap();
    }
}

#[tokio::test]
async fn a_guest_that_does_not_read_is_not_waited_for_without_end() {
    let never: Forward = |_inputs, answers| {
        async move {
            say(&answers, connected()).await;
            say(&answers, eof()).await;
            answers.closed().await;
        }
        .boxed()
    };
    let (mut client, carrying) = carried(never, Duration::from_millis(50)).await;
    client.write_all(b"all").await.unwrap();
    client.shutdown().await.unwrap();
    let ended = timeout(DEADLINE, carrying).await.expect("an end");
    assert!(matches!(ended, Err(tcp::CarryError::Unread)), "{ended:?}");
}

#[tokio::test]
async fn a_client_that_resets_is_seen_while_the_guest_does_not_read() {
    let never: Forward = |_inputs, answers| {
        async move {
            say(&answers, connected()).await;
            answers.closed().await;
        }
        .boxed()
    };
    let (mut client, carrying) = carried(never, DEADLINE).await;
    let carrying = tokio::spawn(carrying);
    // Until nothing more is taken.
    let full = async {
        let chunk = vec![0; 1 << 20];
        while timeout(Duration::from_millis(500), client.write(&chunk))
            .await
            .is_ok()
        {}
    };
    timeout(DEADLINE, full).await.expect("bounded");
    client.set_zero_linger().unwrap();
    drop(client);
    let ended = timeout(DEADLINE, carrying).await.expect("an end").unwrap();
    let Err(tcp::CarryError::Host(error)) = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_that_resets_after_its_end_is_seen_while_the_guest_is_silent() {
    let silent: Forward = |mut inputs, answers| {
        async move {
            say(&answers, connected()).await;
            let question = until_eof(&mut inputs).await;
            say(&answers, Output::Data(question.into())).await;
            answers.closed().await;
        }
        .boxed()
    };
    let (mut client, carrying) = carried(silent, DEADLINE).await;
    let carrying = tokio::spawn(carrying);
    client.write_all(b"?").await.unwrap();
    client.shutdown().await.unwrap();
    // The guest has heard of the end.
    let mut answer = [0];
    let answered = timeout(DEADLINE, client.read_exact(&mut answer)).await;
    answered.expect("an answer").unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    let ended = timeout(DEADLINE, carrying).await.expect("an end").unwrap();
    assert!(matches!(ended, Err(tcp::CarryError::Host(_))), "{ended:?}");
}

#[tokio::test]
async fn a_client_is_asked_whether_it_is_there() {
    let silent: Forward = |mut inputs, answers| {
        async move {
            say(&answers, connected()).await;
            until_eof(&mut inputs).await;
        }
        .boxed()
    };
    let (at, _kept) = published(silent).await;
    let client = TcpStream::connect(at).await.unwrap();
    let here = client.local_addr().unwrap();
    let hex = |at: SocketAddr| format!("0100007F:{:04X}", at.port());
    let ends = format!("{} {} 01", hex(at), hex(here));
    // proc_net_tcp(5): the timer that is active, 02 for keep-alive.
    let timer = || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let line = table.lines().find(|line| line.contains(&ends))?;
        line.split_ascii_whitespace()
            .nth(5)?
            .split(':')
            .next()
            .map(str::to_owned)
    };
    let kept = timeout(DEADLINE, async {
        while timer().as_deref() != Some("02") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(kept.await.is_ok(), "{:?}", timer());
}

#[tokio::test]
async fn very_many_senders_of_datagrams_take_no_connection_from_anybody() {
    // Datagrams come to nothing, connections are served.
    let forward: Forward = |mut inputs, answers| {
        async move {
            say(&answers, connected()).await;
            while let Ok(Some(data)) = hear(&mut inputs).await {
                say(&answers, Output::Data(data)).await;
            }
            say(&answers, eof()).await;
        }
        .boxed()
    };
    let (_directory, agent) = guest_with(Some(forward));
    let guest = Guest::new(agent);
    let listen = async |transport| {
        let publication = Publication {
            transport,
            host: (Ipv4Addr::LOCALHOST, 0).into(),
            guest_port: 80,
        };
        let (publication, bound) = reserve(&[publication]).await.unwrap().remove(0);
        (publication.host, Listener::serve(bound, 80, &guest))
    };
    let (udp, _udp) = listen(Transport::Udp).await;
    let (tcp, _tcp) = listen(Transport::Tcp).await;
    let mut senders = Vec::new();
    for number in 0..2 * MAX_CONNECTIONS {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(b"?", udp).await.unwrap();
        if number == 0 {
            // They are served: the first, before others can take its flow.
            let mut answer = [0; 8];
            let answered = timeout(DEADLINE, socket.recv(&mut answer)).await;
            assert_eq!(&answer[..answered.expect("an answer").unwrap()], b"?");
        }
        senders.push(socket);
    }
    let mut client = TcpStream::connect(tcp).await.unwrap();
    client.write_all(b"served").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"served");
}
