//! Settings and names: one transaction each, at once. Only a disk that grows under a guest takes a while, and that is
//! work that may be broken off: the row has the wanted size, the next start gives it.

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{AgentClient, AgentError, DiskRole};
use banger_store::vms::VmRow;
use banger_vmm::Machine;
use jiff::Timestamp;

use super::mailbox::Caller;
use super::outcome::{Grown, Outcome};
use super::{Task, Terms};
use crate::crash::Write;
use crate::error::{Error, chain};
use crate::host::Host;
use crate::limits;
use crate::space;
use crate::vm::capability::{system_disk, work_disk};
use crate::vm::change::{self, Applies, Bounds, Change, SetVm};
use crate::vm::restart::Restart;
use crate::vm::state::{Paths, Phase};

/// How long a guest may take to make a file system larger. It writes new group descriptors, not the new space.
const GROWING: Duration = Duration::from_secs(30);

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
            boot_memory: limits::boot_memory(&self.host, set.kernel.as_ref().unwrap_or(&self.row.kernel)),
            now: Timestamp::now(),
        };
        let (row, changes) = change::apply(&self.row, set, self.phase.running(), bounds)?;
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
        let rows = &self.host.store;
        let written = rows.write(Write::VmUpdate, move |tx| banger_store::vms::update(tx, &row));
        written.await?;
        self.host.network.changed();
        Ok(())
    }

    fn grow(&mut self, machine: Arc<dyn Machine>, before: &VmRow, changes: Vec<Change>, caller: Caller) {
        let (host, row, before) = (self.host.clone(), self.row.clone(), before.clone());
        let (paths, guest) = (self.paths.clone(), self.guest.clone());
        let so_far = changes.clone();
        let future = Box::pin(async move {
            let mut changes = changes;
            let mut grown = Grown::default();
            let run = Run {
                machine: machine.as_ref(),
                guest: guest.as_ref(),
            };
            if row.disk > before.disk {
                let outcome = run.grow_system_disk(&row, &paths).await;
                grown.disk = said(&mut changes, "disk", outcome).then_some(row.disk);
            }
            // One that it has not had is a device that it has not booted with.
            if before.work_disk > 0 && row.work_disk > before.work_disk {
                let outcome = run.grow_work_disk(&host, &row, &paths).await;
                grown.work_disk = said(&mut changes, "work_disk", outcome).then_some(row.work_disk);
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

/// What a disk that grows is told to. An error says, for people, why it comes with the next start.
struct Run<'a> {
    machine: &'a dyn Machine,
    guest: Option<&'a AgentClient>,
}

impl Run<'_> {
    async fn grow_system_disk(&self, row: &VmRow, paths: &Paths) -> Result<(), String> {
        if !system_disk::grows_online(row).map_err(|e| chain(&e))? {
            return Err("a disk of this kind is made anew at each start".to_owned());
        }
        system_disk::grow(row, paths).map_err(|e| chain(&e))?;
        let id = system_disk::id(row).map_err(|e| chain(&e))?;
        self.tell(id, DiskRole::System, row.disk).await
    }

    async fn grow_work_disk(&self, host: &Host, row: &VmRow, paths: &Paths) -> Result<(), String> {
        work_disk::ensure(host, row, paths).await.map_err(|e| chain(&e))?;
        self.tell(work_disk::ID, DiskRole::Work, row.work_disk).await
    }

    /// The file is longer by now: tells the VMM, which tells the guest's kernel, and then the agent, which makes the file
    /// system fill the device.
    async fn tell(&self, id: &str, role: DiskRole, size: u64) -> Result<(), String> {
        self.machine
            .resize_disk(id, size)
            .await
            .map_err(|e| format!("the VMM did not take it: {}", chain(&e)))?;
        let guest = self.guest.ok_or("its agent does not answer")?;
        let grown = guest.grow_disk(role, size, GROWING).await;
        grown.map(drop).map_err(|e| {
            if matches!(e, AgentError::Unsupported { .. }) {
                "the guest has an agent of an older release, which cannot do it while it runs".to_owned()
            } else {
                format!("the guest did not take it: {}", chain(&e))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::older_agent::{Vmm, guest};

    /// The VMM has taken the new size, so the next start finishes it: that is what is said, and nothing fails.
    #[tokio::test]
    async fn an_agent_of_the_release_before_leaves_growing_to_the_next_start() {
        let (_directory, client) = guest();
        let run = Run {
            machine: &Vmm,
            guest: Some(&client),
        };
        let told = run.tell("root", DiskRole::System, 1 << 30).await;
        let mut changes = vec![Change {
            setting: "disk".to_owned(),
            from: "512 MiB".to_owned(),
            to: "1 GiB".to_owned(),
            applies: Applies::Now,
            reason: None,
        }];
        assert!(!said(&mut changes, "disk", told));
        assert_eq!(changes[0].applies, Applies::NextStart);
        let reason = changes[0].reason.as_deref();
        assert_eq!(
            reason,
            Some("the guest has an agent of an older release, which cannot do it while it runs")
        );
    }
}
