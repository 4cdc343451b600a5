//! The table of published ports: which port of the host leads to which of a machine. A machine's go with it.

use std::net::{IpAddr, SocketAddr};

use rusqlite::types::{Type, Value};
use rusqlite::{ErrorCode, Row, Transaction};

use crate::{StoreError, unsigned};

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationRow {
    /// The machine's id.
    pub vm: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where the guest does.
    pub guest_port: u16,
}

const COLUMNS: &str = "vm, protocol, host_address, host_port, guest_port";

fn parse(row: &Row<'_>) -> rusqlite::Result<PublicationRow> {
    Ok(PublicationRow {
        vm: row.get(0)?,
        protocol: row.get(1)?,
        host: host(row)?,
        guest_port: unsigned(row, 4)?,
    })
}

fn host(row: &Row<'_>) -> rusqlite::Result<SocketAddr> {
    let address: String = row.get(2)?;
    let address: IpAddr = address
        .parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, Box::new(e)))?;
    Ok(SocketAddr::new(address, unsigned(row, 3)?))
}

/// A row that could not be read: what it says all the same, and why.
#[derive(Debug)]
pub struct Unreadable {
    /// The machine's id.
    pub vm: Option<String>,
    /// Its columns as they are in the file, but for the machine's.
    pub says: String,
    /// What is wrong with it.
    pub error: StoreError,
}

/// All, by the host's port. One that cannot be read does not hide the others.
pub fn list(tx: &Transaction<'_>) -> Result<(Vec<PublicationRow>, Vec<Unreadable>), StoreError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut statement = tx.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM publications ORDER BY host_port, protocol, host_address"
    ))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match parse(row) {
            Ok(publication) => good.push(publication),
            Err(error) => bad.push(Unreadable {
                vm: row.get(0).ok(),
                says: says(row),
                error: error.into(),
            }),
        }
    }
    Ok((good, bad))
}

/// `tcp 127.0.0.1 8080 80`, whatever stands there instead.
fn says(row: &Row<'_>) -> String {
    let column = |at| match row.get::<_, Value>(at) {
        Ok(Value::Integer(number)) => number.to_string(),
        Ok(Value::Real(number)) => number.to_string(),
        Ok(Value::Text(text)) => text,
        Ok(Value::Null | Value::Blob(_)) | Err(_) => "?".to_owned(),
    };
    [1, 2, 3, 4].map(column).join(" ")
}

/// Whether one could be reserved: a host's port leads to one place, on each of its addresses. Gives whether it is there as
/// asked for already.
///
/// # Errors
///
/// [`StoreError::PortTaken`] by the machine that has it.
pub fn check(tx: &Transaction<'_>, row: &PublicationRow) -> Result<bool, StoreError> {
    let mut statement =
        tx.prepare_cached(&format!("SELECT {COLUMNS} FROM publications WHERE protocol = ?1"))?;
    let mut others = statement.query([&row.protocol])?;
    while let Some(other) = others.next()? {
        // What cannot be read is nowhere, and in nobody's way; where it is there but leads nowhere, its place is taken.
        let Some(held) = host(other).ok().filter(|other| overlap(*other, row.host)) else {
            continue;
        };
        if parse(other).is_ok_and(|other| other == *row) {
            return Ok(true);
        }
        return Err(StoreError::PortTaken {
            wanted: format!("{}/{}", row.host, row.protocol),
            held: format!("{held}/{}", row.protocol),
            vm: name(tx, &other.get::<_, String>(0)?)?,
        });
    }
    Ok(false)
}

/// Reserves one. One that is there as asked for already is fine.
///
/// # Errors
///
/// As [`check`]; [`StoreError::Missing`] where there is no such machine.
pub fn insert(tx: &Transaction<'_>, row: &PublicationRow) -> Result<(), StoreError> {
    if check(tx, row)? {
        return Ok(());
    }
    tx.prepare_cached(&format!(
        "INSERT INTO publications ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5)"
    ))?
    .execute((
        &row.vm,
        &row.protocol,
        row.host.ip().to_string(),
        row.host.port(),
        row.guest_port,
    ))
    // Its own key was looked at above.
    .map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => StoreError::Missing {
            what: "machine",
            name: row.vm.clone(),
        },
        _ => e.into(),
    })?;
    Ok(())
}

/// Whether both cannot be listened on: one port, and one address or all of them. IPv4 and IPv6 do not meet.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (x, y) = (a.ip(), b.ip());
    a.port() == b.port() && x.is_ipv4() == y.is_ipv4() && (x == y || x.is_unspecified() || y.is_unspecified())
}

fn name(tx: &Transaction<'_>, vm: &str) -> Result<String, StoreError> {
    let name = tx
        .prepare_cached("SELECT name FROM vms WHERE id = ?1")?
        .query_row([vm], |row| row.get::<_, String>(0))?;
    Ok(name)
}

/// Frees one; one that is free already is fine.
pub fn remove(tx: &Transaction<'_>, row: &PublicationRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "DELETE FROM publications WHERE vm = ?1 AND protocol = ?2 AND host_address = ?3 AND host_port = ?4",
    )?
    .execute((&row.vm, &row.protocol, row.host.ip().to_string(), row.host.port()))?;
    Ok(())
}
