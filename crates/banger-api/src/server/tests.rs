//! The server and the client together over real sockets, with a service of canned behaviours.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::client::{Client, ClientError, Unreachable};
use crate::contract::{Caller, Events, StreamHandler};
use crate::frame::{ExitStatus, Frame};
use crate::types::*;

/// Behaviours are chosen by method and parameters: see each function.
#[derive(Default)]
struct Toy {
    /// Lets calls of `op.cancel` go on.
    gate: CancellationToken,
    /// Calls of `op.cancel` that have begun, and that have ended.
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// Set when a stream's client has gone, and when a subscription was dropped.
    stream_gone: CancellationToken,
    watch_gone: CancellationToken,
}

fn operation(id: &str, generation: u64) -> Operation {
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
        image_remove(ImageRef) -> Image;
        image_register(ImageRegister) -> Operation;
        image_bootstrap(ImageBootstrap) -> Operation;
        kernel_list(Empty) -> Vec<Kernel>;
        kernel_add(KernelAdd) -> Operation;
        kernel_remove(KernelRef) -> Kernel;
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
        vm_ports(VmRef) -> VmPorts;
        vm_publish(VmPublish) -> Vec<Publication>;
        vm_unpublish(VmUnpublish) -> Vec<Publication>;
        net_status(Empty) -> NetStatus;
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
        Ok("x".repeat(1 << 20).into())
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

    async fn vm_logs(&self, _: Caller, _: LogsOpen) -> Result<StreamHandler, RpcError> {
        Err(RpcError::new(ErrorKind::NotFound, "no logs"))
    }
}

/// A running server in a directory of its own.
struct Running {
    toy: Arc<Toy>,
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    bound: BoundSocket,
    dir: tempfile::TempDir,
}

fn limits() -> Limits {
    Limits {
        drain: Duration::from_secs(5),
        ..Limits::default()
    }
}

fn start(limits: Limits, access: Access) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (listener, bound) = bind(&path, None).unwrap();
    let toy = Arc::new(Toy::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::new(access).limits(limits);
    let service = Arc::clone(&toy);
    let task = tokio::spawn(server.serve(listener, service, async {
        // A dropped sender stops the server too.
        drop(stopped.await);
    }));
    Running {
        toy,
        path,
        stop: Some(stop),
        task,
        bound,
        dir,
    }
}

fn running() -> Running {
    start(limits(), Access::of_this_process(None))
}

impl Running {
    fn client(&self) -> Client {
        Client::new(&self.path)
    }

    async fn raw(&self) -> Raw {
        let (read, write) = UnixStream::connect(&self.path).await.unwrap().into_split();
        Raw {
            read: BufReader::new(read),
            write,
        }
    }

    fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    async fn stop(mut self) {
        self.tell_to_stop();
        self.task.await.unwrap();
        drop(self.bound);
        assert!(!self.path.exists());
        drop(self.dir);
    }

    /// Waits for a condition of the service that has no channel to wait on.
    async fn until(&self, condition: impl Fn(&Toy) -> bool) {
        within(async {
            while !condition(&self.toy) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

/// A connection without the client's manners.
struct Raw {
    read: BufReader<tokio::net::unix::OwnedReadHalf>,
    write: tokio::net::unix::OwnedWriteHalf,
}

impl Raw {
    async fn send(&mut self, text: &str) {
        self.write.write_all(text.as_bytes()).await.unwrap();
    }

    async fn request(&mut self, method: &str, params: Value, id: u64) {
        self.send(&format!(
            "{}\n",
            json!({"jsonrpc": "2.0", "method": method, "params": params, "id": id})
        ))
        .await;
    }

    /// The next line as JSON; null at the connection's end.
    async fn line(&mut self) -> Value {
        let mut line = String::new();
        match within(self.read.read_line(&mut line)).await {
            Ok(0) => Value::Null,
            Ok(_) => serde_json::from_str(&line).unwrap(),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Value::Null,
            Err(e) => panic!("{e}"),
        }
    }
}

/// No test waits for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it takes too long")
}

fn vm(name: &str) -> VmRef {
    VmRef { vm: name.to_owned() }
}

fn op(id: &str) -> OperationRef {
    OperationRef {
        operation: id.to_owned(),
    }
}

fn exec(vm: &str) -> ExecOpen {
    ExecOpen {
        vm: vm.to_owned(),
        command: vec!["cat".to_owned()],
        env: Default::default(),
        workdir: None,
        user: None,
        stdin: true,
        terminal: None,
    }
}

#[tokio::test]
async fn calls_answers_and_errors_pass_through() {
    let server = running();
    let client = server.client();
    let ping = client.vm_ping(vm("a")).await.unwrap();
    assert_eq!(ping.vm, "a");
    assert_eq!(
        ping.latency_microseconds,
        u64::from(rustix::process::geteuid().as_raw())
    );
    assert_eq!(ping.guest_uptime_seconds, u64::from(std::process::id()));
    let Err(ClientError::Rpc(error)) = client.vm_show(vm("a")).await else {
        panic!("no error")
    };
    assert_eq!(
        error,
        RpcError::new(ErrorKind::NotFound, "no vm_show").hint("none")
    );
    // The connection is good for more.
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once() {
    let server = running();
    let clients: Vec<_> = (0..100)
        .map(|n| {
            let client = server.client();
            tokio::spawn(async move {
                for m in 0..20 {
                    let id = format!("{n}-{m}");
                    assert_eq!(client.op_show(op(&id)).await.unwrap().id, id);
                }
            })
        })
        .collect();
    for client in clients {
        within(client).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn one_client_can_be_shared_by_overlapping_calls() {
    let server = running();
    let client = server.client();
    let slow = client.op_cancel(op("slow"));
    let fast = async {
        server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
        let answer = client.op_show(op("fast")).await.unwrap();
        server.toy.gate.cancel();
        answer
    };
    let (slow, fast) = within(async { tokio::join!(slow, fast) }).await;
    assert_eq!((slow.unwrap().id.as_str(), fast.id.as_str()), ("slow", "fast"));
    server.stop().await;
}

#[tokio::test]
async fn answers_come_as_they_are_ready_and_partial_writes_are_put_together() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "slow"}), 1).await;
    let text = "\r\n  \n{\"jsonrpc\":\"2.0\",\"method\":\"op.show\",\"params\":{\"operation\":\"é\"},\"id\":\"b\"}\r\n";
    for byte in text.as_bytes() {
        raw.write.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let fast = raw.line().await;
    assert_eq!((&fast["id"], &fast["result"]["id"]), (&json!("b"), &json!("é")));
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 1);
    server.stop().await;
}

#[tokio::test]
async fn bad_documents_are_answered_and_the_connection_goes_on() {
    let server = running();
    let mut raw = server.raw().await;
    for (text, code, id) in [
        ("{\n", -32700, json!(null)),
        ("\u{0}\n", -32700, json!(null)),
        ("[]\n", -32600, json!(null)),
        ("{\"jsonrpc\":\"2.0\",\"id\":4}\n", -32600, json!(4)),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"vm.lst\",\"id\":5}\n",
            -32601,
            json!(5),
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"op.show\",\"id\":6}\n",
            -32602,
            json!(6),
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"op.show\",\"params\":[\"a\"],\"id\":7}\n",
            -32602,
            json!(7),
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"vm.show\",\"params\":{\"vm\":\"a\"},\"id\":8}\n",
            -32000,
            json!(8),
        ),
    ] {
        raw.send(text).await;
        let answer = raw.line().await;
        assert_eq!(
            (&answer["error"]["code"], &answer["id"]),
            (&json!(code), &id),
            "{text}: {answer}"
        );
        assert!(answer["error"]["data"]["kind"].is_string());
    }
    raw.request("op.show", json!({"operation": "after"}), 9).await;
    assert_eq!(raw.line().await["result"]["id"], "after");
    server.stop().await;
}

#[tokio::test]
async fn notifications_run_and_get_no_answer() {
    let server = running();
    server.toy.gate.cancel();
    let mut raw = server.raw().await;
    for method in ["op.cancel", "no.such", "op.watch", "guest.exec"] {
        raw.send(&format!(
            "{}\n",
            json!({"jsonrpc": "2.0", "method": method, "params": {"operation": "x"}})
        ))
        .await;
    }
    raw.send("{\"jsonrpc\":\"2.0\",\"method\":1}\n").await;
    raw.request("op.show", json!({"operation": "after"}), 1).await;
    // Invalid, so it cannot be told from a request: the specification wants an answer with the id null.
    assert_eq!(raw.line().await["error"]["code"], -32600);
    assert_eq!(raw.line().await["id"], 1);
    server.until(|toy| toy.ended.load(Ordering::SeqCst) == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn batches() {
    let server = running();
    let mut raw = server.raw().await;
    let show =
        |id: u64| json!({"jsonrpc": "2.0", "method": "op.show", "params": {"operation": "x"}, "id": id});
    let mut notification = show(0);
    notification.as_object_mut().unwrap().remove("id");
    let watch = json!({"jsonrpc": "2.0", "method": "op.watch", "params": {"operation": "1"}, "id": 3});
    raw.send(&format!(
        "{}\n",
        json!([show(1), 5, notification, watch, show(2)])
    ))
    .await;
    let answers = raw.line().await;
    let answers = answers.as_array().unwrap();
    assert_eq!(
        answers.iter().map(|a| a["id"].clone()).collect::<Vec<_>>(),
        [json!(1), json!(null), json!(3), json!(2)]
    );
    assert_eq!(answers[0]["result"]["id"], "x");
    assert_eq!(
        (&answers[1]["error"]["code"], &answers[2]["error"]["code"]),
        (&json!(-32600), &json!(-32600))
    );

    raw.send(&format!("{}\n", json!((0..65).map(show).collect::<Vec<_>>())))
        .await;
    assert!(
        raw.line().await["error"]["message"]
            .as_str()
            .unwrap()
            .contains("65")
    );
    raw.send(&format!("{}\n", json!([notification, notification])))
        .await;
    raw.send(&format!("{}\n", json!((0..64).map(show).collect::<Vec<_>>())))
        .await;
    assert_eq!(raw.line().await.as_array().unwrap().len(), 64);
    server.stop().await;
}

#[tokio::test]
async fn an_oversized_line_is_refused_skipped_and_forgiven_once() {
    let server = start(
        Limits {
            line: 1000,
            skip: 1 << 20,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    raw.send(&"x".repeat(100_000)).await;
    let answer = raw.line().await;
    assert_eq!(
        (&answer["error"]["code"], &answer["id"]),
        (&json!(-32600), &json!(null))
    );
    raw.send("\n").await;
    raw.request("op.show", json!({"operation": "after"}), 1).await;
    assert_eq!(raw.line().await["result"]["id"], "after");
    // A line at the limit passes, one more byte does not.
    let mut line =
        json!({"jsonrpc": "2.0", "method": "op.show", "params": {"operation": "x"}, "id": 2}).to_string();
    line.push_str(&" ".repeat(1000 - line.len()));
    raw.send(&format!("{line}\n")).await;
    assert_eq!(raw.line().await["id"], 2);
    raw.send(&format!("{line} \n")).await;
    assert!(raw.line().await["error"].is_object());
    assert_eq!(raw.line().await, Value::Null);
    server.stop().await;
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let server = start(
        Limits {
            line: 1000,
            skip: 100_000,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let Raw { mut read, mut write } = server.raw().await;
    let flood = tokio::spawn(async move {
        let junk = vec![b'x'; 10_000];
        let mut sent = 0_usize;
        while write.write_all(&junk).await.is_ok() {
            sent += junk.len();
        }
        sent
    });
    let sent = within(flood).await.unwrap();
    // What the limit and the kernel's buffers hold, not more.
    assert!((100_000..2_000_000).contains(&sent), "{sent} bytes were taken");
    let mut answer = String::new();
    read.read_line(&mut answer).await.unwrap();
    assert!(answer.contains("longer than 1000 bytes"));
    server.stop().await;
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let server = start(
        Limits {
            in_flight: 3,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    for id in 0..4 {
        raw.request("op.cancel", json!({"operation": "x"}), id).await;
    }
    let refused = raw.line().await;
    assert_eq!(
        (&refused["id"], &refused["error"]["data"]["kind"]),
        (&json!(3), &json!("busy"))
    );
    // Others are not affected.
    assert_eq!(server.client().op_show(op("x")).await.unwrap().id, "x");
    server.toy.gate.cancel();
    let mut answered: Vec<u64> = Vec::new();
    for _ in 0..3 {
        answered.push(raw.line().await["id"].as_u64().unwrap());
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2]);
    // A place is free as soon as its answer is there.
    for id in 10..60 {
        raw.request("op.show", json!({"operation": "x"}), id).await;
        assert!(raw.line().await["result"].is_object());
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = start(
        Limits {
            connections: 2,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut first = server.raw().await;
    let mut second = server.raw().await;
    for raw in [&mut first, &mut second] {
        raw.request("op.show", json!({"operation": "x"}), 1).await;
        raw.line().await;
    }
    let Err(ClientError::Rpc(error)) = server.client().op_show(op("x")).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::Busy);
    drop(first);
    within(async { while server.client().op_show(op("x")).await.is_err() {} }).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_harms_nobody() {
    let server = start(
        Limits {
            stall: Duration::from_millis(300),
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    // Far more answers than the socket and all queues hold.
    let flood = tokio::spawn(async move {
        for id in 0.. {
            let request = json!({"jsonrpc": "2.0", "method": "rpc.discover", "id": id});
            if raw
                .write
                .write_all(format!("{request}\n").as_bytes())
                .await
                .is_err()
            {
                break;
            }
        }
        raw
    });
    let other = server.client();
    while !flood.is_finished() {
        assert_eq!(within(other.op_show(op("x"))).await.unwrap().id, "x");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(flood.await.unwrap());
    server.stop().await;
}

#[tokio::test]
async fn a_call_goes_on_when_its_client_has_gone() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
    drop(raw);
    server.toy.gate.cancel();
    server.until(|toy| toy.ended.load(Ordering::SeqCst) == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_closes_only_its_writing_half_gets_its_answers() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    raw.send("{\"unfinished\":").await;
    raw.write.shutdown().await.unwrap();
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 1);
    assert_eq!(raw.line().await, Value::Null);
    server.stop().await;
}

#[tokio::test]
async fn a_panic_fails_its_own_request_only() {
    let server = running();
    let client = server.client();
    let Err(ClientError::Rpc(error)) = client.image_list(Empty {}).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::Internal);
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    let upload = UploadOpen {
        vm: "a".into(),
        path: "/".into(),
        contents_only: false,
        keep_owner: false,
    };
    let mut stream = client.guest_upload(upload).await.unwrap();
    assert!(within(stream.next()).await.unwrap().is_none());
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    server.stop().await;
}

#[tokio::test]
async fn subscriptions_end_or_fail() {
    let server = running();
    let client = server.client();
    let mut events = client.op_watch(op("50")).await.unwrap();
    for generation in 0..50 {
        assert_eq!(events.next().await.unwrap().unwrap().generation, generation);
    }
    assert!(events.next().await.is_none());
    assert!(events.next().await.is_none());

    let mut events = client.op_watch(op("fail")).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    let Some(Err(ClientError::Rpc(error))) = events.next().await else {
        panic!("no error")
    };
    assert_eq!(error.message, "it broke");
    assert!(events.next().await.is_none());

    let Err(ClientError::Rpc(error)) = client.op_watch(op("none")).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn a_subscription_ends_with_its_client() {
    let server = running();
    let mut events = server.client().op_watch(op("forever")).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    drop(events);
    within(server.toy.watch_gone.cancelled()).await;
    server.stop().await;
}

#[tokio::test]
async fn streams_carry_bytes_both_ways() {
    let server = running();
    let (mut reader, mut writer) = server.client().guest_exec(exec("a")).await.unwrap().split();
    let data = Bytes::from(
        (0..5_000_000_u32)
            .map(|n| n.to_le_bytes()[1])
            .collect::<Vec<u8>>(),
    );
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        writer.send(Frame::Stdin(sent)).await.unwrap();
        writer.send(Frame::StdinEof).await.unwrap();
        writer
    });
    let mut received = Vec::new();
    let mut status = within(reader.next()).await.unwrap().unwrap();
    while let Frame::Stdout(bytes) = &status {
        received.extend_from_slice(bytes);
        status = within(reader.next()).await.unwrap().unwrap();
    }
    assert_eq!(status, Frame::Exit(ExitStatus::Code(3)));
    assert!(status.is_final());
    assert!(received == data);
    drop(sending.await.unwrap());
    assert!(within(reader.next()).await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_stream_begins_with_the_bytes_after_its_request() {
    let server = running();
    let mut raw = server.raw().await;
    let open =
        json!({"jsonrpc": "2.0", "method": "guest.exec", "params": {"vm": "a", "command": ["cat"]}, "id": 1});
    raw.send(&format!("{open}\n\u{1}\0\0\0\u{2}hi\u{4}\0\0\0\0"))
        .await;
    assert_eq!(
        raw.line().await,
        json!({"jsonrpc": "2.0", "result": {"stream": true}, "id": 1})
    );
    let mut rest = Vec::new();
    within(raw.read.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"\x02\0\0\0\x02hi\x09\0\0\0\x05\0\0\0\0\x03");
    server.stop().await;
}

#[tokio::test]
async fn a_refused_stream_leaves_the_connection_as_it_was() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("guest.exec", json!({"vm": "missing", "command": ["x"]}), 1)
        .await;
    assert_eq!(raw.line().await["error"]["data"]["kind"], "not_found");
    raw.request("op.cancel", json!({"operation": "x"}), 2).await;
    raw.request("guest.exec", json!({"vm": "a", "command": ["x"]}), 3)
        .await;
    let refused = raw.line().await;
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!(3), &json!(-32600))
    );
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 2);
    raw.request("guest.exec", json!({"vm": "a", "command": ["x"]}), 4)
        .await;
    assert_eq!(raw.line().await["result"]["stream"], true);
    drop(raw);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_sees_its_client_go() {
    let server = running();
    let mut stream = server.client().guest_exec(exec("a")).await.unwrap();
    stream.send(Frame::Stdin(Bytes::from_static(b"x"))).await.unwrap();
    assert!(matches!(stream.next().await.unwrap(), Some(Frame::Stdout(_))));
    drop(stream);
    within(server.toy.stream_gone.cancelled()).await;
    server.stop().await;
}

#[tokio::test]
async fn stopping_lets_calls_finish_and_begins_nothing_new() {
    let mut server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    let mut events = server.client().op_watch(op("forever")).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;

    server.tell_to_stop();
    let Some(Err(ClientError::Rpc(error))) = within(events.next()).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::Busy);
    let Err(ClientError::Unreachable { reason, .. }) = server.client().op_show(op("x")).await else {
        panic!("still served")
    };
    assert_eq!(reason, Unreachable::Refused);
    assert!(!server.task.is_finished());
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 1);
    assert_eq!(raw.line().await, Value::Null);
    server.stop().await;
}

#[tokio::test]
async fn stopping_waits_no_longer_than_it_may() {
    let server = start(
        Limits {
            drain: Duration::from_millis(100),
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    let stream = server.client().guest_exec(exec("a")).await.unwrap();
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
    let toy = Arc::clone(&server.toy);
    within(server.stop()).await;
    assert_eq!(toy.ended.load(Ordering::SeqCst), 0);
    drop(stream);
}

#[tokio::test]
async fn a_daemon_that_was_restarted_is_found_again() {
    let server = running();
    let client = server.client();
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    let Running {
        path,
        mut stop,
        task,
        bound,
        dir,
        ..
    } = server;
    drop(stop.take());
    task.await.unwrap();
    drop(bound);
    let Err(ClientError::Unreachable {
        reason: Unreachable::NoSocket,
        ..
    }) = client.op_show(op("x")).await
    else {
        panic!("reached a daemon that is not there")
    };
    let (listener, _bound) = bind(&path, None).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::new(Access::of_this_process(None));
    let task = tokio::spawn(server.serve(listener, Arc::new(Toy::default()), async { drop(stopped.await) }));
    assert_eq!(client.op_show(op("y")).await.unwrap().id, "y");
    drop(stop);
    task.await.unwrap();
    drop(dir);
}

#[tokio::test]
async fn the_client_says_why_it_cannot_reach_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let reason = async |path: PathBuf| match Client::new(path).op_show(op("x")).await {
        Err(ClientError::Unreachable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(dir.path().join("none")).await, Unreachable::NoSocket);
    let dead = dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert_eq!(reason(dead).await, Unreachable::Refused);
    assert_eq!(
        reason(dir.path().join("x".repeat(120))).await,
        Unreachable::PathTooLong
    );
}

#[tokio::test]
async fn the_client_does_not_take_another_server_for_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let answers = [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "{}\n",
        "{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":2}\n",
    ];
    let serving = tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        let (stream, _) = listener.accept().await.unwrap();
        BufReader::new(stream)
            .read_line(&mut String::new())
            .await
            .unwrap();
    });
    let client = Client::new(&path);
    for answer in answers {
        match within(client.op_show(op("x"))).await {
            Err(ClientError::Protocol { .. }) => {}
            other => panic!("{answer:?}: {other:?}"),
        }
    }
    assert!(matches!(
        within(client.op_show(op("x"))).await,
        Err(ClientError::Broken { .. })
    ));
    serving.await.unwrap();
}

/// Runs a client as another user, in a thread that has dropped its rights.
fn as_user(path: PathBuf, uid: u32, gid: u32, groups: &[u32]) -> Result<VmPing, ClientError> {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let thread = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&groups).unwrap();
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(Client::new(path).vm_ping(vm("a")))
    });
    thread.join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_refused_and_members_of_the_group_are_not() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        testkit::skip::<()>("needs root to become another user");
        return;
    }
    const GROUP: u32 = 54321;
    const OTHER: u32 = 54322;
    let open = |server: &Running, mode| {
        std::fs::set_permissions(server.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&server.path, PermissionsExt::from_mode(mode)).unwrap();
        server.path.clone()
    };
    let server = start(
        limits(),
        Access {
            owner: 0,
            group: Some(GROUP),
        },
    );

    // The file's mode is the first wall.
    let path = open(&server, 0o600);
    let Err(ClientError::Unreachable { reason, .. }) = as_user(path, OTHER, OTHER, &[]) else {
        panic!("let in")
    };
    assert_eq!(reason, Unreachable::Permission);

    // The peer's credentials are the second.
    let path = open(&server, 0o666);
    for groups in [&[][..], &[OTHER], &(60000..60200).collect::<Vec<_>>()] {
        let Err(ClientError::Rpc(error)) = as_user(path.clone(), OTHER, OTHER, groups) else {
            panic!("let in")
        };
        assert_eq!(error.kind, ErrorKind::PermissionDenied, "{error:?}");
    }
    let many: Vec<u32> = (60000..60200).chain([GROUP]).collect();
    for (gid, groups) in [(GROUP, &[][..]), (OTHER, &[GROUP]), (OTHER, &many)] {
        let ping = as_user(path.clone(), OTHER, gid, groups).unwrap();
        assert_eq!(
            (ping.latency_microseconds, ping.agent_version),
            (OTHER.into(), gid.to_string())
        );
    }
    server.stop().await;

    let server = start(
        limits(),
        Access {
            owner: OTHER,
            group: None,
        },
    );
    let path = open(&server, 0o666);
    assert!(as_user(path.clone(), OTHER, OTHER, &[]).is_ok());
    assert!(as_user(path, GROUP, GROUP, &[]).is_err());
    // Root may always.
    assert!(server.client().vm_ping(vm("a")).await.is_ok());
    server.stop().await;
}

/// Requests' tasks are small, whatever the methods' futures are: hundreds of them wait at a time, and each is built on
/// a worker's stack.
#[test]
fn a_request_is_small() {
    let toy = Toy::default();
    let caller = Caller {
        uid: 0,
        gid: 0,
        pid: 0,
    };
    let size = size_of_val(&crate::contract::dispatch(&toy, caller, "op.show", None));
    assert!(size < 2048, "{size} bytes");
}
