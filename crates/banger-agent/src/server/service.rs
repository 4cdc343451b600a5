//! The calls: validate, convert, delegate.

use super::figures::Figures;
use super::settle::Settled;
use super::{booted, disks, forward, listening, power};
use crate::boot::Disks;
use crate::session::Sessions;
use crate::{exec, log, ssh, transfer};
use banger_agent_api::proto::agent_server::Agent;
use banger_agent_api::proto::exec_input::Input as ExecIn;
use banger_agent_api::proto::forward_input::Input as ForwardIn;
use banger_agent_api::proto::ssh_input::Input as SshIn;
use banger_agent_api::proto::upload_input::Input as UploadIn;
use banger_agent_api::proto::{self, ExecInput, ShutdownMode, Transport, UploadInput};
use banger_agent_api::{
    AgentInfo, Failure, FailureKind, InitMode, MAX_FLOWS, MAX_FORWARDS, MAX_SSH, MAX_STREAMS,
};
use futures_util::Stream;
use futures_util::stream::poll_fn;
use rustix::fd::OwnedFd;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Request, Response, Status, Streaming};

/// Uploads and downloads at a time; each has a thread.
const MAX_TRANSFERS: usize = 16;

/// Calls at a time that wait for the boot's end; each may have a process.
const MAX_WAITS: usize = 16;

/// For a stream's first message to come.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// What the server is in its machine.
#[derive(Debug)]
pub(crate) enum Role {
    /// The agent's other process is process 1.
    Init {
        /// File systems below the root, to be made read-only last: the overlay's upper layer, the work disk.
        layers: Vec<OwnedFd>,
    },
    /// The image's systemd is process 1.
    UnderSystemd,
    /// Another init of the image is process 1.
    UnderOtherInit,
    /// The agent has not booted this machine and must not end it.
    Debug,
}

impl Role {
    /// What the agent says about itself and its guest.
    pub(crate) fn info(&self) -> AgentInfo {
        let init = match self {
            Self::Init { .. } => InitMode::Agent,
            Self::UnderSystemd => InitMode::Systemd,
            Self::UnderOtherInit => InitMode::Other,
            Self::Debug => InitMode::None,
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot_id = boot_id.as_deref().map_or("unknown", str::trim_end);
        let kernel = rustix::system::uname();
        AgentInfo::of_this_release(&kernel.release().to_string_lossy(), boot_id, init)
    }
}

/// What the server knows about where it runs.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) role: Role,
    /// Absent where the agent has not booted the machine.
    pub(crate) disks: Option<Disks>,
    /// Where sshd's files go.
    pub(crate) ssh: ssh::Place,
    /// `RLIMIT_NOFILE` for commands (the server has raised its own).
    pub(crate) open_files: libc::rlimit,
}

/// The implementation of the calls.
#[derive(Debug)]
pub(crate) struct Service {
    context: Arc<Context>,
    running: exec::Running,
    commands: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    forwards: Arc<Semaphore>,
    flows: Arc<Semaphore>,
    ssh: Arc<Semaphore>,
    listening: listening::Listening,
    figures: Figures,
    settled: Arc<Settled>,
    sessions: Sessions,
}

impl Service {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            context: Arc::new(context),
            running: exec::Running::default(),
            commands: Arc::new(Semaphore::new(MAX_STREAMS as usize)),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            waits: Arc::new(Semaphore::new(MAX_WAITS)),
            forwards: Arc::new(Semaphore::new(MAX_FORWARDS as usize)),
            flows: Arc::new(Semaphore::new(MAX_FLOWS as usize)),
            ssh: Arc::new(Semaphore::new(MAX_SSH as usize)),
            listening: listening::Listening::default(),
            figures: Figures::default(),
            settled: Arc::default(),
            sessions: Sessions::default(),
        }
    }

    /// Shuts the machine down in order once `end` has resolved: what a process of the guest asked for, as if it had been
    /// a call.
    pub(super) fn shut_down_after(
        &self,
        end: impl Future<Output = io::Result<()>> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (context, running) = (Arc::clone(&self.context), self.running.clone());
        async move {
            if let Err(error) = end.await {
                log::line(format_args!("failed to listen for who asks for the end: {error}"));
                return;
            }
            log::line(format_args!("a process of the guest asks for the machine's end"));
            if let Err(failure) = power::begin(&context, &running, ShutdownMode::Graceful, 0) {
                log::line(format_args!("failed to {failure}"));
            }
        }
    }
}

/// A reply stream fed through a bounded channel.
type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn reply<T: Send + 'static>(mut receiver: mpsc::Receiver<Result<T, Status>>) -> Response<Reply<T>> {
    Response::new(Box::pin(poll_fn(move |context| receiver.poll_recv(context))))
}

fn permit(semaphore: &Arc<Semaphore>, what: &str, limit: usize) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(semaphore).try_acquire_owned().map_err(|_busy| {
        let message = format!("start another of {limit} {what} in the guest: too many are at work");
        Failure::new(FailureKind::Busy, what, message).into_status()
    })
}

fn invalid(what: &str) -> Status {
    Failure::new(FailureKind::InvalidRequest, "protocol", what).into_status()
}

/// A stream's first message, within its time.
async fn first<T>(inputs: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(FIRST_MESSAGE, inputs.message()).await {
        Ok(message) => message?.ok_or_else(|| invalid("read the first message: the stream is empty")),
        Err(_elapsed) => Err(invalid("read the first message: none came")),
    }
}

/// A task that was cancelled or has panicked (in debug builds; release builds abort and are started anew).
fn lost(_join: tokio::task::JoinError) -> Status {
    Failure::new(FailureKind::System, "agent", "finish the call: its task was lost").into_status()
}

#[tonic::async_trait]
impl Agent for Service {
    async fn hello(
        &self,
        _request: Request<proto::HelloRequest>,
    ) -> Result<Response<proto::HelloReply>, Status> {
        let AgentInfo {
            protocol_version,
            min_protocol_version,
            agent_version,
            kernel_release,
            boot_id,
            init_mode,
        } = self.context.role.info();
        Ok(Response::new(proto::HelloReply {
            protocol_version,
            min_protocol_version,
            agent_version,
            kernel_release,
            boot_id,
            init_mode: proto::InitMode::from(init_mode).into(),
        }))
    }

    async fn ping(
        &self,
        _request: Request<proto::PingRequest>,
    ) -> Result<Response<proto::PingReply>, Status> {
        let now = clock_gettime(ClockId::Boottime);
        let uptime_ms = now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000;
        Ok(Response::new(proto::PingReply { uptime_ms }))
    }

    type ExecStream = Reply<proto::ExecOutput>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let permit = permit(&self.commands, "commands", MAX_STREAMS as usize)?;
        let mut inputs = request.into_inner();
        let Some(ExecIn::Start(start)) = first(&mut inputs).await?.input else {
            return Err(invalid("run a command: the first message is not its start"));
        };
        let running = self.running.clone();
        let starting = exec::start(start, inputs, running, self.context.open_files, permit);
        // A task of its own, so that a caller who goes away now leaves no process behind.
        match tokio::spawn(starting).await.map_err(lost)? {
            Ok(receiver) => Ok(reply(receiver)),
            Err(failure) => Err(failure.into_status()),
        }
    }

    async fn signal(
        &self,
        request: Request<proto::SignalRequest>,
    ) -> Result<Response<proto::SignalReply>, Status> {
        let proto::SignalRequest { pid, number } = request.into_inner();
        self.running.signal(pid, number).map_err(Failure::into_status)?;
        Ok(Response::new(proto::SignalReply {}))
    }

    async fn session_start(
        &self,
        request: Request<proto::SessionStartRequest>,
    ) -> Result<Response<proto::SessionStartReply>, Status> {
        let (sessions, running) = (self.sessions.clone(), self.running.clone());
        let open_files = self.context.open_files;
        // A task of its own, so that a caller who goes away now leaves no process that nobody knows.
        let starting =
            tokio::spawn(async move { sessions.start(request.into_inner(), running, open_files).await });
        let pid = starting.await.map_err(lost)?.map_err(Failure::into_status)?;
        Ok(Response::new(proto::SessionStartReply { pid }))
    }

    type SessionFollowStream = Reply<proto::SessionOutput>;

    async fn session_follow(
        &self,
        request: Request<proto::SessionFollowRequest>,
    ) -> Result<Response<Self::SessionFollowStream>, Status> {
        let proto::SessionFollowRequest { id, offset } = request.into_inner();
        self.sessions
            .follow(&id, offset)
            .map(reply)
            .map_err(Failure::into_status)
    }

    async fn session_signal(
        &self,
        request: Request<proto::SessionSignalRequest>,
    ) -> Result<Response<proto::SessionSignalReply>, Status> {
        let proto::SessionSignalRequest { id, number } = request.into_inner();
        self.sessions.signal(&id, number).map_err(Failure::into_status)?;
        Ok(Response::new(proto::SessionSignalReply {}))
    }

    async fn session_remove(
        &self,
        request: Request<proto::SessionRemoveRequest>,
    ) -> Result<Response<proto::SessionRemoveReply>, Status> {
        let proto::SessionRemoveRequest { id } = request.into_inner();
        self.sessions.remove(&id).map_err(Failure::into_status)?;
        Ok(Response::new(proto::SessionRemoveReply {}))
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadInput>>,
    ) -> Result<Response<proto::UploadReply>, Status> {
        let permit = permit(&self.transfers, "transfers", MAX_TRANSFERS)?;
        let mut inputs = request.into_inner();
        let Some(UploadIn::Start(start)) = first(&mut inputs).await?.input else {
            return Err(invalid("unpack an archive: the first message is not its start"));
        };
        transfer::upload(start, inputs, permit)
            .await
            .map(Response::new)
            .map_err(Failure::into_status)
    }

    type DownloadStream = Reply<proto::DownloadOutput>;

    async fn download(
        &self,
        request: Request<proto::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let permit = permit(&self.transfers, "transfers", MAX_TRANSFERS)?;
        let receiver = transfer::download(request.into_inner(), permit).await?;
        Ok(reply(receiver))
    }

    async fn stats(
        &self,
        _request: Request<proto::StatsRequest>,
    ) -> Result<Response<proto::StatsReply>, Status> {
        Ok(Response::new(self.figures.read().await))
    }

    async fn grow_disk(
        &self,
        request: Request<proto::GrowDiskRequest>,
    ) -> Result<Response<proto::GrowDiskReply>, Status> {
        disks::grow(self.context.disks.as_ref(), request.into_inner())
            .await
            .map(Response::new)
            .map_err(Failure::into_status)
    }

    async fn wait_booted(
        &self,
        request: Request<proto::WaitBootedRequest>,
    ) -> Result<Response<proto::WaitBootedReply>, Status> {
        let _permit = permit(&self.waits, "waits for the boot's end", MAX_WAITS)?;
        let wait = Duration::from_millis(request.into_inner().timeout_ms.into());
        let state = booted::wait(&self.context.role, wait)
            .await
            .map_err(Failure::into_status)?;
        Ok(Response::new(proto::WaitBootedReply { state: state.into() }))
    }

    type ForwardStream = Reply<proto::ForwardOutput>;

    async fn forward(
        &self,
        request: Request<Streaming<proto::ForwardInput>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let mut inputs = request.into_inner();
        let Some(ForwardIn::Start(start)) = first(&mut inputs).await?.input else {
            return Err(invalid("forward to a port: the first message is not its start"));
        };
        let permit = match start.transport() {
            Transport::Udp => permit(&self.flows, "forwarded flows of datagrams", MAX_FLOWS as usize)?,
            Transport::Tcp | Transport::Unspecified => {
                permit(&self.forwards, "forwarded connections", MAX_FORWARDS as usize)?
            }
        };
        forward::open(&start, inputs, permit)
            .await
            .map(reply)
            .map_err(Failure::into_status)
    }

    async fn listening(
        &self,
        _request: Request<proto::ListeningRequest>,
    ) -> Result<Response<proto::ListeningReply>, Status> {
        Ok(Response::new(self.listening.read().await.map_err(lost)?))
    }

    type SshStream = Reply<proto::SshOutput>;

    async fn ssh(
        &self,
        request: Request<Streaming<proto::SshInput>>,
    ) -> Result<Response<Self::SshStream>, Status> {
        let permit = permit(&self.ssh, "ssh connections", MAX_SSH as usize)?;
        let mut inputs = request.into_inner();
        let Some(SshIn::Start(start)) = first(&mut inputs).await?.input else {
            return Err(invalid(
                "begin an ssh connection: the first message is not its start",
            ));
        };
        let place = self.context.ssh.clone();
        let starting = ssh::start(start, inputs, place, self.context.open_files, permit);
        // A task of its own, so that a caller who goes away now leaves no process behind.
        match tokio::spawn(starting).await.map_err(lost)? {
            Ok(receiver) => Ok(reply(receiver)),
            Err(failure) => Err(failure.into_status()),
        }
    }

    async fn settle(
        &self,
        request: Request<proto::SettleRequest>,
    ) -> Result<Response<proto::SettleReply>, Status> {
        let limit_ms = request.into_inner().limit_ms;
        let (settled, context) = (Arc::clone(&self.settled), Arc::clone(&self.context));
        // A task of its own: a caller who goes away in the middle leaves nothing frozen without an end.
        let settling = tokio::spawn(async move { settled.settle(&context, limit_ms).await });
        settling.await.map_err(lost)?.map_err(Failure::into_status)?;
        Ok(Response::new(proto::SettleReply {}))
    }

    async fn thaw(
        &self,
        _request: Request<proto::ThawRequest>,
    ) -> Result<Response<proto::ThawReply>, Status> {
        self.settled.thaw().await.map_err(Failure::into_status)?;
        Ok(Response::new(proto::ThawReply {}))
    }

    async fn shutdown(
        &self,
        request: Request<proto::ShutdownRequest>,
    ) -> Result<Response<proto::ShutdownReply>, Status> {
        let request = request.into_inner();
        power::begin(&self.context, &self.running, request.mode(), request.deadline_ms)
            .map_err(Failure::into_status)?;
        Ok(Response::new(proto::ShutdownReply {}))
    }
}
