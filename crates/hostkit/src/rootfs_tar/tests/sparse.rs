//! Sparse files, as each of the four formats has them.

use super::*;

const SIZE: u64 = 1 << 20;
const LEN: usize = 1 << 20;

/// Two pieces of text in a file of a megabyte.
fn wanted() -> Vec<u8> {
    let mut contents = vec![0; LEN];
    contents[8192..8197].copy_from_slice(b"hello");
    contents[500_000..500_600].fill(7);
    contents
}

fn stored() -> Vec<u8> {
    [b"hello".as_slice(), &[7; 600]].concat()
}

/// An entry of GNU's own type. Four pieces fit into the header, the others follow.
fn gnu(name: &str, pieces: &[(u64, u64)], size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(3);
    header.set_size(data.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    for (field, (offset, len)) in gnu.sparse.iter_mut().zip(pieces) {
        field.set_offset(*offset);
        field.set_length(*len);
    }
    let rest = pieces.get(4..).unwrap_or_default();
    gnu.set_is_extended(!rest.is_empty());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    let mut records = rest.chunks(21).peekable();
    while let Some(pieces) = records.next() {
        let mut record = tar::GnuExtSparseHeader::new();
        for (field, (offset, len)) in record.sparse_mut().iter_mut().zip(pieces) {
            field.set_offset(*offset);
            field.set_length(*len);
        }
        record.set_is_extended(records.peek().is_some());
        bytes.extend_from_slice(record.as_bytes());
    }
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
    bytes
}

fn pax_1_0(map: &str, size: &str, data: &[u8]) -> Vec<u8> {
    let mut contents = map.as_bytes().to_vec();
    contents.resize(contents.len().next_multiple_of(RECORD), 0);
    contents.extend_from_slice(data);
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    [pax(&records), file("GNUSparseFile.1/sparse", &contents)].concat()
}

#[test]
fn all_formats_give_the_same_file_with_its_holes() {
    let many: Vec<_> = (0..30_u64).map(|at| (500_000 + at * 20, 20)).collect();
    let many = [vec![(8192, 5)], many, vec![(SIZE, 0)]].concat();
    let cases = [
        gnu("sparse", &[(8192, 5), (500_000, 600)], SIZE, &stored()),
        gnu("sparse", &many, SIZE, &stored()),
        [
            pax(&[
                ("GNU.sparse.size", b"1048576"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"8192"),
                ("GNU.sparse.numbytes", b"5"),
                ("GNU.sparse.offset", b"500000"),
                ("GNU.sparse.numbytes", b"600"),
            ]),
            file("sparse", &stored()),
        ]
        .concat(),
        [
            pax(&[
                ("GNU.sparse.size", b"1048576"),
                ("GNU.sparse.name", b"sparse"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.map", b"8192,5,500000,600"),
            ]),
            file("GNUSparseFile.1/sparse", &stored()),
        ]
        .concat(),
        pax_1_0("3\n8192\n5\n500000\n600\n1048576\n0\n", "1048576", &stored()),
    ];
    for (number, entry) in cases.into_iter().enumerate() {
        let (dir, result) = try_unpack(&archive(&[entry, file("after", b"x")]), &Limits::default());
        let tree = result.unwrap_or_else(|error| panic!("case {number}: {error}"));
        let path = dir.path().join("tree/sparse");
        assert!(fs::read(&path).unwrap() == wanted(), "case {number}");
        assert_eq!(
            tree.get(b"sparse").unwrap().kind,
            Kind::File {
                size: SIZE,
                data: 2 * 4096
            },
            "case {number}"
        );
        assert_eq!(fs::read(dir.path().join("tree/after")).unwrap(), b"x");
        let metadata = fs::metadata(&path).unwrap();
        assert!(
            metadata.blocks() * 512 < SIZE / 4,
            "case {number}: {}",
            metadata.blocks()
        );
        assert_eq!(metadata.mtime(), 3);
    }
}

#[test]
fn a_file_may_be_nothing_but_a_hole() {
    let cases = [
        gnu("sparse", &[(SIZE, 0)], SIZE, b""),
        gnu("sparse", &[], SIZE, b""),
        pax_1_0("0\n", "1048576", b""),
        [
            pax(&[("GNU.sparse.size", b"1048576"), ("GNU.sparse.map", b"")]),
            file("sparse", b""),
        ]
        .concat(),
    ];
    for (number, entry) in cases.into_iter().enumerate() {
        let (dir, result) = try_unpack(&archive(&[entry]), &Limits::default());
        let tree = result.unwrap_or_else(|error| panic!("case {number}: {error}"));
        assert_eq!(tree.bytes(), SIZE);
        assert_eq!(fs::read(dir.path().join("tree/sparse")).unwrap(), vec![0; LEN]);
    }
}

#[test]
fn maps_that_lie_are_refused() {
    let huge = format!("1\n0\n{}\n", u64::MAX);
    let cases = [
        // Backwards, overlapping, beyond the end, more or less than is stored.
        gnu("sparse", &[(5000, 1), (0, 1)], SIZE, b"12"),
        gnu("sparse", &[(0, 2), (1, 2)], SIZE, b"1234"),
        gnu("sparse", &[(SIZE, 1)], SIZE, b"1"),
        gnu("sparse", &[(u64::MAX, 2)], SIZE, b"12"),
        gnu("sparse", &[(0, 1)], SIZE, b"12"),
        gnu("sparse", &[(0, 2)], SIZE, b"1"),
        pax_1_0(&huge, "1048576", b"1"),
        // No numbers, too many of them, an odd number of them, none at all.
        pax_1_0("x\n", "1048576", b""),
        pax_1_0("\n", "1048576", b""),
        pax_1_0("-1\n", "1048576", b""),
        pax_1_0("99999999999999999999999\n", "1048576", b""),
        pax_1_0("2000000\n", "1048576", b""),
        pax_1_0("2\n0\n1\n", "1048576", b"1"),
        pax_1_0("", "1048576", b""),
        [pax(&[("GNU.sparse.map", b"0,1,5")]), file("sparse", b"1")].concat(),
        [
            pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,+1")]),
            file("sparse", b"1"),
        ]
        .concat(),
        [pax(&[("GNU.sparse.numbytes", b"1")]), file("sparse", b"1")].concat(),
        // No size.
        [pax(&[("GNU.sparse.map", b"0,1")]), file("sparse", b"1")].concat(),
    ];
    for (number, entry) in cases.into_iter().enumerate() {
        let (dir, result) = try_unpack(&archive(&[entry]), &Limits::default());
        let error = result.map(|_| ()).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Malformed {
                    what: "bad sparse map",
                    ..
                }
            ),
            "case {number}: {error}"
        );
        assert_eq!(
            fs::read_dir(dir.path().join("spool")).unwrap().count(),
            0,
            "case {number}"
        );
    }
    // Records that continue a map and say nothing.
    let mut endless = gnu("sparse", &[(0, 1); 5], SIZE, b"");
    endless.truncate(512);
    let mut record = tar::GnuExtSparseHeader::new();
    record.set_is_extended(true);
    for _ in 0..3 {
        endless.extend_from_slice(record.as_bytes());
    }
    let (_dir, result) = try_unpack(&archive(&[endless]), &Limits::default());
    assert!(matches!(result, Err(Error::Malformed { .. })));
}

#[test]
fn holes_count_towards_the_bound() {
    let limits = Limits {
        bytes: SIZE - 1,
        ..Limits::default()
    };
    let (dir, result) = try_unpack(&archive(&[gnu("sparse", &[], SIZE, b"")]), &limits);
    assert!(matches!(result, Err(Error::TooLarge { .. })));
    assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
}
