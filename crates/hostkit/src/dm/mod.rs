//! Device-mapper: block devices made of tables of targets (`linear`, `zero`, `snapshot` …). Needs root.
//!
//! ```text
//!   create(name)      a device without a table
//!   load(name, …)     gives it one that waits
//!   resume(name)      puts the waiting table to work; only now does the device have a size
//!   remove(name)      takes all of it down
//! ```
//!
//! Source: the kernel's `include/uapi/linux/dm-ioctl.h` and `Documentation/admin-guide/device-mapper`. This module speaks
//! to `/dev/mapper/control` itself: the requests are few, and `dmsetup` would be one more program to install. It makes the
//! nodes in `/dev/mapper` too, as `dmsetup` does where udev has no rules for them. `message` has the encodings.

mod message;

use std::ffi::c_ulong;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use message::{Header, flags};
pub use message::{Line, NAME, Target};
use rustix::io::Errno;

const CONTROL: &str = "/dev/mapper/control";
const NODES: &str = "/dev/mapper";
/// Answers longer than this are no answers: a host would have a hundred thousand devices.
const LONGEST: usize = 16 << 20;
/// How long a device may be held open by others, such as udev's probing, before its removal is given up.
const RELEASE: Duration = Duration::from_secs(5);

/// `_IOWR(0xfd, N, struct dm_ioctl)` with the header's 312 bytes.
const fn request(number: c_ulong) -> c_ulong {
    (3 << 30) | ((message::HEADER as c_ulong) << 16) | (0xfd << 8) | number
}

const DM_VERSION: c_ulong = request(0);
const DM_LIST_DEVICES: c_ulong = request(2);
const DM_DEV_CREATE: c_ulong = request(3);
const DM_DEV_REMOVE: c_ulong = request(4);
const DM_DEV_SUSPEND: c_ulong = request(6);
const DM_DEV_STATUS: c_ulong = request(7);
const DM_TABLE_LOAD: c_ulong = request(9);
const DM_TABLE_STATUS: c_ulong = request(12);
const DM_GET_TARGET_VERSION: c_ulong = request(17);

/// Why a device could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// There is no device mapper to talk to, or we may not.
    #[error("failed to open {CONTROL}")]
    Control {
        /// The kernel's word.
        source: io::Error,
    },
    /// A name, identifier or table that cannot be encoded.
    #[error("invalid {what} {value:?} of a device-mapper device")]
    Invalid {
        /// `name`, `uuid`, `target`.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// The kernel refused.
    #[error("failed to {action} the device-mapper device {name:?}")]
    Refused {
        /// `create`, `load a table into`, `resume`, `remove`, …
        action: &'static str,
        /// Which.
        name: String,
        /// Its word; a reason beyond that is in the kernel's log.
        source: io::Error,
    },
    /// The kernel's answer makes no sense.
    #[error("the kernel's answer about device-mapper devices is malformed")]
    Malformed,
    /// The node in `/dev/mapper` could not be made or removed.
    #[error("failed to {action} {}", path.display())]
    Node {
        /// `make`, `remove`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

impl DmError {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Control { source } | Self::Refused { source, .. } | Self::Node { source, .. } => {
                source.raw_os_error()
            }
            Self::Invalid { .. } | Self::Malformed => None,
        }
    }
}

/// A device as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its identifier; may be empty.
    pub uuid: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// How often it is open: by programs, by mounts, by devices above it.
    pub open_count: u32,
    /// Has a table at work.
    pub live: bool,
    /// Holds back its input and output.
    pub suspended: bool,
}

/// The device mapper.
#[derive(Debug)]
pub struct Dm {
    control: File,
}

impl Dm {
    /// Opens the control device, which loads the kernel's module where it is one.
    pub fn open() -> Result<Self, DmError> {
        let control = File::options()
            .read(true)
            .write(true)
            .open(CONTROL)
            .map_err(|source| DmError::Control { source })?;
        Ok(Self { control })
    }

    /// The interface's version: major 4 for as long as there has been one.
    pub fn version(&self) -> Result<[u32; 3], DmError> {
        let (header, _) = self.ask("ask the version of", DM_VERSION, Header::new("", "")?, &[])?;
        Ok(header.version)
    }

    /// Whether there is a target of that name; loads its module (`dm-NAME`) where it is one.
    pub fn has_target(&self, name: &str) -> Result<bool, DmError> {
        let asked = self.ask(
            "look for the target of",
            DM_GET_TARGET_VERSION,
            Header::new(name, "")?,
            &[],
        );
        match asked {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Some(libc::EINVAL) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes a device without a table. A name that is taken is an error (`EBUSY`).
    pub fn create(&self, name: &str, uuid: &str, read_only: bool) -> Result<Device, DmError> {
        let mut header = Header::new(name, uuid)?;
        header.flags = read_only_flag(read_only);
        let (header, _) = self.ask("create", DM_DEV_CREATE, header, &[])?;
        Ok(device(&header))
    }

    /// Gives a device a table, to be put to work by [`Self::resume`]. The table is without gaps from sector 0.
    pub fn load(&self, name: &str, table: &[Target<'_>], read_only: bool) -> Result<(), DmError> {
        let mut header = Header::new(name, "")?;
        header.flags = read_only_flag(read_only);
        header.target_count = u32::try_from(table.len()).map_err(|_| DmError::Malformed)?;
        let data = message::encode_table(table)?;
        self.ask("load a table into", DM_TABLE_LOAD, header, &data)
            .map(drop)
    }

    /// Puts the loaded table to work and lets input and output through; afterwards the device's node is in
    /// `/dev/mapper`.
    pub fn resume(&self, name: &str) -> Result<Device, DmError> {
        let (header, _) = self.ask("resume", DM_DEV_SUSPEND, Header::new(name, "")?, &[])?;
        let device = device(&header);
        make_node(&device)?;
        Ok(device)
    }

    /// Holds back input and output, once what is under way is done.
    pub fn suspend(&self, name: &str) -> Result<(), DmError> {
        let mut header = Header::new(name, "")?;
        header.flags = flags::SUSPEND;
        self.ask("suspend", DM_DEV_SUSPEND, header, &[]).map(drop)
    }

    /// A device, if there is one of that name.
    pub fn find(&self, name: &str) -> Result<Option<Device>, DmError> {
        match self.ask("look at", DM_DEV_STATUS, Header::new(name, "")?, &[]) {
            Ok((header, _)) => Ok(Some(device(&header))),
            Err(e) if e.errno() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What a device's targets say of themselves; `None` where there is no device of that name.
    pub fn status(&self, name: &str) -> Result<Option<Vec<Line>>, DmError> {
        self.lines(name, 0)
    }

    /// A device's table, as it was loaded; `None` where there is no device of that name.
    pub fn table(&self, name: &str) -> Result<Option<Vec<Line>>, DmError> {
        self.lines(name, flags::STATUS_TABLE)
    }

    fn lines(&self, name: &str, flags: u32) -> Result<Option<Vec<Line>>, DmError> {
        let mut header = Header::new(name, "")?;
        // Without the last a status first waits until what is under way is written.
        header.flags = flags | flags::NOFLUSH;
        match self.ask("ask the status of", DM_TABLE_STATUS, header, &[]) {
            Ok((header, data)) => message::decode_lines(&data, header.target_count).map(Some),
            Err(e) if e.errno() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Names of all devices of this host.
    pub fn list(&self) -> Result<Vec<String>, DmError> {
        let (_, data) = self.ask("list", DM_LIST_DEVICES, Header::new("", "")?, &[])?;
        message::decode_names(&data)
    }

    /// Takes down a device with its table and its node. One that is gone already is fine; one that others hold open is
    /// tried again for five seconds. Blocks.
    pub fn remove(&self, name: &str) -> Result<(), DmError> {
        let end = Instant::now() + RELEASE;
        loop {
            match self.ask("remove", DM_DEV_REMOVE, Header::new(name, "")?, &[]) {
                Ok(_) => break,
                Err(e) if e.errno() == Some(libc::ENXIO) => break,
                // The kernel has no event for the last close of a device.
                Err(e) if e.errno() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(e) => return Err(e),
            }
        }
        remove_node(name)
    }

    /// One request and its answer. The answer's space is doubled until it fits.
    fn ask(
        &self,
        action: &'static str,
        request: c_ulong,
        header: Header,
        data: &[u8],
    ) -> Result<(Header, Vec<u8>), DmError> {
        let mut room = 16 << 10;
        loop {
            let mut buffer = header.encode(data, room);
            // SAFETY: the buffer begins with a whole `struct dm_ioctl` whose `data_size` is the buffer's length, within
            // which the kernel reads and writes.
            let outcome = unsafe { libc::ioctl(self.control.as_raw_fd(), request, buffer.as_mut_ptr()) };
            if outcome < 0 {
                return Err(DmError::Refused {
                    action,
                    name: header.name,
                    source: io::Error::last_os_error(),
                });
            }
            let (answer, data) = Header::decode(&buffer)?;
            if answer.flags & flags::BUFFER_FULL == 0 {
                return Ok((answer, data));
            }
            room = buffer.len() * 2;
            if room > LONGEST {
                return Err(DmError::Malformed);
            }
        }
    }
}

fn read_only_flag(read_only: bool) -> u32 {
    if read_only { flags::READONLY } else { 0 }
}

fn device(header: &Header) -> Device {
    Device {
        name: header.name.clone(),
        uuid: header.uuid.clone(),
        number: (rustix::fs::major(header.dev), rustix::fs::minor(header.dev)),
        open_count: u32::try_from(header.open_count).unwrap_or(0),
        live: header.flags & flags::ACTIVE_PRESENT != 0,
        suspended: header.flags & flags::SUSPEND != 0,
    }
}

/// Where a device's node is.
#[must_use]
pub fn node(name: &str) -> PathBuf {
    Path::new(NODES).join(name)
}

/// Makes the node unless it is there: udev makes a link of that name where it has rules for it.
fn make_node(device: &Device) -> Result<(), DmError> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let path = node(&device.name);
    let number = makedev(device.number.0, device.number.1);
    let right = || {
        std::fs::metadata(&path)
            .is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == number)
    };
    // Once for a node of a device that is no more, once more for udev, which may be at it as well.
    for _ in 0..3 {
        if right() {
            return Ok(());
        }
        let made = mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, number);
        match made {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) if right() => return Ok(()),
            Err(Errno::EXIST) => remove_node(&device.name)?,
            Err(error) => {
                return Err(DmError::Node {
                    action: "make",
                    path,
                    source: error.into(),
                });
            }
        }
    }
    Err(DmError::Node {
        action: "make",
        path,
        source: io::Error::from(io::ErrorKind::AlreadyExists),
    })
}

fn remove_node(name: &str) -> Result<(), DmError> {
    let path = node(name);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DmError::Node {
            action: "remove",
            path,
            source,
        }),
    }
}

/// How full a snapshot's own device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// It works.
    Valid {
        /// 512-byte sectors taken, those for the snapshot's own records among them.
        used: u64,
        /// Sectors there are.
        total: u64,
    },
    /// Its device ran full or failed: what was in it is lost.
    Invalid,
    /// It ran full, and the kernel refuses to write to it from now on.
    Overflow,
}

impl Snapshot {
    /// From the status line of a `snapshot` target: `USED/TOTAL METADATA`, or a word
    /// (`Documentation/admin-guide/device-mapper/snapshot.rst`).
    #[must_use]
    pub fn parse(status: &str) -> Option<Self> {
        match status {
            "Invalid" | "Merge failed" => Some(Self::Invalid),
            "Overflow" => Some(Self::Overflow),
            _ => {
                let (used, total) = status.split_whitespace().next()?.split_once('/')?;
                Some(Self::Valid {
                    used: used.parse().ok()?,
                    total: total.parse().ok()?,
                })
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
