//! Archives that are made to do harm, and ones that are made to be hard to read.

mod disk;
mod fuzz;
mod layers;
mod oracle;
mod sparse;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use proptest::prelude::*;

use super::*;

/// One entry as it stands in an archive, without the checks of a library that writes them.
fn raw(name: &[u8], kind: u8, link: &[u8], data: &[u8]) -> Vec<u8> {
    with_size(name, kind, link, data, data.len() as u64)
}

fn with_size(name: &[u8], kind: u8, link: &[u8], data: &[u8], size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.as_mut_bytes()[156] = kind;
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(size);
    header.set_device_major(1).unwrap();
    header.set_device_minor(2).unwrap();
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
    bytes
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    raw(name.as_bytes(), b'0', b"", data)
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len += 1;
        }
        data.extend_from_slice(format!("{len} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    raw(b"pax", b'x', b"", &data)
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn try_unpack(bytes: &[u8], limits: &Limits) -> (tempfile::TempDir, Result<Tree, Error>) {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let result = unpack(bytes, &spool, limits, |_| Ok(()));
    // Whatever happened, it happened below.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(fs::read_dir(&spool).unwrap().count() <= 1);
    if let Ok(tree) = &result {
        disk::lay_out(tree, &dir.path().join("tree"));
    }
    (dir, result)
}

fn error(entries: &[Vec<u8>]) -> String {
    try_unpack(&archive(entries), &Limits::default())
        .1
        .unwrap_err()
        .to_string()
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let link = |name: &str, to: &str| raw(name.as_bytes(), b'2', to.as_bytes(), b"");
    let hard = |name: &str, to: &str| raw(name.as_bytes(), b'1', to.as_bytes(), b"");
    let directory = |name: &str| raw(name.as_bytes(), b'5', b"", b"");
    let long = "x".repeat(256);
    let deep = "d/".repeat(129);
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (
            vec![file("/etc/passwd", b"x")],
            r#"refused archive entry "/etc/passwd": its name is absolute"#,
        ),
        (
            vec![file("../out", b"x")],
            r#"refused archive entry "../out": its name leads upwards"#,
        ),
        (
            vec![file("a/../../out", b"x")],
            r#"refused archive entry "a/../../out": its name leads upwards"#,
        ),
        (
            vec![link("a", "/tmp"), file("a/out", b"x")],
            r#"refused archive entry "a/out": it leads through a symbolic link"#,
        ),
        (
            vec![link("a", "."), link("a/b", ".."), file("a/b/out", b"x")],
            r#"refused archive entry "a/b": it leads through a symbolic link"#,
        ),
        (
            vec![file("a", b""), file("a/b", b"x")],
            r#"refused archive entry "a/b": it is below something that is no directory"#,
        ),
        (
            vec![hard("a", "/etc/passwd")],
            r#"refused archive entry "a": its name is absolute"#,
        ),
        (
            vec![hard("a", "../../etc/passwd")],
            r#"refused archive entry "a": its name leads upwards"#,
        ),
        (
            vec![hard("a", "later")],
            r#"refused archive entry "a": it links to an entry that is not there"#,
        ),
        (
            vec![directory("d"), hard("a", "d")],
            r#"refused archive entry "a": it links to a directory"#,
        ),
        (
            vec![link("a", "")],
            r#"refused archive entry "a": bad target of a symbolic link"#,
        ),
        (
            vec![file("a", b"1"), file("./a", b"2")],
            r#"duplicate archive entry "./a""#,
        ),
        (
            vec![link("a", "/etc/passwd"), file("a", b"2")],
            r#"duplicate archive entry "a""#,
        ),
        (
            vec![file("a", b"1"), directory("a")],
            r#"duplicate archive entry "a""#,
        ),
        (
            vec![raw(b"a", b'M', b"", b"")],
            r#"unsupported archive entry "a" of type 'M'"#,
        ),
        (
            vec![pax(&[("GNU.sparse.major", b"2")]), file("a", b"1")],
            r#"unsupported archive entry "a" of type 'S'"#,
        ),
        (
            vec![pax(&[("path", b"../out")]), file("a", b"1")],
            r#"refused archive entry "../out": its name leads upwards"#,
        ),
        (
            vec![pax(&[("path", b"a\0b")]), file("a", b"1")],
            "refused archive entry \"a\\0b\": it has no proper name",
        ),
        (
            vec![pax(&[("path", long.as_bytes())]), file("a", b"1")],
            "its name is too long",
        ),
        (
            vec![raw(b"././@LongLink", b'L', b"", deep.as_bytes()), file("a", b"")],
            "its name is too long",
        ),
        (
            vec![pax(&[("SCHILY.xattr.user.a", &[0; 4000])]), file("a", b"")],
            r#"malformed archive: too large extended attributes in the header of entry "pax" (number 1)"#,
        ),
        (
            vec![pax(&[("uid", b"4294967295")]), file("a", b"")],
            r#"malformed archive: bad owner in the header of entry "a" (number 2)"#,
        ),
        (
            vec![with_size(b"pax", b'x', b"", b"", 1 << 30)],
            "extended header of more than a megabyte",
        ),
        (
            vec![raw(b"pax", b'x', b"", b"99 path=a\n"), file("a", b"")],
            "bad pax record",
        ),
        (vec![pax(&[("path", b"a")])], "archive is cut short"),
    ];
    for (entries, wanted) in cases {
        let message = error(&entries);
        assert!(message.contains(wanted), "{message:?} is not {wanted:?}");
    }
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let limits = Limits {
        entries: 10,
        bytes: 1000,
        ..Limits::default()
    };
    let many: Vec<_> = (0..11).map(|n| file(&n.to_string(), b"")).collect();
    let (_dir, result) = try_unpack(&archive(&many), &limits);
    assert!(matches!(result, Err(Error::TooManyEntries { limit: 10 })));
    // Directories that are only implied count as well.
    let (_dir, result) = try_unpack(&archive(&[file("a/a/a/a/a/a/a/a/a/a/a", b"")]), &limits);
    assert!(matches!(result, Err(Error::TooManyEntries { limit: 10 })));
    let (_dir, result) = try_unpack(&archive(&[file("a", &[0; 600]), file("b", &[0; 600])]), &limits);
    assert!(matches!(result, Err(Error::TooLarge { entry, limit: 1000 }) if entry == "b"));
    // The claim alone is enough.
    let (dir, result) = try_unpack(&with_size(b"a", b'0', b"", b"", 1 << 40), &Limits::default());
    assert!(matches!(result, Err(Error::TooLarge { .. })));
    assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
}

#[test]
fn an_archive_cut_anywhere_is_noticed() {
    let whole = archive(&[file("a", &[7; 1500]), pax(&[("path", b"b")]), file("x", b"y")]);
    for len in (0..whole.len() - 1024).step_by(100) {
        let (_dir, result) = try_unpack(&whole[..len], &Limits::default());
        assert!(matches!(result, Err(Error::Truncated { .. })), "{len}");
    }
    let mut damaged = whole.clone();
    damaged[0] ^= 1;
    let (_dir, result) = try_unpack(&damaged, &Limits::default());
    assert!(matches!(
        result,
        Err(Error::Malformed {
            what: "wrong checksum",
            ..
        })
    ));
}

#[test]
fn what_only_root_may_have_is_remembered() {
    let long = format!("d/{}", "n".repeat(200));
    let bytes = archive(&[
        raw(b"./", b'5', b"", b""),
        raw(b"dev/null", b'3', b"", b""),
        raw(b"pipe", b'6', b"", b""),
        pax(&[
            ("path", b"big"),
            ("uid", b"100000"),
            ("mtime", b"1500000000.25"),
            ("SCHILY.xattr.user.note", b"a\nb"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ]),
        file("ignored", b"abc"),
        raw(b"same", b'1', b"big", b""),
        raw(b"again", b'1', b"same", b""),
        raw(b"link", b'2', b"/nowhere", b""),
        raw(b"././@LongLink", b'L', b"", format!("{long}\0").as_bytes()),
        file("ignored", b""),
        raw(b"old/", 0, b"", b""),
    ]);
    let (dir, result) = try_unpack(&bytes, &Limits::default());
    let tree = result.unwrap();
    let node = |path: &str| {
        tree.nodes
            .get(path.as_bytes())
            .map(|leaf| &leaf.node)
            .unwrap_or_else(|| panic!("{path}"))
    };
    assert_eq!(node("dev/null").kind, Kind::CharDevice { major: 1, minor: 2 });
    assert_eq!((node("dev").uid, node("dev").mode), (0, 0o755), "implied");
    assert_eq!(
        (node("").uid, node("").gid),
        (1, 2),
        "the top takes what the archive says"
    );
    let big = node("big");
    assert_eq!((big.uid, big.gid, big.mtime), (100_000, 2, 1_500_000_000));
    assert_eq!(big.xattrs, [(b"user.note".to_vec(), b"a\nb".to_vec())]);
    assert_eq!(node("again").kind, Kind::Link { to: b"big".to_vec() });
    assert_eq!(
        node("link").kind,
        Kind::Symlink {
            target: b"/nowhere".to_vec()
        }
    );
    assert_eq!(node(&long).kind, Kind::File { size: 0, data: 0 });
    assert_eq!(node("old").kind, Kind::Directory);
    assert_eq!(tree.bytes(), 3);

    let disk = dir.path().join("tree");
    assert_eq!(fs::read(disk.join("again")).unwrap(), b"abc");
    let metadata = fs::metadata(disk.join("big")).unwrap();
    assert_eq!((metadata.nlink(), metadata.mtime()), (3, 1_500_000_000));
    assert_eq!(fs::metadata(&disk).unwrap().mtime(), 3);
    assert!(
        fs::symlink_metadata(disk.join("dev/null"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn paths_are_followed_inside_the_tree() {
    let link = |name: &str, to: &str| raw(name.as_bytes(), b'2', to.as_bytes(), b"");
    let bytes = archive(&[
        link("sbin", "usr/sbin"),
        file("usr/lib/systemd/systemd", b"x"),
        link("usr/sbin/init", "/lib/systemd/systemd"),
        link("lib", "usr/lib"),
        link("loop", "loop"),
        link("up", "../../../etc"),
    ]);
    let (_dir, result) = try_unpack(&bytes, &Limits::default());
    let tree = result.unwrap();
    let found = |path| {
        tree.lookup(path)
            .map(|(path, _)| String::from_utf8(path).unwrap())
    };
    assert_eq!(found("/sbin/init").as_deref(), Some("usr/lib/systemd/systemd"));
    assert_eq!(
        found("/sbin/../lib/./systemd").as_deref(),
        Some("usr/lib/systemd")
    );
    for absent in ["/loop", "/up", "/none", "/sbin/init/x"] {
        assert_eq!(found(absent), None, "{absent}");
    }
}

#[test]
fn directories_can_be_added_to_the_top() {
    let (_dir, result) = try_unpack(&archive(&[file("tmp", b"")]), &Limits::default());
    let mut tree = result.unwrap();
    for name in ["dev", "tmp", "", "a/b"] {
        tree.add_directory(name, 0o1777);
    }
    let brief: Vec<_> = tree.iter().map(|(path, node)| (path, node.mode)).collect();
    let wanted: [(&[u8], u32); 3] = [(b"", 0o755), (b"dev", 0o1777), (b"tmp", 0o644)];
    assert_eq!(brief, wanted);
}

#[test]
fn a_caller_can_stop_it() {
    let bytes = archive(&[file("a", &[0; 3 << 20]), file("b", b"")]);
    let dir = tempfile::tempdir().unwrap();
    let stop = |done| {
        if done > 1 << 20 {
            Err(io::Error::other("stop"))
        } else {
            Ok(())
        }
    };
    assert!(matches!(
        unpack(bytes.as_slice(), dir.path(), &Limits::default(), stop),
        Err(Error::Read { .. })
    ));
    assert!(fs::read_dir(dir.path()).unwrap().count() <= 1);
}

proptest! {
    /// Any bytes at all, in and around valid headers: an error or a tree, never a panic, never anything outside.
    #[test]
    fn any_archive_is_survived(
        entries in prop::collection::vec(
            (
                prop::sample::select(vec!["a", "b", "a/b", "a/b/c", "./a", "..", "/x", "b/", "."]),
                prop::sample::select(b"0123456LKxgS\0".to_vec()),
                prop::sample::select(vec!["a", "b", "..", "/", "a/b", ""]),
                prop::collection::vec(any::<u8>(), 0..40),
            ),
            0..12,
        ),
        flip in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, kind, link, data)| {
                let data = if matches!(kind, b'0' | b'L' | b'K' | b'x' | b'g') { data.as_slice() } else { b"" };
                raw(name.as_bytes(), *kind, link.as_bytes(), data)
            })
            .collect();
        let mut bytes = archive(&entries);
        if let Some((at, value)) = flip {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (dir, result) = try_unpack(&bytes, &Limits { entries: 50, bytes: 10_000, ..Limits::default() });
        if let Ok(tree) = result {
            for (path, _) in tree.iter() {
                let on_disk = dir.path().join("tree").join(OsStr::from_bytes(path)).symlink_metadata();
                prop_assert!(on_disk.is_ok());
            }
        }
    }
}
