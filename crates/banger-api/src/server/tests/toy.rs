//! A service of canned behaviours.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::contract::{Caller, Events, Service, StreamHandler};
use crate::error::{ErrorKind, RpcError};
use crate::frame::{ExitStatus, Frame};
use crate::types::*;

/// Behaviours are chosen by method and parameters: see each function.
#[derive(Default)]
pub(super) struct Toy {
    /// Lets calls of `op.cancel` go on.
    pub(super) gate: CancellationToken,
    /// Calls of `op.cancel` that have begun, and that have ended.
    pub(super) begun: AtomicUsize,
    pub(super) ended: AtomicUsize,
    /// Set when a stream's client has gone, and when a subscription was dropped.
    pub(super) stream_gone: CancellationToken,
    pub(super) watch_gone: CancellationToken,
}

pub(super) fn operation(id: &str, generation: u64) -> Operation {
    Operation {
        id: id.to_owned(),
        kind: "toy".to_owned(),
        subject: "toy".to_owned(),
        state: OperationState::Running,
        generation,
        stage: "playing".to_owned(),
        message: None,
        done: None,
        total: None,
        notices: Vec::new(),
        cancel: None,
        error: None,
        began: jiff::Timestamp::UNIX_EPOCH,
        ended: None,
    }
}

macro_rules! refused {
    ($( $name:ident($params:ty) -> $reply:ty; )*) => {
        $( async fn $name(&self, _: Caller, _: $params) -> Result<$reply, RpcError> {
            Err(RpcError::new(ErrorKind::NotFound, concat!("no ", stringify!($name))).hint("none"))
        } )*
    };
}

impl Service for Toy {
    refused! {
        daemon_status(Empty) -> DaemonStatus;
        daemon_shutdown(Empty) -> Empty;
        doctor_run(Empty) -> DoctorReport;
        image_show(ImageRef) -> Image;
        image_find(ImageFind) -> Vec<Image>;
        image_tag(ImageTag) -> Image;
        image_remove(ImageRef) -> Image;
        image_register(ImageRegister) -> Operation;
        image_bootstrap(ImageBootstrap) -> Operation;
        image_pull(ImagePull) -> Operation;
        image_import(ImageImport) -> Operation;
        image_build(ImageBuild) -> Operation;
        image_build_prune(Empty) -> BuildCache;
        image_export(ImageExport) -> Operation;
        image_verify(ImageVerify) -> Operation;
        image_promote(ImageRef) -> Operation;
        image_seed_show(ImageSeeds) -> Vec<ImageSeed>;
        image_seed_refresh(ImageSeeds) -> Vec<ImageSeed>;
        image_prune(GcRun) -> GcReport;
        kernel_list(Empty) -> Vec<Kernel>;
        kernel_add(KernelAdd) -> Operation;
        kernel_remove(KernelRef) -> Kernel;
        kernel_default(Empty) -> DefaultKernel;
        kernel_set_default(KernelSetDefault) -> DefaultKernel;
        runtime_list(Empty) -> Vec<Runtime>;
        runtime_install(RuntimeInstall) -> Operation;
        runtime_remove(RuntimeRef) -> Runtime;
        vm_create(VmCreate) -> Operation;
        vm_list(VmList) -> Vec<Vm>;
        vm_show(VmRef) -> Vm;
        vm_start(VmStart) -> Operation;
        vm_stop(VmStop) -> Operation;
        vm_kill(VmRef) -> Operation;
        vm_remove(VmRemove) -> Operation;
        op_list(Empty) -> Vec<Operation>;
        vm_restart(VmRestart) -> Operation;
        vm_set(VmSet) -> VmSetReply;
        vm_reset(VmReset) -> Operation;
        vm_rename(VmRename) -> Vm;
        vm_preflight(VmRef) -> VmPreflight;
        vm_stats(VmStatsOf) -> Vec<VmStats>;
        vm_health(VmRef) -> VmHealth;
        vm_wait(VmWait) -> VmWaited;
        gc_run(GcRun) -> GcReport;
        net_status(Empty) -> NetStatus;
        vm_ports(VmRef) -> VmPorts;
        vm_publish(VmPublish) -> Vec<Publication>;
        vm_unpublish(VmUnpublish) -> Vec<Publication>;
        session_start(SessionStart) -> Session;
        session_list(SessionsOf) -> Vec<Session>;
        session_show(SessionRef) -> Session;
        session_wait(SessionRef) -> Session;
        session_signal(SessionSignal) -> Empty;
        session_remove(SessionRemove) -> Session;
        ssh_identity(SshIdentityOf) -> SshIdentity;
        ssh_rotate(Empty) -> SshIdentity;
        guest_ssh(SshOpen) -> StreamHandler;
    }

    /// Echoes the id.
    async fn op_show(&self, _: Caller, params: OperationRef) -> Result<Operation, RpcError> {
        Ok(operation(&params.operation, 0))
    }

    /// Waits for the gate.
    async fn op_cancel(&self, _: Caller, params: OperationRef) -> Result<Operation, RpcError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.gate.cancelled().await;
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(operation(&params.operation, 0))
    }

    /// Tells who asks.
    async fn vm_ping(&self, caller: Caller, params: VmRef) -> Result<VmPing, RpcError> {
        Ok(VmPing {
            vm: params.vm,
            latency_microseconds: caller.uid.into(),
            agent_version: caller.gid.to_string(),
            guest_uptime_seconds: caller.pid.into(),
        })
    }

    /// Panics.
    async fn image_list(&self, _: Caller, _: Empty) -> Result<Vec<Image>, RpcError> {
        panic!("as the test wants it")
    }

    /// A long answer.
    async fn rpc_discover(&self, _: Caller, _: Empty) -> Result<Value, RpcError> {
        Ok("x".repeat(1 << 17).into())
    }

    /// By id: a number N: N events and the end; `fail`: one event and an error; `forever`: one event; else refused.
    async fn op_watch(&self, _: Caller, params: OperationRef) -> Result<Events<Operation>, RpcError> {
        let id = params.operation;
        let (count, last) = match (id.as_str(), id.parse()) {
            (_, Ok(count)) => (count, None),
            ("fail", _) => (1, Some(Err(RpcError::new(ErrorKind::Internal, "it broke")))),
            ("forever", _) => (1, None),
            (_, _) => return Err(RpcError::new(ErrorKind::NotFound, "no such operation")),
        };
        let (sender, events) = mpsc::channel(2);
        let gone = self.watch_gone.clone();
        tokio::spawn(async move {
            for generation in 0..count {
                if sender.send(Ok(operation(&id, generation))).await.is_err() {
                    break;
                }
            }
            if let Some(last) = last {
                sender.send(last).await.unwrap();
            } else if id == "forever" {
                sender.closed().await;
                gone.cancel();
            }
        });
        Ok(events)
    }

    /// Echoes standard input to standard output and exits with 3 at its end.
    async fn guest_exec(&self, _: Caller, params: ExecOpen) -> Result<StreamHandler, RpcError> {
        if params.vm == "missing" {
            return Err(RpcError::new(ErrorKind::NotFound, "no such machine"));
        }
        let gone = self.stream_gone.clone();
        Ok(Box::new(move |mut stream| {
            Box::pin(async move {
                loop {
                    match stream.next().await.unwrap() {
                        Some(Frame::Stdin(bytes)) => stream.send(Frame::Stdout(bytes)).await.unwrap(),
                        Some(Frame::StdinEof) => {
                            return stream.send(Frame::Exit(ExitStatus::Code(3))).await.unwrap();
                        }
                        Some(other) => panic!("{other:?}"),
                        None => return gone.cancel(),
                    }
                }
            })
        }))
    }

    async fn guest_upload(&self, _: Caller, _: UploadOpen) -> Result<StreamHandler, RpcError> {
        Ok(Box::new(|_| Box::pin(async { panic!("as the test wants it") })))
    }

    async fn guest_download(&self, _: Caller, _: DownloadOpen) -> Result<StreamHandler, RpcError> {
        Err(RpcError::new(ErrorKind::NotFound, "no download"))
    }

    async fn image_build_log(&self, _: Caller, _: BuildLog) -> Result<StreamHandler, RpcError> {
        Err(RpcError::new(ErrorKind::NotFound, "no logs"))
    }

    async fn session_logs(&self, _: Caller, _: SessionLogs) -> Result<StreamHandler, RpcError> {
        Err(RpcError::new(ErrorKind::NotFound, "no logs"))
    }
    async fn vm_logs(&self, _: Caller, _: LogsOpen) -> Result<StreamHandler, RpcError> {
        Err(RpcError::new(ErrorKind::NotFound, "no logs"))
    }
}
