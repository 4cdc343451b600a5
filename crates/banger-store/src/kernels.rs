//! The table of kernels.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::{StoreError, exists_or, signed, time, unsigned};

/// A kernel's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRow {
    /// Unique name.
    pub name: String,
    /// Release.
    pub version: String,
    /// What the source file was: `elf` or `bzimage`.
    pub format: String,
    /// Of the source file, hexadecimal.
    pub sha256: String,
    /// Bytes on the host.
    pub size: u64,
    /// Modules kept for its initramfs.
    pub modules: u32,
    /// QEMU boots its ELF form (it has a PVH note).
    pub pvh: bool,
    /// Where it came from.
    pub source: String,
    /// When it was added.
    pub created: Timestamp,
}

const COLUMNS: &str = "name, version, format, sha256, size, modules, pvh, source, created";

fn parse(row: &Row<'_>) -> rusqlite::Result<KernelRow> {
    Ok(KernelRow {
        name: row.get(0)?,
        version: row.get(1)?,
        format: row.get(2)?,
        sha256: row.get(3)?,
        size: unsigned(row, 4)?,
        modules: unsigned(row, 5)?,
        pvh: row.get(6)?,
        source: row.get(7)?,
        created: time(row, 8)?,
    })
}

/// All, by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<KernelRow>, StoreError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM kernels ORDER BY name"))?;
    let rows = statement.query_map([], parse)?.collect::<Result<_, _>>()?;
    Ok(rows)
}

/// One, by name.
pub fn find(tx: &Transaction<'_>, name: &str) -> Result<Option<KernelRow>, StoreError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM kernels WHERE name = ?1"))?;
    Ok(statement.query_row([name], parse).optional()?)
}

/// Adds one; the name must be free.
pub fn insert(tx: &Transaction<'_>, row: &KernelRow) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO kernels VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?
        .execute(params![
            row.name,
            row.version,
            row.format,
            row.sha256,
            signed(row.size),
            row.modules,
            row.pvh,
            row.source,
            row.created.to_string()
        ])
        .map_err(|e| exists_or(e, "kernel", &row.name))?;
    Ok(())
}

/// Removes one that neither image nor machine refers to.
pub fn remove(tx: &Transaction<'_>, name: &str) -> Result<KernelRow, StoreError> {
    let row = find(tx, name)?.ok_or_else(|| StoreError::Missing {
        what: "kernel",
        name: name.to_owned(),
    })?;
    let mut statement = tx.prepare_cached(
        "SELECT 'image ' || COALESCE((SELECT MIN(name) FROM image_names WHERE image = images.id), id) \
           FROM images WHERE kernel = ?1 UNION ALL \
         SELECT 'machine ' || name FROM vms WHERE kernel = ?1 LIMIT 20",
    )?;
    let by: Vec<String> = statement
        .query_map([name], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    if !by.is_empty() {
        return Err(StoreError::InUse {
            what: "kernel",
            name: name.to_owned(),
            by,
        });
    }
    tx.execute("DELETE FROM kernels WHERE name = ?1", [name])?;
    Ok(row)
}
