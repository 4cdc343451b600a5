//! The Forward call: one connection, or one flow of datagrams, to a port that is reached from inside the guest.
//!
//! ```text
//! ForwardInput stream  → to_port()  → socket ┐
//!                                            ├ one task
//! ForwardOutput stream ← bounded channel ← from_port() ┘
//! ```
//!
//! Backpressure is the socket's and the channel's: the next input is not taken before the socket has taken the last, and
//! nothing is read from the socket while the channel is full. Of datagrams the kernel then drops what its buffer does not
//! hold, as it does for everybody.
//!
//! A connection ends in order when both sides have said `eof`. Anything else is a reset, so that neither side takes a
//! part for the whole.

use banger_agent_api::proto::forward_input::Input;
use banger_agent_api::proto::forward_output::Output;
use banger_agent_api::proto::{
    ForwardConnected, ForwardEof, ForwardInput, ForwardOutput, ForwardStart, Transport,
};
use banger_agent_api::{Failure, FailureKind, MAX_CHUNK, MAX_DATAGRAM};
use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Status, Streaming};

/// Output messages between a port and its connection to the host.
const OUTPUT_QUEUE: usize = 2;

/// For a connection to come about; the kernel's own limit is two minutes.
const CONNECTING: Duration = Duration::from_secs(10);

/// The sending half of a call's reply stream.
type Sender = mpsc::Sender<Result<ForwardOutput, Status>>;

/// Where a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    transport: Transport,
    /// Absent: the loopback.
    address: Option<IpAddr>,
    port: u16,
}

/// What carries the bytes.
enum Socket {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

/// Connects, and returns the receiving half of the output, whose first message is already there. The permit is given back
/// when the connection has ended.
pub(super) async fn open(
    start: &ForwardStart,
    inputs: Streaming<ForwardInput>,
    permit: OwnedSemaphorePermit,
) -> Result<mpsc::Receiver<Result<ForwardOutput, Status>>, Failure> {
    let target = target(start)?;
    let socket = match tokio::time::timeout(CONNECTING, connect(target)).await {
        Ok(connected) => connected.map_err(|error| failure(target, "reach", &error))?,
        Err(_elapsed) => return Err(failure(target, "reach", &io::ErrorKind::TimedOut.into())),
    };
    let (sender, receiver) = mpsc::channel(OUTPUT_QUEUE);
    // The channel is empty, so this cannot fail.
    let _sent = sender.try_send(Ok(message(Output::Connected(ForwardConnected {}))));
    tokio::spawn(async move {
        let _permit = permit;
        match socket {
            Socket::Stream(stream) => carry_stream(target, stream, inputs, &sender).await,
            Socket::Datagrams(socket) => carry_datagrams(target, &socket, inputs, &sender).await,
        }
    });
    Ok(receiver)
}

fn target(start: &ForwardStart) -> Result<Target, Failure> {
    let invalid = |what: &str, value: String| {
        Failure::new(
            FailureKind::InvalidRequest,
            value.clone(),
            format!("forward to a port: {what} {value:?}"),
        )
    };
    let transport = match start.transport() {
        Transport::Unspecified => return Err(invalid("unknown transport", start.transport.to_string())),
        known @ (Transport::Tcp | Transport::Udp) => known,
    };
    let address = match start.address.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| invalid("no IP address", text.to_owned()))?,
        ),
    };
    let port = u16::try_from(start.port).unwrap_or_default();
    if port == 0 {
        return Err(invalid("no port", start.port.to_string()));
    }
    Ok(Target {
        transport,
        address,
        port,
    })
}

async fn connect(target: Target) -> io::Result<Socket> {
    let Target {
        transport,
        address,
        port,
    } = target;
    let v4 = SocketAddr::from((address.unwrap_or(Ipv4Addr::LOCALHOST.into()), port));
    match transport {
        Transport::Udp | Transport::Unspecified => {
            let any: IpAddr = match v4.ip() {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(v4).await?;
            Ok(Socket::Datagrams(socket))
        }
        Transport::Tcp => {
            let stream = match TcpStream::connect(v4).await {
                // A server that knows IPv6 alone.
                Err(error) if address.is_none() && error.kind() == io::ErrorKind::ConnectionRefused => {
                    let v6 = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await;
                    v6.map_err(|_no_better| error)?
                }
                connected => connected?,
            };
            stream.set_nodelay(true)?;
            Ok(Socket::Stream(stream))
        }
    }
}

/// Carries a connection to its end, in order or not.
async fn carry_stream(
    target: Target,
    mut stream: TcpStream,
    inputs: Streaming<ForwardInput>,
    sender: &Sender,
) {
    let (reader, writer) = stream.split();
    // A port that takes no more may still have much to say: an answer before the end of the question, say.
    let writing = async {
        match to_stream(writer, inputs).await {
            Ok(()) => Ok(None),
            Err(Broken::Port(error)) => Ok(Some(error)),
            Err(Broken::CallerGone) => Err(Broken::CallerGone),
        }
    };
    let both = async {
        let ((), unwritten) = tokio::try_join!(from_stream(reader, sender), writing)?;
        unwritten.map_or(Ok(()), |error| Err(Broken::Port(error)))
    };
    let ended = tokio::select! {
        // What is dropped when the other arm is first was for a caller who has left.
        ended = both => ended,
        () = sender.closed() => Err(Broken::CallerGone),
    };
    let Err(broken) = ended else { return };
    // Now closing it resets it. One that has been reset by its other side refuses, and needs none.
    let _reset_already = stream.set_zero_linger();
    match broken {
        Broken::CallerGone => {}
        Broken::Port(error) => {
            let status = failure(target, "carry bytes of", &error).into_status();
            let _caller_gone = sender.send(Err(status)).await;
        }
    }
}

/// Why a connection did not end in order.
enum Broken {
    /// The guest's side of it.
    Port(io::Error),
    /// The call was given up.
    CallerGone,
}

async fn from_stream(reader: ReadHalf<'_>, sender: &Sender) -> Result<(), Broken> {
    let mut buffer = BytesMut::new();
    loop {
        let bytes = read(&reader, &mut buffer).await.map_err(Broken::Port)?;
        let last = bytes.is_empty();
        let output = if last {
            Output::Eof(ForwardEof {})
        } else {
            Output::Data(bytes)
        };
        let sent = sender.send(Ok(message(output))).await;
        sent.map_err(|_closed| Broken::CallerGone)?;
        if last {
            return Ok(());
        }
    }
}

/// The next bytes, at most a chunk; empty at the end. An idle connection has no buffer.
async fn read(reader: &ReadHalf<'_>, buffer: &mut BytesMut) -> io::Result<Bytes> {
    loop {
        reader.readable().await?;
        // Goes on where the last chunk ended, see `exec::stream`.
        if buffer.capacity() - buffer.len() < MAX_CHUNK / 2 {
            buffer.reserve(MAX_CHUNK);
        }
        match reader.try_read_buf(&mut (&mut *buffer).limit(MAX_CHUNK)) {
            Ok(_length) => return Ok(buffer.split().freeze()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => *buffer = BytesMut::new(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

async fn to_stream(mut writer: WriteHalf<'_>, mut inputs: Streaming<ForwardInput>) -> Result<(), Broken> {
    loop {
        match inputs.message().await.map(|input| input.map(|input| input.input)) {
            Ok(Some(Some(Input::Data(bytes)))) => writer.write_all(&bytes).await.map_err(Broken::Port)?,
            Ok(Some(Some(Input::Eof(ForwardEof {})))) => {
                return match writer.shutdown().await {
                    // It has been reset, which the reading half tells better.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                    done => done.map_err(Broken::Port),
                };
            }
            // A second start, a message from a newer caller, an end without `eof`, a call that was given up.
            Ok(Some(Some(Input::Start(_)) | None) | None) | Err(_) => return Err(Broken::CallerGone),
        }
    }
}

/// Carries datagrams until the caller ends the flow: a port's side of one has no end.
async fn carry_datagrams(
    target: Target,
    socket: &UdpSocket,
    inputs: Streaming<ForwardInput>,
    sender: &Sender,
) {
    tokio::select! {
        // A datagram that is on its way when another arm is first was for a flow that is no more.
        error = from_datagrams(socket, sender) => {
            let status = failure(target, "carry datagrams of", &error).into_status();
            let _caller_gone = sender.send(Err(status)).await;
        }
        () = to_datagrams(socket, inputs) => {}
        () = sender.closed() => {}
    }
}

/// Returns why no more can be received; a caller who leaves is seen elsewhere.
async fn from_datagrams(socket: &UdpSocket, sender: &Sender) -> io::Error {
    let mut buffer = BytesMut::new();
    loop {
        if let Err(error) = socket.readable().await {
            return error;
        }
        // A whole one must fit, or its end would be lost.
        if buffer.capacity() - buffer.len() < MAX_CHUNK {
            buffer.reserve(MAX_CHUNK);
        }
        match socket.try_recv_buf(&mut buffer) {
            Ok(_length) => {
                let datagram = buffer.split().freeze();
                if sender.send(Ok(message(Output::Data(datagram)))).await.is_err() {
                    return io::ErrorKind::BrokenPipe.into();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer = BytesMut::new(),
            Err(error) if is_passing(&error) => {}
            Err(error) => return error,
        }
    }
}

/// Returns when the caller ends the flow, or is gone.
async fn to_datagrams(socket: &UdpSocket, mut inputs: Streaming<ForwardInput>) {
    while let Ok(Some(ForwardInput {
        input: Some(Input::Data(datagram)),
    })) = inputs.message().await
    {
        // One that cannot be sent is lost, as any datagram may be.
        if datagram.len() <= MAX_DATAGRAM {
            let _lost = socket.send(&datagram).await;
        }
    }
}

/// What the kernel says on a datagram socket of packets that came to nothing (ICMP, udp(7)): the next may do better.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::Interrupted
    )
}

fn message(output: Output) -> ForwardOutput {
    ForwardOutput { output: Some(output) }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all that the protocol has no name of its own for"
)]
fn failure(target: Target, doing: &str, error: &io::Error) -> Failure {
    // The kinds that have names of their own are what std's decoding of errno gives, the rest is the guest kernel's.
    let (kind, why) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (FailureKind::Refused, "nothing listens there".to_owned()),
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => (FailureKind::Unreachable, error.to_string()),
        io::ErrorKind::TimedOut => (FailureKind::TimedOut, "no answer".to_owned()),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            (FailureKind::Reset, "the connection was reset".to_owned())
        }
        _ => (FailureKind::System, error.to_string()),
    };
    let transport = match target.transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
        Transport::Unspecified => "unknown",
    };
    let port = match target.address {
        Some(address) => SocketAddr::from((address, target.port)).to_string(),
        None => target.port.to_string(),
    };
    let message = format!("{doing} {transport} port {port} in the guest: {why}");
    Failure::new(kind, port, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start(transport: i32, address: &str, port: u32) -> ForwardStart {
        ForwardStart {
            transport,
            address: address.to_owned(),
            port,
        }
    }

    proptest! {
        #[test]
        fn only_whole_requests_are_taken(transport in -1..4, address in "(|127\\.0\\.0\\.1|::1|[ -~]{0,20})", port: u32) {
            let taken = target(&start(transport, &address, port)).is_ok();
            let whole = (transport == 1 || transport == 2)
                && (address.is_empty() || address.parse::<IpAddr>().is_ok())
                && (1..=65535).contains(&port);
            prop_assert_eq!(taken, whole);
        }
    }

    #[test]
    fn failures_have_names() {
        let target = target(&start(1, "::1", 80)).expect("valid");
        let named = |kind: io::ErrorKind| failure(target, "reach", &kind.into());
        let refused = named(io::ErrorKind::ConnectionRefused);
        assert_eq!(refused.kind, FailureKind::Refused);
        assert_eq!(
            refused.message,
            "reach TCP port [::1]:80 in the guest: nothing listens there"
        );
        assert_eq!(
            named(io::ErrorKind::HostUnreachable).kind,
            FailureKind::Unreachable
        );
        assert_eq!(named(io::ErrorKind::TimedOut).kind, FailureKind::TimedOut);
        assert_eq!(named(io::ErrorKind::ConnectionReset).kind, FailureKind::Reset);
        assert_eq!(named(io::ErrorKind::OutOfMemory).kind, FailureKind::System);
    }
}
