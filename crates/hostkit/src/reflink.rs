//! Files that share their blocks until one of them is written: `FICLONE` (ioctl_ficlone(2)), which XFS, btrfs and
//! bcachefs know. Such a copy takes the same time for any size, and no space.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
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
    let (mut from, to) = match (tempfile_in(directory), tempfile_in(directory)) {
        (Ok(from), Ok(to)) => (from, to),
        // Those that share blocks all know files without names.
        (Err(error), _) | (_, Err(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Ok(false);
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    // Something to share, of a whole block: some file systems clone nothing at all without being asked.
    from.write_all(&[1; 4096])?;
    tried(&from, &to)
}

/// Whether files in this directory can share the blocks of `from`, which may be on another file system. Tried out with a file
/// that never has a name.
pub fn probe_from(from: &File, directory: &Path) -> io::Result<bool> {
    match tempfile_in(directory) {
        Ok(to) => tried(from, &to),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

fn tried(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        // What a file system without it answers is not settled: ioctl_ficlone(2) lists several.
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::PERM) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Bytes that a file takes by itself, those that it shares with others left out: what its removal would give back. Asks for
/// the file's extents (`FS_IOC_FIEMAP`, the kernel's `Documentation/filesystems/fiemap.rst`); the error is `EOPNOTSUPP`
/// where a file system does not know them, and `EOVERFLOW` where there are more than 4096 in the file: they take the kernel
/// time each.
pub fn own_bytes(file: &File) -> io::Result<u64> {
    let mut map = FileMap {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped: 0,
        count: EXTENTS,
        reserved: 0,
        extents: [NO_EXTENT; EXTENTS as usize],
    };
    let mut own = 0;
    for _ in 0..ASKED {
        // SAFETY: `map` is a whole `struct fiemap` with as many extents behind it as it says.
        let outcome = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
        if outcome < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = map.extents.get(..map.mapped as usize).unwrap_or_default();
        let alone = mapped.iter().filter(|extent| extent.flags & EXTENT_SHARED == 0);
        own += alone.map(|extent| extent.length).sum::<u64>();
        match mapped.last() {
            Some(last) if last.flags & EXTENT_LAST == 0 && last.length > 0 => {
                map.start = last.logical + last.length;
            }
            Some(_) | None => return Ok(own),
        }
        map.length = u64::MAX - map.start;
    }
    Err(Errno::OVERFLOW.into())
}

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const EXTENT_LAST: u32 = 0x1;
const EXTENT_SHARED: u32 = 0x2000;
/// Extents asked for at once.
const EXTENTS: u32 = 256;
/// How often at most.
const ASKED: u32 = 4096 / EXTENTS;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const NO_EXTENT: Extent = Extent {
    logical: 0,
    physical: 0,
    length: 0,
    reserved64: [0; 2],
    flags: 0,
    reserved: [0; 3],
};

/// `struct fiemap`.
#[repr(C)]
struct FileMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS as usize],
}

const _: () = assert!(size_of::<Extent>() == 56 && size_of::<FileMap>() == 32 + 256 * 56);

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

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::FileExt;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_file_that_shares_nothing_is_all_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create_new(dir.path().join("file")).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all(&[7; MIB]).unwrap();
        file.sync_all().unwrap();
        match own_bytes(&file) {
            Ok(own) => assert_eq!(own, file.metadata().unwrap().blocks() * 512),
            // A tmpfs, say.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
        }
    }

    /// What the test of that name is about, run by itself in a mount namespace of its own with a file system of that kind.
    pub(crate) fn in_a_file_system(kind: &str, test: &str, about: impl FnOnce(&Path)) {
        const PLACE: &str = "HOSTKIT_TEST_REFLINK";
        if let Some(place) = std::env::var_os(PLACE) {
            return about(Path::new(&place));
        }
        if !testkit::is_root() || testkit::program("MKFS", &format!("mkfs.{kind}")).is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, place) = (dir.path().join("image"), dir.path().join("place"));
        File::create_new(&image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(&place).unwrap();
        let made = Command::new(format!("mkfs.{kind}"))
            .arg("-q")
            .arg(&image)
            .status();
        assert!(made.unwrap().success());
        // The mount, and the loop device under it, end with the namespace.
        let script = r#"mount -t "$1" -o loop "$2" "$3" || exit 77; exec "$4" --exact "$5" --nocapture"#;
        let ran = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh", kind])
            .args([&image, &place])
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env(PLACE, &place)
            .status()
            .unwrap();
        match ran.code() {
            Some(77) => drop(testkit::skip::<()>(&format!("this kernel does not mount {kind}"))),
            code => assert_eq!(code, Some(0)),
        }
    }

    fn shares(place: &Path) {
        assert!(probe(place).unwrap());
        let mut from = File::create_new(place.join("from")).unwrap();
        let to = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(place.join("to"))
            .unwrap();
        from.write_all(&vec![7; 8 * MIB]).unwrap();
        clone(&from, &to).unwrap();
        to.set_len(64 << 20).unwrap();
        assert_eq!(own_bytes(&to).unwrap(), 0);
        to.write_all_at(&[8; MIB], 0).unwrap();
        to.sync_all().unwrap();
        assert_eq!(own_bytes(&to).unwrap(), MIB as u64);
        let mut bytes = [0; 16];
        from.sync_all().unwrap();
        File::open(place.join("from"))
            .unwrap()
            .read_exact_at(&mut bytes, 0)
            .unwrap();
        assert_eq!(bytes, [7; 16]);
        to.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [8; 16]);
        to.read_exact_at(&mut bytes, 4 * MIB as u64).unwrap();
        assert_eq!(bytes, [7; 16]);
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
    }

    #[test]
    fn xfs_shares_blocks() {
        in_a_file_system("xfs", "reflink::tests::xfs_shares_blocks", shares);
    }

    #[test]
    fn btrfs_shares_blocks() {
        in_a_file_system("btrfs", "reflink::tests::btrfs_shares_blocks", shares);
    }

    #[test]
    fn a_file_system_without_it_is_no_error() {
        // Of the kernel's own, and never with shared blocks.
        if Path::new("/dev/shm").is_dir() {
            assert!(!probe(Path::new("/dev/shm")).unwrap());
        }
        assert!(probe(Path::new("/no/such/place")).is_err());
    }
}
