//! Trees written, and looked at by `e2fsck`, by our own reader and by the kernel.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::exec::Tool;
use crate::ext4::populate::{Options, populate};
use crate::ext4::reader::{Last, Reader};
use crate::ext4::shrink::shrink;
use crate::ext4::tests::{DIRS, assert_clean, tools};
use crate::ext4::{E2fsTools, Error, make_filled, superblock};
use crate::rootfs_tar::write::Writer;
use crate::rootfs_tar::{Kind, Layers, Limits, Node, Tree};

/// What a file has, piece by piece, each at an offset; and the file's length.
#[derive(Debug, Clone)]
struct Contents {
    pieces: Vec<(u64, Vec<u8>)>,
    size: u64,
}

impl crate::rootfs_tar::write::Source for Contents {
    fn data(&self) -> Vec<std::ops::Range<u64>> {
        let range = |(at, bytes): &(u64, Vec<u8>)| *at..*at + bytes.len() as u64;
        self.pieces.iter().map(range).collect()
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
        for (start, bytes) in &self.pieces {
            if let Some(rest) = at
                .checked_sub(*start)
                .and_then(|within| bytes.get(usize::try_from(within).unwrap()..))
                .filter(|rest| !rest.is_empty())
            {
                let len = rest.len().min(buffer.len());
                buffer[..len].copy_from_slice(&rest[..len]);
                return Ok(len);
            }
        }
        Ok(0)
    }
}

fn whole(bytes: Vec<u8>) -> Contents {
    Contents {
        size: bytes.len() as u64,
        pieces: vec![(0, bytes)],
    }
}

type Entries = Vec<(String, Node, Option<Contents>)>;

fn node(kind: Kind) -> Node {
    Node {
        kind,
        uid: 7,
        gid: 70_000,
        mode: 0o640,
        mtime: 1_700_000_000,
        xattrs: Vec::new(),
    }
}

fn file(path: &str, contents: Contents) -> (String, Node, Option<Contents>) {
    let data = contents.pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let size = contents.size;
    (path.to_owned(), node(Kind::File { size, data }), Some(contents))
}

/// The tree of an archive of these, in a directory that it lives as long as.
fn tree(entries: &Entries) -> (tempfile::TempDir, Arc<Tree>) {
    let mut archive = Writer::new(Vec::new());
    for (path, node, contents) in entries {
        let contents = contents
            .as_ref()
            .map(|contents| contents as &dyn crate::rootfs_tar::write::Source);
        archive
            .entry(path.as_bytes(), node, contents, |_| Ok(()))
            .unwrap();
    }
    let archive = archive.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut layers = Layers::new(dir.path(), &Limits::default());
    layers.apply(archive.as_slice(), 1 << 30, |_| Ok(())).unwrap();
    (dir, Arc::new(layers.finish().unwrap()))
}

fn plain(path: &[u8], node: &Node) -> (Vec<u8>, Node) {
    let mut node = node.clone();
    node.xattrs.sort();
    if let Kind::File { data, .. } = &mut node.kind {
        *data = 0;
    }
    (path.to_vec(), node)
}

/// The image has what the tree has, by our own reader, and `e2fsck` has nothing to say.
async fn compare(image: &std::path::Path, tree: &Tree, entries: &Entries) {
    assert_clean(image).await;
    let reader = Reader::open(image).unwrap();
    let root = reader.lookup(b"", Last::Keep).unwrap().unwrap();
    let found: Vec<_> = reader
        .walk(root, &Limits::default())
        .map(Result::unwrap)
        .collect();
    // Here the first name by its path is an inode's own, there the one made first.
    let names = |paths: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>| {
        let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        paths.for_each(|(owner, path)| groups.entry(owner).or_default().push(path));
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.iter_mut().for_each(|group| group.sort());
        groups.sort();
        groups
    };
    let owner = |path: &[u8], node: &Node| {
        let owner = if let Kind::Link { to } = &node.kind {
            to
        } else {
            path
        };
        (owner.to_vec(), path.to_vec())
    };
    let lost_and_found = |path: &[u8]| path == b"lost+found" || path.starts_with(b"lost+found/");
    let ours = || found.iter().filter(|entry| !lost_and_found(&entry.path));
    let theirs = || tree.iter().filter(|(path, _)| !lost_and_found(path));
    assert_eq!(
        names(&mut ours().map(|entry| owner(&entry.path, &entry.node))),
        names(&mut theirs().map(|(path, node)| owner(path, node)))
    );
    for entry in ours() {
        let wanted = tree.get(&entry.path).unwrap();
        let ((Kind::Link { to: other }, _) | (_, Kind::Link { to: other })) =
            (&entry.node.kind, &wanted.kind)
        else {
            assert_eq!(plain(&entry.path, &entry.node), plain(&entry.path, wanted));
            continue;
        };
        assert!(tree.get(other).is_some());
    }
    let inodes: BTreeMap<&[u8], _> = found.iter().map(|entry| (entry.path.as_slice(), entry)).collect();
    let last: BTreeMap<_, _> = entries
        .iter()
        .map(|(path, _, contents)| (path, contents))
        .collect();
    for (path, contents) in last {
        let Some(contents) = contents else { continue };
        // A walk leaves out what a repair has found.
        let found = || reader.lookup(path.as_bytes(), Last::Keep).unwrap().unwrap();
        let entry = inodes
            .get(path.as_bytes())
            .map_or_else(found, |entry| (*entry).clone());
        let read = reader.contents(&entry).unwrap();
        assert_eq!(read.size(), contents.size, "{path}");
        for (at, bytes) in &contents.pieces {
            let mut found = vec![0; bytes.len()];
            let mut done = 0;
            while done < found.len() {
                done += read.read_at(&mut found[done..], at + done as u64).unwrap();
            }
            assert!(found == *bytes, "{path} at {at}");
        }
        let stored: u64 = read.data().iter().map(|range| range.end - range.start).sum();
        let given: usize = contents
            .pieces
            .iter()
            .map(|(_, bytes)| bytes.len().div_ceil(4096) + 1)
            .sum();
        assert!(stored <= given as u64 * 4096, "{path}: holes are kept");
    }
}

async fn make(tools: &E2fsTools, entries: &Entries) -> (tempfile::TempDir, std::path::PathBuf, Arc<Tree>) {
    let (dir, tree) = tree(entries);
    let image = dir.path().join("image");
    let options = Options { label: "", slack: 0 };
    populate(tools, &image, &tree, &options, |_| Ok(()))
        .await
        .unwrap();
    compare(&image, &tree, entries).await;
    (dir, image, tree)
}

fn pieces() -> impl Strategy<Value = Contents> {
    let piece = (
        0_u64..60_000,
        prop_oneof![1_usize..300, 4000_usize..4200, 1_usize..200_000],
        any::<u8>(),
    );
    (prop::collection::vec(piece, 0..9), 0_u64..200_000).prop_map(|(made, tail)| {
        let (mut pieces, mut at) = (Vec::new(), 0);
        for (gap, len, byte) in made {
            at += gap;
            // Some of it zeros, some of it long ones.
            pieces.push((at, vec![byte & 3; len]));
            at += len as u64;
        }
        Contents {
            pieces,
            size: at + tail,
        }
    })
}

fn entries() -> impl Strategy<Value = Entries> {
    let name = prop_oneof![
        "[a-c]",
        "[a-z]{1,20}",
        "[a-z]{200,255}",
        Just("lost+found".to_owned()),
        Just("ü\n\"x".to_owned())
    ];
    let path = prop::collection::vec(name, 1..5).prop_map(|parts| parts.join("/"));
    let kind = prop_oneof![
        4 => pieces().prop_map(|contents| (None, Some(contents))),
        2 => Just((Some(Kind::Directory), None)),
        1 => (1_usize..4095).prop_map(|len| (Some(Kind::Symlink { target: vec![b't'; len] }), None)),
        1 => (1_usize..70).prop_map(|len| (Some(Kind::Symlink { target: vec![b't'; len] }), None)),
        1 => (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| (Some(Kind::CharDevice { major, minor }), None)),
        1 => (0_u32..300, 0_u32..300).prop_map(|(major, minor)| (Some(Kind::BlockDevice { major, minor }), None)),
        1 => Just((Some(Kind::Fifo), None)),
    ];
    let xattrs = prop::collection::btree_map(
        "user\\.[a-zé]{1,40}|security\\.capability",
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..24),
            prop::collection::vec(any::<u8>(), 0..800)
        ],
        0..4,
    );
    let attributes = (any::<u32>(), any::<u32>(), 0_u32..0o10000, any::<u32>(), xattrs);
    prop::collection::vec((path, kind, attributes), 0..40).prop_map(|made| {
        let mut entries: Entries = Vec::new();
        for (path, (kind, contents), (uid, gid, mode, mtime, xattrs)) in made {
            let kind = kind.unwrap_or_else(|| {
                let size = contents.as_ref().map_or(0, |contents: &Contents| contents.size);
                Kind::File { size, data: 0 }
            });
            // What is below something that is no directory is not to be tested here.
            let clash = |other: &str, node: &Node| {
                path == other
                    || path.starts_with(&format!("{other}/")) && node.kind != Kind::Directory
                    || other.starts_with(&format!("{path}/"))
                    || path == "lost+found" && kind != Kind::Directory
            };
            if path == "lost+found" && kind != Kind::Directory
                || entries.iter().any(|(other, node, _)| clash(other, node))
            {
                continue;
            }
            let node = Node {
                kind,
                uid: uid.min(u32::MAX - 1),
                gid: gid.min(u32::MAX - 1),
                mode,
                mtime: mtime.into(),
                xattrs: xattrs
                    .into_iter()
                    .map(|(name, value)| (name.into_bytes(), value))
                    .collect(),
            };
            entries.push((path, node, contents));
        }
        let firsts: Vec<_> = entries
            .iter()
            .filter(|(path, node, _)| {
                node.kind != Kind::Directory && node.mode & 3 == 0 && !path.starts_with("lost+found")
            })
            .map(|(path, node, _)| {
                let link = Node {
                    kind: Kind::Link {
                        to: path.clone().into_bytes(),
                    },
                    xattrs: Vec::new(),
                    ..node.clone()
                };
                (format!("0-{}", entries.len() + path.len()), link, None)
            })
            .collect();
        for link in firsts {
            if entries.iter().all(|(path, _, _)| *path != link.0) {
                entries.push(link);
            }
        }
        entries
    })
}

#[test]
fn whatever_a_tree_holds_it_is_written_right() {
    let Some(tools) = tools() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Always the same, so that a failure is one for everybody.
    let config = Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome = TestRunner::new_with_rng(config, rng).run(&entries(), |entries| {
        runtime.block_on(make(&tools, &entries));
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test]
async fn long_directories_and_maps_of_several_levels_are_right() {
    let Some(tools) = tools() else { return };
    let mut entries = Entries::new();
    for number in 0..20_000 {
        entries.push(file(
            &format!("many/{number}-{}", "n".repeat(number % 240)),
            whole(Vec::new()),
        ));
    }
    // Every other block: 3000 extents need two levels, 5 one, 4 none.
    for (name, count) in [("three-thousand", 3000_u64), ("five", 5), ("four", 4)] {
        let pieces = (0..count).map(|at| (at * 8192, vec![1; 10])).collect();
        let size = count * 8192;
        entries.push(file(name, Contents { pieces, size }));
    }
    make(&tools, &entries).await;
}

#[tokio::test]
async fn what_is_of_the_file_system_itself_is_passed_by() {
    let Some(tools) = tools() else { return };
    // Longer than a group, and than an extent may be.
    let mut entries = vec![file("long", whole(vec![5; 300 << 20]))];
    for number in 0..3000 {
        entries.push(file(
            &format!("d{}/{number}", number % 50),
            whole(vec![6; number % 9000]),
        ));
    }
    let (_dir, image, tree) = make(&tools, &entries).await;
    drop(image);
    // On disks of fixed sizes: of a few groups, of thousands, and one that is too small.
    let dir = tempfile::tempdir().unwrap();
    for size in [512 << 20, 1 << 40] {
        let disk = dir.path().join(format!("{size}"));
        make_filled(&tools, &disk, size, "disk", &tree).await.unwrap();
        if size < 1 << 30 {
            compare(&disk, &tree, &entries).await;
        }
        assert_eq!(superblock::check(&disk).unwrap().state, superblock::State::Clean);
    }
    let small = dir.path().join("small");
    let error = make_filled(&tools, &small, 256 << 20, "", &tree)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert!(!small.exists());
}

#[tokio::test]
async fn what_watches_can_end_it_and_nothing_stays() {
    let Some(tools) = tools() else { return };
    let (dir, tree) = tree(&vec![file("f", whole(vec![1; 40 << 20]))]);
    let image = dir.path().join("image");
    let options = Options { label: "", slack: 0 };
    let stop = |done| match done {
        0..20_000_000 => Ok(()),
        _ => Err(std::io::Error::other("stop")),
    };
    let error = populate(&tools, &image, &tree, &options, stop).await.unwrap_err();
    assert!(matches!(error, Error::Fill { .. }), "{error}");
    assert!(!image.exists());
}

/// Grown, written to by a kernel, shrunk: what a disk goes through.
#[tokio::test]
async fn it_grows_is_written_to_and_shrinks_as_any_other() {
    let Some(tools) = tools() else { return };
    let mut entries = Entries::new();
    for number in 0..2000 {
        entries.push(file(
            &format!("d{}/{number}", number % 20),
            whole(vec![6; number * 7]),
        ));
    }
    let (dir, image, tree) = make(&tools, &entries).await;
    let before = std::fs::metadata(&image).unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(2 << 30)
        .unwrap();
    let resize2fs = Tool::find("resize2fs", DIRS).unwrap();
    let e2fsck = Tool::find("e2fsck", DIRS).unwrap();
    e2fsck
        .command()
        .args(["-f", "-p"])
        .arg(&image)
        .run()
        .await
        .unwrap();
    resize2fs.command().arg(&image).run().await.unwrap();
    compare(&image, &tree, &entries).await;
    if testkit::is_root() {
        let place = dir.path().join("place");
        std::fs::create_dir(&place).unwrap();
        // The mount, and the loop device under it, end with the namespace.
        let script = r#"
            mount -t ext4 -o loop "$1" "$2" || exit 77
            set -e
            cd "$2"
            for d in d*; do for n in 1 2 3 4 5 6 7 8 9; do echo "$n" > "$d/new-$n"; done; done
            rm -r d3; mv d4 d5/; dd if=/dev/zero of=big bs=1M count=50 status=none; rm d6/6
            mkdir -p lost+found/x
            test "$(ls d7 | wc -l)" = 109
            test "$(stat -c %s:%u:%g:%a d19/1999)" = 13993:7:70000:640
            rm -r lost+found/x big d*/new-* d5/d4
            cd /
            umount "$2"
        "#;
        let ran = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([&image, &place])
            .status()
            .unwrap();
        match ran.code() {
            Some(77) => drop(testkit::skip::<()>("this kernel does not mount ext4")),
            code => {
                assert_eq!(code, Some(0));
                assert_clean(&image).await;
            }
        }
    }
    let size = shrink(&tools, &image).await.unwrap();
    assert!(size < before * 2, "{size} of {before}");
    assert_clean(&image).await;
    let reader = Reader::open(&image).unwrap();
    let entry = reader.lookup(b"d19/1999", Last::Keep).unwrap().unwrap();
    assert_eq!(reader.contents(&entry).unwrap().size(), 1999 * 7);
}
