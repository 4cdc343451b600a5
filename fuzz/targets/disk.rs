//! Images of disks with bytes of them changed: tables of partitions, and QEMU's own form.
#![no_main]

use std::sync::LazyLock;

use hostkit::{partitions, qcow2};
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<[Vec<u8>; 3]> =
    LazyLock::new(|| ["gpt.img", "mbr.img", "disk.qcow2"].map(banger_fuzz::base));

fuzz_target!(|input: &[u8]| {
    let Some((which, input)) = input.split_first() else {
        return;
    };
    let mut image = BASES[usize::from(which % 3)].clone();
    banger_fuzz::change(&mut image, input);
    if which % 3 == 0 {
        mend(&mut image);
    }
    let path = banger_fuzz::scratch().join("disk");
    let file = banger_fuzz::file(&path, &image);
    drop(qcow2::look(&path));
    let size = image.len() as u64;
    if let Ok(Some(table)) = partitions::read(&file, size) {
        let mut ranges: Vec<_> = table.partitions.iter().map(|p| (p.start, p.length)).collect();
        ranges.sort_unstable();
        let mut end = 0;
        for (start, length) in ranges {
            assert!(length > 0 && start >= end, "partitions overlap");
            end = start.checked_add(length).expect("an end");
        }
        assert!(end <= size, "a partition is beyond the disk");
    }
});

/// Makes the first header's checksums right: of the entries where they are said to be, then of itself.
fn mend(image: &mut [u8]) {
    let word = |image: &[u8], at: usize| {
        image
            .get(at..at + 4)
            .map(|b| [b[0], b[1], b[2], b[3]])
            .map(u32::from_le_bytes)
    };
    let crc = |bytes: &[u8]| !banger_fuzz::crc32(0xedb8_8320, u32::MAX, bytes);
    let of = |at: usize| word(image, 512 + at).unwrap_or_default() as usize;
    let (length, first, count, each) = (of(12), of(72), of(80), of(84));
    let entries = first
        .checked_mul(512)
        .and_then(|start| Some(start..start.checked_add(count.checked_mul(each)?)?));
    if let Some(sum) = entries.and_then(|range| image.get(range)).map(crc) {
        image[512 + 88..512 + 92].copy_from_slice(&sum.to_le_bytes());
    }
    image[512 + 16..512 + 20].fill(0);
    if let Some(sum) = image.get(512..512 + length.min(4096)).map(crc) {
        image[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
    }
}
