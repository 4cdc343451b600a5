//! A connection, or a flow of datagrams, to a port of a guest, seen from the host; and what listens there.
//!
//! Backpressure runs from end to end: [`ForwardInput::send`] waits while the guest's port does not read, and a caller
//! that does not call [`ForwardOutput::next`] stops the guest from reading its port once the windows are full.
//!
//! Each half ends by itself: [`ForwardInput::finish`], and `None` from [`ForwardOutput::next`]. A half that is dropped
//! before that resets the connection, so that nobody takes a part for the whole.

use crate::error::AgentError;
use crate::failure::printable;
use crate::proto::agent_client::AgentClient as Rpc;
use crate::proto::forward_input::Input;
use crate::proto::forward_output::Output;
use crate::requests::{Cancel, requests};
use crate::{MAX_CHUNK, MAX_LISTENERS, proto};
use bytes::Bytes;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

const METHOD: &str = "forward";

/// What carries bytes to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A stream of bytes.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// `tcp` or `udp`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// By that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp]
            .into_iter()
            .find(|known| known.as_str() == name)
    }
}

impl From<Transport> for proto::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// The way to a port. Dropping it before [`ForwardInput::finish`] resets the connection.
#[derive(Debug)]
pub struct ForwardInput {
    sender: mpsc::Sender<proto::ForwardInput>,
}

/// The port takes no more; [`ForwardOutput::next`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send to a port which takes no more")]
pub struct ForwardClosed;

impl ForwardInput {
    /// Sends bytes in chunks; waits while they are not read.
    ///
    /// # Errors
    ///
    /// [`ForwardClosed`]: the rest was not sent.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), ForwardClosed> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            self.input(Input::Data(chunk)).await?;
        }
        Ok(())
    }

    /// Sends one datagram of at most [`MAX_DATAGRAM`](crate::MAX_DATAGRAM) bytes, perhaps none; a larger one is lost.
    ///
    /// # Errors
    ///
    /// [`ForwardClosed`].
    pub async fn datagram(&self, datagram: Bytes) -> Result<(), ForwardClosed> {
        self.input(Input::Data(datagram)).await
    }

    /// Says that nothing more comes. What the port sends still arrives; of datagrams, it is the flow's end.
    ///
    /// # Errors
    ///
    /// [`ForwardClosed`]: it has ended before.
    pub async fn finish(self) -> Result<(), ForwardClosed> {
        self.input(Input::Eof(proto::ForwardEof {})).await
    }

    async fn input(&self, input: Input) -> Result<(), ForwardClosed> {
        let message = proto::ForwardInput { input: Some(input) };
        self.sender.send(message).await.map_err(|_closed| ForwardClosed)
    }
}

/// What comes from a port. Dropping it resets the connection, also after its own end while the other half goes on.
#[derive(Debug)]
pub struct ForwardOutput {
    stream: Streaming<proto::ForwardOutput>,
    transport: Transport,
    ended: bool,
    _cancel: Cancel,
}

impl ForwardOutput {
    /// The next bytes, at most 64 KiB and never empty, or the next datagram, which may be empty; `None` at the end.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Reset`](crate::FailureKind::Reset) where the port's side did that; the guest's other reasons, or the
    /// connection's.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AgentError> {
        while !self.ended {
            match receive(&mut self.stream).await? {
                Some(Output::Data(data)) if data.len() > MAX_CHUNK => {
                    return Err(protocol("a chunk is too large"));
                }
                Some(Output::Data(data)) if data.is_empty() && self.transport == Transport::Tcp => {}
                Some(Output::Data(data)) => return Ok(Some(data)),
                Some(Output::Eof(proto::ForwardEof {})) => self.ended = true,
                Some(Output::Connected(_)) => return Err(protocol("the port was connected twice")),
                None => return Err(protocol("the stream ended before the connection")),
            }
        }
        Ok(None)
    }

    /// Waits until the guest has handed over all that was sent and has let go of the connection, after both halves have
    /// ended. Whoever drops this half sooner takes back what is still on its way.
    ///
    /// # Errors
    ///
    /// As [`ForwardOutput::next`].
    pub async fn closed(&mut self) -> Result<(), AgentError> {
        match receive(&mut self.stream).await? {
            None => Ok(()),
            Some(_) => Err(protocol("more came after the connection's end")),
        }
    }
}

/// Begins the call; returns when the guest says that the port is connected.
pub(crate) async fn start_forward(
    mut rpc: Rpc<Channel>,
    transport: Transport,
    address: Option<IpAddr>,
    port: u16,
) -> Result<(ForwardInput, ForwardOutput), AgentError> {
    let start = proto::ForwardStart {
        transport: proto::Transport::from(transport).into(),
        address: address.map(|address| address.to_string()).unwrap_or_default(),
        port: port.into(),
    };
    let (sender, cancel, inputs) = requests(proto::ForwardInput {
        input: Some(Input::Start(start)),
    });
    let response = rpc.forward(inputs).await;
    let mut stream = response
        .map_err(|status| AgentError::from_status(METHOD, status))?
        .into_inner();
    match receive(&mut stream).await? {
        Some(Output::Connected(proto::ForwardConnected {})) => {
            let output = ForwardOutput {
                stream,
                transport,
                ended: false,
                _cancel: cancel,
            };
            Ok((ForwardInput { sender }, output))
        }
        Some(Output::Data(_) | Output::Eof(_)) | None => Err(protocol(
            "the first message does not say that the port is connected",
        )),
    }
}

async fn receive(stream: &mut Streaming<proto::ForwardOutput>) -> Result<Option<Output>, AgentError> {
    match stream.message().await {
        Ok(Some(proto::ForwardOutput { output: Some(output) })) => Ok(Some(output)),
        // It may be data.
        Ok(Some(proto::ForwardOutput { output: None })) => Err(protocol("a message of an unknown kind")),
        Ok(None) => Ok(None),
        Err(status) => Err(AgentError::from_status(METHOD, status)),
    }
}

/// What listens in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// At most 128, by port.
    pub listeners: Vec<Listener>,
    /// There are more.
    pub incomplete: bool,
}

/// A socket of a guest that waits for callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// What carries its bytes.
    pub transport: Transport,
    /// Where it listens; unspecified (`0.0.0.0`, `::`) on all addresses.
    pub address: IpAddr,
    /// Not 0.
    pub port: u16,
    /// Its process in the guest; absent: the guest does not know, or the kernel itself listens.
    pub pid: Option<u32>,
    /// That process's name; the guest's word, printable, may be empty.
    pub process: String,
    /// Its arguments; the guest's word, printable, at most 1 KiB.
    pub command: String,
    /// How long that process has run.
    pub age: Option<Duration>,
}

impl TryFrom<proto::ListeningReply> for Listening {
    type Error = AgentError;

    fn try_from(reply: proto::ListeningReply) -> Result<Self, AgentError> {
        let cut = reply.listeners.len() > MAX_LISTENERS;
        let uptime = reply.uptime_ms;
        let listeners = reply.listeners.into_iter().take(MAX_LISTENERS);
        Ok(Self {
            listeners: listeners
                .map(|listener| self::listener(&listener, uptime))
                .collect::<Result<_, _>>()?,
            incomplete: reply.incomplete || cut,
        })
    }
}

fn listener(found: &proto::Listener, uptime_ms: u64) -> Result<Listener, AgentError> {
    let wrong = |what| AgentError::Protocol {
        method: "listening",
        what,
    };
    let transport = match found.transport() {
        proto::Transport::Tcp => Transport::Tcp,
        proto::Transport::Udp => Transport::Udp,
        proto::Transport::Unspecified => return Err(wrong("an unknown transport")),
    };
    let address = found
        .address
        .parse()
        .map_err(|_| wrong("an address that is none"))?;
    let port = u16::try_from(found.port).unwrap_or_default();
    if port == 0 {
        return Err(wrong("a port that is none"));
    }
    let pid = Some(found.pid).filter(|pid| *pid != 0);
    Ok(Listener {
        transport,
        address,
        port,
        pid,
        process: printable(&found.process),
        command: printable(&found.command),
        age: pid.map(|_| Duration::from_millis(uptime_ms.saturating_sub(found.started_ms))),
    })
}

fn protocol(what: &'static str) -> AgentError {
    AgentError::Protocol { method: METHOD, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(transport: i32, address: &str, port: u32) -> proto::Listener {
        proto::Listener {
            transport,
            address: address.to_owned(),
            port,
            pid: 7,
            process: "a\u{1b}b".to_owned(),
            command: "x\ny".to_owned(),
            started_ms: 4_000,
        }
    }

    #[test]
    fn a_guests_word_is_bounded() {
        let reply = proto::ListeningReply {
            listeners: vec![found(1, "::", 80); 200],
            incomplete: false,
            uptime_ms: 10_000,
        };
        let listening = Listening::try_from(reply).expect("cut to size");
        assert_eq!((listening.listeners.len(), listening.incomplete), (128, true));
        let first = &listening.listeners[0];
        assert_eq!((first.process.as_str(), first.command.as_str()), ("a b", "x y"));
        assert_eq!(first.age, Some(Duration::from_secs(6)));
    }

    proptest! {
        #[test]
        fn only_ports_are_ports(transport in 0..4, address in "(::1|10\\.0\\.0\\.1|[ -~]{0,9})", port in 0..70_000_u32, uptime: u64) {
            let taken = listener(&found(transport, &address, port), uptime).is_ok();
            let whole = (transport == 1 || transport == 2)
                && address.parse::<IpAddr>().is_ok()
                && (1..=65_535).contains(&port);
            prop_assert_eq!(taken, whole);
        }
    }
}
