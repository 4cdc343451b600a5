//! A guest whose agent is of release 0.1, for tests: what is there of it when the daemon has been replaced by this release
//! and the machine has not been started again. It knows no call that came later, and says so as gRPC does; but for
//! Forward, which a test may answer for it, to see what the host's side makes of a guest that does as it likes.

use std::future::pending;
use std::time::Duration;

use async_trait::async_trait;
use banger_agent_api::{AgentClient, proto};
use banger_vmm::{
    ControlError, KillError, Machine, MachineExit, MachineFigures, ProcessRecord, ProcessRole, RunState,
    UserNetwork,
};
use futures_util::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use proto::agent_server::{Agent, AgentServer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

/// What its pings say.
pub(crate) const UPTIME: Duration = Duration::from_secs(42);

/// What a test makes of a Forward call: what comes, and where its answers go. The call ends when the latter is dropped.
pub(crate) type Forward = fn(Streaming<proto::ForwardInput>, Answers) -> BoxFuture<'static, ()>;
pub(crate) type Answers = mpsc::Sender<Result<proto::ForwardOutput, Status>>;

/// Serves as a guest behind a VMM's socket does, for as long as the runtime lives. The directory has the socket.
pub(crate) fn guest() -> (TempDir, AgentClient) {
    guest_with(None)
}

/// The same, with an answer to Forward calls.
pub(crate) fn guest_with(forward: Option<Forward>) -> (TempDir, AgentClient) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vsock.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; b"CONNECT 1024\n".len()];
                connection.read_exact(&mut request).await.unwrap();
                assert_eq!(&request, b"CONNECT 1024\n");
                connection.write_all(b"OK 1073741824\n").await.unwrap();
                let service = TowerToHyperService::new(AgentServer::new(Older { forward }));
                // It ends with the client.
                drop(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(connection), service)
                        .await,
                );
            });
        }
    });
    let client = AgentClient::new(&socket);
    (directory, client)
}

/// The calls of release 0.1 that these tests need; the others are answered as the later ones are.
struct Older {
    forward: Option<Forward>,
}

/// What gRPC answers where there is no such method.
fn unknown<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented(""))
}

#[async_trait]
impl Agent for Older {
    type ExecStream = BoxStream<proto::ExecOutput>;
    type DownloadStream = BoxStream<proto::DownloadOutput>;
    type ForwardStream = BoxStream<proto::ForwardOutput>;
    type SshStream = BoxStream<proto::SshOutput>;
    type SessionFollowStream = BoxStream<proto::SessionOutput>;

    async fn ping(&self, _: Request<proto::PingRequest>) -> Result<Response<proto::PingReply>, Status> {
        let uptime_ms = UPTIME.as_millis().try_into().unwrap();
        Ok(Response::new(proto::PingReply { uptime_ms }))
    }

    async fn hello(&self, _: Request<proto::HelloRequest>) -> Result<Response<proto::HelloReply>, Status> {
        unknown()
    }

    async fn exec(
        &self,
        _: Request<Streaming<proto::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        unknown()
    }

    async fn signal(&self, _: Request<proto::SignalRequest>) -> Result<Response<proto::SignalReply>, Status> {
        unknown()
    }

    async fn upload(
        &self,
        _: Request<Streaming<proto::UploadInput>>,
    ) -> Result<Response<proto::UploadReply>, Status> {
        unknown()
    }

    async fn download(
        &self,
        _: Request<proto::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        unknown()
    }

    async fn stats(&self, _: Request<proto::StatsRequest>) -> Result<Response<proto::StatsReply>, Status> {
        unknown()
    }

    async fn grow_disk(
        &self,
        _: Request<proto::GrowDiskRequest>,
    ) -> Result<Response<proto::GrowDiskReply>, Status> {
        unknown()
    }

    async fn settle(&self, _: Request<proto::SettleRequest>) -> Result<Response<proto::SettleReply>, Status> {
        unknown()
    }

    async fn session_start(
        &self,
        _: Request<proto::SessionStartRequest>,
    ) -> Result<Response<proto::SessionStartReply>, Status> {
        unknown()
    }

    async fn session_follow(
        &self,
        _: Request<proto::SessionFollowRequest>,
    ) -> Result<Response<Self::SessionFollowStream>, Status> {
        unknown()
    }

    async fn session_signal(
        &self,
        _: Request<proto::SessionSignalRequest>,
    ) -> Result<Response<proto::SessionSignalReply>, Status> {
        unknown()
    }

    async fn session_remove(
        &self,
        _: Request<proto::SessionRemoveRequest>,
    ) -> Result<Response<proto::SessionRemoveReply>, Status> {
        unknown()
    }

    async fn thaw(&self, _: Request<proto::ThawRequest>) -> Result<Response<proto::ThawReply>, Status> {
        unknown()
    }

    async fn wait_booted(
        &self,
        _: Request<proto::WaitBootedRequest>,
    ) -> Result<Response<proto::WaitBootedReply>, Status> {
        unknown()
    }

    async fn forward(
        &self,
        request: Request<Streaming<proto::ForwardInput>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let Some(forward) = self.forward else {
            return unknown();
        };
        let (answers, mut receiver) = mpsc::channel(4);
        tokio::spawn(forward(request.into_inner(), answers));
        let stream = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn listening(
        &self,
        _: Request<proto::ListeningRequest>,
    ) -> Result<Response<proto::ListeningReply>, Status> {
        unknown()
    }

    async fn ssh(&self, _: Request<Streaming<proto::SshInput>>) -> Result<Response<Self::SshStream>, Status> {
        unknown()
    }

    async fn shutdown(
        &self,
        _: Request<proto::ShutdownRequest>,
    ) -> Result<Response<proto::ShutdownReply>, Status> {
        unknown()
    }
}

/// The VMM around it, with which all is well.
#[derive(Debug)]
pub(crate) struct Vmm;

#[async_trait]
impl Machine for Vmm {
    fn processes(&self) -> Vec<ProcessRecord> {
        Vec::new()
    }

    async fn exited(&self) -> MachineExit {
        pending().await
    }

    async fn kill(&self) -> Result<(), KillError> {
        Ok(())
    }

    async fn pause(&self) -> Result<(), ControlError> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), ControlError> {
        Ok(())
    }

    async fn control_alive(&self) -> Result<RunState, ControlError> {
        Ok(RunState::Running)
    }

    async fn resize_disk(&self, _: &str, _: u64) -> Result<(), ControlError> {
        Ok(())
    }

    async fn figures(&self) -> MachineFigures {
        MachineFigures::default()
    }

    fn stopped_processes(&self) -> Vec<ProcessRole> {
        Vec::new()
    }

    fn user_network(&self) -> Option<UserNetwork> {
        None
    }

    fn network_lost(&self) -> bool {
        false
    }
}
