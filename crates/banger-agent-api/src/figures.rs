//! What a guest says of its load, its disks and its boot, checked and bounded: any of it may be a lie.

use crate::error::AgentError;
use crate::failure::printable;
use crate::proto;
use std::time::Duration;

/// File systems and network interfaces that are taken from one answer.
const MAX_FILE_SYSTEMS: usize = 64;
const MAX_INTERFACES: usize = 16;

/// Figures of a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestStats {
    /// Since its kernel started.
    pub uptime: Duration,
    /// Load averages over 1, 5 and 15 minutes; finite, not negative.
    pub load: [f64; 3],
    /// Processes, threads not counted.
    pub processes: u32,
    /// Bytes of memory, as its kernel sees it.
    pub memory_total: u64,
    /// Bytes that programs could still get; at most the total.
    pub memory_available: u64,
    /// Bytes of swap.
    pub swap_total: u64,
    /// Bytes of swap not in use; at most the total.
    pub swap_free: u64,
    /// Mounted file systems on the guest's disks, at most 64.
    pub file_systems: Vec<FileSystem>,
    /// There are more, or one does not answer and all are missing.
    pub file_systems_incomplete: bool,
    /// Network interfaces but the loopback, at most 16.
    pub interfaces: Vec<Interface>,
}

/// A mounted file system of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Where it is mounted; the guest's word, printable, at most 1 KiB.
    pub mount: String,
    /// Its kind, as `ext4`; the guest's word, printable.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Bytes in use; at most the size.
    pub used: u64,
    /// Bytes that users other than root can still write; at most the size.
    pub available: u64,
    /// Inodes; 0 where there is no limit.
    pub inodes: u64,
    /// Inodes not in use; at most all.
    pub inodes_free: u64,
    /// Mounted read-only.
    pub read_only: bool,
}

/// A network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name; the guest's word, printable.
    pub name: String,
    /// It is up and has a carrier.
    pub up: bool,
    /// Bytes since it was made.
    pub received: u64,
    /// Bytes since it was made.
    pub sent: u64,
}

/// A disk of a guest, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskRole {
    /// The machine's own part of the root file system.
    System,
    /// The user's home.
    Work,
}

/// Sizes after a disk has grown, in bytes; the guest's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSizes {
    /// The file system, which may be smaller than its device by up to one block group.
    pub file_system: u64,
    /// The device.
    pub device: u64,
}

/// How far a guest's init has come, in systemd's words (systemctl(1), `is-system-running`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BootState {
    /// Not told: an init other than systemd and the agent.
    Unknown,
    /// Services are still being started.
    Starting,
    /// Everything runs.
    Running,
    /// Everything has been started, and some of it has failed.
    Degraded,
    /// In the rescue or emergency shell.
    Maintenance,
    /// On the way down.
    Stopping,
}

impl From<DiskRole> for proto::DiskRole {
    fn from(role: DiskRole) -> Self {
        match role {
            DiskRole::System => Self::System,
            DiskRole::Work => Self::Work,
        }
    }
}

impl From<proto::BootState> for BootState {
    fn from(state: proto::BootState) -> Self {
        match state {
            proto::BootState::Unspecified => Self::Unknown,
            proto::BootState::Starting => Self::Starting,
            proto::BootState::Running => Self::Running,
            proto::BootState::Degraded => Self::Degraded,
            proto::BootState::Maintenance => Self::Maintenance,
            proto::BootState::Stopping => Self::Stopping,
        }
    }
}

impl TryFrom<proto::StatsReply> for GuestStats {
    type Error = AgentError;

    fn try_from(reply: proto::StatsReply) -> Result<Self, AgentError> {
        let load = [reply.load_1, reply.load_5, reply.load_15];
        if !load.iter().all(|load| load.is_finite() && *load >= 0.0) {
            return Err(AgentError::Protocol {
                method: "stats",
                what: "a load that is no number",
            });
        }
        let cut = reply.file_systems.len() > MAX_FILE_SYSTEMS;
        Ok(Self {
            uptime: Duration::from_millis(reply.uptime_ms),
            load,
            processes: reply.processes,
            memory_total: reply.memory_total,
            memory_available: reply.memory_available.min(reply.memory_total),
            swap_total: reply.swap_total,
            swap_free: reply.swap_free.min(reply.swap_total),
            file_systems: reply
                .file_systems
                .into_iter()
                .take(MAX_FILE_SYSTEMS)
                .map(file_system)
                .collect(),
            file_systems_incomplete: reply.file_systems_incomplete || cut,
            interfaces: reply
                .interfaces
                .into_iter()
                .take(MAX_INTERFACES)
                .map(interface)
                .collect(),
        })
    }
}

fn file_system(found: proto::FileSystem) -> FileSystem {
    let proto::FileSystem {
        mount,
        kind,
        size,
        used,
        available,
        inodes,
        inodes_free,
        read_only,
    } = found;
    FileSystem {
        mount: printable(&mount),
        kind: printable(&kind),
        size,
        used: used.min(size),
        available: available.min(size),
        inodes,
        inodes_free: inodes_free.min(inodes),
        read_only,
    }
}

fn interface(found: proto::Interface) -> Interface {
    let proto::Interface {
        name,
        up,
        received,
        sent,
    } = found;
    Interface {
        name: printable(&name),
        up,
        received,
        sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_guests_word_is_bounded() {
        let reply = proto::StatsReply {
            memory_total: 10,
            memory_available: 11,
            swap_free: 1,
            file_systems: vec![
                proto::FileSystem {
                    mount: "/a\u{1b}[2J".to_owned(),
                    size: 5,
                    used: 6,
                    available: u64::MAX,
                    inodes: 1,
                    inodes_free: 2,
                    ..proto::FileSystem::default()
                };
                70
            ],
            interfaces: vec![proto::Interface::default(); 70],
            ..proto::StatsReply::default()
        };
        let stats = GuestStats::try_from(reply).expect("cut to size");
        assert_eq!((stats.memory_available, stats.swap_free), (10, 0));
        assert_eq!((stats.file_systems.len(), stats.interfaces.len()), (64, 16));
        assert!(stats.file_systems_incomplete);
        let first = &stats.file_systems[0];
        assert_eq!((first.used, first.available, first.inodes_free), (5, 5, 1));
        assert_eq!(first.mount, "/a [2J");
    }

    proptest! {
        #[test]
        fn loads_are_numbers(load in any::<f64>()) {
            let reply = proto::StatsReply { load_15: load, ..proto::StatsReply::default() };
            prop_assert_eq!(GuestStats::try_from(reply).is_ok(), load.is_finite() && load >= 0.0);
        }
    }
}
