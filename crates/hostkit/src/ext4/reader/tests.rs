use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::exec::Tool;
use crate::ext4::populate::{Options, populate};
use crate::ext4::tests::{DIRS, tools};
use crate::rootfs_tar::write::{Source, Writer};
use crate::rootfs_tar::{Limits, Tree, unpack};

/// An archive of one entry of everything.
fn archive() -> Vec<u8> {
    use tar::EntryType as T;
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, mode, owner: (u64, u64), data: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(8).unwrap();
        header.set_device_minor(300).unwrap();
        match link {
            "" => archive.append_data(&mut header, name, data).unwrap(),
            link => archive.append_link(&mut header, name, link).unwrap(),
        }
    };
    add("./", T::Directory, 0o755, (0, 0), b"", "");
    add("etc", T::Directory, 0o1755, (7, 80_000), b"", "");
    add("etc/secret", T::Regular, 0o4700, (70_000, 80_000), b"text", "");
    add("etc/same", T::Link, 0, (0, 0), b"", "etc/secret");
    add("etc/empty", T::Regular, 0o600, (0, 0), b"", "");
    add("big", T::Regular, 0o644, (0, 0), &[7; 300_001], "");
    add("fast", T::Symlink, 0o777, (5, 6), b"", "etc");
    add(
        "slow",
        T::Symlink,
        0o777,
        (5, 6),
        b"",
        &format!("/{}etc", "./".repeat(40)),
    );
    add("up", T::Symlink, 0o777, (0, 0), b"", "../../../etc/secret");
    add("loop", T::Symlink, 0o777, (0, 0), b"", "loop");
    add("nowhere", T::Symlink, 0o777, (0, 0), b"", "none/at/all");
    add("dev", T::Directory, 0o755, (0, 0), b"", "");
    add("dev/sda", T::Block, 0o660, (0, 6), b"", "");
    add("dev/console", T::Char, 0o600, (0, 5), b"", "");
    add("dev/pipe", T::Fifo, 0o600, (1, 1), b"", "");
    add("many", T::Directory, 0o755, (0, 0), b"", "");
    for number in 0..700 {
        let name = format!("many/a-name-that-makes-a-directory-of-several-blocks-{number}");
        add(&name, T::Regular, 0o644, (0, 0), b"", "");
    }
    archive
        .append_pax_extensions([
            (
                "SCHILY.xattr.security.capability",
                [1, 0, 0, 2].repeat(5).as_slice(),
            ),
            ("SCHILY.xattr.user.long", [b'x'; 700].as_slice()),
            ("SCHILY.xattr.user.none", b"".as_slice()),
        ])
        .unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(T::GNUSparse);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u32::MAX.into());
    header.set_size(3);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size((1 << 29) + 9000);
    gnu.sparse[0].set_offset(1 << 29);
    gnu.sparse[0].set_length(3);
    archive
        .append_data(&mut header, "sparse", b"end".as_slice())
        .unwrap();
    archive.into_inner().unwrap()
}

/// An image of that archive, in a directory that it lives as long as, and what it was made of.
async fn image() -> Option<(tempfile::TempDir, PathBuf, Arc<Tree>)> {
    let tools = tools()?;
    let dir = tempfile::tempdir().unwrap();
    let tree = unpack(archive().as_slice(), dir.path(), &Limits::default(), |_| Ok(())).unwrap();
    let tree = Arc::new(tree);
    let image = dir.path().join("image");
    let options = Options { label: "", slack: 0 };
    populate(&tools, &image, &tree, &options, |_| Ok(()))
        .await
        .unwrap();
    Some((dir, image, tree))
}

fn root(reader: &Reader) -> Entry {
    reader.lookup(b"/", Last::Follow).unwrap().unwrap()
}

fn all(reader: &Reader) -> Result<Vec<Entry>, ReadError> {
    let Some(root) = reader.lookup(b"", Last::Follow)? else {
        return Ok(Vec::new());
    };
    reader.walk(root, &Limits::default()).collect()
}

/// What a tree says, with what depends on the order of names and on blocks taken out.
fn plain(path: &[u8], node: &Node) -> (Vec<u8>, Node) {
    let mut node = node.clone();
    node.xattrs.sort();
    if let Kind::File { data, .. } = &mut node.kind {
        *data = 0;
    }
    (path.to_vec(), node)
}

#[tokio::test]
async fn what_was_put_in_is_read() {
    let Some((_dir, image, tree)) = image().await else {
        return;
    };
    for indexed in [false, true] {
        if indexed {
            let e2fsck = Tool::find("e2fsck", DIRS).unwrap();
            // Exits with 1: "errors corrected".
            e2fsck
                .command()
                .args(["-f", "-y", "-D"])
                .arg(&image)
                .run()
                .await
                .ok();
        }
        let reader = Reader::open(&image).unwrap();
        let many = reader.lookup(b"many", Last::Follow).unwrap().unwrap();
        let flags = reader.inode(many.inode).unwrap().flags();
        assert_eq!(flags & 0x1000 != 0, indexed, "an index: {flags:#x}");
        let found = all(&reader).unwrap();
        // A link is to the first name here, and to the one that came first in the archive there.
        let unlinked = |path: &[u8], node: &Node| match (path, &node.kind) {
            (b"etc/same" | b"etc/secret", _) => None,
            _ => Some(plain(path, node)),
        };
        let wanted: Vec<_> = tree
            .iter()
            .filter_map(|(path, node)| unlinked(path, node))
            .collect();
        let mut got: Vec<_> = found
            .iter()
            .filter_map(|entry| unlinked(&entry.path, &entry.node))
            .collect();
        got.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(got, wanted);
        let same: Vec<_> = found
            .iter()
            .filter(|entry| entry.path.starts_with(b"etc/s"))
            .collect();
        let [first, second] = same.as_slice() else {
            panic!("{same:?}")
        };
        assert_eq!(first.path, b"etc/same");
        assert_eq!(
            second.node.kind,
            Kind::Link {
                to: b"etc/same".to_vec()
            }
        );
        assert_eq!((first.inode, first.node.uid), (second.inode, second.node.uid));
    }

    let reader = Reader::open(&image).unwrap();
    for entry in all(&reader).unwrap() {
        if !matches!(entry.node.kind, Kind::File { .. }) {
            continue;
        }
        let mut bytes = Vec::new();
        reader.contents(&entry).unwrap().read_to_end(&mut bytes).unwrap();
        let wanted = tree.read(&entry.path, usize::MAX).unwrap().unwrap();
        assert!(bytes == wanted, "{}", shown(&entry.path));
    }
    let sparse = reader.lookup(b"sparse", Last::Keep).unwrap().unwrap();
    let contents = reader.contents(&sparse).unwrap();
    let data: Vec<_> = contents
        .data()
        .iter()
        .map(|range| (range.start, range.end))
        .collect();
    assert_eq!(data, [(1 << 29, (1 << 29) + 4096)]);
}

/// Everything as an archive.
fn packed(reader: &Reader) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for entry in all(reader).unwrap() {
        let is_file = matches!(entry.node.kind, Kind::File { .. });
        let contents = is_file.then(|| reader.contents(&entry).unwrap());
        let contents = contents.as_ref().map(|contents| contents as &dyn Source);
        writer
            .entry(&entry.path, &entry.node, contents, |_| Ok(()))
            .unwrap();
    }
    writer.finish().unwrap()
}

#[tokio::test]
async fn an_archive_of_it_is_the_same_again() {
    let Some((dir, image, before)) = image().await else {
        return;
    };
    let reader = Reader::open(&image).unwrap();
    let archive = packed(&reader);
    let again = dir.path().join("again");
    std::fs::create_dir(&again).unwrap();
    let tree = unpack(archive.as_slice(), &again, &Limits::default(), |_| Ok(())).unwrap();
    let found: BTreeMap<_, _> = all(&reader)
        .unwrap()
        .iter()
        .map(|entry| plain(&entry.path, &entry.node))
        .collect();
    let wanted: BTreeMap<_, _> = tree.iter().map(|(path, node)| plain(path, node)).collect();
    assert_eq!(found, wanted);
    for file in ["big", "sparse", "etc/secret"] {
        let read = |tree: &Tree| tree.read(file.as_bytes(), usize::MAX).unwrap().unwrap();
        assert!(read(&before) == read(&tree), "{file}");
    }
    let stored = std::fs::metadata(again.join("contents")).unwrap().len();
    assert!(stored < 16 << 20, "{stored}: holes are kept");

    // As others read it: GNU tar knows the real sizes, names and numbers.
    let path = dir.path().join("archive.tar");
    std::fs::write(&path, &archive).unwrap();
    let tar = Tool::find("tar", DIRS).unwrap();
    let listed = tar
        .command()
        .args(["--numeric-owner", "-tvf"])
        .arg(&path)
        .run()
        .await
        .unwrap();
    let listed = listed.text();
    for wanted in [
        "drwxr-xr-t 7/80000",
        "hrws------ 70000/80000",
        " etc/secret link to etc/same",
        "-rwxr-xr-x 0/0       536879912 ",
        "brw-rw---- 0/6           8,300",
        "prw------- 1/1",
        " up -> ../../../etc/secret",
    ] {
        assert!(listed.contains(wanted), "{wanted}: {listed:.3000}");
    }
    let unpacked = dir.path().join("gnu");
    std::fs::create_dir(&unpacked).unwrap();
    let command = tar.command().arg("-C").arg(&unpacked).arg("-xf").arg(&path);
    command.args(["big", "sparse"]).run().await.unwrap();
    for file in ["big", "sparse"] {
        let read = tree.read(file.as_bytes(), usize::MAX).unwrap().unwrap();
        assert!(read == std::fs::read(unpacked.join(file)).unwrap(), "{file}");
    }
}

#[tokio::test]
async fn paths_are_followed_within_the_file_system() {
    let Some((_dir, image, _)) = image().await else {
        return;
    };
    let reader = Reader::open(&image).unwrap();
    let at = |path: &str, last| {
        reader
            .lookup(path.as_bytes(), last)
            .unwrap()
            .map(|entry| entry.path)
    };
    for path in [
        "etc/secret",
        "/fast/./secret",
        "slow//secret",
        "up",
        "../../etc/../up",
        "fast/../up",
    ] {
        assert_eq!(
            at(path, Last::Follow).as_deref(),
            Some(b"etc/secret".as_slice()),
            "{path}"
        );
    }
    assert_eq!(at("up", Last::Keep).as_deref(), Some(b"up".as_slice()));
    assert_eq!(at("fast/", Last::Keep).as_deref(), Some(b"etc".as_slice()));
    assert_eq!(at("/", Last::Keep).as_deref(), Some(b"".as_slice()));
    assert_eq!(at("nowhere", Last::Follow), None);
    assert_eq!(at("etc/none", Last::Follow), None);
    assert!(matches!(
        reader.lookup(b"loop", Last::Follow),
        Err(ReadError::TooManyLinks { .. })
    ));
    assert!(matches!(
        reader.lookup(b"big/x", Last::Follow),
        Err(ReadError::NotADirectory { .. })
    ));
    let etc = reader.lookup(b"fast", Last::Follow).unwrap().unwrap();
    let below: Vec<_> = reader
        .walk(etc, &Limits::default())
        .map(|entry| String::from_utf8(entry.unwrap().path).unwrap())
        .collect();
    assert_eq!(below, ["etc", "etc/empty", "etc/same", "etc/secret"]);
    let few = Limits {
        entries: 3,
        ..Limits::default()
    };
    let error = reader.walk(root(&reader), &few).find_map(Result::err).unwrap();
    assert!(matches!(error, ReadError::TooMuch { limit: 3, .. }), "{error}");
}

/// Layouts that are not ours: small blocks, small inodes, 32-bit descriptors, journals that need recovery, ext2.
#[tokio::test]
async fn other_layouts_are_read_or_refused_by_name() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/file"), [9; 70_000]).unwrap();
    let make = async |name: &str, arguments: &[&str]| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(32 << 20).unwrap();
        let mke2fs = tools.mke2fs.command().args(["-q", "-F", "-d"]).arg(&tree);
        let made = mke2fs.args(arguments.iter().copied()).arg(&path).run().await;
        made.unwrap();
        path
    };
    for (name, arguments) in [
        ("1k", ["-t", "ext4", "-b", "1024", "-O", "^64bit"].as_slice()),
        ("2k", &["-t", "ext4", "-b", "2048", "-I", "128", "-O", "64bit"]),
        ("64k", &["-t", "ext4", "-b", "65536"]),
        ("bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "16384"]),
    ] {
        let path = make(name, arguments).await;
        let reader = Reader::open(&path).unwrap();
        let file = reader.lookup(b"a/b/file", Last::Keep).unwrap().unwrap();
        let mut bytes = Vec::new();
        reader.contents(&file).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes == [9; 70_000], "{name}");
        assert_eq!(all(&reader).unwrap().len(), 4, "{name}");
    }
    for (name, arguments, wanted) in [
        ("ext2", ["-t", "ext2"].as_slice(), "mapped by blocks"),
        ("inline", &["-t", "ext4", "-O", "inline_data"], "inline"),
        (
            "meta",
            &["-t", "ext4", "-O", "meta_bg,^resize_inode"],
            "meta block groups",
        ),
    ] {
        let path = make(name, arguments).await;
        let error = Reader::open(&path).and_then(|reader| all(&reader)).unwrap_err();
        let said = matches!(&error, ReadError::Unsupported { what, .. } if what.contains(wanted));
        assert!(said, "{name}: {error}");
    }
    let path = make("dirty", &["-t", "ext4"]).await;
    let debugfs = tools
        .debugfs
        .command()
        .args(["-w", "-R", "feature needs_recovery"]);
    debugfs.arg(&path).run().await.unwrap();
    let error = Reader::open(&path).unwrap_err();
    assert!(
        matches!(&error, ReadError::Superblock(superblock::Error::Unclean { .. })),
        "{error}"
    );
}

/// As the kernel shows it: attributes, access lists and holes that it made itself.
#[tokio::test]
async fn a_kernels_file_system_is_read_as_the_kernel_does() {
    let Some(tools) = tools() else { return };
    if !rustix::process::geteuid().is_root() {
        testkit::skip::<()>("mounting needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mke2fs = tools.mke2fs.command().args(["-q", "-F", "-t", "ext4"]);
    mke2fs.arg(&image).run().await.unwrap();
    // In a namespace of its own, so that nothing stays mounted.
    let script = "set -e; mkdir m; mount -o loop image m; cd m
        mkdir d; for n in $(seq 2000); do : > d/file-with-a-longer-name-$n; done; rm d/*7
        i=0; while [ $i -lt 400 ]; do printf x | dd of=holes bs=1 seek=$((i*8192)) conv=notrunc status=none; i=$((i+1)); done
        fallocate -l 1M unwritten; ln -s $(printf 'l%.0s' $(seq 200)) long
        echo text > x; python3 -c 'import os
os.setxattr(\"x\",\"user.a\",b\"b\"*1500)
os.setxattr(\"x\",\"trusted.t\",b\"\")
os.setxattr(\"x\",\"system.posix_acl_access\",bytes.fromhex(\"02000000 01000600ffffffff 020004002a000000 04000400ffffffff 10000400ffffffff 20000000ffffffff\"))'
        mknod c c 1000 70000; cd ..; umount m";
    let script = format!("cd {:?}; {script}", dir.path());
    let unshare = Tool::find("unshare", DIRS).unwrap();
    if let Err(error) = unshare.command().args(["-m", "sh", "-c", &script]).run().await {
        // No loop devices in most containers.
        testkit::skip::<()>(&format!("{error:?}"));
        return;
    }
    let reader = Reader::open(&image).unwrap();
    let at = |path: &[u8]| reader.lookup(path, Last::Keep).unwrap().unwrap();
    assert_eq!(
        all(&reader)
            .unwrap()
            .iter()
            .filter(|e| e.path.starts_with(b"d/"))
            .count(),
        1800
    );
    let holes = reader.contents(&at(b"holes")).unwrap();
    assert_eq!(holes.data().len(), 400);
    let mut bytes = Vec::new();
    reader
        .contents(&at(b"holes"))
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == if at % 8192 == 0 { b'x' } else { 0 })
    );
    assert_eq!(
        at(b"unwritten").node.kind,
        Kind::File {
            size: 1 << 20,
            data: 0
        }
    );
    assert_eq!(
        at(b"long").node.kind,
        Kind::Symlink {
            target: vec![b'l'; 200]
        }
    );
    assert_eq!(
        at(b"c").node.kind,
        Kind::CharDevice {
            major: 1000,
            minor: 70_000
        }
    );
    let x = at(b"x").node.xattrs;
    let names: Vec<_> = x.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["system.posix_acl_access", "trusted.t", "user.a"]);
    assert_eq!(x[0].1.len(), 44);
    assert_eq!(x[0].1[12..20], [2, 0, 4, 0, 42, 0, 0, 0]);
    assert_eq!(x[2].1, [b'b'; 1500]);
}

#[tokio::test]
async fn any_damage_is_survived() {
    let Some((dir, image, _)) = image().await else {
        return;
    };
    let good = std::fs::read(&image).unwrap();
    // Where there is something: the holes of a sparse file are most of it.
    let used: Vec<usize> = (0..good.len())
        .step_by(16)
        .filter(|at| good[*at..*at + 16].iter().any(|byte| *byte != 0 && *byte != 7))
        .collect();
    let reader = Reader::open(&image).unwrap();
    let inodes: Vec<usize> = all(&reader)
        .unwrap()
        .iter()
        .filter(|entry| !entry.path.starts_with(b"many/"))
        .map(|entry| {
            // The table of the first group, where a small image has all of them.
            let mut descriptor = [0; 64];
            reader.read(&mut descriptor, reader.descriptors).unwrap();
            let table = u64::from(u32_at(&descriptor, 8)) * 4096;
            usize::try_from(table + u64::from(entry.inode - 1) * 256).unwrap()
        })
        .collect();
    let path = dir.path().join("flipped");
    std::fs::write(&path, &good).unwrap();
    let touched = std::cell::RefCell::new(Vec::new());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(400)
    });
    let anywhere = (0..used.len(), 0..16_usize).prop_map(|(at, byte)| used[at] + byte);
    let inode = (0..inodes.len(), 0..256_usize).prop_map(|(at, byte)| inodes[at] + byte);
    let flips = prop::collection::vec((prop_oneof![anywhere, inode], any::<u8>()), 1..8);
    runner
        .run(&flips, |flips| {
            let file = File::options().write(true).open(&path).unwrap();
            for at in touched.borrow_mut().drain(..) {
                file.write_all_at(&good[at..=at], at as u64).unwrap();
            }
            for (at, value) in flips {
                file.write_all_at(&[value], at as u64).unwrap();
                touched.borrow_mut().push(at);
            }
            if let Ok(reader) = Reader::open(&path) {
                let limits = Limits::default();
                let Ok(Some(root)) = reader.lookup(b"", Last::Follow) else {
                    return Ok(());
                };
                let mut buffer = vec![0; 1 << 16];
                for entry in reader.walk(root, &limits).map_while(Result::ok) {
                    if let Kind::File { data, .. } = entry.node.kind
                        && let Ok(contents) = reader.contents(&entry)
                    {
                        prop_assert!(data <= reader.size());
                        for range in contents.data() {
                            prop_assert!(range.end <= contents.size());
                            contents.read_at(&mut buffer, range.start).ok();
                        }
                    }
                }
                for path in ["fast/secret", "up", "slow"] {
                    drop(reader.lookup(path.as_bytes(), Last::Follow));
                }
            }
            Ok(())
        })
        .unwrap();
}
