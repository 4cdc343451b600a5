//! Sessions: commands that belong to no connection.
//!
//! ```text
//! SessionStart → exec::begin ─ process group ─ pump ─► Kept (bounded) ─► SessionFollow, by offset, any number of times
//!                                    └──────── exit ─► State ─────────────┘ last
//! ```
//!
//! A session is in the table from before its command is started until the host removes it, at most [`MAX_SESSIONS`]. It
//! never waits for a caller. It ends with its command, or with the guest: a shutdown signals its process group as it does
//! the others'.

mod kept;

use crate::exec::{self, Begun, Command, Running, exited, signal_of, system};
use crate::log;
use banger_agent_api::proto::exec_output::Output;
use banger_agent_api::proto::session_output::Output as Said;
use banger_agent_api::proto::{ExecExited, SessionOutput, SessionPiece, SessionStartRequest};
use banger_agent_api::{Failure, FailureKind, MAX_SESSION_ID, MAX_SESSIONS};
use kept::Kept;
use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tonic::Status;

/// Messages between a session and a connection that follows it.
const QUEUE: usize = 2;

/// The sessions of this boot, by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    table: Arc<Mutex<BTreeMap<String, Arc<Session>>>>,
}

#[derive(Debug)]
struct Session {
    kept: Mutex<Kept>,
    state: Mutex<State>,
    /// Counts what has happened.
    news: watch::Sender<u64>,
}

#[derive(Debug)]
enum State {
    Starting,
    Running(Arc<Command>),
    Ended(ExecExited),
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while one is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn none(id: &str) -> Failure {
    let message = format!("find the session {id}: there is none");
    Failure::new(FailureKind::NoSuchSession, id, message)
}

fn is_id(id: &str) -> bool {
    let of_an_id = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=MAX_SESSION_ID).contains(&id.len()) && id.bytes().all(of_an_id)
}

impl Sessions {
    fn find(&self, id: &str) -> Result<Arc<Session>, Failure> {
        lock(&self.table).get(id).cloned().ok_or_else(|| none(id))
    }

    /// Takes the id, so that no other session gets it while the command starts.
    fn enter(&self, id: &str) -> Result<Arc<Session>, Failure> {
        let mut table = lock(&self.table);
        if table.contains_key(id) {
            let message = format!("start the session {id}: it is there already");
            return Err(Failure::new(FailureKind::SessionExists, id, message));
        }
        if table.len() >= MAX_SESSIONS {
            let message =
                format!("start another of {MAX_SESSIONS} sessions in the guest: remove some that have ended");
            return Err(Failure::new(FailureKind::Busy, "sessions", message));
        }
        let session = Arc::new(Session {
            kept: Mutex::default(),
            state: Mutex::new(State::Starting),
            news: watch::Sender::new(0),
        });
        table.insert(id.to_owned(), Arc::clone(&session));
        Ok(session)
    }

    /// Starts a session; its command's process id. To be run to its end: dropped half way it would leave a process behind.
    pub(crate) async fn start(
        &self,
        request: SessionStartRequest,
        running: Running,
        open_files: libc::rlimit,
    ) -> Result<u32, Failure> {
        let SessionStartRequest { id, command } = request;
        let refused = |message: &str| Failure::new(FailureKind::InvalidRequest, "session", message);
        if !is_id(&id) {
            return Err(refused("start a session: its id is none"));
        }
        let start = command.ok_or_else(|| refused("start a session: it has no command"))?;
        if start.stdin || start.terminal.is_some() {
            return Err(refused(
                "start a session: it has neither standard input nor a terminal",
            ));
        }
        let session = self.enter(&id)?;
        let begun = exec::begin(start, &running, open_files).await;
        let Begun {
            command,
            input: _,
            pid,
        } = begun.inspect_err(|_refused| {
            lock(&self.table).remove(&id);
        })?;
        *lock(&session.state) = State::Running(Arc::clone(&command));
        tokio::spawn(async move {
            let exit = session.run(&command).await;
            running.forget(pid);
            *lock(&session.state) = State::Ended(exit);
            session.tell();
        });
        Ok(pid)
    }

    /// What the session has written after `offset` bytes, then what it writes, last how it ended.
    pub(crate) fn follow(
        &self,
        id: &str,
        offset: u64,
    ) -> Result<mpsc::Receiver<Result<SessionOutput, Status>>, Failure> {
        let session = self.find(id)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            tokio::select! {
                () = session.send(offset, &sender) => {}
                () = sender.closed() => {}
            }
        });
        Ok(receiver)
    }

    /// Signals a session's process group. One that has ended is left as it is.
    pub(crate) fn signal(&self, id: &str, number: u32) -> Result<(), Failure> {
        let signal = signal_of(number)?;
        let session = self.find(id)?;
        match &*lock(&session.state) {
            State::Running(command) if command.signal(signal) => Ok(()),
            State::Running(_) | State::Ended(_) | State::Starting => {
                let message = format!("signal the session {id}: it does not run");
                Err(Failure::new(FailureKind::NoSuchCommand, id, message))
            }
        }
    }

    /// Forgets a session that has ended.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Failure> {
        let mut table = lock(&self.table);
        let session = table.get(id).ok_or_else(|| none(id))?;
        let has_ended = matches!(&*lock(&session.state), State::Ended(_));
        if !has_ended {
            let message = format!("remove the session {id}: it runs");
            return Err(Failure::new(FailureKind::SessionRuns, id, message));
        }
        table.remove(id);
        Ok(())
    }
}

impl Session {
    /// Keeps what the command writes, until it ends.
    async fn run(&self, command: &Command) -> ExecExited {
        let keep = |output: Output| {
            match output {
                Output::Stdout(data) => lock(&self.kept).push(now_ms(), false, &data),
                Output::Stderr(data) => lock(&self.kept).push(now_ms(), true, &data),
                // Not among what a command writes.
                Output::Started(_) | Output::Exited(_) => {}
            }
            self.tell();
            ready(true)
        };
        let ended = match command.follow(keep).await {
            Ok(exit) => Ok(exit),
            Err(error) => {
                log::line(format_args!("{}", system("follow a session", &error)));
                command.terminate().await
            }
        };
        match ended {
            Ok(exit) => exited(exit),
            Err(error) => {
                log::line(format_args!("{}", system("end a session", &error)));
                // How it ended nobody knows.
                ExecExited::default()
            }
        }
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    async fn send(&self, mut offset: u64, sender: &mpsc::Sender<Result<SessionOutput, Status>>) {
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            // In this order: when it has ended, everything that it wrote is kept already.
            let ended = match &*lock(&self.state) {
                State::Ended(exit) => Some(*exit),
                State::Starting | State::Running(_) => None,
            };
            let piece = lock(&self.kept).after(offset);
            let output = match (piece, ended) {
                (Some(piece), _) => {
                    offset = piece.offset + piece.data.len() as u64;
                    Said::Piece(SessionPiece {
                        offset: piece.offset,
                        time_ms: piece.time_ms,
                        error: piece.error,
                        data: piece.data,
                    })
                }
                (None, Some(exit)) => Said::Exited(exit),
                (None, None) => match news.changed().await {
                    Ok(()) => continue,
                    Err(_gone) => return,
                },
            };
            let is_last = matches!(output, Said::Exited(_));
            let sent = sender.send(Ok(SessionOutput { output: Some(output) })).await;
            if sent.is_err() || is_last {
                return;
            }
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
