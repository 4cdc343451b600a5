//! The table of sessions: commands that run in guests beside everybody's connections, and how they ended. A machine's go
//! with it.

use jiff::Timestamp;
use rusqlite::{ErrorCode, OptionalExtension, Row, Transaction, params};

use crate::{StoreError, from_json, maybe_time, time, to_json};

/// A session's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// For life; what the guest knows it by.
    pub id: String,
    /// The machine's id.
    pub vm: String,
    /// Unique in its machine.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// As which user, where it was said.
    pub user: Option<String>,
    /// The beginning of the machine's run that it belongs to.
    pub run: Timestamp,
    /// When it was started.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How it ended, as JSON, the engine's.
    pub outcome: Option<String>,
    /// The machine is stopped when it ends.
    pub ends_machine: bool,
}

/// In the order of [`parse`].
const COLUMNS: &str = "id, vm, name, command, user, run, started, ended, outcome, ends_machine";

fn parse(row: &Row<'_>) -> rusqlite::Result<(SessionRow, String)> {
    let session = SessionRow {
        id: row.get(0)?,
        vm: row.get(1)?,
        name: row.get(2)?,
        command: Vec::new(),
        user: row.get(4)?,
        run: time(row, 5)?,
        started: time(row, 6)?,
        ended: maybe_time(row, 7)?,
        outcome: row.get(8)?,
        ends_machine: row.get(9)?,
    };
    Ok((session, row.get(3)?))
}

fn whole((mut session, command): (SessionRow, String)) -> Result<SessionRow, StoreError> {
    session.command = from_json("sessions", "command", &command)?;
    Ok(session)
}

fn select(tx: &Transaction<'_>, condition: &str, of: &[&str]) -> Result<Vec<SessionRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM sessions WHERE {condition} ORDER BY started, id");
    let mut statement = tx.prepare_cached(&sql)?;
    let rows = statement.query_map(rusqlite::params_from_iter(of), parse)?;
    rows.map(|row| whole(row?)).collect()
}

/// All of a machine, in the order in which they were started.
pub fn of_vm(tx: &Transaction<'_>, vm: &str) -> Result<Vec<SessionRow>, StoreError> {
    select(tx, "vm = ?1", &[vm])
}

/// All, in the order in which they were started.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<SessionRow>, StoreError> {
    select(tx, "TRUE", &[])
}

/// Those of which it is not known that they have ended.
pub fn unfinished(tx: &Transaction<'_>) -> Result<Vec<SessionRow>, StoreError> {
    select(tx, "outcome IS NULL", &[])
}

/// Those that have ended, and were to take their machine along.
pub fn that_end_their_machine(tx: &Transaction<'_>) -> Result<Vec<SessionRow>, StoreError> {
    select(tx, "ends_machine AND outcome IS NOT NULL", &[])
}

/// One of a machine, by its name.
pub fn find(tx: &Transaction<'_>, vm: &str, name: &str) -> Result<Option<SessionRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM sessions WHERE vm = ?1 AND name = ?2");
    let row = tx.prepare_cached(&sql)?.query_row([vm, name], parse).optional()?;
    row.map(whole).transpose()
}

/// Adds one.
///
/// # Errors
///
/// [`StoreError::Exists`] where its machine has one of its name, [`StoreError::Missing`] where there is no such machine.
pub fn insert(tx: &Transaction<'_>, row: &SessionRow) -> Result<(), StoreError> {
    if find(tx, &row.vm, &row.name)?.is_some() {
        return Err(StoreError::Exists {
            what: "session",
            name: row.name.clone(),
        });
    }
    let sql = format!("INSERT INTO sessions ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)");
    tx.prepare_cached(&sql)?
        .execute(params![
            row.id,
            row.vm,
            row.name,
            to_json("sessions", "command", &row.command)?,
            row.user,
            row.run.to_string(),
            row.started.to_string(),
            row.ended.map(|ended| ended.to_string()),
            row.outcome,
            row.ends_machine,
        ])
        .map_err(|e| match e.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => StoreError::Missing {
                what: "machine",
                name: row.vm.clone(),
            },
            _ => e.into(),
        })?;
    Ok(())
}

/// Keeps how one ended. One that is gone stays so.
pub fn end(tx: &Transaction<'_>, id: &str, ended: Timestamp, outcome: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE sessions SET ended = ?2, outcome = ?3 WHERE id = ?1 AND outcome IS NULL")?
        .execute(params![id, ended.to_string(), outcome])?;
    Ok(())
}

/// Removes one; one that is gone stays so.
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM sessions WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}
