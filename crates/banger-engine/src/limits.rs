//! What a machine's settings may be: the same when it is created and when it is changed.

use std::collections::BTreeMap;

use crate::error::{Error, io};
use crate::host::Host;
use crate::image::{initramfs, kernel_files};

/// Memory a machine has at least, whatever its kernel; see [`boot_memory`] for what that needs.
pub(crate) const MEMORY_MINIMUM: u64 = 64 << 20;
/// Firecracker's limit, kept for all so that a machine can move between VMMs.
pub(crate) const VCPUS_MAXIMUM: u32 = 32;
/// A disk holds at least a small file system.
pub(crate) const DISK_MINIMUM: u64 = 16 << 20;
/// ext4's limit with 4 KiB blocks.
pub(crate) const DISK_MAXIMUM: u64 = 16 << 40;
/// Labels of one machine.
const LABELS_MAXIMUM: usize = 64;

/// A number of virtual processors.
pub(crate) fn vcpus(vcpus: u32) -> Result<(), Error> {
    let shown = |n: &u64| n.to_string();
    in_range("vcpus", vcpus.into(), 1, VCPUS_MAXIMUM.into(), &shown)
}

/// Memory in bytes, within what the host has; gives it in MiB.
pub(crate) fn memory(memory: u64, host: u64) -> Result<u32, Error> {
    if memory > host {
        return Err(Error::OutOfRange {
            field: "memory",
            value: bytes(&memory),
            problem: format!("above the {} that this host has", bytes(&host)),
        });
    }
    in_range("memory", memory, MEMORY_MINIMUM, host, &bytes)?;
    Ok(u32::try_from(memory >> 20).unwrap_or(u32::MAX))
}

/// Memory in bytes that a kernel needs to come up with its initramfs. What is missing of either counts for nothing: a start
/// says so.
pub(crate) fn boot_memory(host: &Host, kernel: &str) -> u64 {
    let files = kernel_files(&host.settings.state_dir, kernel);
    let image = std::fs::metadata(files.vmlinux()).map_or(0, |found| found.len());
    let agent = host.assets.agent();
    let initramfs = agent.map_or(0, |agent| initramfs::size_limit(&agent, &files));
    banger_vmm::least_memory(image, initramfs)
}

/// Whether a machine with that much memory holds its kernel, which needs `needed`; both in bytes.
pub(crate) fn boots(memory: u64, kernel: &str, needed: u64) -> Result<(), Error> {
    if memory >= needed {
        return Ok(());
    }
    Err(Error::Contradiction {
        problem: format!(
            "memory of {} does not hold kernel {kernel:?} and its initramfs",
            bytes(&memory)
        ),
        hint: format!("give it {} or more: --memory {}M", bytes(&needed), needed >> 20),
    })
}

/// The size of a disk in bytes; gives it in whole blocks.
pub(crate) fn disk(field: &'static str, size: u64) -> Result<u64, Error> {
    in_range(field, size, DISK_MINIMUM, DISK_MAXIMUM, &bytes)?;
    Ok(size & !4095)
}

/// The size of a work disk, where 0 is none.
pub(crate) fn work_disk(size: u64) -> Result<u64, Error> {
    match size {
        0 => Ok(0),
        size => disk("work_disk", size),
    }
}

/// How many labels there are; each is [`name::label`](crate::name::label)'s to judge.
pub(crate) fn labels(labels: &BTreeMap<String, String>) -> Result<(), Error> {
    let count = u64::try_from(labels.len()).unwrap_or(u64::MAX);
    let most = u64::try_from(LABELS_MAXIMUM).unwrap_or(u64::MAX);
    in_range("labels", count, 0, most, &|n: &u64| n.to_string())
}

fn in_range(
    field: &'static str,
    value: u64,
    least: u64,
    most: u64,
    shown: &dyn Fn(&u64) -> String,
) -> Result<(), Error> {
    let problem = if value < least {
        format!("below the minimum of {}", shown(&least))
    } else if value > most {
        format!("above the maximum of {}", shown(&most))
    } else {
        return Ok(());
    };
    Err(Error::OutOfRange {
        field,
        value: shown(&value),
        problem,
    })
}

/// Bytes for people, in the form of the command line's tables: `512MiB`, `1.5GiB`, `370MiB`; rounded down.
pub(crate) fn bytes(value: &u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if *value >= 1 << shift {
            let whole = value >> shift;
            let tenth = ((value - (whole << shift)) * 10) >> shift;
            // Three digits say enough without a decimal.
            return if tenth == 0 || whole >= 100 {
                format!("{whole}{unit}")
            } else {
                format!("{whole}.{tenth}{unit}")
            };
        }
    }
    format!("{value}B")
}

/// All of the host's memory in bytes (`MemTotal`, proc_meminfo(5)).
pub(crate) fn host_memory() -> Result<u64, Error> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).map_err(io("read", path))?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|n| n.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::Host {
        action: "read the host's memory",
        source: "no MemTotal in /proc/meminfo".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (value, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1 << 20, "1MiB"),
            (3 << 29, "1.5GiB"),
            ((123 << 20) + (900 << 10), "123MiB"),
            (4 << 40, "4TiB"),
        ] {
            assert_eq!(bytes(&value), expected);
        }
    }

    #[test]
    fn a_disk_is_whole_blocks_and_a_work_disk_may_be_none() {
        assert_eq!(disk("disk", DISK_MINIMUM + 1).unwrap(), DISK_MINIMUM);
        assert_eq!(work_disk(0).unwrap(), 0);
        assert!(work_disk(1).is_err() && disk("disk", 0).is_err());
        assert!(disk("disk", DISK_MAXIMUM + 1).is_err());
    }

    #[test]
    fn memory_holds_the_kernel() {
        assert!(boots(82 << 20, "debian", 82 << 20).is_ok());
        let report = boots(81 << 20, "debian", 82 << 20).unwrap_err().report();
        assert_eq!(report.kind, crate::error::Kind::InvalidArgument);
        assert!(report.message.contains("81MiB") && report.message.contains("\"debian\""));
        assert_eq!(report.hint.unwrap(), "give it 82MiB or more: --memory 82M");
    }

    #[test]
    fn memory_ends_with_the_hosts() {
        let host = host_memory().unwrap();
        assert_eq!(memory(64 << 20, host).unwrap(), 64);
        assert!(memory(host + (1 << 20), host).is_err());
        assert!(memory(4 << 40, host.min(3 << 40)).is_err());
    }
}
