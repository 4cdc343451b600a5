//! Figures with many machines. They rest: what many running ones cost is the guests' own business.

use std::process::{Command, Stdio};
use std::time::Instant;

use e2e::{Daemon, Settings, Testbed};

use crate::report::{Budget, Report, ms};
use crate::rows::{resident, time};

const MACHINES: u32 = 1000;
/// Creations under way at once, while the many are made and where that is what is measured.
const AT_ONCE: usize = 20;
const ROUNDS: usize = 7;
const LISTINGS: usize = 20;

/// What a daemon takes to start, to answer and in memory when it has a thousand machines.
pub(crate) fn thousand(report: &mut Report, bed: &Testbed) {
    let mut daemon = Daemon::start(bed, Settings::prepared());
    let (none, starts_without) = restarts(&mut daemon);
    for first in (0..MACHINES).step_by(AT_ONCE) {
        let last = MACHINES.min(first + u32::try_from(AT_ONCE).expect("a small number"));
        at_once((first..last).map(|number| create(&daemon, &format!("m{number}"))));
    }
    let (thousand, starts_with) = restarts(&mut daemon);
    let listings = (0..LISTINGS).map(|_| time(daemon.banger(["ls"]))).collect();
    report.add(
        "daemon start, 1,000 machines (raw: none)",
        "ms",
        starts_with,
        starts_without,
        Budget::AtMost(500.0),
    );
    report.add(
        "banger ls, 1,000 machines",
        "ms",
        listings,
        vec![],
        Budget::AtMost(30.0),
    );
    report.add(
        "daemon memory for 1,000 machines",
        "MiB",
        vec![thousand - none],
        vec![],
        Budget::None,
    );
    daemon.finish();
}

/// Restarts the daemon some times: its resident MiB after the last, and each start's milliseconds.
fn restarts(daemon: &mut Daemon) -> (f64, Vec<f64>) {
    let starts = (0..ROUNDS)
        .map(|_| {
            daemon.terminate();
            let began = Instant::now();
            daemon.launch();
            ms(began.elapsed())
        })
        .collect();
    daemon.banger(["ls"]).ok();
    (resident(daemon.pid()), starts)
}

/// Twenty creations at once against what they cannot do without: twenty sparse disks with an empty file system.
pub(crate) fn concurrent_creates(report: &mut Report, daemon: &Daemon) {
    let mke2fs = e2e::testbed::find_program("mke2fs").expect("mke2fs");
    let (mut ours, mut raw) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let names: Vec<String> = (0..AT_ONCE).map(|number| format!("c{number}")).collect();
        ours.push(at_once(names.iter().map(|name| create(daemon, name))));
        daemon.banger(["vm", "rm"]).args(&names).ok();

        let directory = tempfile::tempdir_in(daemon.state()).expect("make a directory");
        raw.push(at_once((0..AT_ONCE).map(|number| {
            let mut command = Command::new(&mke2fs);
            command.args(["-q", "-t", "ext4"]);
            command.arg(directory.path().join(number.to_string())).arg("10G");
            command
        })));
    }
    report.add(
        "20 creates at once (raw: 20 mke2fs)",
        "ms",
        ours,
        raw,
        Budget::None,
    );
}

fn create(daemon: &Daemon, name: &str) -> Command {
    daemon
        .banger(["vm", "create", name, "--quiet", "--image", "busybox"])
        .into_command()
}

/// Runs all commands at once and waits for all: milliseconds in all.
fn at_once(commands: impl Iterator<Item = Command>) -> f64 {
    let began = Instant::now();
    let children: Vec<_> = commands
        .map(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command.spawn().expect("run a command")
        })
        .collect();
    for mut child in children {
        let status = child.wait().expect("wait for a command");
        assert!(status.success(), "a command ended with {status}");
    }
    ms(began.elapsed())
}
