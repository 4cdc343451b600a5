use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// What an archive holds: kind, mode and either content or target, by name.
fn contents(archive: &[u8]) -> BTreeMap<String, (EntryType, u32, String)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let target = entry
            .link_name_bytes()
            .map(|bytes| String::from_utf8(bytes.into_owned()).unwrap());
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let header = entry.header();
        (
            name,
            (
                header.entry_type(),
                header.mode().unwrap(),
                target.unwrap_or(text),
            ),
        )
    });
    entries.collect()
}

fn pack(path: &Path, follow: bool) -> (BTreeMap<String, (EntryType, u32, String)>, u64) {
    let mut warnings = Warnings::default();
    let mut archive = Vec::new();
    Source::new(path, follow)
        .unwrap()
        .pack(&mut archive, &mut warnings)
        .unwrap();
    (contents(&archive), warnings.count())
}

#[test]
fn a_tree_with_everything() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("top");
    let deep = "d".repeat(60);
    fs::create_dir_all(top.join(&deep).join(&deep)).unwrap();
    fs::write(top.join(&deep).join(&deep).join("file"), "deep").unwrap();
    fs::write(top.join("a"), "hello").unwrap();
    fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(top.join("a"), top.join("b")).unwrap();
    let long = "../".repeat(50) + "nowhere//./x";
    symlink(&long, top.join("long")).unwrap();
    symlink("a", top.join("short")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        top.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();

    let (entries, warnings) = pack(&top, false);
    drop(socket);
    assert_eq!(warnings, 1, "the socket");
    let get = |name: &str| {
        let (kind, _, text) = entries
            .get(name)
            .unwrap_or_else(|| panic!("{name} in {:?}", entries.keys()));
        (*kind, text.as_str())
    };
    assert_eq!(get("top"), (EntryType::Directory, ""));
    assert_eq!(
        get(&format!("top/{deep}/{deep}/file")),
        (EntryType::Regular, "deep")
    );
    assert_eq!(get("top/a"), (EntryType::Regular, "hello"));
    assert_eq!(entries["top/a"].1, 0o4750);
    assert_eq!(get("top/b"), (EntryType::Link, "top/a"));
    assert_eq!(get("top/long"), (EntryType::Symlink, long.as_str()));
    assert_eq!(get("top/short"), (EntryType::Symlink, "a"));
    assert_eq!(get("top/pipe"), (EntryType::Fifo, ""));
    assert_eq!(entries.len(), 9);
}

#[test]
fn one_file_and_a_link_to_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let link = directory.path().join("link");
    symlink("file", &link).unwrap();
    let (entries, _) = pack(&link, false);
    assert_eq!(entries["link"].0, EntryType::Symlink);
    let (entries, _) = pack(&link, true);
    assert_eq!(
        (entries["link"].0, entries["link"].2.as_str()),
        (EntryType::Regular, "x")
    );
}

#[test]
fn holes_are_not_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let file = File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"tail", (64 << 20) - 4).unwrap();
    if file.metadata().unwrap().blocks() > 1024 {
        testkit::skip::<()>("this file system makes no holes");
        return;
    }
    let mut archive = Vec::new();
    Source::new(&path, false)
        .unwrap()
        .pack(&mut archive, &mut Warnings::default())
        .unwrap();
    assert!(archive.len() < 1 << 20, "{} bytes", archive.len());
    let mut archive = tar::Archive::new(&archive[..]);
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.size(), 64 << 20);
    let mut all = Vec::new();
    entry.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(b"\0tail") && all.len() == 64 << 20);
}

#[test]
fn what_a_source_means() {
    let directory = tempfile::tempdir().unwrap();
    let sub = directory.path().join("sub");
    fs::create_dir(&sub).unwrap();
    let source = |path: &Path| {
        let source = Source::new(path, false).unwrap();
        (source.name.into_string().unwrap(), source.contents_only)
    };
    assert_eq!(source(&sub), ("sub".into(), false));
    assert_eq!(source(&sub.join(".")), ("sub".into(), true));
    assert_eq!(source(Path::new("/")), ("root".into(), false));
    let up = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(source(&sub.join("..")), (up, false));
    assert!(source(Path::new(".")).1);
}

#[test]
fn what_cannot_be_packed_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Source::new(&directory.path().join("missing"), false).unwrap();
    assert!(matches!(missing.check(), Err(PackError::Read { .. })));
    assert!(matches!(
        Source::new(Path::new("/dev/null"), false).unwrap().check(),
        Err(PackError::Special(_))
    ));
}

#[test]
fn a_reader_gives_no_more_than_was_announced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, "twelve bytes").unwrap();
    let mut grown = Exactly {
        file: File::open(&path).unwrap(),
        left: 6,
        failed: None,
    };
    let mut text = String::new();
    grown.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), grown.left), ("twelve", 0));
    let mut shrunk = Exactly {
        file: File::open(&path).unwrap(),
        left: 100,
        failed: None,
    };
    io::copy(&mut shrunk, &mut io::sink()).unwrap();
    assert_eq!(shrunk.left, 88, "so that the packer sees it");
}
