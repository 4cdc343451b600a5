//! The encodings without a kernel; the rest with one that has a device mapper, else skipped aloud.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::message::{decode_lines, decode_names, encode_table};
use super::*;
use crate::loopdev;

#[test]
fn request_numbers_are_the_kernels() {
    // From a program compiled against linux/dm-ioctl.h.
    assert_eq!(DM_VERSION, 0xc138_fd00);
    assert_eq!(DM_TABLE_LOAD, 0xc138_fd09);
}

#[test]
fn a_header_comes_back_as_it_was() {
    let mut header = Header::new("bgrabcdefghij-base", "banger-0123-x").unwrap();
    (header.flags, header.target_count, header.dev, header.open_count) = (0x21, 3, 0xfd00, 2);
    let bytes = header.encode(b"data", 0);
    assert_eq!(bytes.len(), message::HEADER + 4);
    let (decoded, data) = Header::decode(&bytes).unwrap();
    assert_eq!((decoded, data.as_slice()), (header, b"data".as_slice()));
    for bad in ["a b", "a/b", "a\0b", &"x".repeat(NAME + 1)] {
        assert!(Header::new(bad, "").is_err(), "{bad:?}");
    }
    assert!(Header::new(&"x".repeat(NAME), &"y".repeat(128)).is_ok());
}

#[test]
fn a_table_is_laid_out_as_the_kernel_reads_it() {
    let table = [
        Target {
            start: 0,
            length: 8,
            kind: "linear",
            parameters: "7:0 0",
        },
        Target {
            start: 8,
            length: 16,
            kind: "zero",
            parameters: "",
        },
    ];
    let bytes = encode_table(&table).unwrap();
    // 40 bytes and "7:0 0\0" rounded up to 48; 40 and "\0" rounded up to 48.
    assert_eq!(bytes.len(), 96);
    assert_eq!(bytes[20..24], 48_u32.to_ne_bytes());
    assert_eq!(bytes[68..72], 48_u32.to_ne_bytes());
    assert_eq!(&bytes[24..31], b"linear\0");
    assert_eq!(&bytes[40..46], b"7:0 0\0");
    assert_eq!(bytes[48..56], 8_u64.to_ne_bytes());
    // Answers count from the first target: the second one's end is at 96, of which the kernel gives what is used.
    let mut answer = bytes.clone();
    answer[68..72].copy_from_slice(&96_u32.to_ne_bytes());
    answer.truncate(48 + 40 + 1);
    let lines = decode_lines(&answer, 2).unwrap();
    for (line, target) in lines.iter().zip(table) {
        assert_eq!(
            (line.start, line.length, line.kind.as_str(), line.text.as_str()),
            (target.start, target.length, target.kind, target.parameters)
        );
    }
    let long = Target {
        start: 0,
        length: 1,
        kind: "a-kind-of-16-byt",
        parameters: "",
    };
    assert!(encode_table(&[long]).is_err());
}

#[test]
fn names_are_read_to_the_last() {
    let mut data = Vec::new();
    for (name, next) in [("one", 24_u32), ("second", 0)] {
        let start = data.len();
        data.extend(0xfd00_u64.to_ne_bytes());
        data.extend(next.to_ne_bytes());
        data.extend(name.bytes());
        data.resize(start + 24, 0);
    }
    assert_eq!(decode_names(&data).unwrap(), ["one", "second"]);
    assert_eq!(decode_names(&[0; 16]).unwrap(), [""; 0]);
    assert_eq!(decode_names(&[]).unwrap(), [""; 0]);
}

#[test]
fn a_snapshots_words_are_understood() {
    let valid = |used, total| Some(Snapshot::Valid { used, total });
    assert_eq!(Snapshot::parse("16/2097152 16"), valid(16, 2_097_152));
    assert_eq!(Snapshot::parse("Invalid"), Some(Snapshot::Invalid));
    assert_eq!(Snapshot::parse("Merge failed"), Some(Snapshot::Invalid));
    assert_eq!(Snapshot::parse("Overflow"), Some(Snapshot::Overflow));
    for other in ["", "Unknown", "16", "a/b 1"] {
        assert_eq!(Snapshot::parse(other), None, "{other}");
    }
}

proptest! {
    #[test]
    fn any_answer_is_survived(data in prop::collection::vec(any::<u8>(), 0..400), count in 0_u32..5) {
        drop(decode_lines(&data, count));
        drop(decode_names(&data));
        drop(Header::decode(&data));
    }
}

// ---- with a kernel --------------------------------------------------------------------------------------------------

/// A device mapper with these targets, or a word about its absence.
fn device_mapper(targets: &[&str]) -> Option<Dm> {
    if !testkit::is_root() {
        return None;
    }
    let dm = match Dm::open() {
        Ok(dm) => dm,
        Err(error) => return testkit::skip(&format!("{error}: {}", error.errno().unwrap_or_default())),
    };
    for target in targets {
        if !dm.has_target(target).unwrap() {
            return testkit::skip(&format!("the kernel has no device-mapper target {target:?}"));
        }
    }
    Some(dm)
}

/// A device or loop device of a test, taken down however it ends.
struct Removed(String);

impl Drop for Removed {
    fn drop(&mut self) {
        let removed = Dm::open().map(|dm| dm.remove(&self.0));
        let detached = loopdev::detach(&self.0);
        println!("{}: {removed:?}, {detached:?}", self.0);
    }
}

fn name(role: &str) -> Removed {
    Removed(format!("bgt-{}-{role}", std::process::id()))
}

#[test]
fn a_device_is_made_found_listed_and_removed() {
    let Some(dm) = device_mapper(&["zero"]) else {
        return;
    };
    assert_eq!(dm.version().unwrap()[0], 4);
    assert!(!dm.has_target("nonsense").unwrap());
    let zero = name("zero");
    assert_eq!(dm.find(&zero.0).unwrap(), None);
    let created = dm.create(&zero.0, &format!("BGT-{}", zero.0), false).unwrap();
    assert!(!created.live);
    dm.load(
        &zero.0,
        &[Target {
            start: 0,
            length: 2048,
            kind: "zero",
            parameters: "",
        }],
        false,
    )
    .unwrap();
    let device = dm.resume(&zero.0).unwrap();
    assert!(
        device.live && !device.suspended && device.uuid.starts_with("BGT-"),
        "{device:?}"
    );
    assert!(dm.list().unwrap().contains(&zero.0));
    assert_eq!(dm.find(&zero.0).unwrap().map(|d| d.number), Some(device.number));
    let lines = dm.table(&zero.0).unwrap().unwrap();
    assert_eq!(
        (lines.len(), lines[0].length, lines[0].kind.as_str()),
        (1, 2048, "zero")
    );
    let mut bytes = [1; 4096];
    File::open(node(&zero.0))
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    assert_eq!(bytes, [0; 4096]);

    dm.suspend(&zero.0).unwrap();
    assert!(dm.find(&zero.0).unwrap().unwrap().suspended);
    assert!(!dm.resume(&zero.0).unwrap().suspended);

    dm.remove(&zero.0).unwrap();
    assert_eq!(dm.find(&zero.0).unwrap(), None);
    assert!(!node(&zero.0).exists());
    // Again without harm.
    dm.remove(&zero.0).unwrap();
    assert_eq!(dm.status(&zero.0).unwrap(), None);
}

#[test]
fn a_dm_device_that_is_open_is_removed_once_it_is_closed() {
    let Some(dm) = device_mapper(&["zero"]) else {
        return;
    };
    let zero = name("open");
    dm.create(&zero.0, "", false).unwrap();
    dm.load(
        &zero.0,
        &[Target {
            start: 0,
            length: 2048,
            kind: "zero",
            parameters: "",
        }],
        false,
    )
    .unwrap();
    dm.resume(&zero.0).unwrap();
    let held = File::open(node(&zero.0)).unwrap();
    assert_eq!(dm.find(&zero.0).unwrap().unwrap().open_count, 1);
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
    });
    dm.remove(&zero.0).unwrap();
    closer.join().unwrap();
}

#[test]
fn a_dm_snapshot_keeps_what_is_written_across_its_removal_and_the_origin_as_it_was() {
    let Some(dm) = device_mapper(&["linear", "zero", "snapshot"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (image, cow) = (dir.path().join("image"), dir.path().join("cow"));
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    File::create_new(&cow).unwrap().set_len(4 << 20).unwrap();
    let (snapshot, base) = (name("snapshot"), name("base"));
    let (image_loop, cow_loop) = (name("image-loop"), name("cow-loop"));
    for round in 0..2 {
        let below = loopdev::attach(&image, &image_loop.0, loopdev::Access::ReadOnly).unwrap();
        let above = loopdev::attach(&cow, &cow_loop.0, loopdev::Access::Direct).unwrap();
        dm.create(&base.0, "", true).unwrap();
        let linear = format!("{} 0", below.path().display());
        let table = [
            Target {
                start: 0,
                length: 2048,
                kind: "linear",
                parameters: &linear,
            },
            // Larger than the image, as a disk is that has grown.
            Target {
                start: 2048,
                length: 2048,
                kind: "zero",
                parameters: "",
            },
        ];
        dm.load(&base.0, &table, true).unwrap();
        let origin = dm.resume(&base.0).unwrap();
        dm.create(&snapshot.0, "", false).unwrap();
        let parameters = format!(
            "{}:{} {} P 8",
            origin.number.0,
            origin.number.1,
            above.path().display()
        );
        let table = [Target {
            start: 0,
            length: 4096,
            kind: "snapshot",
            parameters: &parameters,
        }];
        dm.load(&snapshot.0, &table, false).unwrap();
        dm.resume(&snapshot.0).unwrap();

        let device = File::options()
            .read(true)
            .write(true)
            .open(node(&snapshot.0))
            .unwrap();
        let mut bytes = [0; 16];
        device.read_exact_at(&mut bytes, 0).unwrap();
        if round == 0 {
            assert_eq!(bytes, [7; 16]);
            device.write_all_at(b"changed by guest", 0).unwrap();
            device
                .write_all_at(b"beyond the image", (1 << 20) + 4096)
                .unwrap();
            device.sync_all().unwrap();
        } else {
            assert_eq!(&bytes, b"changed by guest");
            device.read_exact_at(&mut bytes, (1 << 20) + 4096).unwrap();
            assert_eq!(&bytes, b"beyond the image");
        }
        drop(device);
        let status = dm.status(&snapshot.0).unwrap().unwrap();
        match Snapshot::parse(&status[0].text) {
            Some(Snapshot::Valid { used, total }) => assert!(0 < used && used < total && total == 8192),
            other => panic!("{other:?} of {status:?}"),
        }
        dm.remove(&snapshot.0).unwrap();
        dm.remove(&base.0).unwrap();
        loopdev::detach(&cow_loop.0).unwrap();
        loopdev::detach(&image_loop.0).unwrap();
    }
    assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 7));
}
