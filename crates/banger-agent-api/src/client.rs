//! [`AgentClient`]: calls to one guest's agent.
//!
//! Connects at the first call and again by itself whenever the connection has broken. Unary calls have deadlines;
//! streams have none, but HTTP/2 pings find a dead guest while (and only while) a stream is open, so an idle daemon is
//! never woken.

use crate::dial::dial;
use crate::error::AgentError;
use crate::exec::{ExecInput, ExecOutput, start_exec};
use crate::figures::{BootState, DiskRole, DiskSizes, GuestStats};
use crate::forward::{ForwardInput, ForwardOutput, Listening, Transport, start_forward};
use crate::info::{AgentInfo, is_word};
use crate::proto;
use crate::proto::agent_client::AgentClient as Rpc;
use crate::session::{SessionOutput, follow_session, start_session};
use crate::ssh::{SshInput, SshOutput, start_ssh};
use crate::transfer::{Download, Upload, start_download, start_upload};
use crate::version::{MIN_PROTOCOL_VERSION, PROTOCOL_VERSION};
use crate::{
    AGENT_PORT, CONNECTION_WINDOW, MAX_FRAME, MAX_REPLY_MESSAGE, MAX_REQUEST_MESSAGE, STREAM_WINDOW,
};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// One attempt to connect. A guest without KVM can take seconds to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Beyond the time that [`AgentClient::wait_booted`] gives the guest.
const BOOTED_GRACE: Duration = Duration::from_secs(10);

/// Between attempts of [`AgentClient::hello`].
const HELLO_RETRY: Duration = Duration::from_millis(20);

/// A ping this often while a stream is open, and the connection counts as dead when no answer comes this long.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Most a guest may send as headers or trailers, in bytes: statuses with texts of up to 1 KiB, twice encoded.
const MAX_HEADERS: u32 = 16 * 1024;

/// Calls to one guest's agent. Clones share one connection.
#[derive(Debug, Clone)]
pub struct AgentClient {
    rpc: Rpc<Channel>,
}

impl AgentClient {
    /// A client for the guest behind the hybrid-vsock Unix socket `socket`. Nothing is connected yet.
    ///
    /// Must be called within a tokio runtime: the connection gets a task there.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        let socket: Arc<Path> = Arc::from(socket);
        Self::with_connector(move || {
            let socket = Arc::clone(&socket);
            async move { dial(&socket, AGENT_PORT, DIAL_TIMEOUT).await }
        })
    }

    /// A client for an agent which serves on a plain Unix socket (`banger-agent serve --unix PATH`): for debugging and
    /// tests.
    #[must_use]
    pub fn for_plain_socket(socket: &Path) -> Self {
        let socket: Arc<Path> = Arc::from(socket);
        Self::with_connector(move || {
            let socket = Arc::clone(&socket);
            async move {
                tokio::net::UnixStream::connect(&socket)
                    .await
                    .map_err(|source| crate::DialError::Connect {
                        path: PathBuf::from(&*socket),
                        source,
                    })
            }
        })
    }

    fn with_connector<C, F>(connect: C) -> Self
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<tokio::net::UnixStream, crate::DialError>> + Send + 'static,
    {
        // The authority is never resolved; HTTP/2 wants one.
        let channel = Endpoint::from_static("http://guest.invalid")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(false)
            .connect_with_connector_lazy(tower::service_fn(move |_uri| {
                let connecting = connect();
                async move { connecting.await.map(TokioIo::new) }
            }));
        let rpc = Rpc::new(channel)
            .max_decoding_message_size(MAX_REPLY_MESSAGE)
            .max_encoding_message_size(MAX_REQUEST_MESSAGE);
        Self { rpc }
    }

    /// The version handshake. Tries again until `deadline` has passed while the guest does not listen yet or resets
    /// the connection, as it may right after its hello line or a snapshot's restore.
    ///
    /// # Errors
    ///
    /// [`AgentError::Incompatible`] where there is no common protocol version; otherwise the last attempt's error.
    pub async fn hello(&self, deadline: Duration) -> Result<AgentInfo, AgentError> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.hello_once(left).await {
                Ok(info) => return Ok(info),
                Err(error) => error,
            };
            let again = error.is_retriable() || error.is_broken();
            if !again || Instant::now() + HELLO_RETRY >= end {
                return Err(error);
            }
            tokio::time::sleep(HELLO_RETRY).await;
        }
    }

    async fn hello_once(&self, deadline: Duration) -> Result<AgentInfo, AgentError> {
        let request = proto::HelloRequest {
            protocol_version: PROTOCOL_VERSION,
            min_protocol_version: MIN_PROTOCOL_VERSION,
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut rpc = self.rpc.clone();
        let reply = unary("hello", deadline, rpc.hello(request)).await?;
        let init_mode = reply.init_mode().into();
        let info = AgentInfo {
            protocol_version: reply.protocol_version,
            min_protocol_version: reply.min_protocol_version,
            agent_version: word("agent version", reply.agent_version)?,
            kernel_release: word("kernel release", reply.kernel_release)?,
            boot_id: word("boot id", reply.boot_id)?,
            init_mode,
        };
        info.negotiated().map_err(AgentError::Incompatible)
    }

    /// Asks for a sign of life; gives back how long the guest's kernel has been up.
    ///
    /// # Errors
    ///
    /// No connection, or no answer within `deadline`.
    pub async fn ping(&self, deadline: Duration) -> Result<Duration, AgentError> {
        let mut rpc = self.rpc.clone();
        let reply = unary("ping", deadline, rpc.ping(proto::PingRequest {})).await?;
        Ok(Duration::from_millis(reply.uptime_ms))
    }

    /// Starts a command and waits until it runs (or cannot).
    ///
    /// Dropping the [`ExecOutput`] ends the command: SIGHUP to its process group, then SIGKILL. Dropping the
    /// [`ExecInput`] only ends its standard input.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] with the reason why the command could not be started, or no connection.
    pub async fn exec(&self, start: proto::ExecStart) -> Result<(ExecInput, ExecOutput), AgentError> {
        start_exec(self.rpc.clone(), start).await
    }

    /// Begins to unpack a tar stream in the guest.
    ///
    /// Must be called within a tokio runtime. Errors come from [`Upload::send`] and [`Upload::finish`].
    #[must_use]
    pub fn upload(&self, start: proto::UploadStart) -> Upload {
        start_upload(self.rpc.clone(), start)
    }

    /// Begins to pack a file or tree of the guest into a tar stream, and waits for its description.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] with the reason why it cannot be read, or no connection.
    pub async fn download(&self, request: proto::DownloadRequest) -> Result<Download, AgentError> {
        start_download(self.rpc.clone(), request).await
    }

    /// Connects to a port from inside the guest: `address` there, or without one its loopback. Waits until it is
    /// connected, or cannot be, for at most some ten seconds.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] with [`FailureKind::Refused`](crate::FailureKind::Refused) where nothing listens,
    /// `Unreachable`, `TimedOut`, or `Busy` when [`MAX_FORWARDS`](crate::MAX_FORWARDS) are connected already, or
    /// [`MAX_FLOWS`](crate::MAX_FLOWS) of datagrams; [`AgentError::Unsupported`] by an agent of release 0.2; no connection.
    pub async fn forward(
        &self,
        transport: Transport,
        address: Option<IpAddr>,
        port: u16,
    ) -> Result<(ForwardInput, ForwardOutput), AgentError> {
        start_forward(self.rpc.clone(), transport, address, port).await
    }

    /// What listens in the guest.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unsupported`] by an agent of release 0.2; no connection, or no answer within `deadline`.
    pub async fn listening(&self, deadline: Duration) -> Result<Listening, AgentError> {
        let mut rpc = self.rpc.clone();
        unary("listening", deadline, rpc.listening(proto::ListeningRequest {}))
            .await?
            .try_into()
    }

    /// Begins an ssh connection to the image's sshd, and waits until that was started.
    ///
    /// Dropping either half closes the connection.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] with the reason why there is no sshd, [`AgentError::Unsupported`] by an agent of an older
    /// release, or no connection.
    pub async fn ssh(&self, start: proto::SshStart) -> Result<(SshInput, SshOutput), AgentError> {
        start_ssh(self.rpc.clone(), start).await
    }

    /// Starts a session, a command that belongs to no connection; its process id. It gets neither standard input nor a
    /// terminal. The id is the caller's choice: 1 to [`MAX_SESSION_ID`](crate::MAX_SESSION_ID) of a-z, 0-9 and `-`.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] as for [`exec`](Self::exec), and where the id is taken or there are too many;
    /// [`AgentError::Unsupported`] by an agent of an older release; no connection, or no answer within `deadline`.
    pub async fn session_start(
        &self,
        id: &str,
        command: proto::ExecStart,
        deadline: Duration,
    ) -> Result<u32, AgentError> {
        start_session(self.rpc.clone(), id, command, deadline).await
    }

    /// What a session has written after its first `offset` bytes, and what it writes from now on, until it ends.
    ///
    /// # Errors
    ///
    /// [`FailureKind::NoSuchSession`](crate::FailureKind::NoSuchSession), [`AgentError::Unsupported`], or no connection.
    pub async fn session_follow(&self, id: &str, offset: u64) -> Result<SessionOutput, AgentError> {
        follow_session(self.rpc.clone(), id, offset).await
    }

    /// Sends a signal (1 to 64, Linux numbers) to a session's process group.
    ///
    /// # Errors
    ///
    /// [`FailureKind::NoSuchCommand`](crate::FailureKind::NoSuchCommand) where it has ended, `NoSuchSession`; no
    /// connection, or no answer within `deadline`.
    pub async fn session_signal(&self, id: &str, number: u8, deadline: Duration) -> Result<(), AgentError> {
        let request = proto::SessionSignalRequest {
            id: id.to_owned(),
            number: number.into(),
        };
        let mut rpc = self.rpc.clone();
        unary("session signal", deadline, rpc.session_signal(request)).await?;
        Ok(())
    }

    /// Makes the guest forget a session that has ended.
    ///
    /// # Errors
    ///
    /// [`FailureKind::SessionRuns`](crate::FailureKind::SessionRuns) where it has not, `NoSuchSession`; no connection, or
    /// no answer within `deadline`.
    pub async fn session_remove(&self, id: &str, deadline: Duration) -> Result<(), AgentError> {
        let request = proto::SessionRemoveRequest { id: id.to_owned() };
        let mut rpc = self.rpc.clone();
        unary("session remove", deadline, rpc.session_remove(request)).await?;
        Ok(())
    }

    /// Figures of the guest as a whole.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unsupported`] by an agent of release 0.1; no connection, or no answer within `deadline`.
    pub async fn stats(&self, deadline: Duration) -> Result<GuestStats, AgentError> {
        let mut rpc = self.rpc.clone();
        unary("stats", deadline, rpc.stats(proto::StatsRequest {}))
            .await?
            .try_into()
    }

    /// Grows the file system of a disk whose device has just been given `device_size` bytes by the host. One that fills
    /// its device already is left alone.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] when the guest has no such disk, does not see its new size within seconds, or its kernel
    /// refuses; [`AgentError::Unsupported`] by an agent of release 0.1; no connection, or no answer within `deadline`.
    pub async fn grow_disk(
        &self,
        role: DiskRole,
        device_size: u64,
        deadline: Duration,
    ) -> Result<DiskSizes, AgentError> {
        let request = proto::GrowDiskRequest {
            role: proto::DiskRole::from(role).into(),
            device_size,
        };
        let mut rpc = self.rpc.clone();
        let reply = unary("grow disk", deadline, rpc.grow_disk(request)).await?;
        Ok(DiskSizes {
            file_system: reply.file_system_size,
            device: reply.device_size,
        })
    }

    /// Waits until the guest's init has started everything, for at most `timeout`; how far it has come otherwise.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unsupported`] by an agent of release 0.1; no connection, or no answer even
    /// some seconds after `timeout`.
    pub async fn wait_booted(&self, timeout: Duration) -> Result<BootState, AgentError> {
        let request = proto::WaitBootedRequest {
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        };
        let mut rpc = self.rpc.clone();
        let deadline = timeout.saturating_add(BOOTED_GRACE);
        let reply = unary("wait booted", deadline, rpc.wait_booted(request)).await?;
        Ok(reply.state().into())
    }

    /// Ends the guest's processes, writes everything to its system disk and freezes the file system there, for at most
    /// `limit` (at most 1 h).
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] where the agent is not the guest's init, or the kernel refuses; [`AgentError::Unsupported`] by
    /// an older agent; no connection, or no answer within `deadline`.
    pub async fn settle(&self, limit: Duration, deadline: Duration) -> Result<(), AgentError> {
        let request = proto::SettleRequest {
            limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        };
        let mut rpc = self.rpc.clone();
        unary("settle", deadline, rpc.settle(request))
            .await
            .map(|proto::SettleReply {}| ())
    }

    /// Undoes [`Self::settle`]'s freezing.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unsupported`] by an older agent; no connection, or no answer within `deadline`.
    pub async fn thaw(&self, deadline: Duration) -> Result<(), AgentError> {
        let mut rpc = self.rpc.clone();
        unary("thaw", deadline, rpc.thaw(proto::ThawRequest {}))
            .await
            .map(|proto::ThawReply {}| ())
    }

    /// Asks the guest to reboot, which ends its VMM; gives it `graceful` to do so in order, or none for at once.
    /// Returns when the agent has begun; the end is the VMM's exit.
    ///
    /// # Errors
    ///
    /// No connection, or no answer within `deadline`.
    pub async fn shutdown(&self, graceful: Option<Duration>, deadline: Duration) -> Result<(), AgentError> {
        let request = match graceful {
            Some(limit) => proto::ShutdownRequest {
                mode: proto::ShutdownMode::Graceful.into(),
                deadline_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            },
            None => proto::ShutdownRequest {
                mode: proto::ShutdownMode::Immediate.into(),
                deadline_ms: 0,
            },
        };
        let mut rpc = self.rpc.clone();
        unary("shutdown", deadline, rpc.shutdown(request))
            .await
            .map(|proto::ShutdownReply {}| ())
    }
}

/// Awaits a unary call for at most `deadline`.
pub(crate) async fn unary<T>(
    method: &'static str,
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(AgentError::from_status(method, status)),
        Err(_elapsed) => Err(AgentError::DeadlineExceeded {
            method,
            after: deadline,
        }),
    }
}

/// Takes a word from the guest's hello if it can be shown on a terminal and stored.
fn word(what: &'static str, text: String) -> Result<String, AgentError> {
    if is_word(&text) {
        Ok(text)
    } else {
        Err(AgentError::Protocol {
            method: "hello",
            what,
        })
    }
}
