//! Files that share their blocks until one of them is written: `FICLONE` (ioctl_ficlone(2)), which XFS, btrfs and
//! bcachefs know. Such a copy takes the same time for any size, and no space.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::io::Errno;

/// Makes `to` share all of `from`'s blocks; both on one file system. `to` keeps its name and owner, and gets `from`'s
/// length when it was shorter. Waits until what `from` has in the page cache is written back.
pub fn clone(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Whether files in this directory can share blocks. Tried out with two files that never have a name, since what a file
/// system can do depends on how it was made (XFS: `reflink=1`) and how it is mounted.
pub fn probe(directory: &Path) -> io::Result<bool> {
    let (mut from, to) = (tempfile_in(directory)?, tempfile_in(directory)?);
    // Something to share, of a whole block: some file systems clone nothing at all without being asked.
    from.write_all(&[1; 4096])?;
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => Ok(true),
        // What a file system without it answers is not settled: ioctl_ficlone(2) lists several.
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::PERM) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// A file without a name (`O_TMPFILE`, open(2)): gone with its descriptor, whatever happens.
fn tempfile_in(directory: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(openat(
        CWD,
        directory,
        flags,
        Mode::RUSR | Mode::WUSR,
    )?))
}
