//! The table of images.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::{StoreError, exists_or, signed, time, unsigned};

/// An image's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// For life.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Kernel's name.
    pub kernel: String,
    /// Of the root file system, hexadecimal.
    pub sha256: String,
    /// Of the root file system, bytes.
    pub size: u64,
    /// Bytes on the host.
    pub used: u64,
    /// Where it came from.
    pub source: String,
    /// When it was made.
    pub created: Timestamp,
}

const COLUMNS: &str = "id, name, kernel, sha256, size, used, source, created";

fn parse(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    Ok(ImageRow {
        id: row.get(0)?,
        name: row.get(1)?,
        kernel: row.get(2)?,
        sha256: row.get(3)?,
        size: unsigned(row, 4)?,
        used: unsigned(row, 5)?,
        source: row.get(6)?,
        created: time(row, 7)?,
    })
}

/// All, by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<ImageRow>, StoreError> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM images ORDER BY name"))?;
    let rows = statement.query_map([], parse)?.collect::<Result<_, _>>()?;
    Ok(rows)
}

/// One, by name or else by id.
pub fn find(tx: &Transaction<'_>, reference: &str) -> Result<Option<ImageRow>, StoreError> {
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM images WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC LIMIT 1"
    ))?;
    Ok(statement.query_row([reference], parse).optional()?)
}

/// Adds one; the name must be free.
pub fn insert(tx: &Transaction<'_>, row: &ImageRow) -> Result<(), StoreError> {
    if crate::kernels::find(tx, &row.kernel)?.is_none() {
        return Err(StoreError::Missing {
            what: "kernel",
            name: row.kernel.clone(),
        });
    }
    tx.prepare_cached("INSERT INTO images VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
        .execute(params![
            row.id,
            row.name,
            row.kernel,
            row.sha256,
            signed(row.size),
            signed(row.used),
            row.source,
            row.created.to_string()
        ])
        .map_err(|e| exists_or(e, "image", &row.name))?;
    Ok(())
}

/// Names of the machines that use an image.
pub fn used_by(tx: &Transaction<'_>, id: &str) -> Result<Vec<String>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT name FROM vms WHERE image = ?1 ORDER BY name")?;
    let names = statement
        .query_map([id], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(names)
}

/// Removes one that no machine uses.
pub fn remove(tx: &Transaction<'_>, reference: &str) -> Result<ImageRow, StoreError> {
    let row = find(tx, reference)?.ok_or_else(|| StoreError::Missing {
        what: "image",
        name: reference.to_owned(),
    })?;
    let by = used_by(tx, &row.id)?;
    if !by.is_empty() {
        return Err(StoreError::InUse {
            what: "image",
            name: row.name,
            by,
        });
    }
    tx.execute("DELETE FROM images WHERE id = ?1", [&row.id])?;
    Ok(row)
}
