//! The table of operations.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::StoreError;

/// An operation's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRow {
    /// For life.
    pub id: String,
    /// The method that began it.
    pub kind: String,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// The engine's record, as JSON.
    pub record: String,
}

fn parse(row: &Row<'_>) -> rusqlite::Result<String> {
    row.get(0)
}

/// Adds one or replaces it.
pub fn put(tx: &Transaction<'_>, row: &OperationRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO operations VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (id) DO UPDATE SET ended = excluded.ended, record = excluded.record",
    )?
    .execute(params![
        row.id,
        row.kind,
        row.began.to_string(),
        row.ended.map(|t| t.to_string()),
        row.record
    ])?;
    Ok(())
}

/// Records, newest first, at most `limit`.
pub fn list(tx: &Transaction<'_>, limit: u32) -> Result<Vec<String>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT record FROM operations ORDER BY began DESC LIMIT ?1")?;
    let rows = statement.query_map([limit], parse)?.collect::<Result<_, _>>()?;
    Ok(rows)
}

/// Records of those that have not ended.
pub fn unfinished(tx: &Transaction<'_>) -> Result<Vec<String>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT record FROM operations WHERE ended IS NULL")?;
    let rows = statement.query_map([], parse)?.collect::<Result<_, _>>()?;
    Ok(rows)
}

/// One record.
pub fn find(tx: &Transaction<'_>, id: &str) -> Result<Option<String>, StoreError> {
    Ok(tx
        .prepare_cached("SELECT record FROM operations WHERE id = ?1")?
        .query_row([id], parse)
        .optional()?)
}

/// How many ended before a time.
pub fn count_before(tx: &Transaction<'_>, time: Timestamp) -> Result<u32, StoreError> {
    Ok(tx
        .prepare_cached("SELECT count(*) FROM operations WHERE ended IS NOT NULL AND ended < ?1")?
        .query_row([time.to_string()], |row| row.get(0))?)
}

/// Forgets those that ended before a time.
pub fn forget_before(tx: &Transaction<'_>, time: Timestamp) -> Result<usize, StoreError> {
    Ok(tx
        .prepare_cached("DELETE FROM operations WHERE ended IS NOT NULL AND ended < ?1")?
        .execute([time.to_string()])?)
}
