//! A client for QEMU's control socket, connected when there is something to ask.
//!
//! QEMU serves one connection at a time and takes the next when that one is closed; so a restarted daemon finds the
//! socket free. The connection of the launch is kept: on it QEMU says why the machine ended, in its last words before
//! it exits. A task of the connection's own reads it, so that events do not pile up in QEMU.
//!
//! Commands run one after the other. A command that is dropped or gets no answer takes the connection with it, since
//! its answer may still be under way; the next command connects anew.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

use super::message::{self, LINE_LIMIT, Message};
use crate::error::ControlError;
use crate::figures::Moved;
use crate::vmm::RunState;

/// How long QEMU has to answer. Its main loop does so within milliseconds, unless the host's disk is stuck.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last words of a QEMU that has ended may take to be read: they are in the socket's buffer.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Answers that wait to be fetched. There is one command at a time; more answers than commands end the connection.
const ANSWERS: usize = 4;

/// The control socket of one machine.
#[derive(Debug)]
pub(super) struct Qmp {
    socket: PathBuf,
    connection: Mutex<Option<Connection>>,
    ended_because: Arc<OnceLock<String>>,
}

/// The answer to `query-status` (qapi/run-state.json).
#[derive(Deserialize)]
struct Status {
    status: String,
}

/// One element of the answer to `query-blockstats` (qapi/block-core.json): a disk of the guest.
#[derive(Deserialize)]
struct BlockDevice {
    stats: BlockStats,
}

#[derive(Deserialize)]
struct BlockStats {
    rd_bytes: u64,
    wr_bytes: u64,
}

impl Qmp {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            connection: Mutex::new(None),
            ended_because: Arc::default(),
        }
    }

    /// Asks for the machine's state.
    pub(super) async fn status(&self, within: Duration) -> Result<RunState, ControlError> {
        let answer = self.execute("query-status", within).await?;
        let Status { status } = serde_json::from_value(answer)
            .map_err(|error| protocol(&self.socket, format!("answer to query-status: {error}")))?;
        Ok(match status.as_str() {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            _ => RunState::Other,
        })
    }

    /// Stops the guest's processors.
    pub(super) async fn stop(&self) -> Result<(), ControlError> {
        self.execute("stop", PATIENCE).await.map(drop)
    }

    /// Lets the guest's processors run.
    pub(super) async fn resume(&self) -> Result<(), ControlError> {
        self.execute("cont", PATIENCE).await.map(drop)
    }

    /// Tells QEMU, and so the guest, that a block node has grown.
    pub(super) async fn resize(&self, node: &str, bytes: u64) -> Result<(), ControlError> {
        let arguments = json!({ "node-name": node, "size": bytes });
        self.execute_with("block_resize", Some(&arguments), PATIENCE)
            .await
            .map(drop)
    }

    /// What all disks have moved since QEMU was started.
    pub(super) async fn moved(&self, within: Duration) -> Result<Moved, ControlError> {
        let answer = self.execute("query-blockstats", within).await?;
        let devices: Vec<BlockDevice> = serde_json::from_value(answer)
            .map_err(|error| protocol(&self.socket, format!("answer to query-blockstats: {error}")))?;
        let mut moved = Moved::default();
        for device in devices {
            moved.add(device.stats.rd_bytes, device.stats.wr_bytes);
        }
        Ok(moved)
    }

    /// After QEMU has ended: reads what it wrote last, and returns the reason it gave, if it did and we were connected.
    pub(super) async fn last_words(&self) -> Option<String> {
        let read = async {
            if let Some(connection) = self.connection.lock().await.take() {
                connection.finish().await;
            }
        };
        // Whether read to the end or not, what counts is whether the reason has come.
        timeout(LAST_WORDS, read).await.ok();
        self.ended_because.get().cloned()
    }

    async fn execute(&self, command: &str, within: Duration) -> Result<Value, ControlError> {
        self.execute_with(command, None, within).await
    }

    async fn execute_with(
        &self,
        command: &str,
        arguments: Option<&Value>,
        within: Duration,
    ) -> Result<Value, ControlError> {
        let work = async {
            let mut slot = self.connection.lock().await;
            // Taken out while it is used: if this future is dropped, the connection goes with it.
            let mut connection = match slot.take() {
                Some(connection) if !connection.is_closed() => connection,
                Some(_) | None => self.connect().await?,
            };
            let answer = connection.execute(&self.socket, command, arguments).await;
            if !matches!(
                answer,
                Err(ControlError::Broken { .. } | ControlError::Protocol { .. })
            ) {
                *slot = Some(connection);
            }
            answer
        };
        timeout(within, work).await.unwrap_or_else(|_| {
            Err(ControlError::Silent {
                socket: self.socket.clone(),
                request: command.to_owned(),
                within,
            })
        })
    }

    async fn connect(&self) -> Result<Connection, ControlError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ControlError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let (reader, writer) = stream.into_split();
        let (answers_in, answers) = mpsc::channel(ANSWERS);
        let reader = tokio::spawn(read(reader, answers_in, Arc::clone(&self.ended_because)));
        let mut connection = Connection {
            writer,
            answers,
            reader: AbortOnDrop(reader),
            last_id: 0,
        };
        match connection.next(&self.socket).await? {
            Message::Greeting => {}
            other @ (Message::Return { .. } | Message::Error { .. } | Message::Event { .. }) => {
                return Err(protocol(&self.socket, format!("{other:?} instead of a greeting")));
            }
        }
        connection.execute(&self.socket, "qmp_capabilities", None).await?;
        Ok(connection)
    }
}

fn protocol(socket: &Path, detail: String) -> ControlError {
    ControlError::Protocol {
        socket: socket.to_owned(),
        detail,
    }
}

/// One connection to QEMU.
#[derive(Debug)]
struct Connection {
    writer: OwnedWriteHalf,
    answers: mpsc::Receiver<Result<Message, String>>,
    reader: AbortOnDrop,
    last_id: u64,
}

impl Connection {
    fn is_closed(&self) -> bool {
        self.reader.0.is_finished()
    }

    async fn execute(
        &mut self,
        socket: &Path,
        command: &str,
        arguments: Option<&Value>,
    ) -> Result<Value, ControlError> {
        self.last_id += 1;
        let broken = |source| ControlError::Broken {
            socket: socket.to_owned(),
            source,
        };
        self.writer
            .write_all(message::command(command, arguments, self.last_id).as_bytes())
            .await
            .map_err(broken)?;
        match self.next(socket).await? {
            Message::Return { id, value } if id == self.last_id => Ok(value),
            Message::Error { id, description } if id == Some(self.last_id) => Err(ControlError::Refused {
                request: command.to_owned(),
                message: description,
            }),
            other @ (Message::Greeting
            | Message::Return { .. }
            | Message::Error { .. }
            | Message::Event { .. }) => {
                Err(protocol(socket, format!("{other:?} to command {}", self.last_id)))
            }
        }
    }

    /// The next message that is no event.
    async fn next(&mut self, socket: &Path) -> Result<Message, ControlError> {
        match self.answers.recv().await {
            Some(Ok(message)) => Ok(message),
            Some(Err(detail)) => Err(protocol(socket, detail)),
            None => Err(ControlError::Broken {
                socket: socket.to_owned(),
                source: std::io::ErrorKind::UnexpectedEof.into(),
            }),
        }
    }

    /// Waits until the other side has closed the connection and everything it wrote is read.
    async fn finish(mut self) {
        // The task only ends; what it found is in `ended_because`.
        (&mut self.reader.0).await.ok();
    }
}

/// A task that ends with its handle.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads a connection to its end: answers go to whoever asked, events are looked at here.
async fn read(
    stream: OwnedReadHalf,
    answers: mpsc::Sender<Result<Message, String>>,
    ended_because: Arc<OnceLock<String>>,
) {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = u64::try_from(LINE_LIMIT).unwrap_or(u64::MAX);
        match (&mut lines).take(limit).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let message = match line.strip_suffix(b"\n") {
            Some(line) => Message::parse(line),
            None => Err(format!("a line of {} bytes without an end", line.len())),
        };
        if let Ok(event @ Message::Event { name, .. }) = &message {
            debug!(name, "event from QEMU");
            if let Some(reason) = event.shutdown_reason() {
                // The first reason is the cause; a SIGTERM that follows adds nothing.
                ended_because.set(reason.to_owned()).ok();
            }
            continue;
        }
        let failed = message.is_err();
        // Full: more answers than questions. Closed: nobody asks any more.
        if answers.try_send(message).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
