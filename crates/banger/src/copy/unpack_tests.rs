use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, Header};
use tempfile::TempDir;

use super::super::pack::{Source, append_link};
use super::*;

/// An archive written entry by entry, with names that the tar crate itself would refuse.
struct Hostile(Builder<Vec<u8>>);

impl Hostile {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, name: &str, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(u64::try_from(size).unwrap());
        header.set_cksum();
        header
    }

    fn add(mut self, kind: EntryType, name: &str, data: &[u8]) -> Self {
        self.0
            .append(&Self::header(kind, name, data.len()), data)
            .unwrap();
        self
    }

    fn directory(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, b"")
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.add(EntryType::Regular, name, data.as_bytes())
    }

    fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name, 0);
        header.set_link_name_literal(target).unwrap();
        header.set_cksum();
        self.0.append(&header, io::empty()).unwrap();
        self
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A directory with `in/`, where things are unpacked, and `out/`, where nothing may ever appear or change.
struct Ground(TempDir);

impl Ground {
    fn new() -> Self {
        let ground = Self(tempfile::tempdir().unwrap());
        fs::create_dir(ground.path("in")).unwrap();
        fs::create_dir(ground.path("out")).unwrap();
        fs::write(ground.path("out/victim"), "precious").unwrap();
        fs::set_permissions(ground.path("out/victim"), fs::Permissions::from_mode(0o600)).unwrap();
        ground
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn unpack(&self, archive: &[u8]) -> Result<u64, UnpackError> {
        self.unpack_to("in", Some("copy"), false, archive)
    }

    fn unpack_to(
        &self,
        to: &str,
        name: Option<&str>,
        contents_only: bool,
        archive: &[u8],
    ) -> Result<u64, UnpackError> {
        let destination = Destination {
            path: self.path(to),
            name: name.map(Into::into),
            contents_only,
        };
        let keep = Keep {
            owners: false,
            special_modes: false,
        };
        let mut warnings = Warnings::default();
        let result = unpack(archive, &destination, keep, &mut warnings);
        self.nothing_escaped();
        result.map(|()| warnings.count())
    }

    /// Nothing appeared outside, and what was there is as it was.
    fn nothing_escaped(&self) {
        let names = |path: &str| {
            let mut names: Vec<_> = fs::read_dir(self.path(path))
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(""), ["in", "out"]);
        assert_eq!(names("out"), ["victim"]);
        assert_eq!(fs::read_to_string(self.path("out/victim")).unwrap(), "precious");
        let victim = fs::metadata(self.path("out/victim")).unwrap();
        assert_eq!((victim.mode() & 0o7777, victim.nlink()), (0o600, 1));
    }
}

fn refused(result: Result<u64, UnpackError>) -> &'static str {
    match result {
        Err(UnpackError::Refused { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_that_point_elsewhere() {
    let file = |name: &str| Hostile::new().file(name, "x").done();
    let later = |name: &str| Hostile::new().directory("top").file(name, "x").done();
    for (archive, problem) in [
        (file("../out/new"), "points upwards"),
        (file(".."), "points upwards"),
        (file("/etc/passwd"), "is an absolute name"),
        (file("./"), "is no name"),
        (later("top/../../out/new"), "points upwards"),
        (later("other"), "is a second top entry"),
        (later("top"), "is a second top entry"),
        (
            Hostile::new().file("top", "x").file("top", "y").done(),
            "is a second top entry",
        ),
        (
            Hostile::new().file("top", "x").file("top/x", "y").done(),
            "is a second top entry",
        ),
    ] {
        assert_eq!(refused(Ground::new().unpack(&archive)), problem);
    }
}

#[test]
fn no_link_of_the_archive_is_followed() {
    for target in ["../../out", "/", "."] {
        let ground = Ground::new();
        let archive = Hostile::new()
            .directory("t")
            .symlink("t/l", target)
            .file("t/l/victim", "gone")
            .done();
        assert!(
            matches!(ground.unpack(&archive), Err(UnpackError::Write { .. })),
            "{target}"
        );
        let ground = Ground::new();
        let archive = Hostile::new()
            .directory("t")
            .symlink("t/l", target)
            .directory("t/l")
            .done();
        assert!(
            matches!(ground.unpack(&archive), Err(UnpackError::Write { .. })),
            "{target}"
        );
    }
    // The top itself as a link, then something below it.
    let ground = Ground::new();
    let archive = Hostile::new().symlink("t", "../out").file("t/new", "x").done();
    assert_eq!(refused(ground.unpack(&archive)), "is a second top entry");
    // A file through a link of the same name: the link is replaced, not followed.
    let ground = Ground::new();
    let archive = Hostile::new()
        .directory("t")
        .symlink("t/l", "../../out/victim")
        .file("t/l", "mine")
        .done();
    ground.unpack(&archive).unwrap();
    assert_eq!(fs::read_to_string(ground.path("in/copy/l")).unwrap(), "mine");
    assert!(fs::symlink_metadata(ground.path("in/copy/l")).unwrap().is_file());
}

#[test]
fn no_link_that_was_there_is_followed() {
    let ground = Ground::new();
    fs::create_dir(ground.path("in/copy")).unwrap();
    std::os::unix::fs::symlink("../../out", ground.path("in/copy/l")).unwrap();
    let archive = Hostile::new().directory("t").file("t/l/victim", "gone").done();
    assert!(matches!(ground.unpack(&archive), Err(UnpackError::Write { .. })));
    let ground = Ground::new();
    std::os::unix::fs::symlink("../out", ground.path("in/copy")).unwrap();
    let archive = Hostile::new().directory("t").file("t/victim", "gone").done();
    assert!(matches!(ground.unpack(&archive), Err(UnpackError::Write { .. })));
}

#[test]
fn hard_links_stay_in_the_tree() {
    for (target, problem) in [
        ("../out/victim", "points upwards"),
        ("/etc/passwd", "is an absolute name"),
        ("other/x", "is a hard link out of the tree"),
        ("t", "is a hard link out of the tree"),
        ("t/h", "is a hard link to itself"),
        ("t/d", "is a hard link to something that is no file"),
    ] {
        let ground = Ground::new();
        let archive = Hostile::new()
            .directory("t")
            .symlink("t/l", "../../out/victim")
            .directory("t/d")
            .link(EntryType::Link, "t/h", target)
            .done();
        assert_eq!(refused(ground.unpack(&archive)), problem, "{target}");
    }
    let ground = Ground::new();
    let archive = Hostile::new()
        .directory("t")
        .symlink("t/l", "../../out")
        .link(EntryType::Link, "t/h", "t/l/victim")
        .done();
    assert!(matches!(ground.unpack(&archive), Err(UnpackError::Write { .. })));
    // A symbolic link is linked itself, and not what it leads to.
    let ground = Ground::new();
    let archive = Hostile::new()
        .directory("t")
        .symlink("t/l", "../../out/victim")
        .link(EntryType::Link, "t/h", "t/l")
        .done();
    ground.unpack(&archive).unwrap();
    assert!(
        fs::symlink_metadata(ground.path("in/copy/h"))
            .unwrap()
            .is_symlink()
    );
    // A link over what it links to keeps the file.
    let ground = Ground::new();
    let archive = Hostile::new()
        .directory("t")
        .file("t/a", "x")
        .link(EntryType::Link, "t/b", "t/a")
        .link(EntryType::Link, "t/b", "t/a")
        .done();
    ground.unpack(&archive).unwrap();
    assert_eq!(fs::metadata(ground.path("in/copy/a")).unwrap().nlink(), 2);
    assert_eq!(
        fs::read_dir(ground.path("in/copy")).unwrap().count(),
        2,
        "no passing name stays"
    );
}

#[test]
fn an_existing_file_is_replaced_and_never_written_through() {
    let ground = Ground::new();
    fs::create_dir(ground.path("in/copy")).unwrap();
    fs::write(ground.path("in/copy/f"), "old").unwrap();
    fs::hard_link(ground.path("in/copy/f"), ground.path("in/other")).unwrap();
    let archive = Hostile::new().directory("t").file("t/f", "new").done();
    ground.unpack(&archive).unwrap();
    assert_eq!(fs::read_to_string(ground.path("in/copy/f")).unwrap(), "new");
    assert_eq!(fs::read_to_string(ground.path("in/other")).unwrap(), "old");
}

#[test]
fn a_broken_archive_leaves_the_old_file_and_no_part() {
    let ground = Ground::new();
    fs::create_dir(ground.path("in/copy")).unwrap();
    fs::write(ground.path("in/copy/f"), "old").unwrap();
    for (name, left) in [("t/f", 1), ("t/new", 1)] {
        let archive = Hostile::new()
            .directory("t")
            .add(EntryType::Regular, name, &[7; 100_000])
            .done();
        let result = ground.unpack(&archive[..50_000]);
        assert!(matches!(result, Err(UnpackError::Write { .. })), "{result:?}");
        assert_eq!(fs::read_to_string(ground.path("in/copy/f")).unwrap(), "old");
        assert_eq!(fs::read_dir(ground.path("in/copy")).unwrap().count(), left);
    }
}

#[test]
fn directories_that_were_there_keep_their_mode() {
    let ground = Ground::new();
    fs::create_dir_all(ground.path("in/copy/d")).unwrap();
    fs::set_permissions(ground.path("in/copy/d"), fs::Permissions::from_mode(0o700)).unwrap();
    let archive = Hostile::new()
        .directory("t")
        .directory("t/d")
        .directory("t/e")
        .done();
    ground.unpack(&archive).unwrap();
    let mode = |path: &str| fs::metadata(ground.path(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode("in/copy/d"), 0o700);
    assert_eq!(mode("in/copy/e"), 0o755);
}

#[test]
fn special_modes_devices_and_odd_types() {
    let ground = Ground::new();
    let archive = Hostile::new()
        .directory("t")
        .file("t/suid", "x")
        .add(EntryType::Char, "t/null", b"")
        .add(EntryType::Block, "t/sda", b"")
        .add(EntryType::Fifo, "t/pipe", b"")
        .add(EntryType::new(b'Z'), "t/odd", b"carries data")
        .file("t/last", "y")
        .done();
    assert_eq!(
        ground.unpack(&archive).unwrap(),
        3,
        "two devices and an unknown type"
    );
    assert_eq!(
        fs::metadata(ground.path("in/copy/suid")).unwrap().mode() & 0o7777,
        0o755
    );
    assert_eq!(fs::read_to_string(ground.path("in/copy/last")).unwrap(), "y");
    let mut names: Vec<_> = fs::read_dir(ground.path("in/copy"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["last", "pipe", "suid"]);
}

#[test]
fn long_names_and_headers_are_bounded() {
    // A long name of 4 MiB, which the tar crate alone would read into memory.
    let ground = Ground::new();
    let archive = Hostile::new()
        .directory("t")
        .add(EntryType::GNULongName, "././@LongLink", &vec![b'a'; 4 << 20])
        .done();
    let Err(UnpackError::Archive(error)) = ground.unpack(&archive) else {
        panic!("accepted")
    };
    assert_eq!(error.to_string(), "more than 1 MiB between two files");
    // A component that no file system takes.
    let name = format!("t/{}", "a".repeat(256));
    let archive = Hostile::new()
        .add(EntryType::GNULongName, "././@LongLink", name.as_bytes())
        .file("t/x", "x")
        .done();
    assert_eq!(refused(ground.unpack(&archive)), "is longer than 255 bytes");
    let name = "t/".repeat(300);
    let archive = Hostile::new()
        .add(EntryType::GNULongName, "././@LongLink", name.as_bytes())
        .file("t/x", "x")
        .done();
    assert_eq!(refused(ground.unpack(&archive)), "is deeper than 200 directories");
    // Endless padding after the end.
    let ground = Ground::new();
    let mut archive = Hostile::new().file("t", "x").done();
    archive.resize(archive.len() + (4 << 20), 0);
    assert!(matches!(ground.unpack(&archive), Err(UnpackError::Archive(_))));
    // Data, as opposed to headers, is not bounded.
    let archive = Hostile::new()
        .add(EntryType::Regular, "t", &vec![1; 3 << 20])
        .done();
    ground.unpack(&archive).unwrap();
}

#[test]
fn nothing_and_garbage() {
    let ground = Ground::new();
    assert!(matches!(ground.unpack(b""), Err(UnpackError::Empty)));
    assert!(matches!(ground.unpack(&[0; 1024]), Err(UnpackError::Empty)));
    assert!(matches!(
        ground.unpack(&[b'x'; 1024]),
        Err(UnpackError::Archive(_))
    ));
    assert_eq!(fs::read_dir(ground.path("in")).unwrap().count(), 0);
}

#[test]
fn where_things_go() {
    let file = || Hostile::new().file("guest-name", "x").done();
    let tree = || {
        Hostile::new()
            .directory("guest-name")
            .file("guest-name/f", "x")
            .done()
    };
    let ground = Ground::new();
    ground.unpack_to("in", Some("mine"), false, &file()).unwrap();
    assert!(ground.path("in/mine").is_file());
    ground.unpack_to("in/new", Some("mine"), false, &file()).unwrap();
    assert!(ground.path("in/new").is_file());
    ground.unpack_to("in/tree", Some("mine"), false, &tree()).unwrap();
    assert!(ground.path("in/tree/f").is_file());
    ground.unpack_to("in/tree", Some("mine"), false, &tree()).unwrap();
    assert!(ground.path("in/tree/mine/f").is_file());
    ground.unpack_to("in", Some("mine2"), true, &tree()).unwrap();
    assert!(ground.path("in/f").is_file());
    ground.unpack_to("in", None, false, &tree()).unwrap();
    assert!(ground.path("in/guest-name/f").is_file());
    let over = ground.unpack_to("in/tree/f", Some("mine"), false, &tree());
    assert!(matches!(
        over,
        Err(UnpackError::Destination(DestinationError::DirectoryOverFile(_)))
    ));
    let over = ground.unpack_to("in", Some("tree"), false, &file());
    assert!(
        matches!(over, Err(UnpackError::Write { .. })),
        "a file over a directory"
    );
}

#[test]
fn a_whole_root_has_no_name_of_its_own() {
    let root = || {
        let etc = Hostile::new()
            .directory("./")
            .directory("./etc")
            .file("./etc/f", "x");
        etc.link(EntryType::Link, "./etc/h", "./etc/f").done()
    };
    let ground = Ground::new();
    ground.unpack_to("in/new", None, false, &root()).unwrap();
    assert!(ground.path("in/new/etc/h").is_file());
    ground.unpack_to("in", None, true, &root()).unwrap();
    assert!(ground.path("in/etc/f").is_file());
    let inside = ground.unpack_to("in", None, false, &root());
    assert!(matches!(
        inside,
        Err(UnpackError::Destination(DestinationError::NoName))
    ));
    let ground = Ground::new();
    let upwards = Hostile::new().directory(".").file("./../out/new", "x").done();
    assert_eq!(refused(ground.unpack(&upwards)), "points upwards");
}

#[test]
fn a_tree_survives_the_round_trip() {
    let ground = Ground::new();
    let top = ground.path("in/top");
    let deep = "d".repeat(120);
    fs::create_dir_all(top.join(&deep).join("empty")).unwrap();
    fs::write(top.join(&deep).join("file"), "deep").unwrap();
    fs::write(top.join("a"), vec![3; 200_000]).unwrap();
    fs::hard_link(top.join("a"), top.join(&deep).join("b")).unwrap();
    std::os::unix::fs::symlink("../".repeat(60), top.join("long")).unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(32 << 20).unwrap();
    sparse.write_all_at(b"middle", 16 << 20).unwrap();
    fs::set_permissions(top.join(&deep), fs::Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    let time = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(999_999_999));
    File::open(&top).unwrap().set_times(time).unwrap();

    let mut archive = Vec::new();
    Source::new(&top, false)
        .unwrap()
        .pack(&mut archive, &mut Warnings::default())
        .unwrap();
    ground.unpack(&archive).unwrap();

    let copy = ground.path("in/copy");
    let stat = |path: &Path| fs::symlink_metadata(path).unwrap();
    assert_eq!(fs::read(copy.join("a")).unwrap(), vec![3; 200_000]);
    assert_eq!(stat(&copy.join("a")).mode() & 0o7777, 0o640);
    assert_eq!(
        stat(&copy.join("a")).ino(),
        stat(&copy.join(&deep).join("b")).ino()
    );
    assert_eq!(stat(&copy.join("a")).mtime(), stat(&top.join("a")).mtime());
    assert_eq!(stat(&copy.join(&deep)).mode() & 0o7777, 0o500);
    assert!(copy.join(&deep).join("empty").is_dir());
    assert_eq!(
        fs::read_link(copy.join("long")).unwrap().to_str().unwrap(),
        "../".repeat(60)
    );
    assert_eq!(stat(&copy).mtime(), 999_999_999, "set after the files below");
    assert!(fs::read(copy.join("sparse")).unwrap() == fs::read(top.join("sparse")).unwrap());
    assert_eq!(stat(&copy.join("sparse")).len(), 32 << 20);
    assert!(
        stat(&copy.join("sparse")).blocks() < (16 << 20) / 512,
        "holes stay holes"
    );
    // So that the directory can be removed by a user who is not root.
    for tree in [&top, &copy] {
        fs::set_permissions(tree.join(&deep), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn owners_are_kept_by_root() {
    if !rustix::process::geteuid().is_root() {
        testkit::skip::<()>("needs root");
        return;
    }
    let ground = Ground::new();
    let mut header = Hostile::header(EntryType::Regular, "t", 0);
    header.set_uid(1234);
    header.set_gid(5678);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, io::empty()).unwrap();
    let archive = builder.into_inner().unwrap();
    let destination = |name: &str| Destination {
        path: ground.path(name),
        name: None,
        contents_only: false,
    };
    let owner = |name: &str, keep| {
        unpack(&archive[..], &destination(name), keep, &mut Warnings::default()).unwrap();
        let there = fs::metadata(ground.path(name)).unwrap();
        (there.uid(), there.gid(), there.mode() & 0o7777)
    };
    assert_eq!(
        owner(
            "in/a",
            Keep {
                owners: true,
                special_modes: true
            }
        ),
        (1234, 5678, 0o6755)
    );
    assert_eq!(
        owner(
            "in/b",
            Keep {
                owners: true,
                special_modes: false
            }
        ),
        (1234, 5678, 0o755)
    );
    assert_eq!(
        owner(
            "in/c",
            Keep {
                owners: false,
                special_modes: false
            }
        ),
        (0, 0, 0o755)
    );
    let mut header = Hostile::header(EntryType::Regular, "t", 0);
    header.set_uid(u64::from(u32::MAX));
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, io::empty()).unwrap();
    let archive = builder.into_inner().unwrap();
    let keep = Keep {
        owners: true,
        special_modes: false,
    };
    assert!(unpack(&archive[..], &destination("in/d"), keep, &mut Warnings::default()).is_err());
}

/// An entry of a random archive: mostly plausible names, so that deep states are reached.
fn any_entry() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop::sample::select(vec!["t", "t", "a", "b", "..", ".", "", "l", "out"]);
    let path = prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let target = prop::sample::select(vec![
        "t/a",
        "t/b",
        "t/l/a",
        "..",
        "../../out",
        "/",
        "../out/victim",
        "t",
    ]);
    (
        0_u8..5,
        prop_oneof![4 => path.clone().prop_map(|path| format!("t/{path}")), 1 => path],
        target.prop_map(str::to_owned),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_archive_escapes(entries in prop::collection::vec(any_entry(), 0..12), cut in 0_usize..200) {
        let ground = Ground::new();
        let mut archive = Hostile::new().directory("t");
        for (kind, name, target) in &entries {
            archive = match kind {
                0 => archive.directory(name),
                1 => archive.symlink(name, target),
                2 => archive.link(EntryType::Link, name, target),
                _ => archive.file(name, target),
            };
        }
        let mut bytes = archive.done();
        // Some archives end anywhere.
        if cut < 100 {
            bytes.truncate(bytes.len() * cut / 100);
        }
        // `unpack` itself checks that nothing escaped; whether it succeeds is the archive's matter.
        ground.unpack(&bytes).ok();
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let ground = Ground::new();
        ground.unpack(&bytes).ok();
    }
}

#[test]
fn links_keep_their_bytes() {
    let ground = Ground::new();
    let mut builder = Builder::new(Vec::new());
    builder
        .append(&Hostile::header(EntryType::Directory, "t", 0), io::empty())
        .unwrap();
    let target = "x/./..//".repeat(40);
    let mut header = Hostile::header(EntryType::Symlink, "", 0);
    append_link(
        &mut builder,
        &mut header,
        EntryType::Symlink,
        Path::new("t/l"),
        target.as_bytes(),
    )
    .unwrap();
    ground.unpack(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(
        fs::read_link(ground.path("in/copy/l")).unwrap().to_str().unwrap(),
        target
    );
}
