//! The table of leases: which address is whose. A lease goes with its machine's row.

use std::net::Ipv4Addr;

use rusqlite::{Row, Transaction};

use crate::{StoreError, facts, unsigned};

/// The fact that says which address was leased last.
const LAST: &str = "lease_last";

/// A machine's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The machine's id.
    pub vm: String,
    /// Its address.
    pub address: Ipv4Addr,
}

fn parse(row: &Row<'_>) -> rusqlite::Result<Lease> {
    let bits: i64 = row.get(1)?;
    let bits = u32::try_from(bits).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(1, bits))?;
    Ok(Lease {
        vm: row.get(0)?,
        address: Ipv4Addr::from_bits(bits),
    })
}

/// All, by address.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Lease>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT vm, address FROM leases ORDER BY address")?;
    let rows = statement.query_map([], parse)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A machine's, if it has one.
pub fn find(tx: &Transaction<'_>, vm: &str) -> Result<Option<Ipv4Addr>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT vm, address FROM leases WHERE vm = ?1")?;
    let mut rows = statement.query_map([vm], parse)?;
    Ok(rows.next().transpose()?.map(|lease| lease.address))
}

/// Leases a machine that has none the next address of the range: the lowest free one above the last that was leased,
/// from the beginning again when there is none. So an address that somebody has just given up is not another's at once.
pub fn take(tx: &Transaction<'_>, vm: &str, first: Ipv4Addr, last: Ipv4Addr) -> Result<Ipv4Addr, StoreError> {
    let (first, last) = (first.to_bits(), last.to_bits());
    let before = facts::find(tx, LAST)?.and_then(|text| text.parse::<u32>().ok());
    let next = before.map_or(first, |before| before.saturating_add(1));
    let next = if (first..=last).contains(&next) {
        next
    } else {
        first
    };
    let free = match free(tx, next, last)? {
        Some(free) => Some(free),
        None => free_below(tx, first, next)?,
    };
    let Some(address) = free else {
        let leased: u32 = tx.query_row(
            "SELECT count(*) FROM leases WHERE address BETWEEN ?1 AND ?2",
            [first, last],
            |row| unsigned::<i64>(row, 0).map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        )?;
        return Err(StoreError::Exhausted {
            what: "address",
            taken: leased,
        });
    };
    tx.prepare_cached("INSERT INTO leases (vm, address) VALUES (?1, ?2)")?
        .execute(rusqlite::params![vm, address])?;
    facts::replace(tx, LAST, &address.to_string())?;
    Ok(Ipv4Addr::from_bits(address))
}

fn free_below(tx: &Transaction<'_>, first: u32, end: u32) -> Result<Option<u32>, StoreError> {
    match end.checked_sub(1) {
        Some(last) if last >= first => free(tx, first, last),
        Some(_) | None => Ok(None),
    }
}

/// The lowest free address of a range.
fn free(tx: &Transaction<'_>, first: u32, last: u32) -> Result<Option<u32>, StoreError> {
    let mut statement =
        tx.prepare_cached("SELECT address FROM leases WHERE address BETWEEN ?1 AND ?2 ORDER BY address")?;
    let mut taken = statement.query([first, last])?;
    let mut candidate = first;
    while let Some(row) = taken.next()? {
        let address: u32 = row.get(0)?;
        if address > candidate {
            break;
        }
        match candidate.checked_add(1) {
            Some(next) => candidate = next,
            None => return Ok(None),
        }
    }
    Ok((candidate <= last).then_some(candidate))
}
