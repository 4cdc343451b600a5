//! What the daemon knows of its host from before: one value a key.

use rusqlite::{OptionalExtension, Transaction};

use crate::StoreError;

/// A fact.
pub fn find(tx: &Transaction<'_>, key: &str) -> Result<Option<String>, StoreError> {
    Ok(tx
        .prepare_cached("SELECT value FROM facts WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?)
}

/// Forgets a fact.
pub fn remove(tx: &Transaction<'_>, key: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM facts WHERE key = ?1")?
        .execute([key])?;
    Ok(())
}

/// Sets a fact and gives back what it was.
pub fn replace(tx: &Transaction<'_>, key: &str, value: &str) -> Result<Option<String>, StoreError> {
    let before = find(tx, key)?;
    tx.prepare_cached(
        "INSERT INTO facts (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )?
    .execute([key, value])?;
    Ok(before)
}
