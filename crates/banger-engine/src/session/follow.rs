//! The follower of a session: fetches what it writes into the host's log until it ends, whatever becomes of the connection
//! to its guest, and keeps how it ended.
//!
//! It ends with the session, with the run of the machine that the session belongs to, with the machine, or with the daemon;
//! in the last two cases it leaves no outcome, for then there is no row, or another follower follows.

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{AgentClient, AgentError, FailureKind, SessionEvent};
use banger_store::sessions::{self, SessionRow};
use jiff::Timestamp;
use tokio::sync::watch;

use super::log::{Record, Writer};
use super::{Outcome, corrupt, directory};
use crate::crash::Write;
use crate::error::{Error, chain, io};
use crate::host::Host;
use crate::operation::Progress;
use crate::vm::machines::Machines;
use crate::vm::policy::Request;
use crate::vm::state::View;
use crate::vm::task::{Handle, Terms};

/// Between attempts to reach a guest that runs and does not answer, and to write a log that cannot be written.
const PAUSE: Duration = Duration::from_millis(500);

/// Begins to follow a session. There is at most one follower of each.
pub(crate) fn begin(host: &Arc<Host>, machines: &Machines, handle: &Handle, row: SessionRow) {
    let (news, watching) = watch::channel(0);
    host.sessions.table().insert(row.id.clone(), watching);
    let (host, handle) = (host.clone(), handle.clone());
    machines.spawn(async move {
        let outcome = follow(&host, handle.view.clone(), &row, &news).await;
        if let Some(outcome) = outcome {
            keep(&host, &row, &outcome).await;
            if takes_along(&row, &outcome) {
                stop(&host, handle).await;
            }
        }
        host.sessions.table().remove(&row.id);
        drop(news);
    });
}

/// Whether the machine stops with its session.
fn takes_along(row: &SessionRow, outcome: &Outcome) -> bool {
    row.ends_machine && !matches!(outcome, Outcome::Lost(_))
}

/// Takes up the sessions that an earlier daemon has left, and stops the machines that it did not come to stop after theirs.
pub(crate) async fn take_up(host: &Arc<Host>, machines: &Machines) {
    let rows = host
        .store
        .read(|tx| Ok((sessions::unfinished(tx)?, sessions::that_end_their_machine(tx)?)));
    let (rows, ended) = match rows.await {
        Ok(rows) => rows,
        // Machines go on without them, which is better than no daemon.
        Err(e) => {
            tracing::error!(error = chain(&e), "sessions cannot be read, and are not followed");
            return;
        }
    };
    let handles = machines.all();
    for row in rows {
        if let Some(handle) = handles.iter().find(|handle| handle.id == row.vm) {
            begin(host, machines, handle, row);
        }
    }
    for row in ended {
        let outcome = row
            .outcome
            .as_deref()
            .and_then(|text| super::outcome_of(text).ok());
        let is_run = |handle: &&Handle| {
            handle.id == row.vm
                && handle
                    .view
                    .borrow()
                    .phase
                    .running()
                    .is_some_and(|run| run.since == row.run)
        };
        if outcome.is_some_and(|outcome| takes_along(&row, &outcome))
            && let Some(handle) = handles.iter().find(is_run)
        {
            let (host, handle) = (host.clone(), handle.clone());
            machines.spawn(async move { stop(&host, handle).await });
        }
    }
}

/// Why there is nothing to be fetched.
enum Gone {
    /// The machine or the daemon goes.
    Closed,
    /// The run that the session belongs to is over.
    RunEnded,
}

/// The guest, once it can be asked.
async fn guest_of(view: &mut watch::Receiver<View>, row: &SessionRow) -> Result<AgentClient, Gone> {
    loop {
        {
            let view = view.borrow_and_update();
            if view.phase.running().is_none_or(|run| run.since != row.run) {
                return Err(Gone::RunEnded);
            }
            if let Some(guest) = &view.guest {
                return Ok(guest.clone());
            }
        }
        view.changed().await.map_err(|_closed| Gone::Closed)?;
    }
}

/// Fetches until the end; how that was, where it is known to be the end.
async fn follow(
    host: &Host,
    mut view: watch::Receiver<View>,
    row: &SessionRow,
    news: &watch::Sender<u64>,
) -> Option<Outcome> {
    let mut writer = None;
    loop {
        let guest = match guest_of(&mut view, row).await {
            Ok(guest) => guest,
            Err(Gone::Closed) => return None,
            Err(Gone::RunEnded) => return Some(Outcome::Lost("its machine stopped".to_owned())),
        };
        match fetch(host, &guest, &mut view, row, &mut writer, news).await {
            Ok(Some(outcome)) => return Some(outcome),
            // The view says what follows.
            Ok(None) => continue,
            Err(Failed::Agent(e)) => {
                if let Some(FailureKind::NoSuchSession) = e.failure().map(|failure| failure.kind) {
                    return Some(Outcome::Lost("the guest's agent knows nothing of it".to_owned()));
                }
                tracing::debug!(session = row.id, error = chain(&e), "session not followed");
            }
            Err(Failed::Log(e)) => {
                // As far as it was written; what follows is fetched from there.
                writer = None;
                tracing::warn!(
                    session = row.id,
                    error = chain(&e),
                    "a session's log is not written"
                );
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            changed = view.changed() => if changed.is_err() { return None },
        }
    }
}

enum Failed {
    Agent(AgentError),
    Log(Error),
}

/// Fetches over one connection; how the session ended, or nothing where the machine's state has changed.
async fn fetch(
    host: &Host,
    guest: &AgentClient,
    view: &mut watch::Receiver<View>,
    row: &SessionRow,
    writer: &mut Option<Writer>,
    news: &watch::Sender<u64>,
) -> Result<Option<Outcome>, Failed> {
    let path = directory(host, &row.vm, &row.id);
    let failed = |e| Failed::Log(io("write the session log", &path)(e));
    let writer = match writer {
        Some(writer) => writer,
        none => none.insert(Writer::open(&path).map_err(failed)?),
    };
    let following = guest.session_follow(&row.id, writer.offset()).await;
    let mut output = following.map_err(Failed::Agent)?;
    loop {
        let event = tokio::select! {
            // What has come already counts, also when the machine stops at the same moment.
            biased;
            event = output.next() => event.map_err(Failed::Agent)?,
            _changed_or_closed = view.changed() => {
                let runs = view.borrow().phase.running().is_some_and(|run| run.since == row.run);
                if runs && view.has_changed().is_ok() {
                    continue;
                }
                return Ok(None);
            }
        };
        match event {
            Some(SessionEvent::Wrote {
                offset,
                time_ms,
                error,
                data,
            }) => {
                let record = Record {
                    offset,
                    time_ms,
                    error,
                    data,
                };
                writer.append(&record).map_err(failed)?;
                news.send_modify(|count| *count += 1);
            }
            Some(SessionEvent::Exited(status)) => return Ok(Some(status.into())),
            None => return Ok(None),
        }
    }
}

/// Keeps how a session ended. Where that cannot be written, the next daemon finds out again.
async fn keep(host: &Host, row: &SessionRow, outcome: &Outcome) {
    let kept = async {
        let text = serde_json::to_string(outcome).map_err(corrupt)?;
        let (id, now) = (row.id.clone(), Timestamp::now());
        let ending = host
            .store
            .write(Write::SessionEnd, move |tx| sessions::end(tx, &id, now, &text));
        Ok::<_, Error>(ending.await?)
    };
    match kept.await {
        Ok(()) => tracing::info!(session = row.name, id = row.id, ?outcome, "session ended"),
        Err(e) => tracing::error!(
            session = row.id,
            error = chain(&e),
            "how a session ended was not kept"
        ),
    }
}

/// Stops the machine whose session it was.
async fn stop(host: &Host, handle: Handle) {
    let subject = handle.name();
    let work = move |progress: Progress| async move {
        progress.notice("its session has ended");
        handle.ask(Request::Stop, Terms::default(), &progress).await
    };
    if let Err(e) = host.operations.begin("vm.stop", &subject, work).await {
        tracing::warn!(vm = subject, error = chain(&e), "not stopped after its session");
    }
}
