//! Connections to a published port, each carried to the guest and back.
//!
//! Half a connection that ends does so on the other side too, and one that is reset is reset there: nobody takes a part
//! for the whole. Backpressure is that of the sockets and of the agent's stream; nothing is kept here but one chunk each
//! way.
//!
//! ```text
//! both ways ──the guest ends its half──► into the guest alone ──the client ends its half──► until the guest lets go
//! ```
//!
//! All three are watched for what makes the connection one no more: a reset by either side, a client whose host is gone
//! (keep-alive, tcp(7)), and in the last a guest that does not take what was sent.

use std::io;
use std::pin::pin;
use std::time::Duration;

use banger_agent_api::{AgentError, ForwardClosed, ForwardInput, ForwardOutput, Transport};
use bytes::{BufMut, BytesMut};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Guest, tell};

/// Bytes on their way into the guest at a time.
const CHUNK: usize = 64 * 1024;

/// For the guest's port to be connected: the agent gives it ten seconds, and a guest may be slow.
const CONNECTING: Duration = Duration::from_secs(30);

/// For the guest's port to take what was sent, once both sides have ended; as long as the kernel keeps a connection in the
/// same state that nobody holds any more (`tcp_fin_timeout`, tcp(7)).
const LINGERING: Duration = Duration::from_secs(60);

/// A client is asked whether it is there after a minute of silence, then every ten seconds, six times: one whose host has
/// gone holds its connection for two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 6;

/// After a failed accept: out of descriptors, most likely, and others may close some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped, which resets what is under way.
pub(super) async fn serve(listener: TcpListener, port: u16, guest: Guest) {
    let mut connections = JoinSet::new();
    loop {
        // Before the connection is taken, so that those beyond the limit wait in the kernel's queue. Never closed.
        let Ok(permit) = guest.connections.clone().acquire_owned().await else {
            return;
        };
        let accepted = loop {
            tokio::select! {
                // Both are cancel-safe: a connection is taken, and an ended task reaped, only by the arm that wins.
                accepted = listener.accept() => break accepted,
                Some(_ended) = connections.join_next() => {}
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let agent = guest.agent.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    let mut stream = Resetting(Some(stream));
                    let connecting = agent.forward(Transport::Tcp, None, port);
                    let ended = match tokio::time::timeout(CONNECTING, connecting).await {
                        Ok(Ok((input, output))) => stream.carry(input, output, LINGERING).await,
                        Ok(Err(error)) => Err(CarryError::Guest(error)),
                        Err(_elapsed) => Err(CarryError::Silent),
                    };
                    if let Err(error) = ended {
                        tell(port, &error);
                    }
                });
            }
            Err(error) => {
                tracing::warn!(port, %error, "no connection taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Why a connection did not end in order.
#[derive(Debug, thiserror::Error)]
pub(super) enum CarryError {
    #[error("carry bytes of the host's side")]
    Host(#[source] io::Error),
    #[error("carry bytes of the guest's side")]
    Guest(#[source] AgentError),
    #[error("connect to the guest's port within {} s", CONNECTING.as_secs())]
    Silent,
    #[error("hand over all that was sent: the guest has let go of the connection before its end")]
    Refused,
    #[error("hand over all that was sent: the guest's port does not read")]
    Unread,
}

/// A connection that is reset when it is dropped before it has ended in order.
pub(super) struct Resetting(pub(super) Option<TcpStream>);

impl Drop for Resetting {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // One that its other side has reset refuses, and needs none.
            let _reset_already = stream.set_zero_linger();
        }
    }
}

/// How the way into the guest has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// With the client's half, all of which is on its way.
    All,
    /// The guest takes no more. Why, it says on its own half.
    Part,
}

impl Resetting {
    /// Carries a connection to its end. The guest has `lingering` to take what was sent after both sides have ended.
    pub(super) async fn carry(
        &mut self,
        input: ForwardInput,
        output: ForwardOutput,
        lingering: Duration,
    ) -> Result<(), CarryError> {
        let Some(stream) = &mut self.0 else { return Ok(()) };
        carry_both(stream, input, output, lingering).await?;
        // Both sides have ended: what is left to send the kernel sends after the close.
        self.0 = None;
        Ok(())
    }
}

async fn carry_both(
    stream: &mut TcpStream,
    input: ForwardInput,
    mut output: ForwardOutput,
    lingering: Duration,
) -> Result<(), CarryError> {
    stream.set_nodelay(true).map_err(CarryError::Host)?;
    keep_alive(stream).map_err(CarryError::Host)?;
    let (reader, writer) = stream.split();
    let mut sending = pin!(into_guest(&reader, input));
    let mut sent = None;
    {
        let mut receiving = pin!(out_of_guest(writer, &mut output));
        loop {
            tokio::select! {
                // Neither is dropped when the other is first.
                ended = &mut sending, if sent.is_none() => sent = Some(ended?),
                ended = &mut receiving => break ended?,
                // A client that resets after its end, while the guest is silent: nobody reads there any more.
                error = broken(&reader), if sent.is_some() => return Err(CarryError::Host(error)),
            }
        }
    }
    // Letting go of this half ends the call, so it is kept until the guest says that the other has ended as well.
    let mut closing = pin!(output.closed());
    let sent = match sent {
        Some(sent) => sent,
        None => tokio::select! {
            // In this order, because the guest answers the end of what is sent by closing.
            biased;
            ended = &mut sending => ended?,
            // A port that has closed both its halves and then resets what comes.
            closed = &mut closing => {
                return Err(closed.map_or_else(CarryError::Guest, |()| CarryError::Refused));
            }
        },
    };
    match tokio::time::timeout(lingering, closing).await {
        Ok(closed) => closed.map_err(CarryError::Guest)?,
        Err(_elapsed) => return Err(CarryError::Unread),
    }
    match sent {
        Sent::All => Ok(()),
        Sent::Part => Err(CarryError::Refused),
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    Ok(set_socket_keepalive(stream, true)?)
}

async fn into_guest(reader: &ReadHalf<'_>, input: ForwardInput) -> Result<Sent, CarryError> {
    let mut buffer = BytesMut::new();
    loop {
        reader.readable().await.map_err(CarryError::Host)?;
        if buffer.capacity() - buffer.len() < CHUNK / 2 {
            buffer.reserve(CHUNK);
        }
        match reader.try_read_buf(&mut (&mut buffer).limit(CHUNK)) {
            Ok(0) => {
                return tokio::select! {
                    finished = input.finish() => Ok(match finished {
                        Ok(()) => Sent::All,
                        Err(ForwardClosed) => Sent::Part,
                    }),
                    error = broken(reader) => Err(CarryError::Host(error)),
                };
            }
            Ok(_length) => tokio::select! {
                sent = input.send(buffer.split().freeze()) => if let Err(ForwardClosed) = sent {
                    return Ok(Sent::Part);
                },
                // A client that resets while the guest does not read: what is dropped half-sent nobody waits for.
                error = broken(reader) => return Err(CarryError::Host(error)),
            },
            // An idle connection has no buffer.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer = BytesMut::new(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CarryError::Host(error)),
        }
    }
}

/// Waits until the kernel has given the connection up, and says why. Cancel-safe.
async fn broken(reader: &ReadHalf<'_>) -> io::Error {
    let stream: &TcpStream = reader.as_ref();
    match stream
        .ready(Interest::ERROR)
        .await
        .and_then(|_| stream.take_error())
    {
        Ok(Some(error)) | Err(error) => error,
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
    }
}

async fn out_of_guest(mut writer: WriteHalf<'_>, output: &mut ForwardOutput) -> Result<(), CarryError> {
    while let Some(bytes) = output.next().await.map_err(CarryError::Guest)? {
        writer.write_all(&bytes).await.map_err(CarryError::Host)?;
    }
    match writer.shutdown().await {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(CarryError::Host(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
