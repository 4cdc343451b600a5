//! The table of machines.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Row, Transaction, params_from_iter};

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
    /// By which name the image was asked for.
    pub image_name: String,
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
    /// What its guest may reach beyond the host's own way out; words of the engine's, separated by commas.
    pub allow: String,
}

/// In the order of [`parse`].
const COLUMNS: &str = "id, name, image, kernel, vcpus, memory_mib, disk, vmm, labels, ephemeral, phase, created, \
     system_disk, generation, work_disk, nat, autostart, restart, expires, allow, image_name";

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
        allow: row.get(19)?,
        image_name: row.get(20)?,
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
    needs(tx, row)?;
    let mut values = settings(row)?.to_vec();
    values.push(("id", row.id.clone().into()));
    values.push(("phase", row.phase.clone().into()));
    values.push(("created", row.created.to_string().into()));
    let columns: Vec<_> = values.iter().map(|(column, _)| *column).collect();
    let columns = columns.join(", ");
    let marks = vec!["?"; values.len()].join(", ");
    tx.prepare_cached(&format!("INSERT INTO vms ({columns}) VALUES ({marks})"))?
        .execute(params_from_iter(values.into_iter().map(|(_, value)| value)))
        .map_err(|e| exists_or(e, "machine", &row.name))?;
    Ok(())
}

/// What a machine is made of and boots with must be there: as long as it has them, they cannot be removed.
fn needs(tx: &Transaction<'_>, row: &VmRow) -> Result<(), StoreError> {
    if crate::images::get(tx, &row.image)?.is_none() {
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
    Ok(())
}

/// Every column that may change by [`update`], with its value.
fn settings(row: &VmRow) -> Result<[(&'static str, Value); 18], StoreError> {
    Ok([
        ("name", row.name.clone().into()),
        ("image", row.image.clone().into()),
        ("image_name", row.image_name.clone().into()),
        ("kernel", row.kernel.clone().into()),
        ("vcpus", row.vcpus.into()),
        ("memory_mib", row.memory_mib.into()),
        ("disk", signed(row.disk).into()),
        ("vmm", row.vmm.clone().into()),
        ("labels", to_json("vms", "labels", &row.labels)?.into()),
        ("ephemeral", row.ephemeral.into()),
        ("system_disk", row.system_disk.clone().into()),
        ("generation", row.generation.into()),
        ("work_disk", signed(row.work_disk).into()),
        ("nat", row.nat.into()),
        ("autostart", row.autostart.into()),
        ("restart", row.restart.clone().into()),
        ("expires", row.expires.map(|t| t.to_string()).into()),
        ("allow", row.allow.clone().into()),
    ])
}

/// Replaces all of a row but its phase, its id and its creation. A new name must be free, image and kernel must exist.
pub fn update(tx: &Transaction<'_>, row: &VmRow) -> Result<(), StoreError> {
    needs(tx, row)?;
    let values = settings(row)?;
    let columns: Vec<_> = values.iter().map(|(column, _)| format!("{column} = ?")).collect();
    let id = [Value::from(row.id.clone())];
    let changed = tx
        .prepare_cached(&format!("UPDATE vms SET {} WHERE id = ?", columns.join(", ")))?
        .execute(params_from_iter(
            values.into_iter().map(|(_, value)| value).chain(id),
        ))
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
