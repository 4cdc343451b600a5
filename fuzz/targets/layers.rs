//! Two layers, the second on the first, with whiteouts. The first two bytes say how long the first is, in records.
#![no_main]

use std::fs;

use hostkit::rootfs_tar::{Kind, Layers, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(([records, by_hand], input)) = input.split_first_chunk() else {
        return;
    };
    let at = (usize::from(*records) * 512).min(input.len());
    let (first, second) = input.split_at(at);
    let limits = Limits {
        entries: 200,
        bytes: 1 << 20,
        ratio: 100,
        ratio_floor: 1 << 20,
    };
    let around = banger_fuzz::scratch();
    let directory = around.join("unpacked");
    fs::create_dir(&directory).expect("an empty directory");
    let mut layers = Layers::new(&directory, &limits);
    let packed = u64::from(*by_hand) * 16;
    let applied = layers
        .apply(first, packed, |_| Ok(()))
        .and_then(|_| layers.apply(second, packed, |_| Ok(())));
    if applied.is_ok()
        && let Ok(tree) = layers.finish()
    {
        for (path, node) in tree.iter() {
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            assert!(!name.starts_with(b".wh."), "a whiteout is no file");
            if let Some(slash) = path.iter().rposition(|byte| *byte == b'/') {
                let above = tree.get(&path[..slash]).expect("a directory above");
                assert_eq!(above.kind, Kind::Directory);
            }
            if let Kind::File { size, .. } = node.kind {
                let read = tree.read(path, 1 << 20).expect("contents").expect("a file");
                assert_eq!(read.len() as u64, size);
            }
        }
    }
    assert_eq!(fs::read_dir(&around).expect("the scratch directory").count(), 1);
});
