//! JSON-RPC 2.0 (<https://www.jsonrpc.org/specification>) over a Unix socket, one document a line. Bounded everywhere: a
//! client that is slow, dead or hostile costs a connection of its own and harms nobody else.
//!
//! ```text
//! Server::serve (accepts)
//!   └─ one task a connection   checks the peer's credentials, reads lines, refuses or starts requests
//!        ├─ its writer         the only one that writes; fed by a bounded queue; gives up on a client that does not read
//!        └─ one task a request runs the service, queues the answer; goes on when the client has gone away
//! ```
//!
//! A subscription's task lives as long as its client; a stream is served by the connection's own task. What the methods
//! do is the [`Service`]'s affair.
//!
//! Beyond the specification: parameters are passed by name only; subscriptions and streams are refused within a batch
//! and without an id; unknown members of a request are refused. Notifications of a subscription are
//! `{"jsonrpc":"2.0","method":METHOD,"params":{"subscription":ID, …}}` with one of `"result":EVENT`, `"error":ERROR` (the
//! last) or `"end":true` (the last). A subscription is given up by closing the connection.

mod connection;
mod openrpc;
mod outcome;
mod params;
mod peer;
mod request;
mod socket;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::contract::Service;
use crate::error::{ErrorKind, RpcError};

pub(crate) use openrpc::OpenRpc;
pub(crate) use outcome::{Outcome, answer, boxed, subscription};
pub(crate) use params::{parse_params, unknown_method};
pub use peer::Access;
pub use socket::{BindError, BoundSocket, MAX_SOCKET_PATH, bind};

/// Bounds of a server. The defaults are the product's; tests make them smaller.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Requests at work on one connection, subscriptions among them.
    pub in_flight: usize,
    /// Requests in one batch.
    pub batch: usize,
    /// Longest line in bytes.
    pub line: usize,
    /// Bytes of an oversized line that are skipped before the connection is closed.
    pub skip: usize,
    /// How long a client may leave an answer unread.
    pub stall: Duration,
    /// How long calls and streams may go on after the server was told to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            in_flight: 64,
            batch: 64,
            line: 1 << 20,
            skip: 16 << 20,
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves a [`Service`] on a Unix socket.
#[derive(Debug, Clone)]
pub struct Server {
    access: Access,
    limits: Limits,
}

/// What all connections share.
struct Shared<S> {
    service: Arc<S>,
    access: Access,
    limits: Limits,
    /// Set when the server was told to stop: nothing new is begun.
    stopping: CancellationToken,
    /// Calls at work. They go on when their client goes away.
    calls: TaskTracker,
}

/// Pause after a failed accept, for example when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Time for what is left to notice that it was dropped, once the drain time is over.
const LAST_CALL: Duration = Duration::from_millis(500);

impl Server {
    /// A server that lets in whom `access` allows.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self {
            access,
            limits: Limits::default(),
        }
    }

    /// Other bounds than the default ones.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves until `shutdown` is ready, then ends in order: accepts no more, begins nothing new, lets calls at work
    /// and streams end within [`Limits::drain`], closes every connection.
    pub async fn serve<S: Service>(
        self,
        listener: UnixListener,
        service: Arc<S>,
        shutdown: impl Future<Output = ()>,
    ) {
        let drain = self.limits.drain;
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        let shared = Arc::new(Shared {
            service,
            access: self.access,
            limits: self.limits,
            stopping: CancellationToken::new(),
            calls: TaskTracker::new(),
        });
        let connections = TaskTracker::new();
        let give_up = CancellationToken::new();
        tokio::pin!(shutdown);
        loop {
            // Cancel-safe: an accept that is dropped leaves the connection in the backlog.
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                turn_away(
                    &stream,
                    RpcError::new(ErrorKind::Busy, "the daemon has too many connections"),
                );
                continue;
            };
            let shared = Arc::clone(&shared);
            let give_up = give_up.clone();
            connections.spawn(async move {
                // Dropping a connection is how it is given up; nothing is half-written that anybody waits for.
                tokio::select! {
                    () = connection::serve(shared, stream) => {}
                    () = give_up.cancelled() => {}
                }
                drop(slot);
            });
        }

        drop(listener);
        shared.stopping.cancel();
        connections.close();
        shared.calls.close();
        let drained = tokio::time::timeout(drain, async {
            connections.wait().await;
            shared.calls.wait().await;
        });
        if drained.await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                calls = shared.calls.len(),
                "stopping without waiting for these any longer"
            );
            give_up.cancel();
            // Bounded: a task that does not yield cannot hold up the daemon's end.
            if tokio::time::timeout(LAST_CALL, connections.wait()).await.is_err() {
                tracing::warn!(connections = connections.len(), "connections did not end");
            }
        }
    }
}

/// Answers a connection that will not be served, as far as that goes without waiting, and closes it.
fn turn_away(stream: &UnixStream, error: RpcError) {
    let line = request::Refusal::new(request::Id::null(), error).into_line();
    if let Err(error) = stream.try_write(&line) {
        tracing::debug!(%error, "cannot tell a client why it is turned away");
    }
}

/// What a request gets when the daemon stops underneath it.
fn stopping() -> RpcError {
    RpcError::new(ErrorKind::Busy, "the daemon is stopping")
        .hint("try again: the next command starts it anew")
}

#[cfg(test)]
mod tests;
