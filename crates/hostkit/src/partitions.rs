//! The table of partitions at the start of a disk, read without trusting it: GPT (UEFI specification, chapter 5) and the MBR
//! with its chain of logical partitions.
//!
//! Place: what a disk image holds is looked for here before any of it is copied. Nothing is written, and nothing is mended: a
//! table that contradicts itself is refused as a whole, because what it says of one partition is then worth nothing. GPT is read
//! from its copy at the disk's end where the first one is damaged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Entries of a GPT at most; 128 is what is made everywhere.
const ENTRIES: u32 = 1024;
/// Bytes of an entry at most.
const ENTRY: u32 = 4096;
/// Logical partitions at most.
const LOGICAL: u32 = 128;
/// The sector of a disk whose table is an MBR.
const SECTOR: u64 = 512;

/// A disk's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// GPT or MBR.
    pub scheme: Scheme,
    /// In the order of their numbers. None overlaps another, and each is within the disk.
    pub partitions: Vec<Partition>,
}

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As the kernel numbers it, from 1.
    pub number: u32,
    /// Its first byte.
    pub start: u64,
    /// Its bytes, more than none.
    pub length: u64,
    /// What it says it is for.
    pub kind: Kind,
}

/// What a partition says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As it is on the disk: the first three fields have their lowest byte first.
    Gpt([u8; 16]),
    /// The byte of an MBR.
    Mbr(u8),
}

impl Kind {
    /// A root file system for x86-64, `4f68bce3-e8cd-4db1-96e7-fbcaf984b709` (Discoverable Partitions Specification).
    pub const ROOT: Self = Self::Gpt([
        0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
    ]);
}

/// Why a table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be read.
    #[error("failed to read the partition table")]
    Read(#[source] io::Error),
    /// It is no table.
    #[error("the partition table is damaged: {0}")]
    Damaged(&'static str),
    /// A partition ends after the disk does.
    #[error(
        "partition {number} ends after the disk: the file is cut short, or the partition table is damaged"
    )]
    OutOfRange {
        /// Which.
        number: u32,
    },
    /// Two partitions have bytes in common.
    #[error("partitions {one} and {other} overlap")]
    Overlap {
        /// Which.
        one: u32,
        /// And which.
        other: u32,
    },
}

/// Reads the table of a disk of that many bytes; none where it has no table.
pub fn read(disk: &File, size: u64) -> Result<Option<Table>, Error> {
    let Some(first) = at::<512>(disk, size, 0)? else {
        return Ok(None);
    };
    if first.get(510..) != Some(&[0x55, 0xaa]) {
        return Ok(None);
    }
    let entries = mbr_entries(&first);
    // A boot sector is no table: its bytes there are code or text.
    if entries.iter().any(|entry| entry.flag & 0x7f != 0) {
        return Ok(None);
    }
    let (scheme, partitions) = match entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        true => (Scheme::Gpt, gpt(disk, size)?),
        false => (Scheme::Mbr, mbr(disk, size, &entries)?),
    };
    if partitions.is_empty() && scheme == Scheme::Mbr {
        return Ok(None);
    }
    check(&partitions, size)?;
    Ok(Some(Table { scheme, partitions }))
}

fn check(partitions: &[Partition], size: u64) -> Result<(), Error> {
    for part in partitions {
        if part.start.checked_add(part.length).is_none_or(|end| end > size) {
            return Err(Error::OutOfRange { number: part.number });
        }
    }
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|part| part.start);
    for pair in sorted.windows(2) {
        if let [one, other] = pair
            && one.start + one.length > other.start
        {
            return Err(Error::Overlap {
                one: one.number,
                other: other.number,
            });
        }
    }
    Ok(())
}

/// Bytes of the disk, where it has them.
fn at<const N: usize>(disk: &File, size: u64, offset: u64) -> Result<Option<[u8; N]>, Error> {
    if offset.checked_add(N as u64).is_none_or(|end| end > size) {
        return Ok(None);
    }
    let mut bytes = [0; N];
    disk.read_exact_at(&mut bytes, offset).map_err(Error::Read)?;
    Ok(Some(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(bytes.get(at..at + 4).unwrap_or(&[0; 4]));
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

// ---- MBR -----------------------------------------------------------------------------------------------------------

/// The kind of the one partition that covers a disk with a GPT.
const PROTECTIVE: u8 = 0xee;

struct Entry {
    flag: u8,
    kind: u8,
    /// In sectors.
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    /// The partition, from sectors that are counted from `base`.
    fn partition(&self, number: u32, base: u64) -> Partition {
        Partition {
            number,
            // Both are of 32 bits, and so is their base: their bytes are far from what 64 hold.
            start: (base + self.start) * SECTOR,
            length: self.sectors * SECTOR,
            kind: Kind::Mbr(self.kind),
        }
    }
}

fn mbr_entries(sector: &[u8; 512]) -> [Entry; 4] {
    [446, 462, 478, 494].map(|from| Entry {
        flag: sector.get(from).copied().unwrap_or_default(),
        kind: sector.get(from + 4).copied().unwrap_or_default(),
        start: u32_at(sector, from + 8).into(),
        sectors: u32_at(sector, from + 12).into(),
    })
}

fn mbr(disk: &File, size: u64, entries: &[Entry; 4]) -> Result<Vec<Partition>, Error> {
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(entries) {
        if entry.is_used() && entry.is_extended() {
            if extended.replace(entry.start).is_some() {
                return Err(Error::Damaged("it has two extended partitions"));
            }
        } else if entry.is_used() {
            found.push(entry.partition(number, 0));
        }
    }
    if let Some(extended) = extended {
        found.extend(logical(disk, size, extended)?);
    }
    Ok(found)
}

/// The logical partitions: each has a table of its own, with itself in it and the next one's table.
fn logical(disk: &File, size: u64, extended: u64) -> Result<Vec<Partition>, Error> {
    let mut found = Vec::new();
    let (mut table, mut number) = (extended, 5);
    for _ in 0..LOGICAL {
        let Some(sector) = at::<512>(disk, size, table * SECTOR)? else {
            return Err(Error::OutOfRange { number });
        };
        if sector.get(510..) != Some(&[0x55, 0xaa]) {
            return Err(Error::Damaged("a logical partition has no table"));
        }
        let [own, next, ..] = mbr_entries(&sector);
        if own.is_used() {
            found.push(own.partition(number, table));
            number += 1;
        }
        if !next.is_used() {
            return Ok(found);
        }
        if !next.is_extended() {
            return Err(Error::Damaged("the chain of logical partitions leads elsewhere"));
        }
        table = extended + next.start;
    }
    Err(Error::Damaged("the chain of logical partitions has no end"))
}

// ---- GPT -----------------------------------------------------------------------------------------------------------

fn gpt(disk: &File, size: u64) -> Result<Vec<Partition>, Error> {
    let mut wrong = Error::Damaged("it has no header");
    // Disks of 4 KiB sectors are made into files as well.
    for sector in [512, 4096] {
        let last = (size / sector).saturating_sub(1);
        for header in [1, last] {
            match gpt_at(disk, size, sector, header) {
                Ok(Some(partitions)) => return Ok(partitions),
                Ok(None) => {}
                Err(e) => wrong = e,
            }
        }
    }
    Err(wrong)
}

/// The partitions by the header in a sector; none where there is no header.
fn gpt_at(disk: &File, size: u64, sector: u64, header: u64) -> Result<Option<Vec<Partition>>, Error> {
    let Some(mut raw) = at::<512>(disk, size, header * sector)? else {
        return Ok(None);
    };
    if raw.get(..8) != Some(b"EFI PART") {
        return Ok(None);
    }
    let length = u32_at(&raw, 12) as usize;
    let checksum = u32_at(&raw, 16);
    raw.get_mut(16..20).unwrap_or_default().fill(0);
    let covered = raw.get(..length).filter(|covered| covered.len() >= 92);
    let Some(covered) = covered else {
        return Err(Error::Damaged("its header has an impossible length"));
    };
    if crc32(covered) != checksum {
        return Err(Error::Damaged("its header has another checksum"));
    }
    if u64_at(&raw, 24) != header {
        return Err(Error::Damaged("its header is another place's"));
    }
    let (count, each) = (u32_at(&raw, 80), u32_at(&raw, 84));
    if count > ENTRIES || !(128..=ENTRY).contains(&each) || !each.is_multiple_of(8) {
        return Err(Error::Damaged(
            "it has more entries, or other ones, than are read",
        ));
    }
    let from = u64_at(&raw, 72).checked_mul(sector);
    let bytes = u64::from(count) * u64::from(each);
    let Some(from) = from.filter(|from| from.checked_add(bytes).is_some_and(|end| end <= size)) else {
        return Err(Error::Damaged("its entries are after the end of the disk"));
    };
    // At most 4 MiB.
    let mut entries = vec![0; count as usize * each as usize];
    disk.read_exact_at(&mut entries, from).map_err(Error::Read)?;
    if crc32(&entries) != u32_at(&raw, 88) {
        return Err(Error::Damaged("its entries have another checksum"));
    }
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(each as usize)) {
        let mut kind = [0; 16];
        kind.copy_from_slice(entry.get(..16).unwrap_or(&[0; 16]));
        if kind == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let sectors = last.checked_sub(first).and_then(|sectors| sectors.checked_add(1));
        let place = first
            .checked_mul(sector)
            .zip(sectors.and_then(|n| n.checked_mul(sector)));
        let Some((start, length)) = place else {
            return Err(Error::OutOfRange { number });
        };
        found.push(Partition {
            number,
            start,
            length,
            kind: Kind::Gpt(kind),
        });
    }
    Ok(Some(found))
}

/// CRC-32 as in IEEE 802.3, reflected: what GPT has. A few kilobytes once, so bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc = crc >> 1 ^ if low == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
#[path = "partitions_tests.rs"]
mod tests;
