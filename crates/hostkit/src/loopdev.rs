//! Loop devices: files as block devices (loop(4), `linux/loop.h`). Needs root.
//!
//! Who attached a device is told by its *mark*, the name that the kernel keeps with it (`lo_file_name`): a file may be
//! attached any number of times, by others too, so its path does not say which device is whose. Files are looked up by
//! path only for those who want to know what is attached at all ([`list`]).

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `linux/loop.h`.
const LOOP_CLR_FD: c_ulong = 0x4c01;
const LOOP_GET_STATUS64: c_ulong = 0x4c05;
const LOOP_SET_CAPACITY: c_ulong = 0x4c07;
const LOOP_CONFIGURE: c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: c_ulong = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Longest mark in bytes: `LO_NAME_SIZE` without the terminating zero.
pub const MARK: usize = 63;
/// Others take free devices as well; after so many lost races something else is wrong.
const RACES: usize = 64;
/// How long a detached device may be held open by others, such as udev's probing, before it is given up on.
const RELEASE: Duration = Duration::from_secs(5);

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

const NO_INFO: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    sizelimit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// How a file is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading, through the page cache, which all who read the file share.
    ReadOnly,
    /// For reading and writing, past the page cache where the file's file system can, so that nothing is cached twice
    /// and a flush has little to do.
    Direct,
}

/// An attached loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// N of `/dev/loopN`.
    pub number: u32,
    /// Who attached it. Empty or a path for most others.
    pub mark: String,
    /// The file, as the kernel shows it; ` (deleted)` is appended to one that is gone.
    pub backing: PathBuf,
}

impl Attached {
    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        node(self.number)
    }
}

fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Why a loop device could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// Too long, or with a zero byte.
    #[error("invalid mark {mark:?} of a loop device: at most {MARK} bytes, none of them zero")]
    Mark {
        /// As given.
        mark: String,
    },
    /// A file or device could not be opened.
    #[error("failed to open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("failed to {action} {}", path.display())]
    Refused {
        /// `attach`, `detach`, `resize`.
        action: &'static str,
        /// The file or device.
        path: PathBuf,
        /// Its word.
        source: io::Error,
    },
    /// It was detached, but somebody holds it open.
    #[error("{} is held open by others", path.display())]
    Held {
        /// The device.
        path: PathBuf,
    },
}

/// Attaches `file` to a free loop device under `mark`.
pub fn attach(file: &Path, mark: &str, access: Access) -> Result<Attached, LoopError> {
    let config = Config {
        fd: 0,
        block_size: 0,
        info: Info {
            flags: match access {
                Access::ReadOnly => LO_FLAGS_READ_ONLY,
                Access::Direct => LO_FLAGS_DIRECT_IO,
            },
            file_name: encode(mark)?,
            ..NO_INFO
        },
        reserved: [0; 8],
    };
    let write = access == Access::Direct;
    let backing = open(file, write)?;
    let control = open(Path::new("/dev/loop-control"), true)?;
    let refused = |source| LoopError::Refused {
        action: "attach",
        path: file.to_owned(),
        source,
    };
    for _ in 0..RACES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = u32::try_from(number).map_err(|_| refused(io::Error::last_os_error()))?;
        let device = open(&node(number), write)?;
        let config = Config {
            fd: backing.as_raw_fd().cast_unsigned(),
            ..config
        };
        // SAFETY: `config` is a whole `struct loop_config` that the kernel only reads, and `backing` is open.
        let outcome = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match result(outcome) {
            Ok(()) => {
                return Ok(Attached {
                    number,
                    mark: mark.to_owned(),
                    backing: file.to_owned(),
                });
            }
            // Somebody was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(refused(error)),
        }
    }
    Err(refused(io::Error::from_raw_os_error(libc::EBUSY)))
}

/// Tells the kernel that the device's file has grown.
pub fn resized(device: &Attached) -> Result<(), LoopError> {
    let path = device.path();
    let file = open(&path, true)?;
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_SET_CAPACITY) };
    result(outcome).map_err(|source| LoopError::Refused {
        action: "resize",
        path,
        source,
    })
}

/// Detaches every device of that mark and waits until none is left. None at all is fine. A device that is mounted or
/// under another is detached by the kernel when that has gone; it is an error when that takes longer than five seconds.
/// Blocks.
pub fn detach(mark: &str) -> Result<(), LoopError> {
    let end = Instant::now() + RELEASE;
    loop {
        let left: Vec<Attached> = list().into_iter().filter(|d| d.mark == mark).collect();
        let Some(first) = left.first() else {
            return Ok(());
        };
        for device in &left {
            clear(device)?;
        }
        if Instant::now() > end {
            return Err(LoopError::Held { path: first.path() });
        }
        // The kernel has no event for the last close of a device; in most cases there is nothing to wait for.
        if list().iter().any(|d| d.mark == mark) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn clear(device: &Attached) -> Result<(), LoopError> {
    let path = device.path();
    let file = open(&path, false)?;
    // Between the listing and here it may have become another's.
    if status(file.as_raw_fd()).is_none_or(|info| decode(&info.file_name) != device.mark) {
        return Ok(());
    }
    // SAFETY: LOOP_CLR_FD takes no argument.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD) };
    match result(outcome) {
        Ok(()) => Ok(()),
        // Detached by itself meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        Err(source) => Err(LoopError::Refused {
            action: "detach",
            path,
            source,
        }),
    }
}

/// All attached loop devices of this host that we may look at. Without root none can be opened, and their marks are
/// empty.
#[must_use]
pub fn list() -> Vec<Attached> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let mut found: Vec<Attached> = entries
        .flatten()
        .filter_map(|entry| {
            let number = number_of(entry.file_name().to_str()?)?;
            // There only while something is attached.
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let mark = open(&node(number), false)
                .ok()
                .and_then(|file| status(file.as_raw_fd()))
                .map(|info| decode(&info.file_name));
            Some(Attached {
                number,
                mark: mark.unwrap_or_default(),
                backing: PathBuf::from(backing.trim_end_matches('\n')),
            })
        })
        .collect();
    found.sort_by_key(|device| device.number);
    found
}

fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("loop")?.parse().ok()
}

fn status(fd: RawFd) -> Option<Info> {
    let mut info = NO_INFO;
    // SAFETY: `info` is a whole `struct loop_info64`, which the kernel fills.
    let outcome = unsafe { libc::ioctl(fd, LOOP_GET_STATUS64, &raw mut info) };
    result(outcome).ok().map(|()| info)
}

fn result(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn open(path: &Path, write: bool) -> Result<File, LoopError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|source| LoopError::Open {
            path: path.to_owned(),
            source,
        })
}

fn encode(mark: &str) -> Result<[u8; 64], LoopError> {
    if mark.is_empty() || mark.len() > MARK || mark.contains('\0') {
        return Err(LoopError::Mark {
            mark: mark.to_owned(),
        });
    }
    let mut name = [0; 64];
    name[..mark.len()].copy_from_slice(mark.as_bytes());
    Ok(name)
}

fn decode(name: &[u8; 64]) -> String {
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..length]).into_owned()
}

#[cfg(test)]
#[path = "loopdev_tests.rs"]
mod tests;
