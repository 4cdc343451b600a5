//! The table of machines' tasks. The lock is a leaf: it is held for a look-up, never across an await.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use banger_store::StoreError;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::name;
use crate::vm::state::Phase;
use crate::vm::task::Handle;

/// All machines. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Machines {
    handles: Arc<RwLock<BTreeMap<String, Handle>>>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Machines {
    pub(crate) fn add(&self, handle: Handle) {
        self.handles
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle.id.clone(), handle);
    }

    pub(crate) fn forget(&self, id: &str) {
        self.handles
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// By name, else by id.
    pub(crate) fn find(&self, reference: &str) -> Result<Handle, Error> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.values().find(|h| h.name == reference) {
            return Ok(handle.clone());
        }
        if let Some(handle) = handles.get(reference) {
            return Ok(handle.clone());
        }
        let near = name::nearest(reference, handles.values().map(|h| h.name.as_str()));
        let shown = reference.chars().take(80).collect();
        Err(Error::Missing {
            what: "machine",
            name: shown,
            near,
        })
    }

    /// All, by name.
    pub(crate) fn all(&self) -> Vec<Handle> {
        let mut all: Vec<Handle> = self
            .handles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Closes every mailbox and waits for the tasks to end their work. Machines go on running.
    pub(crate) async fn close(&self, within: Duration) {
        self.handles
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
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
