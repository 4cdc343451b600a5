//! Copying large files: sharing their blocks where the file system can, else skipping their holes.
//!
//! A copy by `FICLONE` (ioctl_ficlone(2): btrfs, XFS, bcachefs) takes no time and no space. Otherwise only what is
//! allocated is read and written, so that an image of which a tenth is used is copied in a tenth of the time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};

const PIECE: usize = 1 << 20;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The two files share their blocks.
    Shared,
    /// So many bytes were copied; the rest are holes.
    Bytes(u64),
}

/// Copies all of `from` into the empty file `to`. `watch` is called with the bytes copied so far about once a megabyte;
/// its error ends the copying, which is how a caller cancels.
pub fn copy(from: &File, to: &File, mut watch: impl FnMut(u64) -> io::Result<()>) -> io::Result<Copied> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Copied::Shared);
    }
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut buffer = vec![0; PIECE];
    let (mut at, mut copied) = (0, 0);
    while let Some((start, end)) = next_data(from, at, len)? {
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..want).unwrap_or_default();
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at)?;
            at += want as u64;
            copied += want as u64;
            watch(copied)?;
        }
    }
    Ok(Copied::Bytes(copied))
}

/// Copies `length` bytes of `from`, from `start` on, to the beginning of the empty file `to`, and leaves its holes out. `watch`
/// as for [`copy`]. Returns the bytes that were copied.
pub fn copy_part(
    from: &File,
    start: u64,
    length: u64,
    to: &File,
    mut watch: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<u64> {
    let end = start
        .checked_add(length)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    to.set_len(length)?;
    let mut buffer = vec![0; PIECE];
    let (mut at, mut copied) = (start, 0);
    while let Some((data, hole)) = next_data(from, at, end)? {
        at = data;
        while at < hole {
            let want = usize::try_from(hole - at).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..want).unwrap_or_default();
            from.read_exact_at(piece, at)?;
            to.write_all_at(piece, at - start)?;
            at += want as u64;
            copied += want as u64;
            watch(copied)?;
        }
    }
    Ok(copied)
}

/// The next run of allocated bytes at or after `at`.
pub(crate) fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // Nothing but a hole is left.
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A file system that knows of no holes.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((at, len))),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    // It may have grown since its length was asked for.
    Ok((start < len).then_some((start, end.min(len))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_part_arrives_alone() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"before", (1 << 20) - 6).unwrap();
        from.write_all_at(&[7; 4096], 5 << 20).unwrap();
        from.write_all_at(b"endafter", (9 << 20) - 3).unwrap();
        copy_part(&from, 1 << 20, 8 << 20, &to, |_| Ok(())).unwrap();
        let (mut a, mut b) = (vec![0; 8 << 20], vec![1; 8 << 20]);
        from.read_exact_at(&mut a, 1 << 20).unwrap();
        to.read_exact_at(&mut b, 0).unwrap();
        assert!(a == b);
        let found = to.metadata().unwrap();
        assert_eq!(found.len(), 8 << 20);
        assert!(found.blocks() * 512 < 1 << 20, "its holes are holes");
        copy_part(&from, u64::MAX, 2, &to, |_| Ok(())).unwrap_err();
    }

    #[test]
    fn data_and_holes_arrive_as_they_were() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(&[7; 3 << 20], 10 << 20).unwrap();
        from.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let copied = copy(&from, &to, |_| Ok(())).unwrap();
        let (mut a, mut b) = (vec![0; 64 << 20], vec![1; 64 << 20]);
        from.read_exact_at(&mut a, 0).unwrap();
        to.read_exact_at(&mut b, 0).unwrap();
        assert!(a == b);
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        if let Copied::Bytes(bytes) = copied {
            assert!(
                bytes < 32 << 20 || from.metadata().unwrap().blocks() * 512 > 60 << 20,
                "{bytes}"
            );
        }
    }

    #[test]
    fn nothing_and_only_holes_are_copied_too() {
        for len in [0, 5 << 20] {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            from.set_len(len).unwrap();
            copy(&from, &to, |_| Ok(())).unwrap();
            assert_eq!(to.metadata().unwrap().len(), len);
        }
    }

    #[test]
    fn watching_can_stop_it() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&[7; 3 << 20], 0).unwrap();
        let result = copy(&from, &to, |_| Err(io::Error::other("stop")));
        assert!(matches!(result, Err(_) | Ok(Copied::Shared)));
    }
}
