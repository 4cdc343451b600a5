//! A small file system with bytes of it changed: everything in it is walked and read, and some of it looked up.
#![no_main]

use std::sync::LazyLock;

use hostkit::ext4::reader::{Last, Reader};
use hostkit::rootfs_tar::{Kind, Limits};
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<[Vec<u8>; 2]> =
    LazyLock::new(|| ["ext4-old.img", "ext4-new.img"].map(banger_fuzz::base));

fuzz_target!(|input: &[u8]| {
    let Some((which, input)) = input.split_first() else {
        return;
    };
    let mut image = BASES[usize::from(which % 2)].clone();
    banger_fuzz::change(&mut image, input);
    // The one checksum that is checked.
    let sum = banger_fuzz::crc32(0x82f6_3b78, u32::MAX, &image[1024..1024 + 0x3fc]);
    image[1024 + 0x3fc..2048].copy_from_slice(&sum.to_le_bytes());
    let path = banger_fuzz::scratch().join("image");
    drop(banger_fuzz::file(&path, &image));
    let Ok(reader) = Reader::open(&path) else {
        return;
    };
    for path in [&b"d/f"[..], b"s", b"d/../s/../long"] {
        drop(reader.lookup(path, Last::Follow));
    }
    let Ok(Some(top)) = reader.lookup(b"", Last::Keep) else {
        return;
    };
    let limits = Limits {
        entries: 500,
        bytes: 1 << 20,
        ..Limits::default()
    };
    let mut count = 0;
    for entry in reader.walk(top, &limits) {
        let Ok(entry) = entry else {
            return;
        };
        count += 1;
        assert!(count <= limits.entries + 1);
        if !matches!(entry.node.kind, Kind::File { .. }) {
            continue;
        }
        let Ok(contents) = reader.contents(&entry) else {
            continue;
        };
        let mut end = 0;
        for range in contents.data() {
            assert!(range.start >= end && range.start < range.end && range.end <= contents.size());
            end = range.end;
            let mut buffer = [0; 4096];
            drop(contents.read_at(&mut buffer, range.start));
        }
    }
});
