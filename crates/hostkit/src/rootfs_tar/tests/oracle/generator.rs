//! Images of random sequences of changes.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::*;

const DIRECTORIES: [&str; 6] = ["", "d", "d/e", "d/e/f", "x", "l"];
const NAMES: [&str; 7] = ["a", "b", "d", "e", "f", "x", "l"];
const TARGETS: [&str; 6] = ["d", "/d/e", "../x", "nowhere/at/all", "/", "a"];

#[derive(Debug, Clone)]
enum What {
    File(u8, usize),
    Sparse(bool, u8),
    Directory,
    Symlink(usize),
    Link(usize, usize),
    Character,
    Block,
    Fifo,
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone)]
struct Op {
    directory: usize,
    name: usize,
    what: What,
    mode: u32,
    uid: u32,
    mtime: u32,
    xattr: Option<u8>,
    /// Whether directories on the way get entries, and symbolic links there are replaced.
    parents: bool,
    /// Whether the name begins with `./`, `/` or nothing.
    begin: usize,
}

fn op() -> impl Strategy<Value = Op> {
    let what = prop_oneof![
        6 => (any::<u8>(), 0..3000_usize).prop_map(|(byte, len)| What::File(byte, len)),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(in_records, byte)| What::Sparse(in_records, byte)),
        4 => Just(What::Directory),
        2 => (0..TARGETS.len()).prop_map(What::Symlink),
        4 => (0..DIRECTORIES.len(), 0..NAMES.len()).prop_map(|(directory, name)| What::Link(directory, name)),
        1 => Just(What::Character),
        1 => Just(What::Block),
        1 => Just(What::Fifo),
        4 => Just(What::Whiteout),
        2 => Just(What::Opaque),
    ];
    (
        (0..DIRECTORIES.len(), 0..NAMES.len(), what),
        (0..0o10000_u32, 0..100_000_u32, 1..1_600_000_000_u32),
        prop::option::of(any::<u8>()),
        prop::bool::weighted(0.7),
        0..3_usize,
    )
        .prop_map(
            |((directory, name, what), (mode, uid, mtime), xattr, parents, begin)| Op {
                directory,
                name,
                what,
                mode,
                uid,
                mtime,
                xattr,
                parents,
                begin,
            },
        )
}

/// What there is, as far as it is needed to write few archives that nobody unpacks: whiteouts are not followed.
#[derive(Default)]
struct Model {
    names: BTreeMap<String, &'static str>,
}

impl Model {
    fn put(&mut self, name: &str, kind: &'static str) {
        if kind != "directory" || self.names.get(name) != Some(&"directory") {
            let below = format!("{name}/");
            self.names
                .retain(|other, _| other != name && !other.starts_with(&below));
            self.names.insert(name.to_owned(), kind);
        }
    }

    /// Adds the entries of one change to a layer.
    fn write(&mut self, op: &Op, xattrs: bool, layer: &mut Vec<Vec<u8>>) {
        let directory = DIRECTORIES[op.directory];
        let path = join(directory, NAMES[op.name]);
        let mut way = String::new();
        let hides = matches!(op.what, What::Whiteout | What::Opaque);
        for part in directory.split('/').filter(|part| !part.is_empty() && !hides) {
            way = join(&way, part);
            match self.names.get(&way).copied() {
                Some("directory") => {}
                Some("symlink") if !op.parents => break,
                None if !op.parents => self.put(&way, "directory"),
                Some(_) | None => {
                    layer.push(entry(op, &way, b'5', "", b"", xattrs));
                    self.put(&way, "directory");
                }
            }
        }
        let (kind, bytes) = match &op.what {
            What::File(byte, len) => ("file", entry(op, &path, b'0', "", &vec![*byte; *len], xattrs)),
            What::Sparse(in_records, byte) => ("file", sparse(op, &path, *in_records, *byte)),
            What::Directory => ("directory", entry(op, &path, b'5', "", b"", xattrs)),
            What::Symlink(target) => ("symlink", entry(op, &path, b'2', TARGETS[*target], b"", false)),
            What::Link(directory, name) => {
                let to = join(DIRECTORIES[*directory], NAMES[*name]);
                // To the name itself, into what it replaces, to nothing: refused by both, so rarely worth trying.
                if self.names.get(&to).is_none_or(|kind| *kind == "directory") || to.starts_with(&path) {
                    return;
                }
                ("link", entry(op, &path, b'1', &to, b"", false))
            }
            What::Character => ("device", entry(op, &path, b'3', "", b"", false)),
            What::Block => ("device", entry(op, &path, b'4', "", b"", false)),
            What::Fifo => ("fifo", entry(op, &path, b'6', "", b"", false)),
            What::Whiteout => {
                let name = join(directory, &format!(".wh.{}", NAMES[op.name]));
                layer.push(entry(op, &name, b'0', "", b"", false));
                return;
            }
            What::Opaque => {
                layer.push(entry(op, &join(directory, ".wh..wh..opq"), b'0', "", b"", false));
                return;
            }
        };
        layer.push(bytes);
        self.put(&path, kind);
    }
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

fn header(op: &Op, path: &str, kind: u8) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let begin = ["", "./", "/"][op.begin];
    let name = format!("{begin}{path}");
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[156] = kind;
    header.set_mode(op.mode);
    header.set_uid(op.uid.into());
    header.set_gid((op.uid / 2).into());
    header.set_mtime(op.mtime.into());
    header.set_size(0);
    header.set_device_major(op.uid % 200).unwrap();
    header.set_device_minor(op.uid % 1000).unwrap();
    header
}

fn entry(op: &Op, path: &str, kind: u8, link: &str, data: &[u8], xattrs: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(value) = op.xattr.filter(|_| xattrs) {
        let capability = [1, 0, 0, 2, value, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut records = vec![("SCHILY.xattr.user.note", [value].to_vec())];
        if kind == b'0' {
            records.push(("SCHILY.xattr.security.capability", capability.to_vec()));
        }
        let records: Vec<_> = records
            .iter()
            .map(|(key, value)| (*key, value.as_slice()))
            .collect();
        bytes.extend(pax(&records));
    }
    let mut header = header(op, path, kind);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_size(data.len() as u64);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
    bytes
}

/// A file with a piece in its middle, in one of two formats. (`umoci` knows nothing of GNU's own type of entry.)
fn sparse(op: &Op, path: &str, in_records: bool, byte: u8) -> Vec<u8> {
    let data = [byte; 700];
    let name = ("GNU.sparse.name", path.as_bytes());
    if in_records {
        let records: [(&str, &[u8]); 4] = [
            name,
            ("GNU.sparse.size", b"100000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"40000,700,100000,0"),
        ];
        let entry = entry(op, "GNUSparseFile.0/x", b'0', "", &data, false);
        return [pax(&records), entry].concat();
    }
    let mut contents = b"1\n40000\n700\n".to_vec();
    contents.resize(RECORD, 0);
    contents.extend_from_slice(&data);
    let records: [(&str, &[u8]); 4] = [
        name,
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"100000"),
    ];
    let entry = entry(op, "GNUSparseFile.0/x", b'0', "", &contents, false);
    [pax(&records), entry].concat()
}

#[test]
fn random_layers_give_the_tree_that_umoci_gives() {
    let Some(umoci_tool) = tool("umoci") else { return };
    if !testkit::is_root() {
        return;
    }
    let cases = 60;
    let both = AtomicUsize::new(0);
    let probe = tempfile::tempdir().unwrap();
    let xattrs = has_xattrs(probe.path());
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        // Each step runs the oracle.
        max_shrink_iters: 400,
        ..ProptestConfig::default()
    };
    let layers = prop::collection::vec(prop::collection::vec(op(), 1..14), 1..5);
    // Always the same images, so that a failure is one for everybody.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome = TestRunner::new_with_rng(config, rng).run(&layers, |layers| {
        let mut model = Model::default();
        let archives: Vec<_> = layers
            .iter()
            .map(|ops| {
                let mut layer = Vec::new();
                for op in ops {
                    model.write(op, xattrs, &mut layer);
                }
                archive(&layer)
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let since = now();
        write_layout(&dir.path().join("layout"), &archives);
        let theirs = umoci(
            &umoci_tool,
            &dir.path().join("layout"),
            &dir.path().join("theirs"),
        );
        let ours = ours(&archives, &dir.path().join("ours"));
        match (theirs, ours) {
            (Ok(theirs), Ok(ours)) => {
                both.fetch_add(1, Ordering::Relaxed);
                let found = differences(&theirs, &ours, since);
                prop_assert!(found.is_empty(), "{}", found.join("\n"));
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(error)) => prop_assert!(false, "only we refuse it: {error}"),
            (Err(error), Ok(_)) => prop_assert!(false, "only umoci refuses it: {error}"),
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    // Most of them are images.
    let both = both.into_inner();
    println!("{both} of {cases} unpacked by both");
    assert!(both * 2 > cases as usize, "{both} of {cases}");
}
