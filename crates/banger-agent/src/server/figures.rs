//! The Stats call: what the kernel counts, read from `/proc` and `/sys`, and how full the file systems are.
//!
//! Everything but statvfs(2) is answered by the kernel from memory. statvfs waits for whoever serves the file system, and
//! so does finding its mount point below a directory of such a one: only file systems on disks of the guest's own are
//! asked, on a thread, one thread at a time, and for a bounded time. A thread that hangs costs its later callers the
//! figures of file systems and nothing else.

use banger_agent_api::proto::{FileSystem, Interface, StatsReply};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// As many of each as the protocol allows.
const MAX_FILE_SYSTEMS: usize = 64;
const MAX_INTERFACES: usize = 16;

/// Longest mount point that is reported, in bytes.
const MAX_MOUNT: usize = 512;

/// Of `/proc/self/mountinfo`, in bytes: some thousand mounts.
const MAX_TABLE: u64 = 1024 * 1024;

/// For all file systems together, within what callers wait for the whole answer. They answer from memory, unless
/// something is wrong.
const FILE_SYSTEMS_TIME: Duration = Duration::from_secs(1);

/// Kinds whose superblock is in the kernel's memory while they are mounted.
const LOCAL: [&str; 9] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "exfat", "overlay",
];

/// Lets one call at a time ask the file systems.
#[derive(Debug, Clone)]
pub(super) struct Figures {
    turn: Arc<Semaphore>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Figures {
    /// All figures.
    pub(super) async fn read(&self) -> StatsReply {
        let mut reply = counters();
        match tokio::time::timeout(FILE_SYSTEMS_TIME, self.file_systems()).await {
            Ok(Some((found, complete))) => {
                reply.file_systems = found;
                reply.file_systems_incomplete = !complete;
            }
            Ok(None) | Err(_) => reply.file_systems_incomplete = true,
        }
        reply
    }

    async fn file_systems(&self) -> Option<(Vec<FileSystem>, bool)> {
        // Given back by the thread, however long that takes: a caller who no longer waits does not make room for another.
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok()?;
        let asked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let table = read_text("/proc/self/mountinfo", MAX_TABLE);
            let (mounts, complete) = worth_asking(&table);
            let found = mounts.iter().filter_map(ask).collect();
            (found, complete)
        });
        asked.await.ok()
    }
}

/// What the kernel answers from memory. What cannot be read is zero.
fn counters() -> StatsReply {
    let now = clock_gettime(ClockId::Boottime);
    let memory = read_text("/proc/meminfo", 64 * 1024);
    let bytes = |name: &str| memory_bytes(&memory, name).unwrap_or_default();
    let [load_1, load_5, load_15] = loads(&read_text("/proc/loadavg", 256)).unwrap_or_default();
    StatsReply {
        uptime_ms: now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000,
        load_1,
        load_5,
        load_15,
        processes: processes(),
        memory_total: bytes("MemTotal"),
        memory_available: bytes("MemAvailable"),
        swap_total: bytes("SwapTotal"),
        swap_free: bytes("SwapFree"),
        file_systems: Vec::new(),
        file_systems_incomplete: false,
        interfaces: interfaces(),
    }
}

/// The kernel's own files cannot be large, but whose they are depends on what is mounted where.
fn read_text(path: impl AsRef<Path>, limit: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // As far as it could be read.
        let _error = file.take(limit).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One line of proc_meminfo(5), `MemTotal:   1024 kB`, in bytes.
fn memory_bytes(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The first three fields of proc_loadavg(5).
fn loads(text: &str) -> Option<[f64; 3]> {
    let mut fields = text.split(' ').map(str::parse);
    let mut next = || fields.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// Directories of `/proc` with a number for a name.
fn processes() -> u32 {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0;
    };
    let is_process = |name: &[u8]| name.iter().all(u8::is_ascii_digit);
    let count = entries
        .flatten()
        .filter(|entry| is_process(entry.file_name().as_encoded_bytes()))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A mount that may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    path: PathBuf,
    kind: String,
}

/// From proc_pid_mountinfo(5): the file systems that are on disks of the guest's own, each where it was mounted first,
/// and whether these are all. The last mount on `/` is the root, whatever kind it is of.
fn worth_asking(table: &str) -> (Vec<Mounted>, bool) {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut complete = true;
    for line in table.lines() {
        let Some((device, mount)) = parse_mount(line) else {
            continue;
        };
        let root = mount.path == Path::new("/");
        let local = LOCAL.contains(&mount.kind.as_str());
        let on_tmpfs = root && mount.kind == "tmpfs";
        // Bind mounts and subvolumes are the same file system once more.
        if !(local || on_tmpfs) || !seen.insert(device.to_owned()) {
            continue;
        }
        if found.len() == MAX_FILE_SYSTEMS {
            complete = false;
            break;
        }
        found.push(mount);
    }
    (found, complete)
}

/// The device's number and the mount of one line: `36 35 98:0 /root /mount opts… - kind source super-opts`.
fn parse_mount(line: &str) -> Option<(&str, Mounted)> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let device = fields.nth(2)?;
    let mount = fields.nth(1)?;
    let kind = after.split(' ').next()?;
    let path = PathBuf::from(OsString::from_vec(unescape(mount)));
    let kind = kind.to_owned();
    Some((device, Mounted { path, kind }))
}

/// Blanks and backslashes are written as `\040`.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                plain.push(value);
                at += 4;
            }
            None => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
}

/// Blocks for as long as the file system does not answer.
fn ask(mounted: &Mounted) -> Option<FileSystem> {
    let stat = statvfs(&mounted.path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    if stat.f_blocks == 0 {
        return None;
    }
    let mut mount = mounted.path.to_string_lossy().into_owned();
    mount.truncate(mount.floor_char_boundary(MAX_MOUNT));
    Some(FileSystem {
        mount,
        kind: mounted.kind.clone(),
        size: bytes(stat.f_blocks),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        available: bytes(stat.f_bavail),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
    })
}

/// From `/sys/class/net` (Documentation/ABI/testing/sysfs-class-net).
fn interfaces() -> Vec<Interface> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let mut found: Vec<Interface> = entries
        .flatten()
        .filter(|entry| entry.file_name() != "lo")
        .take(MAX_INTERFACES)
        .map(|entry| {
            let path = entry.path();
            let word = |name: &str| read_text(path.join(name), 64);
            let number = |name: &str| word(name).trim().parse().unwrap_or_default();
            Interface {
                name: entry.file_name().to_string_lossy().into_owned(),
                up: word("operstate").trim() == "up",
                received: number("statistics/rx_bytes"),
                sent: number("statistics/tx_bytes"),
            }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figures_of_the_kernel_s_files() {
        let memory =
            "MemTotal:        2048 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\nHugePages_Total:  3\n";
        assert_eq!(memory_bytes(memory, "MemTotal"), Some(2 << 20));
        assert_eq!(memory_bytes(memory, "MemAvailable"), Some(1 << 20));
        assert_eq!(memory_bytes(memory, "Mem"), None);
        assert_eq!(memory_bytes(memory, "HugePages_Total"), None);
        assert_eq!(loads("0.50 1.25 2.00 3/456 789\n"), Some([0.5, 1.25, 2.0]));
        assert_eq!(loads("0.50"), None);
    }

    #[test]
    fn only_file_systems_on_own_disks_are_asked() {
        let table = "\
22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/banger/lower
23 22 0:5 / /dev rw - devtmpfs devtmpfs rw
24 22 254:32 /home /root rw - ext4 /dev/vdc rw
25 22 0:40 / /mnt/hung rw - nfs4 server:/x rw,hard
26 22 0:41 / /mnt/sshfs rw - fuse.sshfs u@h: rw
27 22 254:32 /home/x /srv rw - ext4 /dev/vdc rw
28 22 7:0 / /mnt/with\\040blank rw - xfs /dev/loop0 rw
29 22 0:42 / /tmp rw - tmpfs tmpfs rw
garbage
";
        let (found, complete) = worth_asking(table);
        let found: Vec<_> = found
            .iter()
            .map(|mount| (mount.path.to_str().expect("UTF-8"), mount.kind.as_str()))
            .collect();
        assert_eq!(
            found,
            [("/", "overlay"), ("/root", "ext4"), ("/mnt/with blank", "xfs")]
        );
        assert!(complete);
    }

    #[test]
    fn a_guest_with_very_many_mounts_is_cut_short() {
        let table: String = (0..100)
            .map(|n| format!("{n} 1 254:{n} / /m{n} rw - ext4 /dev/x rw\n"))
            .collect();
        let (found, complete) = worth_asking(&table);
        assert_eq!((found.len(), complete), (MAX_FILE_SYSTEMS, false));
    }

    #[tokio::test]
    async fn a_file_system_that_hangs_costs_only_itself() {
        let figures = Figures::default();
        let stats = figures.read().await;
        assert!(!stats.file_systems_incomplete);
        assert!(stats.memory_total > 0 && stats.processes > 0 && stats.uptime_ms > 0);
        // What a thread does that never comes back.
        let _hangs = Arc::clone(&figures.turn).acquire_owned().await.expect("its turn");
        let stats = figures.read().await;
        assert!(stats.file_systems_incomplete && stats.file_systems.is_empty());
        assert!(stats.memory_total > 0);
    }

    proptest! {
        #[test]
        fn any_table_is_read(table in "([0-9: /\\\\a-z-]{0,60}\n){0,8}") {
            let (found, _) = worth_asking(&table);
            prop_assert!(found.len() <= 8);
        }

        #[test]
        fn escapes_are_undone(path in prop::collection::vec(any::<u8>(), 0..40)) {
            let escaped: String = path
                .iter()
                .map(|&byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | 0x80.. => format!("\\{byte:03o}"),
                    byte => char::from(byte).to_string(),
                })
                .collect();
            prop_assert_eq!(unescape(&escaped), path);
        }
    }
}
