//! Machines, for people and programs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::Engine;
use crate::error::Error;
use crate::host::Host;
use crate::net::{self, allow::Allow};
use crate::vm::capability::system_disk::{self, SystemDiskKind};
use crate::vm::capability::work_disk;
use crate::vm::change;
use crate::vm::restart::Restart;
use crate::vm::state::{Paths, Vm, vmm_kind};
use crate::vm::task::Handle;

/// What rows say of machines that is not in their own.
struct Known {
    /// Machines' addresses by id.
    addresses: BTreeMap<String, Ipv4Addr>,
}

impl Engine {
    /// All machines that carry the labels, by name. A label without a value matches any.
    pub async fn vms(&self, labels: &BTreeMap<String, String>) -> Result<Vec<Vm>, Error> {
        let known = self.known().await?;
        let wanted = |handle: &Handle| {
            let view = handle.view.borrow();
            labels.iter().all(|(key, value)| match view.row.labels.get(key) {
                Some(found) => value.is_empty() || value == found,
                None => false,
            })
        };
        let handles = self.machines.all();
        self.describe(handles.into_iter().filter(wanted).collect(), known)
            .await
    }

    /// One machine.
    pub async fn vm(&self, reference: &str) -> Result<Vm, Error> {
        let handle = self.machines.find(reference)?;
        self.show(&handle).await
    }

    pub(super) async fn show(&self, handle: &Handle) -> Result<Vm, Error> {
        let known = self.known().await?;
        let mut one = self.describe(vec![handle.clone()], known).await?;
        one.pop().ok_or(Error::ShuttingDown)
    }

    /// On a thread of its own: what disks take is asked of file systems, some of which take their time.
    async fn describe(&self, handles: Vec<Handle>, known: Known) -> Result<Vec<Vm>, Error> {
        let host = self.host.clone();
        let described = tokio::task::spawn_blocking(move || {
            let one = |handle: &Handle| describe(&host, handle, &known);
            handles.iter().map(one).collect()
        });
        described.await.map_err(|source| Error::Host {
            action: "look at the machines",
            source: Box::new(source),
        })
    }

    async fn known(&self) -> Result<Known, Error> {
        let leases = self.host.store.read(banger_store::leases::list).await?;
        Ok(Known {
            addresses: leases
                .into_iter()
                .map(|lease| (lease.vm, lease.address))
                .collect(),
        })
    }
}

fn describe(host: &Host, handle: &Handle, known: &Known) -> Vm {
    let Known { addresses } = known;
    let settings = &host.settings;
    // A copy: whoever changes the view would wait for what is asked below.
    let view = handle.view.borrow().clone();
    let row = &view.row;
    let paths = Paths::new(&settings.state_dir, &settings.runtime_dir, &row.id);
    let run = view.phase.running();
    Vm {
        id: row.id.clone(),
        name: row.name.clone(),
        phase: view.phase.clone(),
        image: row.image_name.clone(),
        image_id: row.image.clone(),
        kernel: row.kernel.clone(),
        vcpus: row.vcpus,
        memory: u64::from(row.memory_mib) << 20,
        disk: row.disk,
        disk_used: system_disk::usage(row, &paths),
        vmm: row.vmm.as_deref().and_then(vmm_kind),
        labels: row.labels.clone(),
        ephemeral: row.ephemeral,
        system_disk: SystemDiskKind::parse(&row.system_disk),
        work_disk: row.work_disk,
        work_disk_used: if row.work_disk == 0 {
            0
        } else {
            work_disk::usage(&paths)
        },
        nat: row.nat,
        allow: Allow::of(&row.allow),
        address: addresses.get(&row.id).copied(),
        mac: net::mac(&row.id),
        tap: host.network.tap_of(&row.id).filter(|_| run.is_some()),
        autostart: row.autostart,
        restart: Restart::of(&row.restart),
        expires: row.expires,
        restarts_at: view.restarts_at,
        pending: run.map(|run| change::pending(row, run)).unwrap_or_default(),
        created: row.created,
        vsock: paths.vsock(),
        published: host.ports.of(&row.id),
    }
}
