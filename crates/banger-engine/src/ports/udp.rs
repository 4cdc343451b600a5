//! Datagrams to a published port. Whoever sends gets a flow of their own into the guest, with a port of its own there, so
//! that answers find their way back; a flow without traffic ends.
//!
//! What cannot be taken at once is lost, as datagrams are: a queue of a few for each flow, and no more flows than the
//! machine may have.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{AgentClient, AgentError, MAX_DATAGRAM, Transport};
use bytes::{Bytes, BytesMut};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Guest, tell};

/// A flow ends after this long without a datagram either way.
const IDLE: Duration = Duration::from_secs(60);

/// Datagrams that wait for one flow's way into the guest, while it is being made above all.
const QUEUE: usize = 32;

/// For a flow to be there.
const CONNECTING: Duration = Duration::from_secs(30);

/// After a failed receive.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub(super) async fn serve(socket: UdpSocket, port: u16, guest: Guest) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MAX_DATAGRAM);
        let received = tokio::select! {
            // Both are cancel-safe: a datagram is taken, and an ended flow reaped, only by the arm that wins.
            received = socket.recv_buf_from(&mut buffer) => received,
            Some(ended) = tasks.join_next() => {
                // One that has been replaced meanwhile has another's way in.
                if let Ok(from) = ended && flows.get(&from).is_some_and(mpsc::Sender::is_closed) {
                    flows.remove(&from);
                }
                continue;
            }
        };
        let from = match received {
            Ok((_length, from)) => from,
            // What came of an answer that nobody took is told here (udp(7)), and is no reason to stop.
            Err(error) => {
                tracing::debug!(port, %error, "no datagram taken");
                if error.kind() != std::io::ErrorKind::ConnectionRefused {
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
        };
        let datagram = buffer.split().freeze();
        let known = flows.get(&from).filter(|flow| !flow.is_closed());
        if let Some(flow) = known {
            // A full queue loses it.
            let _lost = flow.try_send(datagram);
            continue;
        }
        let Ok(permit) = guest.permits.clone().try_acquire_owned() else {
            continue;
        };
        let (way_in, waiting) = mpsc::channel(QUEUE);
        // The queue is empty.
        let _sent = way_in.try_send(datagram);
        flows.insert(from, way_in);
        let flow = Flow {
            agent: guest.agent.clone(),
            socket: socket.clone(),
            from,
            port,
        };
        tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = flow.carry(waiting).await {
                tell(port, &error);
            }
            from
        });
    }
}

/// One sender's datagrams.
struct Flow {
    agent: AgentClient,
    socket: Arc<UdpSocket>,
    from: SocketAddr,
    port: u16,
}

impl Flow {
    async fn carry(&self, mut waiting: mpsc::Receiver<Bytes>) -> Result<(), AgentError> {
        let connecting = self.agent.forward(Transport::Udp, None, self.port);
        let (input, mut output) = match tokio::time::timeout(CONNECTING, connecting).await {
            Ok(connected) => connected?,
            Err(after) => {
                tracing::debug!(port = self.port, %after, "no way into the guest for a datagram");
                return Ok(());
            }
        };
        let mut idle = Instant::now() + IDLE;
        loop {
            tokio::select! {
                // All are cancel-safe: what is taken, here or from the guest, is what the arm that wins has.
                datagram = waiting.recv() => match datagram {
                    Some(datagram) => if input.datagram(datagram).await.is_err() {
                        return Ok(());
                    },
                    None => return Ok(()),
                },
                answer = output.next() => match answer? {
                    // One that the sender does not take is lost.
                    Some(answer) => { let _lost = self.socket.send_to(&answer, self.from).await; }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(idle) => {
                    let _ended_before = input.finish().await;
                    return Ok(());
                }
            }
            idle = Instant::now() + IDLE;
        }
    }
}
