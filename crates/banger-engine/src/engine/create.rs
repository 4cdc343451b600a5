//! New machines.

use std::collections::BTreeMap;

use banger_store::StoreError;
use banger_store::publications;
use banger_store::vms::VmRow;
use banger_vmm::VmmKind;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{Engine, ports};
use crate::crash::Write;
use crate::error::{Error, chain};
use crate::image::{build, kernels, registered, registry};
use crate::net::allow::Allow;
use crate::operation::{Operation, Progress};
use crate::ports::Publication;
use crate::vm::capability::system_disk::{self, SystemDiskKind};
use crate::vm::change;
use crate::vm::machines::phase_text;
use crate::vm::restart::Restart;
use crate::vm::state::Phase;
use crate::vm::task::{self, Begin};
use crate::{id, limits, name};

/// What a new machine shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVm {
    /// Absent: made up.
    pub name: Option<String>,
    /// Name or id.
    pub image: String,
    /// Absent: the default.
    pub vcpus: Option<u32>,
    /// Bytes. Absent: the default.
    pub memory: Option<u64>,
    /// Bytes. Absent: the default.
    pub disk: Option<u64>,
    /// Absent: the image's.
    pub kernel: Option<String>,
    /// Absent: chosen at each start.
    pub vmm: Option<VmmKind>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Start it as well; when that fails, nothing stays.
    pub start: bool,
    /// Remove it when it stops.
    pub ephemeral: bool,
    /// Absent: the default.
    pub system_disk: Option<SystemDiskKind>,
    /// Bytes, 0 for none. Absent: the default.
    pub work_disk: Option<u64>,
    /// Absent: yes.
    pub nat: Option<bool>,
    /// Start it when the host has booted.
    pub autostart: bool,
    /// When to start it again after it ended by itself.
    pub restart: Restart,
    /// Remove it at this time.
    pub expires: Option<Timestamp>,
    /// What its guest may reach.
    pub allow: Allow,
    /// Its ports that are published.
    pub publish: Vec<Publication>,
    /// The build that it is made for, by its operation; none for what people ask for.
    pub build: Option<String>,
}

impl Engine {
    /// Begins to create a machine. The name is reserved and the image pinned when this returns.
    pub async fn create_vm(&self, new: NewVm) -> Result<Operation, Error> {
        let row = self.reserve(&new).await?;
        let (host, machines, start) = (self.host.clone(), self.machines.clone(), new.start);
        let (reserved, subject) = (row.clone(), row.name.clone());
        let pin = new.vmm;
        let work = move |progress: Progress| async move {
            if let Some(pin) = pin
                && let Some(missing) = host.vmms.missing(pin).await
            {
                progress.notice(missing);
            }
            let (reply, created) = oneshot::channel();
            let begin = Begin::Create {
                progress,
                reply,
                start,
            };
            task::spawn(host, &machines, row, begin);
            created.await.map_err(|_| Error::ShuttingDown)?
        };
        let begun = self.host.operations.begin("vm.create", &subject, work).await;
        if begun.is_err() {
            let id = reserved.id.clone();
            let removed = self
                .host
                .store
                .write(Write::VmRemove, {
                    let id = id.clone();
                    move |tx| banger_store::vms::remove(tx, &id)
                })
                .await;
            self.host.ports.forget(&id);
            self.host.network.changed();
            // What cannot be removed now holds the name: it is shown, so that it can be removed, if the next daemon has not
            // done so before.
            if let Err(e) = removed {
                tracing::error!(
                    vm = reserved.name,
                    error = chain(&e),
                    "reserved name not given back"
                );
                task::spawn(self.host.clone(), &self.machines, reserved, Begin::Remove);
            }
        }
        begun
    }

    /// Checks what a new machine shall be and inserts its row.
    async fn reserve(&self, new: &NewVm) -> Result<VmRow, Error> {
        let mut row = self.row_of(new).await?;
        let addresses = self.host.network.addresses();
        let _changing = self.host.ports.changing.lock().await;
        let wanted = ports::distinct(&new.publish)?;
        ports::check_number(wanted.len())?;
        // Given back below: this is to know that they can be had, and which they are.
        let reserved = self.reserve_ports(&row.id, &wanted).await?;
        let published: Vec<_> = reserved
            .iter()
            .map(|(publication, _)| publication.row(&row.id))
            .collect();
        // A made-up name may be taken by somebody faster; one that was asked for is the caller's to change.
        for attempt in 0..16 {
            row.name = match &new.name {
                Some(name) => name.clone(),
                None => made_up_name(attempt),
            };
            let (inserted, published) = (row.clone(), published.clone());
            match self
                .host
                .store
                .write(Write::VmInsert, move |tx| {
                    banger_store::vms::insert(tx, &inserted)?;
                    // A machine and its address are one thing: without one it is not made.
                    if let Some((first, last)) = addresses {
                        banger_store::leases::take(tx, &inserted.id, first, last)?;
                    }
                    published.iter().try_for_each(|row| publications::insert(tx, row))
                })
                .await
            {
                Ok(()) => {
                    self.host.ports.add(&row.id, reserved);
                    self.host.network.changed();
                    return Ok(row);
                }
                Err(StoreError::Exists { .. }) if new.name.is_none() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Error::Host {
            action: "make up a name",
            source: "all that were tried are taken; give one".into(),
        })
    }

    /// The row of a new machine, without a name that was not given.
    async fn row_of(&self, new: &NewVm) -> Result<VmRow, Error> {
        if let Some(name) = &new.name {
            name::machine(name)?;
        }
        for (key, value) in &new.labels {
            name::label(key, value)?;
        }
        limits::labels(&new.labels)?;
        let defaults = &self.host.settings.vm;
        let vcpus = new.vcpus.unwrap_or(defaults.vcpus);
        limits::vcpus(vcpus)?;
        let memory_mib = limits::memory(new.memory.unwrap_or(defaults.memory), limits::host_memory()?)?;
        let disk = limits::disk("disk", new.disk.unwrap_or(defaults.disk))?;
        let work_disk = limits::work_disk(new.work_disk.unwrap_or(defaults.work_disk))?;
        change::expiry(new.expires, Timestamp::now())?;
        let found = registry::find(&self.host, &new.image).await?;
        let (image_name, image) = (found.name(), found.row);
        registered::usable(&self.host, &image).await?;
        let kernel = match &new.kernel {
            Some(kernel) => kernels::find_kernel(&self.host, kernel).await?.name,
            None => image.kernel.clone(),
        };
        let needed = limits::boot_memory(&self.host, &kernel);
        limits::boots(u64::from(memory_mib) << 20, &kernel, needed)?;
        let wanted = new.system_disk.or(defaults.system_disk);
        let mut labels = new.labels.clone();
        let system_disk = match &new.build {
            Some(operation) => {
                labels.insert(build::LABEL.to_owned(), operation.clone());
                system_disk::choose_plain(&self.host, &image.id, disk)?
            }
            None => system_disk::choose(&self.host, wanted, &image, disk).await?,
        };
        let row = VmRow {
            id: id::new(),
            name: new.name.clone().unwrap_or_default(),
            image: image.id,
            image_name,
            kernel,
            vcpus,
            memory_mib,
            disk,
            vmm: new.vmm.map(|kind| kind.as_str().to_owned()),
            labels,
            ephemeral: new.ephemeral,
            phase: phase_text(&Phase::Creating)?,
            created: Timestamp::now(),
            system_disk: system_disk.as_str().to_owned(),
            generation: 0,
            work_disk,
            nat: new.nat.unwrap_or(true),
            autostart: new.autostart,
            restart: new.restart.as_str().to_owned(),
            expires: new.expires,
            allow: new.allow.as_row(),
        };
        change::lasting(&row)?;
        Ok(row)
    }
}

/// Two words that people can say; a third part when these run out.
fn made_up_name(attempt: u32) -> String {
    let name = petname::petname(2, "-").unwrap_or_else(|| format!("vm-{}", id::new()));
    if attempt < 8 {
        name
    } else {
        format!("{name}-{}", &id::new()[..4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_valid() {
        for attempt in 0..16 {
            name::machine(&made_up_name(attempt)).unwrap();
        }
    }
}
