//! The table of `banger vm stats`, and the rates in it.

use std::collections::BTreeMap;

use banger_api::types::{FilesystemFigures, GuestFigures, HostFigures, VmStats};

use crate::args::format_size;
use crate::table;

/// Longest mount point that is shown, in characters; a guest may mount anywhere.
const LONGEST_MOUNT: usize = 32;

/// The samples that the next are compared with, by machine's id.
#[derive(Debug, Default)]
pub(super) struct Samples {
    last: BTreeMap<String, Cpu>,
}

/// A sample of the processor's counter, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    uptime: u64,
    used: u64,
}

impl Samples {
    /// The table of a sample; rates are since the one before it.
    pub(super) fn render(&mut self, stats: &[VmStats]) -> String {
        let mut next = BTreeMap::new();
        let mut rows = Vec::with_capacity(stats.len());
        for stats in stats {
            let cpu = stats.host.as_ref().map(|host| Cpu {
                uptime: host.uptime_microseconds,
                used: host.cpu_microseconds,
            });
            let percent = match (self.last.get(&stats.id), cpu) {
                (Some(last), Some(now)) => percent(*last, now),
                (_, _) => None,
            };
            rows.push(row(stats, percent));
            if let Some(cpu) = cpu {
                next.insert(stats.id.clone(), cpu);
            }
        }
        self.last = next;
        let headers = [
            "NAME",
            "CPU",
            "MEMORY",
            "DISK I/O",
            "NET I/O",
            "ON HOST",
            "LOAD",
            "GUEST MEMORY",
            "FULLEST",
        ];
        table::render(headers, rows)
    }
}

/// Tenths of a percent of one processor. `None`: no time has passed, or it is another run.
fn percent(last: Cpu, now: Cpu) -> Option<u64> {
    let passed = now.uptime.checked_sub(last.uptime).filter(|passed| *passed > 0)?;
    let used = now.used.checked_sub(last.used)?;
    used.checked_mul(1000)?.checked_div(passed)
}

fn row(stats: &VmStats, percent: Option<u64>) -> [String; 9] {
    let none = || "-".to_owned();
    let host = |text: &dyn Fn(&HostFigures) -> String| stats.host.as_ref().map_or_else(none, text);
    let guest = |text: &dyn Fn(&GuestFigures) -> String| stats.guest.as_ref().map_or_else(none, text);
    let pair = |one: u64, other: u64| format!("{} / {}", format_size(one), format_size(other));
    [
        stats.vm.clone(),
        percent.map_or_else(none, |tenths| format!("{}.{} %", tenths / 10, tenths % 10)),
        host(&|host| pair(host.memory, host.memory_limit)),
        host(&|host| pair(host.disk_read, host.disk_written)),
        host(&|host| match (host.network_received, host.network_sent) {
            (Some(received), Some(sent)) => pair(received, sent),
            (_, _) => none(),
        }),
        host(&|host| format_size(host.disk_used)),
        // A guest may say anything; a number of three hundred digits is none.
        guest(&|guest| format!("{:.2}", guest.load[0].clamp(0.0, 99_999.0))),
        guest(&|guest| {
            let used = guest.memory_total.saturating_sub(guest.memory_available);
            pair(used, guest.memory_total)
        }),
        guest(&|guest| fullest(&guest.filesystems).unwrap_or_else(none)),
    ]
}

/// The file system that is fullest, as its users see it: what is reserved is not theirs.
fn fullest(filesystems: &[FilesystemFigures]) -> Option<String> {
    let share = |fs: &FilesystemFigures| {
        let (used, available) = (u128::from(fs.used), u128::from(fs.available));
        // Rounded up, as df(1) does: 100 % is full.
        (used * 100).div_ceil((used + available).max(1))
    };
    let fs = filesystems.iter().max_by_key(|fs| share(fs))?;
    let mut mount: String = fs.mount.chars().take(LONGEST_MOUNT).collect();
    if mount.len() < fs.mount.len() {
        mount.push('…');
    }
    Some(format!("{mount} {} %", share(fs)))
}

#[cfg(test)]
mod tests {
    use banger_api::types::VmState;

    use super::*;

    fn stats(vm: &str, uptime: u64, cpu: u64) -> VmStats {
        let fs = |mount: &str, used: u64, available: u64| FilesystemFigures {
            mount: mount.into(),
            kind: "ext4".into(),
            size: used + available,
            used,
            available,
            inodes_free: 0,
        };
        VmStats {
            vm: vm.into(),
            id: format!("{vm}-id"),
            state: VmState::Running,
            time: "2026-02-01T00:00:00Z".parse().unwrap(),
            host: Some(HostFigures {
                uptime_microseconds: uptime,
                cpu_microseconds: cpu,
                vcpus: 2,
                memory: 211 << 20,
                memory_limit: 1 << 30,
                disk_read: 12 << 20,
                disk_written: 3 << 20,
                network_received: (vm == "dev").then_some(1 << 20),
                network_sent: (vm == "dev").then_some(40 << 10),
                disk_used: 70 << 20,
            }),
            guest: (vm == "dev").then(|| GuestFigures {
                uptime_seconds: 60,
                load: [0.256, 0.1, 0.0],
                processes: 40,
                memory_total: 960 << 20,
                memory_available: 800 << 20,
                swap_total: 0,
                swap_free: 0,
                filesystems: vec![fs("/", 10, 90), fs("/root", 99, 2), fs("/run", 0, 0)],
            }),
            guest_problem: None,
        }
    }

    #[test]
    fn rates_are_since_the_last_sample() {
        let mut samples = Samples::default();
        samples.render(&[stats("dev", 1_000_000, 0), stats("ci", 1_000_000, 9_000_000)]);
        let mut stopped = stats("gone", 0, 0);
        stopped.host = None;
        let table = samples.render(&[
            stats("dev", 1_500_000, 766_000),
            // Another run: its counter began anew.
            stats("ci", 1_500_000, 10),
            stopped,
        ]);
        insta::assert_snapshot!(table, @r"
        NAME   CPU       MEMORY          DISK I/O       NET I/O        ON HOST   LOAD   GUEST MEMORY      FULLEST
        dev    153.2 %   211MiB / 1GiB   12MiB / 3MiB   1MiB / 40KiB   70MiB     0.26   160MiB / 960MiB   /root 99 %
        ci     -         211MiB / 1GiB   12MiB / 3MiB   -              70MiB     -      -                 -
        gone   -         -               -              -              -         -      -                 -
        ");
        assert!(!samples.last.contains_key("gone-id"));
    }

    #[test]
    fn what_a_guest_says_is_bounded() {
        let mut hostile = stats("dev", 0, 0);
        let guest = hostile.guest.as_mut().unwrap();
        guest.load = [f64::MAX, f64::NAN, -1.0];
        guest.memory_available = u64::MAX;
        guest.filesystems[1].mount = "/\u{1b}[2J".to_owned() + &"é".repeat(4096);
        guest.filesystems[1].used = u64::MAX;
        guest.filesystems[1].available = u64::MAX;
        let table = Samples::default().render(&[hostile]);
        assert!(table.lines().all(|line| line.chars().count() < 200), "{table}");
        assert!(!table.contains('\u{1b}'));
    }
}
