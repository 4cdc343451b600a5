//! A tree made on the disk, as far as its user may, so that everything about it can be looked at with the kernel's eyes.

use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};

use super::*;
use crate::rootfs_tar::spool::BLOCK;

/// Makes `dir`. Pipes stand for devices.
pub(super) fn lay_out(tree: &Tree, dir: &Path) {
    let place = |path: &[u8]| dir.join(OsStr::from_bytes(path));
    for (path, node, stored) in tree.iter_stored() {
        let place = if path.is_empty() {
            dir.to_owned()
        } else {
            place(path)
        };
        match &node.kind {
            Kind::Directory => fs::create_dir(&place).unwrap(),
            Kind::File { size, .. } => {
                let file = fs::File::create_new(&place).unwrap();
                file.set_len(*size).unwrap();
                let mut from = stored.at * BLOCK;
                for run in &stored.runs {
                    let (start, len) = (u64::from(run.first) * BLOCK, u64::from(run.count) * BLOCK);
                    let mut bytes = vec![0; usize::try_from(len).unwrap()];
                    let spool = tree.contents().file().unwrap();
                    spool.read_exact_at(&mut bytes, from).unwrap();
                    let kept = usize::try_from(len.min(size - start)).unwrap();
                    assert!(bytes[kept..].iter().all(|byte| *byte == 0), "after the end");
                    file.write_all_at(&bytes[..kept], start).unwrap();
                    from += len;
                }
                let whole = tree.read(path, usize::MAX).unwrap().unwrap();
                assert!(fs::read(&place).unwrap() == whole);
            }
            Kind::Symlink { target } => symlink(OsStr::from_bytes(target), &place).unwrap(),
            // Their first names may come later.
            Kind::Link { .. } => continue,
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                rustix::fs::mkfifoat(CWD, &place, Mode::RUSR | Mode::WUSR).unwrap();
            }
        }
    }
    for (path, node) in tree.iter() {
        if let Kind::Link { to } = &node.kind {
            fs::hard_link(place(to), place(path)).unwrap();
        }
    }
    let paths: Vec<_> = tree.iter().collect();
    for (path, node) in paths.into_iter().rev() {
        let time = Timespec {
            tv_sec: i64::try_from(node.mtime).unwrap(),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        if !matches!(node.kind, Kind::Link { .. }) {
            let place = if path.is_empty() {
                dir.to_owned()
            } else {
                place(path)
            };
            rustix::fs::utimensat(CWD, &place, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }
}
