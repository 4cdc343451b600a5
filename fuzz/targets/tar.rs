//! A plain archive, unpacked: the bounds hold, the names are a tree, and nothing is written elsewhere.
#![no_main]

use std::fs;

use hostkit::rootfs_tar::{Kind, Limits, unpack};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|archive: &[u8]| {
    let limits = Limits {
        entries: 200,
        bytes: 1 << 20,
        ratio: 100,
        ratio_floor: 1 << 20,
    };
    let around = banger_fuzz::scratch();
    let directory = around.join("unpacked");
    fs::create_dir(&directory).expect("an empty directory");
    let tree = unpack(archive, &directory, &limits, |_| Ok(()));
    if let Ok(tree) = &tree {
        assert!(tree.bytes() <= limits.bytes);
        for (path, node) in tree.iter() {
            assert!(!path.starts_with(b"/"));
            let sound = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
            assert!(path.is_empty() || path.split(|byte| *byte == b'/').all(sound));
            if let Some(slash) = path.iter().rposition(|byte| *byte == b'/') {
                let above = tree.get(&path[..slash]).expect("a directory above");
                assert_eq!(above.kind, Kind::Directory);
            }
            if let Kind::Link { to } = &node.kind {
                assert!(matches!(
                    tree.get(to).expect("what is linked").kind,
                    Kind::File { .. }
                ));
            }
            tree.read(path, 4096).expect("contents");
        }
    }
    drop(tree);
    assert_eq!(fs::read_dir(&around).expect("the scratch directory").count(), 1);
});
