//! Damaged and malicious archives: made of sound ones, which real tools have written, by changing bytes, cutting,
//! repeating and mixing, with checksums made right again so that what is behind them is reached.
//!
//! Whatever they are, nothing is made outside the directory, nothing panics, and the bounds hold.

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::layers::agrees;
use super::*;

/// A change to an archive; places are taken modulo what there is.
#[derive(Debug, Clone)]
enum Change {
    Byte(usize, u8),
    /// A byte of a header, of which there is one at each multiple of 512.
    Header(usize, usize, u8),
    Name(usize, &'static str),
    Link(usize, &'static str),
    Kind(usize, u8),
    Size(usize, u64),
    Cut(usize),
    Remove(usize),
    Repeat(usize, usize),
    Swap(usize, usize),
    /// A text somewhere: a pax record's number, a name's end.
    Text(usize, &'static str),
}

fn change() -> impl Strategy<Value = Change> {
    const NAMES: [&str; 16] = [
        "..",
        "../x",
        "/",
        "/etc/x",
        "a/../../x",
        ".wh.",
        ".wh..",
        ".wh...",
        ".wh..wh..opq",
        "d/.wh..wh..opq",
        ".wh.d",
        "l/x",
        "d/x",
        ".",
        "",
        "l",
    ];
    const TEXTS: [&str; 8] = [
        "..",
        "/",
        "\n",
        "99999999999999999999",
        "-1",
        "GNU.sparse.map",
        ".wh.",
        "\0",
    ];
    let place = || 0..10_000_usize;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (place(), 0..512_usize, any::<u8>()).prop_map(|(record, at, byte)| Change::Header(record, at, byte)),
        (place(), prop::sample::select(&NAMES[..])).prop_map(|(record, name)| Change::Name(record, name)),
        (place(), prop::sample::select(&NAMES[..])).prop_map(|(record, name)| Change::Link(record, name)),
        (place(), prop::sample::select(b"01234567LKxgSV\0".to_vec()))
            .prop_map(|(record, kind)| Change::Kind(record, kind)),
        (place(), prop_oneof![0..2000_u64, any::<u64>()])
            .prop_map(|(record, size)| Change::Size(record, size)),
        place().prop_map(Change::Cut),
        place().prop_map(Change::Remove),
        (place(), place()).prop_map(|(from, to)| Change::Repeat(from, to)),
        (place(), place()).prop_map(|(from, to)| Change::Swap(from, to)),
        (place(), prop::sample::select(&TEXTS[..])).prop_map(|(at, text)| Change::Text(at, text)),
    ]
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let records = (bytes.len() / RECORD).max(1);
        let header = |record: usize| record % records * RECORD;
        let mut put = |at: usize, text: &[u8], width: usize| {
            for offset in 0..width {
                if let Some(byte) = bytes.get_mut(at + offset) {
                    *byte = text.get(offset).copied().unwrap_or(0);
                }
            }
        };
        match self {
            Self::Byte(at, value) => put(at % (records * RECORD), &[*value], 1),
            Self::Header(record, at, value) => put(header(*record) + at, &[*value], 1),
            Self::Name(record, name) => put(header(*record), name.as_bytes(), 100),
            Self::Link(record, name) => put(header(*record) + 157, name.as_bytes(), 100),
            Self::Kind(record, kind) => put(header(*record) + 156, &[*kind], 1),
            Self::Size(record, size) => put(
                header(*record) + 124,
                format!("{:011o}", size % (1 << 33)).as_bytes(),
                12,
            ),
            Self::Text(at, text) => put(at % (records * RECORD), text.as_bytes(), text.len()),
            Self::Cut(at) => bytes.truncate(at % (records * RECORD)),
            Self::Remove(record) => {
                let record = header(*record);
                bytes.drain(record..(record + RECORD).min(bytes.len()));
            }
            Self::Repeat(from, to) => {
                let from = header(*from);
                let piece = bytes[from..(from + 3 * RECORD).min(bytes.len())].to_vec();
                let to = header(*to).min(bytes.len());
                bytes.splice(to..to, piece);
            }
            Self::Swap(from, to) => {
                let (from, to) = (header(*from), header(*to));
                for offset in 0..RECORD {
                    if from + offset < bytes.len() && to + offset < bytes.len() {
                        bytes.swap(from + offset, to + offset);
                    }
                }
            }
        }
    }
}

/// Makes the checksums right of everything that looks like a header.
fn mend(bytes: &mut [u8]) {
    for record in bytes.as_chunks_mut::<RECORD>().0 {
        if record[257..262] == *b"ustar" {
            let sum = header::checksum(record);
            record[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// Sound archives: everything that the reader reads is in one of them.
fn corpus() -> Vec<Vec<u8>> {
    let link = |name: &str, to: &str| raw(name.as_bytes(), b'2', to.as_bytes(), b"");
    let hard = |name: &str, to: &str| raw(name.as_bytes(), b'1', to.as_bytes(), b"");
    let dir = |name: &str| raw(name.as_bytes(), b'5', b"", b"");
    let made = vec![
        archive(&[
            dir("./"),
            dir("d/"),
            file("d/f", &[1; 700]),
            hard("h", "d/f"),
            link("l", "d"),
            raw(b"c", b'3', b"", b""),
            raw(b"p", b'6', b"", b""),
        ]),
        archive(&[
            file("d/.wh.f", b""),
            file(".wh..wh..opq", b""),
            file("l/x", b"2"),
            hard("d/y", "l/x"),
            file(".wh.h", b""),
        ]),
        archive(&[
            pax(&[
                ("path", b"d/long"),
                ("uid", b"70000"),
                ("mtime", b"1.5"),
                ("SCHILY.xattr.user.a", b"1"),
            ]),
            file("x", b"3"),
            raw(b"././@LongLink", b'L', b"", &[b'n'; 200]),
            raw(b"././@LongLink", b'K', b"", b"d/f\0"),
            hard("x", "y"),
        ]),
        archive(&[
            pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", b"9000"),
            ]),
            file(
                "x",
                &[b"2\n0\n3\n5000\n3\n".as_slice(), &[0; 499], b"abcdef"].concat(),
            ),
            pax(&[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"0,3,5000,3")]),
            file("d/s", b"abcdef"),
        ]),
    ];
    // Those of other writers: `tar --format=…` of a few small files.
    let real = [
        include_bytes!("corpus/gnu-sparse.tar").as_slice(),
        include_bytes!("corpus/pax-sparse.tar"),
        include_bytes!("corpus/umoci-repack.tar"),
    ];
    made.into_iter().chain(real.map(<[u8]>::to_vec)).collect()
}

#[test]
fn damaged_layers_are_survived() {
    let corpus = corpus();
    for bytes in &corpus {
        let dir = tempfile::tempdir().unwrap();
        let mut layers = Layers::new(dir.path(), &Limits::default());
        // The second needs what others have, so not all of them can be applied alone.
        let alone = layers.apply(bytes.as_slice(), 1 << 20, |_| Ok(()));
        assert!(
            !matches!(alone, Err(Error::Malformed { .. } | Error::Truncated { .. })),
            "{alone:?}"
        );
    }
    let limits = Limits {
        entries: 60,
        bytes: 50_000,
        ratio: 2,
        ratio_floor: 60_000,
    };
    let count = corpus.len();
    let stack = prop::collection::vec(
        (0..count, prop::collection::vec(change(), 0..5), any::<bool>()),
        1..4,
    );
    // Always the same, so that a failure is one for everybody.
    let config = Config {
        cases: 1500,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome = TestRunner::new_with_rng(config, rng).run(&stack, |stack| {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut layers = Layers::new(&tree, &limits);
        let mut result = Ok(());
        for (which, changes, mended) in stack {
            let mut bytes = corpus[which].clone();
            for change in &changes {
                change.apply(&mut bytes);
            }
            if mended {
                mend(&mut bytes);
            }
            let mut read = bytes.as_slice();
            result = layers.apply(&mut read, 1000, |_| Ok(())).map(|_| ());
            if result.is_err() {
                break;
            }
            prop_assert!(read.is_empty(), "everything is read");
        }
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        prop_assert!(fs::read_dir(&tree).unwrap().count() <= 1);
        if result.is_ok() {
            let finished = layers.finish().unwrap();
            let laid_out = dir.path().join("laid-out");
            disk::lay_out(&finished, &laid_out);
            agrees(&finished, &laid_out);
            // What was replaced is given back, but for what shared a block of the disk with something else.
            let stored = fs::metadata(tree.join("contents")).map_or(0, |found| found.blocks() * 512);
            prop_assert!(
                finished.iter().count() <= 61 && stored < 50_000 + 61 * 4096,
                "{}",
                stored
            );
            prop_assert!(finished.bytes() <= 50_000);
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
