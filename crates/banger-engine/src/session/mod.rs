//! Sessions: commands that run in guests beside everybody's connections.
//!
//! ```text
//! start ─ row ─ agent ─ follower ─► log on the host, the row's outcome
//!                          │
//!                          └─ news ─► who waits, who follows the log
//! ```
//!
//! A session belongs to one run of its machine, which its row names. The row is there before the guest knows of it. The
//! agent has the process and a little of what it wrote last; the log is the host's and is read without the guest. Each
//! session that has not ended has a follower, a task that also comes back when the daemon was started anew and goes on
//! where the log ends.

pub(crate) mod follow;
pub(crate) mod log;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_agent_api::{AgentError, ExitStatus, FailureKind};
use banger_store::sessions::{self, SessionRow};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::crash::Write;
use crate::error::{Error, io};
use crate::host::Host;
use crate::image;
use crate::vm::machines::Machines;
use crate::vm::state::Paths;
use crate::vm::task::Handle;
use crate::{guest, id, name};

/// Sessions of one machine, ended ones among them.
const MOST: usize = 128;
/// For the guest to start a command, to signal one, to forget one.
const ANSWER: Duration = Duration::from_secs(30);
/// For a session that is killed to end.
const KILL_TIME: Duration = Duration::from_secs(10);
const SIGKILL: u8 = 9;
/// Pieces of a log that may wait for a slow reader.
const CHUNKS: usize = 4;

/// What is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSession {
    /// Its name. Absent: after its program.
    pub name: Option<String>,
    /// What runs.
    pub command: guest::Command,
    /// Stop the machine when it ends.
    pub ends_machine: bool,
}

/// A session, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// For life.
    pub id: String,
    /// Unique in its machine.
    pub name: String,
    /// Machine's name.
    pub vm: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// As which user, where it was said.
    pub user: Option<String>,
    /// Whether it runs.
    pub state: SessionState,
    /// When it was started.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// The machine is stopped when it ends.
    pub ends_machine: bool,
}

/// Whether a session runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionState {
    /// It does.
    Running,
    /// It ended like this.
    Ended(Outcome),
}

/// How a session ended, kept in its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
    /// It ended with its machine, or nobody knows how.
    Lost(String),
}

impl From<ExitStatus> for Outcome {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Code(code) => Self::Code(code),
            ExitStatus::Signal {
                number,
                core_dumped: _,
            } => Self::Signal(number),
        }
    }
}

/// Piece of a session's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// On standard error.
    pub error: bool,
    /// Bytes.
    pub data: Bytes,
}

/// Which part of a session's log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    /// Only the last lines. Absent: all that is kept.
    pub tail: Option<u32>,
    /// Only what was written from then on, by the guest's clock.
    pub since: Option<Timestamp>,
    /// Go on until the session ends.
    pub follow: bool,
}

/// Those that have a follower, by id: each counts what happens. The lock is a leaf.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    followed: Mutex<HashMap<String, watch::Receiver<u64>>>,
}

impl Sessions {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Receiver<u64>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// News of a session. They end with its follower.
    fn news(&self, id: &str) -> Option<watch::Receiver<u64>> {
        self.table().get(id).cloned()
    }
}

/// Waits until nobody follows a session any more: it has ended, and that is in its row.
async fn ended(host: &Host, id: &str) {
    if let Some(mut news) = host.sessions.news(id) {
        while news.changed().await.is_ok() {}
    }
}

/// Where a session's log is.
fn directory(host: &Host, vm: &str, session: &str) -> PathBuf {
    let settings = &host.settings;
    Paths::new(&settings.state_dir, &settings.runtime_dir, vm)
        .state
        .join("sessions")
        .join(session)
}

fn agent_error(handle: &Handle, source: AgentError) -> Error {
    Error::Agent {
        vm: handle.name(),
        source: Box::new(source),
    }
}

fn of_row(row: SessionRow, vm: String) -> Result<Session, Error> {
    let state = match &row.outcome {
        None => SessionState::Running,
        Some(text) => SessionState::Ended(outcome_of(text)?),
    };
    Ok(Session {
        state,
        vm,
        id: row.id,
        name: row.name,
        command: row.command,
        user: row.user,
        started: row.started,
        ended: row.ended,
        ends_machine: row.ends_machine,
    })
}

fn corrupt(source: serde_json::Error) -> Error {
    banger_store::StoreError::Corrupt {
        table: "sessions",
        column: "outcome",
        source,
    }
    .into()
}

fn outcome_of(text: &str) -> Result<Outcome, Error> {
    serde_json::from_str(text).map_err(corrupt)
}

/// A name after a program, made different from those that there are.
fn name_after(program: &str, taken: &[SessionRow]) -> String {
    let base = program
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let fit = |c: char| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            c
        } else {
            '-'
        }
    };
    let base: String = base.chars().map(fit).take(40).collect();
    let base = base.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let base = base.trim_end_matches('-');
    let base = if base.is_empty() { "session" } else { base };
    let is_free = |name: &String| taken.iter().all(|row| row.name != *name);
    let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
    let mut names = std::iter::once(base.to_owned()).chain(numbered);
    names.find(is_free).unwrap_or_else(|| base.to_owned())
}

async fn of_vm(host: &Host, vm: &str) -> Result<Vec<SessionRow>, Error> {
    let vm = vm.to_owned();
    Ok(host.store.read(move |tx| sessions::of_vm(tx, &vm)).await?)
}

async fn find(host: &Host, handle: &Handle, session: &str) -> Result<SessionRow, Error> {
    let (vm, wanted) = (handle.id.clone(), session.to_owned());
    let found = host
        .store
        .read(move |tx| sessions::find(tx, &vm, &wanted))
        .await?;
    match found {
        Some(row) => Ok(row),
        None => {
            let known = of_vm(host, &handle.id).await?;
            Err(Error::Missing {
                what: "session",
                name: session.chars().take(80).collect(),
                near: name::nearest(session, known.iter().map(|row| row.name.as_str())),
            })
        }
    }
}

/// Starts a session in a machine that runs.
pub(crate) async fn start(
    host: &Arc<Host>,
    machines: &Machines,
    reference: &str,
    new: NewSession,
) -> Result<Session, Error> {
    let handle = machines.find(reference)?;
    let client = guest::client(&handle)?;
    let run = handle.view.borrow().phase.running().map(|run| run.since);
    let run = run.ok_or_else(|| Error::NotRunning { vm: handle.name() })?;
    let there = of_vm(host, &handle.id).await?;
    if there.len() >= MOST {
        return Err(Error::OutOfRange {
            field: "sessions of a machine",
            value: (there.len() + 1).to_string(),
            problem: format!("above {MOST}: remove some that have ended, with `banger session rm`"),
        });
    }
    let NewSession {
        name: wanted,
        command,
        ends_machine,
    } = new;
    let name = match wanted {
        Some(name) => {
            name::session(&name)?;
            name
        }
        None => name_after(command.argv.first().map_or("", String::as_str), &there),
    };
    let image = handle.view.borrow().row.image.clone();
    let image = image::config::of_image(host, image).await?.unwrap_or_default();
    let row = SessionRow {
        id: id::new(),
        vm: handle.id.clone(),
        name,
        command: command.argv.clone(),
        user: command.user.clone(),
        run,
        started: Timestamp::now(),
        ended: None,
        outcome: None,
        ends_machine,
    };
    let start = command.start(image);
    let inserted = row.clone();
    host.store
        .write(Write::SessionInsert, move |tx| sessions::insert(tx, &inserted))
        .await?;
    if let Err(refused) = client.session_start(&row.id, start, ANSWER).await {
        // Where the answer was lost it may run all the same: then its follower will find it.
        if refused.failure().is_some() {
            strike(host, &row).await?;
        } else {
            follow::begin(host, machines, &handle, row);
        }
        return Err(agent_error(&handle, refused));
    }
    let session = of_row(row.clone(), handle.name())?;
    follow::begin(host, machines, &handle, row);
    Ok(session)
}

async fn strike(host: &Host, row: &SessionRow) -> Result<(), Error> {
    let id = row.id.clone();
    let struck = host
        .store
        .write(Write::SessionRemove, move |tx| sessions::remove(tx, &id));
    Ok(struck.await?)
}

/// Sessions of a machine, or of all.
pub(crate) async fn list(
    host: &Host,
    machines: &Machines,
    reference: Option<&str>,
) -> Result<Vec<Session>, Error> {
    let handles = match reference {
        Some(reference) => vec![machines.find(reference)?],
        None => machines.all(),
    };
    let rows = host.store.read(sessions::list).await?;
    let of_one = |handle: &Handle| {
        let own = rows.iter().filter(|row| row.vm == handle.id).cloned();
        own.map(|row| of_row(row, handle.name())).collect::<Vec<_>>()
    };
    handles.iter().flat_map(of_one).collect()
}

/// One session.
pub(crate) async fn show(
    host: &Host,
    machines: &Machines,
    reference: &str,
    session: &str,
) -> Result<Session, Error> {
    let handle = machines.find(reference)?;
    of_row(find(host, &handle, session).await?, handle.name())
}

/// Waits for a session's end.
pub(crate) async fn wait(
    host: &Host,
    machines: &Machines,
    reference: &str,
    session: &str,
) -> Result<Session, Error> {
    let handle = machines.find(reference)?;
    let row = find(host, &handle, session).await?;
    ended(host, &row.id).await;
    let row = find(host, &handle, session).await?;
    if row.outcome.is_none() {
        // Its follower went without an outcome: the daemon ends.
        return Err(Error::ShuttingDown);
    }
    of_row(row, handle.name())
}

/// Sends a signal to a session's process group.
pub(crate) async fn signal(
    host: &Host,
    machines: &Machines,
    reference: &str,
    session: &str,
    number: u8,
) -> Result<(), Error> {
    let handle = machines.find(reference)?;
    let row = find(host, &handle, session).await?;
    let over = || Error::Session {
        vm: handle.name(),
        session: row.name.clone(),
        refusal: "has ended",
    };
    if row.outcome.is_some() {
        return Err(over());
    }
    let sent = guest::client(&handle)?
        .session_signal(&row.id, number, ANSWER)
        .await;
    sent.map_err(|e| match e.failure().map(|failure| failure.kind) {
        Some(FailureKind::NoSuchCommand | FailureKind::NoSuchSession) => over(),
        Some(_) | None => agent_error(&handle, e),
    })
}

/// Removes a session that has ended, and its log. One that runs is killed before, where that is asked for.
pub(crate) async fn remove(
    host: &Host,
    machines: &Machines,
    reference: &str,
    session: &str,
    force: bool,
) -> Result<Session, Error> {
    let handle = machines.find(reference)?;
    let mut row = find(host, &handle, session).await?;
    let running = |refusal| Error::Session {
        vm: handle.name(),
        session: session.to_owned(),
        refusal,
    };
    if row.outcome.is_none() {
        if !force {
            return Err(running("is running"));
        }
        match signal(host, machines, reference, session, SIGKILL).await {
            // It ended by itself meanwhile, or with its machine.
            Ok(()) | Err(Error::Session { .. } | Error::NotRunning { .. }) => {}
            Err(e) => return Err(e),
        }
        if tokio::time::timeout(KILL_TIME, ended(host, &row.id))
            .await
            .is_err()
        {
            return Err(running("does not end"));
        }
        row = find(host, &handle, session).await?;
    }
    if let Ok(client) = guest::client(&handle) {
        // Of an earlier run, it is not there; and what the guest keeps of it is bounded.
        if let Err(e) = client.session_remove(&row.id, ANSWER).await {
            tracing::debug!(
                session = row.id,
                error = crate::error::chain(&e),
                "not forgotten by the guest"
            );
        }
    }
    strike(host, &row).await?;
    let directory = directory(host, &handle.id, &row.id);
    match tokio::fs::remove_dir_all(&directory).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", directory)(e)),
        Ok(()) | Err(_) => {}
    }
    of_row(row, handle.name())
}

/// What a session wrote: pieces until the end, or, when following, until it ends or the receiver is dropped.
pub(crate) async fn logs(
    host: &Host,
    machines: &Machines,
    reference: &str,
    session: &str,
    part: Part,
) -> Result<mpsc::Receiver<Piece>, Error> {
    let handle = machines.find(reference)?;
    let row = find(host, &handle, session).await?;
    let directory = directory(host, &handle.id, &row.id);
    let news = host.sessions.news(&row.id).filter(|_| part.follow);
    let (out, pieces) = mpsc::channel(CHUNKS);
    tokio::spawn(async move {
        if let Err(e) = send(directory, part, news, out).await {
            tracing::warn!(session = row.id, error = %e, "log not read");
        }
    });
    Ok(pieces)
}

async fn send(
    directory: PathBuf,
    part: Part,
    mut news: Option<watch::Receiver<u64>>,
    out: mpsc::Sender<Piece>,
) -> std::io::Result<()> {
    let since_ms = part
        .since
        .map_or(0, |since| u64::try_from(since.as_millisecond()).unwrap_or(0));
    let mut skip = log::Skip(match part.tail {
        Some(tail) => log::lines(&directory, since_ms)?.saturating_sub(tail.into()),
        None => 0,
    });
    let mut reader = log::Reader::new(&directory);
    loop {
        // Before it is read: what is written later is news again.
        let is_last = match &mut news {
            Some(news) => news.has_changed().is_err(),
            None => true,
        };
        if let Some(news) = &mut news {
            news.mark_unchanged();
        }
        while let Some(record) = reader.next()? {
            if record.time_ms < since_ms {
                continue;
            }
            let data = skip.rest(record.data);
            let piece = Piece {
                error: record.error,
                data,
            };
            if !piece.data.is_empty() && out.send(piece).await.is_err() {
                return Ok(());
            }
        }
        let Some(news) = news.as_mut().filter(|_| !is_last) else {
            return Ok(());
        };
        tokio::select! {
            // It only waits; an end is seen above.
            _changed_or_ended = news.changed() => {}
            () = out.closed() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_keep_their_form() {
        for (outcome, text) in [
            (Outcome::Code(3), r#"{"code":3}"#),
            (Outcome::Signal(15), r#"{"signal":15}"#),
            (Outcome::Lost("gone".to_owned()), r#"{"lost":"gone"}"#),
        ] {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), text);
            assert_eq!(outcome_of(text).unwrap(), outcome);
        }
        assert!(outcome_of("{}").is_err());
    }

    #[test]
    fn names_are_made_after_programs() {
        let row = |name: &str| SessionRow {
            id: String::new(),
            vm: String::new(),
            name: name.to_owned(),
            command: Vec::new(),
            user: None,
            run: Timestamp::UNIX_EPOCH,
            started: Timestamp::UNIX_EPOCH,
            ended: None,
            outcome: None,
            ends_machine: false,
        };
        for (program, expected) in [
            ("/usr/bin/python3.11", "python3-11"),
            ("make", "make-3"),
            ("./Run_It.SH", "run-it-sh"),
            ("7z", "z"),
            ("/", "session"),
            ("", "session"),
        ] {
            let name = name_after(program, &[row("make"), row("make-2")]);
            assert_eq!(name, expected);
            name::session(&name).unwrap();
        }
    }
}
