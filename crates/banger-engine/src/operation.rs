//! Operations: everything slow is begun by a call and watched, and goes on whether or not anybody watches.
//!
//! ```text
//!   begin --> Running --cancel--> Cancelling --> Cancelled | Succeeded | Failed
//!                |---------------------------------------> Succeeded | Failed
//! ```
//!
//! Cancelling is a request to the work, which sees it through [`Progress::cancelled`], removes what it made and ends;
//! whoever cancelled waits for that end. Records live in the store for a day after the end; one that the daemon's death
//! interrupted is found at the next start and ends as failed, with its stage.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_store::operations::OperationRow;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::crash::{self, Point, Write, named};
use crate::error::{Error, Kind, Report};
use crate::id;
use crate::rows::Rows;

/// How long a finished operation stays readable.
const KEPT: Duration = Duration::from_hours(24);
/// Finished operations in memory, for watchers that come late; older ones are read from the store.
const REMEMBERED: usize = 64;
/// Operations shown by a listing.
const LISTED: u32 = 1000;

/// The stage of an operation that has not said anything yet.
const WAITING: &str = "waiting";

named! {
    /// Stages of what is done to machines, in the words of those who watch. Image work has more, which are not kept.
    pub enum Stage {
        /// Its disks are being made.
        Disks = "disks",
        /// Everything a start needs is looked at.
        Checking = "checking",
        /// Host objects are being made.
        Preparing = "preparing",
        /// The VMM is being started.
        Launching = "launching",
        /// The guest boots.
        Booting = "booting",
        /// The guest was asked to stop.
        Stopping = "stopping",
        /// The VMM is being ended.
        Killing = "killing",
        /// Its system disk is being renewed.
        Resetting = "resetting",
        /// Host objects and files are being removed.
        Removing = "removing",
    }
}

/// Records of operations that ended before this are forgotten.
pub(crate) fn oldest_kept() -> Timestamp {
    Timestamp::now() - jiff::SignedDuration::try_from(KEPT).unwrap_or_default()
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// At work.
    Running,
    /// Asked to stop.
    Cancelling,
    /// Done.
    Succeeded,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl OperationState {
    /// Nothing more will happen.
    pub fn ended(self) -> bool {
        match self {
            Self::Running | Self::Cancelling => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// An operation as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// For life.
    pub id: String,
    /// The method that began it.
    pub kind: String,
    /// What it works on.
    pub subject: String,
    /// Where it stands.
    pub state: OperationState,
    /// Grows with each change.
    pub generation: u64,
    /// The stage at work, or the last one.
    pub stage: String,
    /// What the stage says of itself.
    pub message: Option<String>,
    /// Units done of this stage.
    pub done: Option<u64>,
    /// Units in all.
    pub total: Option<u64>,
    /// Said once, on the way.
    pub notices: Vec<String>,
    /// That somebody has cancelled it, which may have been too late.
    #[serde(default)]
    pub cancel: Option<Cancel>,
    /// Why it failed.
    pub error: Option<Report>,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

/// Somebody wanted an operation cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Who, for people: `user 1000 (process 1234)`, or the daemon itself.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// The stage that was at work.
    pub stage: String,
}

/// Who cancels when the daemon ends.
const DAEMON: &str = "the daemon, which ended";

struct Entry {
    now: watch::Sender<Operation>,
    cancel: watch::Sender<bool>,
}

/// All operations of this daemon.
#[derive(Clone)]
pub struct Operations {
    store: Rows,
    entries: Arc<Mutex<HashMap<String, Arc<Entry>>>>,
    closing: watch::Sender<bool>,
    beginning: Arc<tokio::sync::Mutex<()>>,
}

/// The work's side of its operation: it says where it stands and hears whether it should stop. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    entry: Arc<Entry>,
    store: Rows,
}

impl Operations {
    /// Over the store's table. Operations that an earlier daemon left unfinished end as failed here.
    pub(crate) async fn open(store: Rows) -> Result<Self, Error> {
        let now = Timestamp::now();
        let left = store.read(banger_store::operations::unfinished).await?;
        for record in left {
            let Ok(mut operation) = serde_json::from_str::<Operation>(&record) else {
                tracing::warn!(record, "unreadable operation");
                continue;
            };
            operation.error = Some(
                Error::Interrupted {
                    stage: operation.stage.clone(),
                }
                .report(),
            );
            operation.state = OperationState::Failed;
            operation.generation += 1;
            operation.ended = Some(now);
            // A full disk must not keep the daemon from starting: freeing space goes through it.
            if let Err(e) = put(&store, &operation).await {
                tracing::error!(
                    operation = operation.id,
                    error = crate::error::chain(&e),
                    "end not kept"
                );
            }
        }
        forget_old(&store).await;
        Ok(Self {
            store,
            entries: Arc::default(),
            closing: watch::Sender::new(false),
            beginning: Arc::default(),
        })
    }

    /// As [`Self::begin`], unless an operation of one of the kinds `others` is at work on the same subject.
    pub async fn begin_alone<W, F>(
        &self,
        kind: &str,
        others: &[&str],
        subject: &str,
        work: W,
    ) -> Result<Operation, Error>
    where
        W: FnOnce(Progress) -> F + Send + 'static,
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        // Held until it is remembered, so that of two that come at once the second sees the first. A leaf: nothing that
        // is awaited below takes another lock.
        let _beginning = self.beginning.lock().await;
        let at_work = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.values().find_map(|entry| {
                let now = entry.now.borrow();
                let same = now.subject == subject && others.contains(&now.kind.as_str());
                (same && !now.state.ended()).then(|| now.id.clone())
            })
        };
        match at_work {
            Some(operation) => Err(Error::AtWork {
                subject: subject.to_owned(),
                operation,
            }),
            None => self.begin(kind, subject, work).await,
        }
    }

    /// Begins an operation; its work runs in a task of its own.
    pub async fn begin<W, F>(&self, kind: &str, subject: &str, work: W) -> Result<Operation, Error>
    where
        W: FnOnce(Progress) -> F + Send + 'static,
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        if *self.closing.borrow() {
            return Err(Error::ShuttingDown);
        }
        let operation = Operation {
            id: id::new(),
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            state: OperationState::Running,
            generation: 0,
            stage: WAITING.to_owned(),
            message: None,
            done: None,
            total: None,
            notices: Vec::new(),
            cancel: None,
            error: None,
            began: Timestamp::now(),
            ended: None,
        };
        put(&self.store, &operation).await?;
        forget_old(&self.store).await;
        let entry = Arc::new(Entry {
            now: watch::Sender::new(operation.clone()),
            cancel: watch::Sender::new(false),
        });
        self.remember(&operation.id, entry.clone());
        // Closing lists what is remembered after it has said so: one of the two sees the other. Nothing was begun yet, so
        // there is nothing to wait for.
        if *self.closing.borrow() {
            let end = end_of(Ok(Err(Error::ShuttingDown)));
            keep_end(&self.store, &entry, &end).await;
            return Err(Error::ShuttingDown);
        }
        let progress = Progress {
            entry: entry.clone(),
            store: self.store.clone(),
        };
        let store = self.store.clone();
        // A task of its own inside the task: should the work panic, the operation still ends.
        tokio::spawn(async move {
            let outcome = tokio::spawn(work(progress)).await;
            keep_end(&store, &entry, &end_of(outcome)).await;
        });
        Ok(operation)
    }

    /// One operation.
    pub async fn show(&self, id: &str) -> Result<Operation, Error> {
        if let Some(entry) = self.entry(id) {
            return Ok(entry.now.borrow().clone());
        }
        let wanted = id.to_owned();
        let record = self
            .store
            .read(move |tx| banger_store::operations::find(tx, &wanted))
            .await?;
        record
            .and_then(|r| serde_json::from_str(&r).ok())
            .ok_or_else(|| missing(id))
    }

    /// All, newest first.
    pub async fn list(&self) -> Result<Vec<Operation>, Error> {
        let records = self
            .store
            .read(|tx| banger_store::operations::list(tx, LISTED))
            .await?;
        let kept = records
            .iter()
            .filter_map(|r| serde_json::from_str::<Operation>(r).ok());
        Ok(kept
            .map(|op| self.entry(&op.id).map_or(op, |entry| entry.now.borrow().clone()))
            .collect())
    }

    /// Each change of an operation, beginning with how it stands. The sender's end means that it has ended.
    pub async fn watch(&self, id: &str) -> Result<watch::Receiver<Operation>, Error> {
        if let Some(entry) = self.entry(id) {
            return Ok(entry.now.subscribe());
        }
        let ended = self.show(id).await?;
        Ok(watch::Sender::new(ended).subscribe())
    }

    /// Asks an operation to stop and waits until it has ended. A finished one is left as it is.
    pub async fn cancel(&self, id: &str, by: &str) -> Result<Operation, Error> {
        let Some(entry) = self.entry(id) else {
            return self.show(id).await;
        };
        entry.request_cancel(by);
        let mut now = entry.now.subscribe();
        let ended = now.wait_for(|op| op.state.ended()).await.map(|op| op.clone());
        ended.map_err(|_| missing(id))
    }

    /// How many are at work.
    pub fn running(&self) -> usize {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().filter(|e| !e.now.borrow().state.ended()).count()
    }

    /// Cancels what is at work and waits for its end; new ones are refused from now on.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        let entries: Vec<_> = self
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        for entry in &entries {
            entry.request_cancel(DAEMON);
        }
        for entry in entries {
            // An error would mean that the sender is gone, and this very entry holds it.
            drop(entry.now.subscribe().wait_for(|op| op.state.ended()).await);
        }
    }

    /// The daemon is ending: what is cancelled now, nobody wanted cancelled.
    pub(crate) fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    fn remember(&self, id: &str, entry: Arc<Entry>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended: Vec<(Timestamp, String)> = entries
            .values()
            .filter_map(|e| {
                let op = e.now.borrow();
                op.ended.map(|t| (t, op.id.clone()))
            })
            .collect();
        if ended.len() > REMEMBERED {
            ended.sort();
            for (_, id) in &ended[..ended.len() - REMEMBERED] {
                entries.remove(id);
            }
        }
        entries.insert(id.to_owned(), entry);
    }
}

impl Entry {
    fn change(&self, change: impl FnOnce(&mut Operation)) {
        self.now.send_modify(|op| {
            change(op);
            op.generation += 1;
        });
    }

    fn request_cancel(&self, by: &str) {
        self.now.send_if_modified(|op| {
            let running = op.state == OperationState::Running;
            if running {
                op.state = OperationState::Cancelling;
                op.cancel = Some(Cancel {
                    by: by.to_owned(),
                    at: Timestamp::now(),
                    stage: op.stage.clone(),
                });
                op.generation += 1;
            }
            running
        });
        self.cancel.send_replace(true);
    }
}

/// How an operation ended.
struct End {
    state: OperationState,
    error: Option<Report>,
    at: Timestamp,
}

impl End {
    fn apply(&self, operation: &mut Operation) {
        operation.state = self.state;
        operation.error.clone_from(&self.error);
        operation.ended = Some(self.at);
    }
}

fn end_of(outcome: Result<Result<(), Error>, tokio::task::JoinError>) -> End {
    let (state, error) = match outcome {
        Ok(Ok(())) => (OperationState::Succeeded, None),
        Ok(Err(e)) if e.kind() == Kind::Cancelled => (OperationState::Cancelled, Some(e.report())),
        Ok(Err(e)) => (OperationState::Failed, Some(e.report())),
        Err(panic) => {
            tracing::error!(%panic, "an operation's work panicked");
            let report = Report {
                kind: Kind::Internal,
                message: "the daemon failed at this; its log has more".to_owned(),
                hint: None,
                details: Vec::new(),
            };
            (OperationState::Failed, Some(report))
        }
    };
    End {
        state,
        error,
        at: Timestamp::now(),
    }
}

fn missing(id: &str) -> Error {
    Error::Missing {
        what: "operation",
        name: id.to_owned(),
        near: None,
    }
}

/// An operation has ended. Kept before anybody is told: were it the other way round, a daemon that dies in between would say
/// tomorrow that what was done today had been interrupted.
async fn keep_end(store: &Rows, entry: &Entry, end: &End) {
    let mut ended = entry.now.borrow().clone();
    end.apply(&mut ended);
    if let Err(e) = put(store, &ended).await {
        tracing::error!(
            operation = ended.id,
            error = crate::error::chain(&e),
            "outcome not kept"
        );
    }
    entry.change(|operation| end.apply(operation));
}

/// Records past their day are forgotten. What cannot be now is so by the next that begins: nothing depends on it.
async fn forget_old(store: &Rows) {
    let before = oldest_kept();
    let forgotten = store
        .note(Write::OperationsForget, move |tx| {
            banger_store::operations::forget_before(tx, before)
        })
        .await;
    if let Err(e) = forgotten {
        tracing::warn!(error = crate::error::chain(&e), "old operations not forgotten");
    }
}

async fn put(store: &Rows, operation: &Operation) -> Result<(), Error> {
    let record = serde_json::to_string(operation).map_err(|source| {
        Error::Store(banger_store::StoreError::Corrupt {
            table: "operations",
            column: "record",
            source,
        })
    })?;
    let what = match operation.state {
        OperationState::Running | OperationState::Cancelling => Write::OperationRunning,
        OperationState::Succeeded => Write::OperationSucceeded,
        OperationState::Failed => Write::OperationFailed,
        OperationState::Cancelled => Write::OperationCancelled,
    };
    let row = OperationRow {
        id: operation.id.clone(),
        kind: operation.kind.clone(),
        began: operation.began,
        ended: operation.ended,
        record,
    };
    Ok(store
        .note(what, move |tx| banger_store::operations::put(tx, &row))
        .await?)
}

impl Progress {
    /// The next stage begins. Kept in the store, so that an interrupted operation can say where it was.
    pub async fn stage(&self, stage: Stage) {
        self.entry.change(|op| {
            stage.name().clone_into(&mut op.stage);
            op.message = None;
            op.done = None;
            op.total = None;
        });
        let now = self.entry.now.borrow().clone();
        if let Err(e) = put(&self.store, &now).await {
            tracing::warn!(
                operation = now.id,
                error = crate::error::chain(&e),
                "stage not kept"
            );
        }
        crash::point(Point::Stage(stage));
    }

    /// As [`Self::stage`], from where nothing can be awaited; the store learns of it with the next change that is kept.
    /// The same stage again changes nothing.
    pub fn stage_now(&self, name: &str) {
        if self.entry.now.borrow().stage == name {
            return;
        }
        self.entry.change(|op| {
            name.clone_into(&mut op.stage);
            op.message = None;
            op.done = None;
            op.total = None;
        });
    }

    /// The operation's id.
    pub fn id(&self) -> String {
        self.entry.now.borrow().id.clone()
    }

    /// What it works on, where that is only known on the way; the store learns of it with the next change that is kept.
    pub fn subject(&self, name: &str) {
        self.entry.change(|op| name.clone_into(&mut op.subject));
    }

    /// What the stage is at, for people.
    pub fn message(&self, message: &str) {
        // Comes from tools and packages: one line, printable, bounded.
        let line: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
        self.entry.change(|op| op.message = Some(line));
    }

    /// How far the stage is.
    pub fn units(&self, done: u64, total: Option<u64>) {
        self.entry.change(|op| {
            op.done = Some(done);
            op.total = total;
        });
    }

    /// Something to be said once.
    pub fn notice(&self, text: impl Into<String>) {
        let text = text.into();
        self.entry.change(|op| {
            if op.notices.len() < 16 {
                op.notices.push(text);
            }
        });
    }

    /// Whether somebody has cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.entry.cancel.borrow()
    }

    /// Resolves when somebody cancels. Cancel-safe.
    pub async fn cancelled(&self) {
        let mut cancel = self.entry.cancel.subscribe();
        // The sender lives in the entry that `self` holds.
        drop(cancel.wait_for(|c| *c).await);
    }

    /// Runs a part of the work that may simply be dropped when somebody cancels.
    pub async fn or_cancelled<T>(&self, part: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            // Dropping `part` is what cancelling it means; the caller vouches for that.
            biased;
            () = self.cancelled() => Err(Error::Cancelled),
            result = part => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    async fn operations() -> (tempfile::TempDir, Operations) {
        let dir = tempfile::tempdir().unwrap();
        let store = Rows::new(banger_store::Store::open(&dir.path().join("banger.db")).unwrap());
        (dir, Operations::open(store).await.unwrap())
    }

    async fn ended(operations: &Operations, id: &str) -> Operation {
        let mut watch = operations.watch(id).await.unwrap();
        watch.wait_for(|op| op.state.ended()).await.unwrap().clone()
    }

    #[tokio::test]
    async fn stages_are_seen_and_the_end_is_kept() {
        let (_dir, operations) = operations().await;
        let begun = operations
            .begin("vm.create", "dev", |progress| async move {
                progress.stage(Stage::Disks).await;
                progress.units(1, Some(2));
                progress.notice("slow");
                Ok(())
            })
            .await
            .unwrap();
        let op = ended(&operations, &begun.id).await;
        assert_eq!(
            (op.state, op.stage.as_str(), op.done, op.total),
            (OperationState::Succeeded, "disks", Some(1), Some(2))
        );
        assert_eq!(op.notices, ["slow"]);
        assert_eq!(operations.list().await.unwrap(), [op]);
    }

    #[tokio::test]
    async fn cancelling_waits_for_the_clean_up() {
        let (_dir, operations) = operations().await;
        let cleaned = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = cleaned.clone();
        let begun = operations
            .begin("image.bootstrap", "debian", |progress| async move {
                progress.cancelled().await;
                tokio::task::yield_now().await;
                flag.store(true, std::sync::atomic::Ordering::SeqCst);
                Err(Error::Cancelled)
            })
            .await
            .unwrap();
        let op = operations.cancel(&begun.id, "me").await.unwrap();
        let cancel = op.cancel.as_ref().unwrap();
        assert_eq!((cancel.by.as_str(), cancel.stage.as_str()), ("me", WAITING));
        assert!(cleaned.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(op.state, OperationState::Cancelled);
        // Again, when it has ended: as it is.
        assert_eq!(
            operations.cancel(&begun.id, "another").await.unwrap().generation,
            op.generation
        );
    }

    #[tokio::test]
    async fn what_begins_while_the_daemon_closes_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let store = Rows::new(banger_store::Store::open(&dir.path().join("banger.db")).unwrap());
        let operations = Operations::open(store.clone()).await.unwrap();
        // The store is busy, so that the row is not written before we look.
        let (release, released) = std::sync::mpsc::channel::<()>();
        let mut busy = Box::pin(store.note(Write::OperationRunning, move |_| {
            // Until the other end is dropped, which is an error here and meant.
            released.recv().unwrap_or_default();
            Ok(())
        }));
        let waits = std::future::poll_fn(|cx| Poll::Ready(busy.as_mut().poll(cx).is_pending()));
        assert!(waits.await);
        let mut beginning = Box::pin(operations.begin("vm.create", "dev", |_| std::future::pending()));
        // Past its first look, and at its row.
        let waits = std::future::poll_fn(|cx| Poll::Ready(beginning.as_mut().poll(cx).is_pending()));
        assert!(waits.await);
        drop(release);
        busy.await.unwrap();
        operations.close().await;
        assert!(matches!(beginning.await, Err(Error::ShuttingDown)));
        assert_eq!(operations.running(), 0);
        let kept = operations.list().await.unwrap();
        assert_eq!(kept[0].state, OperationState::Cancelled);
    }

    #[tokio::test]
    async fn a_panic_ends_the_operation_as_failed() {
        let (_dir, operations) = operations().await;
        let begun = operations
            .begin("vm.create", "dev", |_| async { panic!("a fault of ours") })
            .await
            .unwrap();
        assert_eq!(ended(&operations, &begun.id).await.state, OperationState::Failed);
    }

    #[tokio::test]
    async fn an_interrupted_operation_says_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let store = Rows::new(banger_store::Store::open(&path).unwrap());
        let operations = Operations::open(store.clone()).await.unwrap();
        let (reached, wait) = tokio::sync::oneshot::channel();
        let begun = operations
            .begin("vm.create", "dev", |progress| async move {
                progress.stage(Stage::Booting).await;
                reached.send(()).unwrap();
                std::future::pending().await
            })
            .await
            .unwrap();
        wait.await.unwrap();
        // As a killed daemon leaves it: nothing was told to stop.
        let next = Operations::open(store).await.unwrap();
        let op = next.show(&begun.id).await.unwrap();
        assert_eq!(op.state, OperationState::Failed);
        assert!(op.error.unwrap().message.contains("booting"));
    }

    #[tokio::test]
    async fn an_unknown_operation_is_missing() {
        let (_dir, operations) = operations().await;
        assert_eq!(
            operations.show("nothing").await.unwrap_err().kind(),
            Kind::NotFound
        );
        assert_eq!(
            operations.cancel("nothing", "me").await.unwrap_err().kind(),
            Kind::NotFound
        );
    }
}
