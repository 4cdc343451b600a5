//! Tables as `sfdisk` writes them, and what was done to them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// A disk with the table of a script for `sfdisk`, where there is one.
fn disk(script: &str) -> Option<File> {
    let sfdisk = testkit::program("BANGER_TEST_SFDISK", "sfdisk")?;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let mut made = Command::new(sfdisk)
        .args(["-q"])
        .arg(file.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    made.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(made.wait().unwrap().success());
    Some(file.reopen().unwrap())
}

fn shown(table: &Table) -> Vec<(u32, u64, u64)> {
    let parts = table.partitions.iter();
    parts
        .map(|part| (part.number, part.start / MIB, part.length / MIB))
        .collect()
}

const GPT: &str = "label: gpt
start=2048, size=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
start=32768, size=16MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
size=4MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
";

#[test]
fn a_gpt() {
    let Some(disk) = disk(GPT) else { return };
    let table = read(&disk, SIZE).unwrap().unwrap();
    assert_eq!(table.scheme, Scheme::Gpt);
    assert_eq!(shown(&table), [(1, 1, 8), (2, 16, 16), (3, 32, 4)]);
    let roots = table.partitions.iter().filter(|part| part.kind == Kind::ROOT);
    assert_eq!(roots.map(|part| part.number).collect::<Vec<_>>(), [2]);
    // Any damage to the first table leaves the one at the end, and damage to both leaves none.
    for at in [512, 512 + 16, 512 + 72, 512 + 91, 1024, 1024 + 128 + 32] {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).unwrap();
        disk.write_all_at(&[!byte[0]], at).unwrap();
        assert_eq!(read(&disk, SIZE).unwrap().as_ref(), Some(&table), "{at}");
        let last = SIZE - 512 + 40;
        let mut other = [0];
        disk.read_exact_at(&mut other, last).unwrap();
        disk.write_all_at(&[!other[0]], last).unwrap();
        assert!(matches!(read(&disk, SIZE), Err(Error::Damaged(_))), "{at}");
        disk.write_all_at(&other, last).unwrap();
        disk.write_all_at(&byte, at).unwrap();
    }
    // Cut short: the first table is whole, and a partition is not.
    assert!(matches!(
        read(&disk, 35 * MIB),
        Err(Error::OutOfRange { number: 3 })
    ));
    assert!(matches!(read(&disk, 512), Err(Error::Damaged(_))));
    assert_eq!(read(&disk, 511).unwrap(), None);
}

#[test]
fn a_gpt_of_large_sectors() {
    let disk = gpt_of_sectors(4096, |_, entry| {
        entry[32..40].copy_from_slice(&u64::to_le_bytes(256));
        entry[40..48].copy_from_slice(&u64::to_le_bytes(256 + 2047));
    });
    assert_eq!(shown(&read(&disk, SIZE).unwrap().unwrap()), [(1, 1, 8)]);
}

#[test]
fn an_mbr_with_logical_partitions() {
    let script = "label: dos
x1 : start=2048, size=8MiB, type=83, bootable
x2 : start=18432, size=48MiB, type=5
x5 : start=20480, size=8MiB, type=83
x6 : start=38912, size=8MiB, type=82
";
    let Some(disk) = disk(script) else { return };
    let table = read(&disk, SIZE).unwrap().unwrap();
    assert_eq!(table.scheme, Scheme::Mbr);
    assert_eq!(shown(&table), [(1, 1, 8), (5, 10, 8), (6, 19, 8)]);
    assert_eq!(table.partitions[2].kind, Kind::Mbr(0x82));
    // A chain that leads to itself ends all the same.
    let table = 18432 * 512;
    disk.write_all_at(&[5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], table + 466)
        .unwrap();
    disk.write_all_at(&0_u32.to_le_bytes(), table + 470).unwrap();
    assert!(matches!(read(&disk, SIZE), Err(Error::Damaged(_))));
    // And one that leads out of the disk.
    disk.write_all_at(&u32::MAX.to_le_bytes(), table + 470).unwrap();
    assert!(matches!(read(&disk, SIZE), Err(Error::OutOfRange { .. })));
}

/// An MBR of these entries: flag, kind, first sector, sectors.
fn mbr_of(entries: &[(u8, u8, u32, u32)]) -> File {
    let disk = tempfile::tempfile().unwrap();
    let mut sector = [0; 512];
    for (index, (flag, kind, start, sectors)) in entries.iter().enumerate() {
        let entry = &mut sector[446 + 16 * index..][..16];
        (entry[0], entry[4]) = (*flag, *kind);
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&sector, 0).unwrap();
    disk.set_len(SIZE).unwrap();
    disk
}

#[test]
fn hostile_tables() {
    let read = |entries: &[_]| read(&mbr_of(entries), SIZE);
    assert!(matches!(
        read(&[(0, 0x83, 2048, 4096), (0, 0x83, 4096, 4096)]),
        Err(Error::Overlap { one: 1, other: 2 })
    ));
    for far in [(0, 0x83, u32::MAX, u32::MAX), (0, 0x83, 1, 131_072)] {
        assert!(matches!(read(&[far]), Err(Error::OutOfRange { number: 1 })));
    }
    assert!(matches!(
        read(&[(0, 5, 1, 9), (0, 5, 20, 9)]),
        Err(Error::Damaged(_))
    ));
    assert!(matches!(read(&[(0, 5, 1, 9)]), Err(Error::Damaged(_))));
    assert!(matches!(
        read(&[(0, PROTECTIVE, 1, u32::MAX)]),
        Err(Error::Damaged(_))
    ));
    // Boot sectors and nothing at all are no tables.
    assert_eq!(read(&[(0x33, 0x83, 1, 1)]).unwrap(), None);
    assert_eq!(read(&[]).unwrap(), None);
}

/// A GPT of one entry, with the checksums that it needs.
fn gpt_of(change: impl FnOnce(&mut [u8; 92], &mut [u8; 128])) -> File {
    gpt_of_sectors(512, change)
}

fn gpt_of_sectors(sector: u64, change: impl FnOnce(&mut [u8; 92], &mut [u8; 128])) -> File {
    let disk = mbr_of(&[(0, PROTECTIVE, 1, 131_071)]);
    let (mut header, mut entry) = ([0; 92], [0; 128]);
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[24] = 1;
    header[72] = 2;
    (header[80], header[84]) = (1, 128);
    entry[..16].fill(7);
    (entry[32], entry[40]) = (64, 127);
    change(&mut header, &mut entry);
    let checksum = crc32(&entry).to_le_bytes();
    header[88..].copy_from_slice(&checksum);
    let checksum = crc32(&header).to_le_bytes();
    header[16..20].copy_from_slice(&checksum);
    disk.write_all_at(&header, sector).unwrap();
    disk.write_all_at(&entry, 2 * sector).unwrap();
    disk
}

#[test]
fn hostile_gpts() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the check value of CRC-32");
    let read = |disk: File| read(&disk, SIZE);
    assert_eq!(read(gpt_of(|_, _| {})).unwrap().unwrap().partitions.len(), 1);
    for (first, last) in [
        (1, 0),
        (0, u64::MAX),
        (u64::MAX, u64::MAX),
        (u64::MAX / 512, u64::MAX / 512),
        (64, 131_072),
    ] {
        let found = read(gpt_of(|_, entry| {
            entry[32..40].copy_from_slice(&u64::to_le_bytes(first));
            entry[40..48].copy_from_slice(&u64::to_le_bytes(last));
        }));
        assert!(
            matches!(found, Err(Error::OutOfRange { number: 1 })),
            "{first} {last}: {found:?}"
        );
    }
    type Change = fn(&mut [u8; 92]);
    let changes: [Change; 6] = [
        |header| header[12..16].fill(0xff),
        |header| header[12] = 91,
        |header| header[24] = 2,
        |header| header[72..80].fill(0xff),
        |header| header[80..84].fill(0xff),
        |header| header[84..88].fill(0xff),
    ];
    for change in changes {
        let found = read(gpt_of(|header, _| change(header)));
        assert!(matches!(found, Err(Error::Damaged(_))), "{found:?}");
    }
}
