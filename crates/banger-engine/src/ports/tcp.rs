//! Connections to a published port, each carried to the guest and back.
//!
//! Half a connection that ends does so on the other side too, and one that is reset is reset there: nobody takes a part
//! for the whole. Backpressure is that of the sockets and of the agent's stream; nothing is kept here but one chunk each
//! way.

use std::io;
use std::time::Duration;

use banger_agent_api::{AgentError, ForwardClosed, ForwardInput, ForwardOutput, Transport};
use bytes::{BufMut, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Guest, tell};

/// Bytes on their way into the guest at a time.
const CHUNK: usize = 64 * 1024;

/// For the guest's port to be connected: the agent gives it ten seconds, and a guest may be slow.
const CONNECTING: Duration = Duration::from_secs(30);

/// After a failed accept: out of descriptors, most likely, and others may close some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped, which resets what is under way.
pub(super) async fn serve(listener: TcpListener, port: u16, guest: Guest) {
    let mut connections = JoinSet::new();
    loop {
        // Before the connection is taken, so that those beyond the limit wait in the kernel's queue. Never closed.
        let Ok(permit) = guest.permits.clone().acquire_owned().await else {
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
                        Ok(Ok((input, output))) => stream.carry(input, output).await,
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
enum CarryError {
    #[error("carry bytes of the host's side")]
    Host(#[source] io::Error),
    #[error("carry bytes of the guest's side")]
    Guest(#[source] AgentError),
    #[error("connect to the guest's port within {} s", CONNECTING.as_secs())]
    Silent,
}

/// A connection that is reset when it is dropped before it has ended in order.
struct Resetting(Option<TcpStream>);

impl Drop for Resetting {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // One that its other side has reset refuses, and needs none.
            let _reset_already = stream.set_zero_linger();
        }
    }
}

impl Resetting {
    async fn carry(&mut self, input: ForwardInput, mut output: ForwardOutput) -> Result<(), CarryError> {
        let Some(stream) = &mut self.0 else { return Ok(()) };
        stream.set_nodelay(true).map_err(CarryError::Host)?;
        let (reader, writer) = stream.split();
        // Its half may end long before the other: it is kept until both have, since letting go of it ends the call.
        tokio::try_join!(into_guest(reader, input), out_of_guest(writer, &mut output))?;
        // What was sent may be on its way still.
        output.closed().await.map_err(CarryError::Guest)?;
        // Both sides have ended: what is left to send the kernel sends after the close.
        self.0 = None;
        Ok(())
    }
}

async fn into_guest(reader: ReadHalf<'_>, input: ForwardInput) -> Result<(), CarryError> {
    let mut buffer = BytesMut::new();
    loop {
        reader.readable().await.map_err(CarryError::Host)?;
        if buffer.capacity() - buffer.len() < CHUNK / 2 {
            buffer.reserve(CHUNK);
        }
        // A guest that takes no more says why, or what else it has to say, on its own half.
        match reader.try_read_buf(&mut (&mut buffer).limit(CHUNK)) {
            Ok(0) => {
                let _ended_before = input.finish().await;
                return Ok(());
            }
            Ok(_length) => {
                if let Err(ForwardClosed) = input.send(buffer.split().freeze()).await {
                    return Ok(());
                }
            }
            // An idle connection has no buffer.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer = BytesMut::new(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CarryError::Host(error)),
        }
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
