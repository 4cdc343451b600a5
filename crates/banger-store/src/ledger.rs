//! The table of host objects: a row before the object, no row after it.

use jiff::Timestamp;
use rusqlite::{Row, Transaction};

use crate::{StoreError, time};

/// A host object that exists, or was about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    /// Grows, so that the order of making is known.
    pub id: i64,
    /// Whose it is: a machine's or an image's id.
    pub owner: String,
    /// The engine's description, as JSON.
    pub object: String,
    /// When it was entered.
    pub created: Timestamp,
}

fn parse(row: &Row<'_>) -> rusqlite::Result<LedgerRow> {
    Ok(LedgerRow {
        id: row.get(0)?,
        owner: row.get(1)?,
        object: row.get(2)?,
        created: time(row, 3)?,
    })
}

/// Enters one.
pub fn insert(tx: &Transaction<'_>, owner: &str, object: &str, now: Timestamp) -> Result<i64, StoreError> {
    tx.prepare_cached("INSERT INTO ledger (owner, object, created) VALUES (?1, ?2, ?3)")?
        .execute([owner, object, &now.to_string()])?;
    Ok(tx.last_insert_rowid())
}

/// Strikes one; one that is gone already is fine.
pub fn remove(tx: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM ledger WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// One owner's, newest first.
pub fn of_owner(tx: &Transaction<'_>, owner: &str) -> Result<Vec<LedgerRow>, StoreError> {
    let mut statement =
        tx.prepare_cached("SELECT id, owner, object, created FROM ledger WHERE owner = ?1 ORDER BY id DESC")?;
    let rows = statement.query_map([owner], parse)?.collect::<Result<_, _>>()?;
    Ok(rows)
}

/// All, newest first.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<LedgerRow>, StoreError> {
    let mut statement =
        tx.prepare_cached("SELECT id, owner, object, created FROM ledger ORDER BY id DESC")?;
    let rows = statement.query_map([], parse)?.collect::<Result<_, _>>()?;
    Ok(rows)
}
