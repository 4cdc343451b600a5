//! The table of machines.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};

use crate::{StoreError, exists_or, from_json, signed, time, to_json, unsigned};

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
}

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
    };
    Ok((vm, labels))
}

/// All, by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<VmRow>, StoreError> {
    let mut statement = tx.prepare_cached(
        "SELECT id, name, image, kernel, vcpus, memory_mib, disk, vmm, labels, ephemeral, phase, created \
         FROM vms ORDER BY name",
    )?;
    let mut rows = Vec::new();
    for row in statement.query_map([], parse)? {
        let (mut vm, labels) = row?;
        vm.labels = from_json("vms", "labels", &labels)?;
        rows.push(vm);
    }
    Ok(rows)
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
    tx.prepare_cached("INSERT INTO vms VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")?
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
            row.created.to_string()
        ])
        .map_err(|e| exists_or(e, "machine", &row.name))?;
    Ok(())
}

/// Sets the phase of one.
pub fn set_phase(tx: &Transaction<'_>, id: &str, phase: &str) -> Result<(), StoreError> {
    let changed = tx
        .prepare_cached("UPDATE vms SET phase = ?2 WHERE id = ?1")?
        .execute([id, phase])?;
    if changed == 0 {
        return Err(StoreError::Missing {
            what: "machine",
            name: id.to_owned(),
        });
    }
    Ok(())
}

/// Removes one; one that is gone already is fine.
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM vms WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}
