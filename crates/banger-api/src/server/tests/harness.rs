//! A server that runs, clients with and without manners, and what they ask.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::toy::Toy;
use crate::client::Client;
use crate::server::{Access, BoundSocket, Limits, Server, bind};
use crate::types::{ExecOpen, OperationRef, VmRef};

/// A running server in a directory of its own.
pub(super) struct Running {
    pub(super) toy: Arc<Toy>,
    pub(super) path: PathBuf,
    pub(super) stop: Option<oneshot::Sender<()>>,
    pub(super) task: JoinHandle<()>,
    pub(super) bound: BoundSocket,
    pub(super) dir: tempfile::TempDir,
}

pub(super) fn limits() -> Limits {
    Limits {
        drain: Duration::from_secs(5),
        ..Limits::default()
    }
}

pub(super) fn start(limits: Limits, access: Access) -> Running {
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

pub(super) fn running() -> Running {
    start(limits(), Access::of_this_process(None))
}

impl Running {
    pub(super) fn client(&self) -> Client {
        Client::new(&self.path)
    }

    pub(super) async fn raw(&self) -> Raw {
        let (read, write) = UnixStream::connect(&self.path).await.unwrap().into_split();
        Raw {
            read: BufReader::new(read),
            write,
        }
    }

    pub(super) fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    pub(super) async fn stop(mut self) {
        self.tell_to_stop();
        self.task.await.unwrap();
        drop(self.bound);
        assert!(!self.path.exists());
        drop(self.dir);
    }

    /// Waits for a condition of the service that has no channel to wait on.
    pub(super) async fn until(&self, condition: impl Fn(&Toy) -> bool) {
        within(async {
            while !condition(&self.toy) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

/// A connection without the client's manners.
pub(super) struct Raw {
    pub(super) read: BufReader<tokio::net::unix::OwnedReadHalf>,
    pub(super) write: tokio::net::unix::OwnedWriteHalf,
}

impl Raw {
    pub(super) async fn send(&mut self, text: &str) {
        self.write.write_all(text.as_bytes()).await.unwrap();
    }

    pub(super) async fn request(&mut self, method: &str, params: Value, id: u64) {
        self.send(&format!(
            "{}\n",
            json!({"jsonrpc": "2.0", "method": method, "params": params, "id": id})
        ))
        .await;
    }

    /// The next line as JSON; null at the connection's end.
    pub(super) async fn line(&mut self) -> Value {
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
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it takes too long")
}

pub(super) fn vm(name: &str) -> VmRef {
    VmRef { vm: name.to_owned() }
}

pub(super) fn op(id: &str) -> OperationRef {
    OperationRef {
        operation: id.to_owned(),
    }
}

pub(super) fn exec(vm: &str) -> ExecOpen {
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
