//! The table of machines.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};

use crate::{StoreError, exists_or, from_json, maybe_time, signed, time, to_json, unsigned};

/// A machine's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// For life.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Image's id.
    pub image: String,
    /// Kernel's name.
    pub kernel: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the writable system disk in bytes.
    pub disk: u64,
    /// Pinned VMM.
    pub vmm: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Removed when it stops.
    pub ephemeral: bool,
    /// The engine's durable phase, as JSON.
    pub phase: String,
    /// When it was created.
    pub created: Timestamp,
    /// How the system disk is made; a word of the engine's.
    pub system_disk: String,
    /// Which system disk of this machine: each renewal makes the next one and switches over by changing this.
    pub generation: u32,
    /// Size of the work disk in bytes; 0: it has none.
    pub work_disk: u64,
    /// The guest may reach what its host reaches.
    pub nat: bool,
    /// Started when the host has booted.
    pub autostart: bool,
    /// When it is started again after it ended by itself; a word of the engine's.
    pub restart: String,
    /// When it is removed, whatever it does.
    pub expires: Option<Timestamp>,
}

/// In the order of [`parse`] and of [`insert`].
const COLUMNS: &str = "id, name, image, kernel, vcpus, memory_mib, disk, vmm, labels, ephemeral, phase, created, \
     system_disk, generation, work_disk, nat, autostart, restart, expires";

fn parse(row: &Row<'_>) -> rusqlite::Result<(VmRow, String)> {
    let labels: String = row.get(8)?;
    let vm = VmRow {
        id: row.get(0)?,
        name: row.get(1)?,
        image: row.get(2)?,
        kernel: row.get(3)?,
        vcpus: unsigned(row, 4)?,
        memory_mib: unsigned(row, 5)?,
        disk: unsigned(row, 6)?,
        vmm: row.get(7)?,
        labels: BTreeMap::new(),
        ephemeral: row.get(9)?,
        phase: row.get(10)?,
        created: time(row, 11)?,
        system_disk: row.get(12)?,
        generation: unsigned(row, 13)?,
        work_disk: unsigned(row, 14)?,
        nat: row.get(15)?,
        autostart: row.get(16)?,
        restart: row.get(17)?,
        expires: maybe_time(row, 18)?,
    };
    Ok((vm, labels))
}

/// A row that could not be read: its id, where that much can be, and why.
#[derive(Debug)]
pub struct Unreadable {
    /// The machine's id.
    pub id: Option<String>,
    /// What is wrong with it.
    pub error: StoreError,
}

/// All, by name. One that cannot be read does not hide the others.
pub fn list(tx: &Transaction<'_>) -> Result<(Vec<VmRow>, Vec<Unreadable>), StoreError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM vms ORDER BY name"))?;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match whole(row) {
            Ok(vm) => good.push(vm),
            Err(error) => bad.push(Unreadable {
                id: row.get(0).ok(),
                error,
            }),
        }
    }
    Ok((good, bad))
}

fn whole(row: &Row<'_>) -> Result<VmRow, StoreError> {
    let (mut vm, labels) = parse(row)?;
    vm.labels = from_json("vms", "labels", &labels)?;
    Ok(vm)
}

/// Adds one: the name is reserved and the image pinned by the same commit.
pub fn insert(tx: &Transaction<'_>, row: &VmRow) -> Result<(), StoreError> {
    let taken: bool = tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM vms WHERE name = ?1)",
        [&row.name],
        |r| r.get(0),
    )?;
    if taken {
        return Err(StoreError::Exists {
            what: "machine",
            name: row.name.clone(),
        });
    }
    if crate::images::find(tx, &row.image)?.is_none() {
        return Err(StoreError::Missing {
            what: "image",
            name: row.image.clone(),
        });
    }
    if crate::kernels::find(tx, &row.kernel)?.is_none() {
        return Err(StoreError::Missing {
            what: "kernel",
            name: row.kernel.clone(),
        });
    }
    let marks = (1..=19).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
    tx.prepare_cached(&format!("INSERT INTO vms ({COLUMNS}) VALUES ({marks})"))?
        .execute(params![
            row.id,
            row.name,
            row.image,
            row.kernel,
            row.vcpus,
            row.memory_mib,
            signed(row.disk),
            row.vmm,
            to_json("vms", "labels", &row.labels)?,
            row.ephemeral,
            row.phase,
            row.created.to_string(),
            row.system_disk,
            row.generation,
            signed(row.work_disk),
            row.nat,
            row.autostart,
            row.restart,
            row.expires.map(|t| t.to_string()),
        ])
        .map_err(|e| exists_or(e, "machine", &row.name))?;
    Ok(())
}

/// Replaces all of a row but its phase, its id and its creation. A new name must be free, a new image must exist.
pub fn update(tx: &Transaction<'_>, row: &VmRow) -> Result<(), StoreError> {
    if crate::images::find(tx, &row.image)?.is_none() {
        return Err(StoreError::Missing {
            what: "image",
            name: row.image.clone(),
        });
    }
    let changed = tx
        .prepare_cached(
            "UPDATE vms SET name = ?2, image = ?3, kernel = ?4, vcpus = ?5, memory_mib = ?6, disk = ?7, vmm = ?8, \
             labels = ?9, ephemeral = ?10, system_disk = ?11, generation = ?12, work_disk = ?13, nat = ?14, \
             autostart = ?15, restart = ?16, expires = ?17 WHERE id = ?1",
        )?
        .execute(params![
            row.id,
            row.name,
            row.image,
            row.kernel,
            row.vcpus,
            row.memory_mib,
            signed(row.disk),
            row.vmm,
            to_json("vms", "labels", &row.labels)?,
            row.ephemeral,
            row.system_disk,
            row.generation,
            signed(row.work_disk),
            row.nat,
            row.autostart,
            row.restart,
            row.expires.map(|t| t.to_string()),
        ])
        .map_err(|e| exists_or(e, "machine", &row.name))?;
    one(changed, &row.id)
}

/// Sets the phase of one.
pub fn set_phase(tx: &Transaction<'_>, id: &str, phase: &str) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached("UPDATE vms SET phase = ?2 WHERE id = ?1")?
        .execute([id, phase])?;
    one(changed, id)
}

fn one(changed: usize, id: &str) -> Result<(), StoreError> {
    match changed {
        0 => Err(StoreError::Missing {
            what: "machine",
            name: id.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Removes one; one that is gone already is fine.
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM vms WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}
