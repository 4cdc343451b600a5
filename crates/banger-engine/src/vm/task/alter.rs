//! Settings and names: one transaction each, at once. Only a disk that grows under a guest takes a while, and that is
//! work that may be broken off: the row has the wanted size, the next start gives it.

use std::sync::Arc;

use banger_store::StoreError;
use banger_store::vms::VmRow;
use banger_vmm::Machine;
use jiff::Timestamp;

use super::mailbox::Caller;
use super::outcome::{Grown, Outcome};
use super::{Task, Terms};
use crate::crash::Write;
use crate::error::{Error, chain};
use crate::limits;
use crate::space;
use crate::vm::capability::system_disk;
use crate::vm::change::{self, Applies, Bounds, Change, SetVm};
use crate::vm::restart::Restart;
use crate::vm::state::{Paths, Phase};

impl Task {
    pub(super) async fn set(&mut self, set: &SetVm, caller: Caller) {
        let (row, changes) = match self.keep_settings(set).await {
            Ok(changed) => changed,
            Err(e) => return caller.answer(Err(e)),
        };
        let before = std::mem::replace(&mut self.row, row);
        self.expiry_tried = None;
        self.show_row();
        // A policy that is gone has nothing to wait for.
        if let Phase::Due(due) = &self.phase
            && !due.autostart
            && !Restart::of(&self.row.restart).wants(due.failure.is_some())
        {
            self.give_up_turn().await;
        }
        let grows = self.row.disk > before.disk || self.row.work_disk > before.work_disk;
        match &self.machine {
            Some(machine) if grows => self.grow(machine.clone(), &before, changes, caller),
            Some(_) | None => caller.answer(Ok(changes)),
        }
    }

    /// Nothing has changed where this fails.
    async fn keep_settings(&mut self, set: &SetVm) -> Result<(VmRow, Vec<Change>), Error> {
        let bounds = Bounds {
            memory: limits::host_memory()?,
            now: Timestamp::now(),
        };
        let runs = self.phase.running().is_some();
        let (row, changes) = change::apply(&self.row, set, runs, bounds)?;
        if row.disk > self.row.disk || row.work_disk > self.row.work_disk {
            space::demand(&self.host, 0)?;
        }
        if !changes.is_empty() {
            self.update(row.clone()).await?;
        }
        Ok((row, changes))
    }

    pub(super) async fn rename(&mut self, name: String, caller: Caller) {
        if name == self.row.name {
            return caller.answer(Ok(Vec::new()));
        }
        let renamed = VmRow {
            name,
            ..self.row.clone()
        };
        if let Err(e) = self.update(renamed.clone()).await {
            return caller.answer(Err(e));
        }
        tracing::info!(vm = self.row.name, to = renamed.name, "renamed");
        self.machines.rename(&self.row.id, &self.row.name, &renamed.name);
        self.row = renamed;
        self.show_row();
        caller.answer(Ok(Vec::new()));
    }

    async fn update(&mut self, row: VmRow) -> Result<(), Error> {
        let written = self.host.store.write(Write::VmUpdate, move |tx| {
            // What it boots next must be there then: a kernel that a machine has cannot be removed.
            if banger_store::kernels::find(tx, &row.kernel)?.is_none() {
                return Err(StoreError::Missing {
                    what: "kernel",
                    name: row.kernel,
                });
            }
            banger_store::vms::update(tx, &row)
        });
        Ok(written.await?)
    }

    fn grow(&mut self, machine: Arc<dyn Machine>, before: &VmRow, changes: Vec<Change>, caller: Caller) {
        let (row, before, paths) = (self.row.clone(), before.clone(), self.paths.clone());
        let so_far = changes.clone();
        let future = Box::pin(async move {
            let mut changes = changes;
            let mut grown = Grown::default();
            if row.disk > before.disk {
                let outcome = grow_system_disk(machine.as_ref(), &row, &paths).await;
                grown.disk = said(&mut changes, "disk", outcome).then_some(row.disk);
            }
            Outcome::Grown(changes, grown)
        });
        self.work(Some(caller), Terms::default(), &[], future);
        if let Some(work) = &mut self.work {
            work.changes = so_far;
        }
    }
}

/// Writes into a change whether it applies, and why not; gives whether it does.
fn said(changes: &mut [Change], setting: &str, outcome: Result<(), String>) -> bool {
    let done = outcome.is_ok();
    if let Some(change) = changes.iter_mut().find(|change| change.setting == setting) {
        (change.applies, change.reason) = match outcome {
            Ok(()) => (Applies::Now, None),
            Err(reason) => (Applies::NextStart, Some(reason)),
        };
    }
    done
}

/// Makes the file larger. A guest that runs sees it when it starts next.
async fn grow_system_disk(_machine: &dyn Machine, row: &VmRow, paths: &Paths) -> Result<(), String> {
    system_disk::grow(row, paths).map_err(|e| chain(&e))?;
    Err("the guest sees the larger disk when it boots".to_owned())
}
