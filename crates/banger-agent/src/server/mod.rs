//! The gRPC server: HTTP/2 on whatever connections come, one task for each.
//!
//! hyper's HTTP/2 server is used directly: tonic's own transport brings HTTP/1 and a router along, which a static
//! binary in an initramfs can do without.
//!
//! Long-lived tasks: one accepting connections, one for each connection (hyper spawns one for each of its streams), one
//! for each command ([`crate::exec`]) and each forwarded connection ([`forward`]), one blocking thread for each transfer ([`crate::transfer`]).

mod booted;
mod disks;
mod figures;
mod forward;
mod listening;
mod power;
mod service;
mod settle;

pub(crate) use service::{Context, Role};

use crate::log;
use banger_agent_api::proto::agent_server::AgentServer;
use banger_agent_api::{
    CONNECTION_WINDOW, MAX_CHUNK, MAX_FLOWS, MAX_FORWARDS, MAX_FRAME, MAX_REQUEST_MESSAGE, MAX_STREAMS,
    STREAM_WINDOW,
};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

/// Connections at a time. The daemon keeps one.
const MAX_CONNECTIONS: usize = 64;

/// Bytes which hyper may hold for one stream whose reader has stopped.
const SEND_BUFFER: usize = 64 * 1024;

/// Headers of one request, in bytes.
const MAX_HEADERS: u32 = 16 * 1024;

/// After a failed accept (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from: vsock in a guest, a Unix socket for debugging and tests.
pub(crate) trait Listener {
    /// A byte stream.
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection which may call the agent.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Connection>>;
}

/// Serves until the process ends. When `end` resolves, a process of the guest wants the machine's end.
pub(crate) async fn serve(
    mut listener: impl Listener,
    context: Context,
    end: impl Future<Output = io::Result<()>> + Send + 'static,
) {
    let service = service::Service::new(context);
    tokio::spawn(service.shut_down_after(end));
    let service = AgentServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_MESSAGE)
        .max_encoding_message_size(MAX_CHUNK * 2);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            // Only a closed semaphore fails, and nobody closes this one.
            return;
        };
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                log::line(format_args!("failed to accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // A connection that breaks has nobody left to tell.
            let _broken = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                // Commands, forwards and transfers are limited by name in the service; the rest is for unary calls.
                .max_concurrent_streams(2 * MAX_STREAMS + MAX_FORWARDS + MAX_FLOWS)
                // A client may drop many calls at once without being taken for an attacker.
                .max_pending_accept_reset_streams(Some(2 * MAX_STREAMS as usize))
                .max_frame_size(MAX_FRAME)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(MAX_HEADERS)
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}
