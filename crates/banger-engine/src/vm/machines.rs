//! The table of machines' tasks. The lock is a leaf: it is held for a look-up, never across an await.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use banger_store::StoreError;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::Error;
use crate::name;
use crate::vm::state::Phase;
use crate::vm::task::Handle;

/// Starts at the same time when the host has booted: each takes a processor and the disk for a while.
const AUTOSTARTS: usize = 2;
/// Starts at the same time of machines that ended by themselves. More than above, so that one whose guest never answers
/// does not hold up the others.
const RESTARTS: usize = 8;

/// All machines, and what their tasks share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Machines {
    table: Arc<RwLock<Table>>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    /// Turns of the starts that the daemon makes by itself.
    pub(crate) autostarts: Arc<Semaphore>,
    pub(crate) restarts: Arc<Semaphore>,
    /// From where the tasks' ticks are counted.
    pub(crate) epoch: Instant,
}

#[derive(Default)]
struct Table {
    by_id: BTreeMap<String, Handle>,
    /// Names to ids.
    names: BTreeMap<String, String>,
    /// The daemon ends: what is no longer here may be there all the same.
    closed: bool,
}

impl Default for Machines {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            tasks: Arc::default(),
            autostarts: Arc::new(Semaphore::new(AUTOSTARTS)),
            restarts: Arc::new(Semaphore::new(RESTARTS)),
            epoch: Instant::now(),
        }
    }
}

impl Machines {
    pub(crate) fn add(&self, name: &str, handle: Handle) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.names.insert(name.to_owned(), handle.id.clone());
        table.by_id.insert(handle.id.clone(), handle);
    }

    /// Takes one out. Its name may be another's by now.
    pub(crate) fn forget(&self, id: &str) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.by_id.remove(id);
        table.names.retain(|_, of| of != id);
    }

    /// Gives one another name, which the store has found free.
    pub(crate) fn rename(&self, id: &str, from: &str, to: &str) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.names.get(from).is_some_and(|of| of == id) {
            table.names.remove(from);
        }
        table.names.insert(to.to_owned(), id.to_owned());
    }

    /// By name, else by id. An error of its own where the daemon is ending.
    pub(crate) fn find(&self, reference: &str) -> Result<Handle, Error> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let id = table.names.get(reference).map_or(reference, String::as_str);
        if let Some(handle) = table.by_id.get(id) {
            return Ok(handle.clone());
        }
        if table.closed {
            return Err(Error::ShuttingDown);
        }
        let near = name::nearest(reference, table.names.keys().map(String::as_str));
        let shown = reference.chars().take(80).collect();
        Err(Error::Missing {
            what: "machine",
            name: shown,
            near,
        })
    }

    /// All, by name.
    pub(crate) fn all(&self) -> Vec<Handle> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let by_name = table.names.values();
        by_name.filter_map(|id| table.by_id.get(id).cloned()).collect()
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Closes every mailbox and waits for the tasks to end their work. Machines go on running.
    pub(crate) async fn close(&self, within: Duration) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Table {
            closed: true,
            ..Table::default()
        };
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("machines' tasks still at work; the next start takes up what they leave");
        }
    }
}

/// A phase as its row keeps it.
pub(crate) fn phase_text(phase: &Phase) -> Result<String, Error> {
    serde_json::to_string(phase).map_err(|source| {
        StoreError::Corrupt {
            table: "vms",
            column: "phase",
            source,
        }
        .into()
    })
}

/// A row's phase.
pub(crate) fn phase_of(text: &str) -> Result<Phase, Error> {
    serde_json::from_str(text).map_err(|source| {
        StoreError::Corrupt {
            table: "vms",
            column: "phase",
            source,
        }
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_a_daemon_that_ends_is_not_told_that_there_is_no_such_machine() {
        let machines = Machines::default();
        assert!(matches!(machines.find("dev"), Err(Error::Missing { .. })));
        machines.close(Duration::ZERO).await;
        assert!(matches!(machines.find("dev"), Err(Error::ShuttingDown)));
    }
}
