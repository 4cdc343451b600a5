//! The figures, one function a group.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Banger, Daemon, Guest};

use crate::raw::Recipe;
use crate::report::{Budget, Report, ms};

pub(crate) const MACHINE: [&str; 4] = ["--vcpus", "1", "--memory", "256M"];
/// Pairs of starts; each takes seconds under emulation.
const STARTS: usize = 15;
const SHORT: usize = 40;
/// Exec round trips: rounds of a batch each, so that both see the same minutes of the machine.
const ROUNDS: usize = 10;
const BATCH: usize = 20;

/// Memory and wake-ups of a daemon that has nothing to do.
pub(crate) fn idle(report: &mut Report, daemon: &Daemon, what: &str, window: Duration) {
    daemon.banger(["ls"]).ok();
    // What the last request left to do is done by then.
    std::thread::sleep(Duration::from_secs(2));
    let before = wake_ups(daemon.pid());
    let began = Instant::now();
    std::thread::sleep(window);
    #[expect(clippy::cast_precision_loss, reason = "a count of a few thousand at most")]
    let per_minute = wake_ups_since(daemon.pid(), &before) as f64 * 60.0 / began.elapsed().as_secs_f64();
    report.add(
        &format!("daemon resident, {what}"),
        "MiB",
        vec![resident(daemon.pid())],
        vec![],
        Budget::AtMost(25.0),
    );
    report.add(
        &format!("daemon wake-ups a minute, {what}"),
        "",
        vec![per_minute],
        vec![],
        Budget::AtMost(60.0),
    );
}

/// Voluntary context switches of each thread: each is a thread that slept and was woken (proc_pid_status(5)).
fn wake_ups(pid: u32) -> BTreeMap<OsString, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("list the threads");
    let of_one = |status: String| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse::<u64>().ok())
    };
    tasks
        .flatten()
        .filter_map(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            Some((task.file_name(), of_one(status)?))
        })
        .collect()
}

/// Those since then. What threads did that have ended meanwhile is not known.
fn wake_ups_since(pid: u32, before: &BTreeMap<OsString, u64>) -> u64 {
    let now = wake_ups(pid);
    now.iter()
        .map(|(thread, count)| count - before.get(thread).unwrap_or(&0))
        .sum()
}

/// Resident MiB.
pub(crate) fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its memory");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<f64>()
        .expect("a number")
        / 1024.0
}

/// Milliseconds that a command takes, from its start to its end; it must succeed.
pub(crate) fn time(command: Banger) -> f64 {
    let mut command = command.into_command();
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null());
    let began = Instant::now();
    let status = command.status().expect("run a command");
    let took = ms(began.elapsed());
    assert!(status.success(), "{command:?} ended with {status}");
    took
}

pub(crate) fn short_commands(report: &mut Report, daemon: &Daemon) {
    let (mut version, mut ls, mut nothing) = (vec![], vec![], vec![]);
    for _ in 0..SHORT {
        version.push(time(daemon.banger(["--version"])));
        ls.push(time(daemon.banger(["ls"])));
        nothing.push(time(Banger::new("true")));
    }
    report.add(
        "banger --version (raw: true)",
        "ms",
        version,
        nothing.clone(),
        Budget::AtMost(10.0),
    );
    report.add("banger ls (raw: true)", "ms", ls, nothing, Budget::None);
}

pub(crate) fn start(report: &mut Report, daemon: &Daemon) {
    // One machine shows how it is started; it is not measured.
    let shown = Guest::start_with(daemon, "shown", "busybox", &MACHINE);
    let recipe = Recipe::of(daemon, &shown);
    shown.banger("kill").ok();
    let pristine = daemon.state().join("pristine.img");
    shown.banger("rm").ok();

    let (mut ours, mut answers, mut execs) = (vec![], vec![], vec![]);
    for round in 0..STARTS {
        let banger = |ours: &mut Vec<f64>| {
            let guest = Guest::create_with(daemon, "timed", "busybox", &MACHINE);
            let id = guest.show()["id"].as_str().expect("an id").to_owned();
            copy(
                &daemon
                    .state()
                    .join("vms")
                    .join(format!("bgr{id}"))
                    .join("overlay.img"),
                &pristine,
            );
            let began = Instant::now();
            guest.banger("start").args(["--quiet"]).ok();
            guest.exec(["true"]).ok();
            ours.push(ms(began.elapsed()));
            guest.banger("rm").args(["--force"]).ok();
        };
        let raw = |answers: &mut Vec<f64>, execs: &mut Vec<f64>| {
            let directory = tempfile::Builder::new()
                .prefix("bgt-raw-")
                .tempdir_in("/tmp")
                .expect("make a directory");
            // A disk that has never been started from, like the other.
            copy(
                &pristine,
                &directory
                    .path()
                    .join(recipe.overlay().file_name().expect("a name")),
            );
            let times = recipe.run(directory.path());
            answers.push(ms(times.answer));
            execs.push(ms(times.exec));
        };
        // In turn, and not always the same one first; the very first pair needs Banger's disk to copy.
        if round % 2 == 0 {
            banger(&mut ours);
            raw(&mut answers, &mut execs);
        } else {
            raw(&mut answers, &mut execs);
            banger(&mut ours);
        }
    }
    std::fs::remove_file(pristine).expect("remove a file");
    report.add(
        "start to first exec (raw: first answer)",
        "ms",
        ours.clone(),
        answers,
        Budget::Ratio(1.10),
    );
    report.add(
        "start to first exec (raw: first exec)",
        "ms",
        ours,
        execs,
        Budget::Ratio(1.10),
    );
}

/// Copies a disk, holes as holes, and waits until both are on the host's disk: neither start then pays for writing what
/// was made before it.
pub(crate) fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=auto").arg(from).arg(to).status();
    assert!(copied.expect("run cp").success());
    for file in [from, to] {
        let file = std::fs::File::open(file).expect("open a disk");
        file.sync_all().expect("write a disk back");
    }
}

pub(crate) fn exec(report: &mut Report, daemon: &Daemon) {
    let guest = Guest::start_with(daemon, "called", "busybox", &MACHINE);
    let recipe = Recipe::of(daemon, &guest);
    let socket = guest.show()["running"]["vsock"]
        .as_str()
        .expect("a socket")
        .to_owned();
    let (mut ours, mut raw) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        for _ in 0..BATCH {
            ours.push(time(guest.exec(["true"])));
        }
        // Within one process: what the raw call's own program takes to start is not the agent's.
        let said = Banger::new(recipe.agent_call())
            .args([&socket, "exec", "-n", &BATCH.to_string(), "--", "true"])
            .run();
        let said = said.expect(0).err();
        raw.push(median_of(&said).unwrap_or_else(|| panic!("no median in {said:?}")));
    }
    report.add(
        "exec round trip (raw: agent call)",
        "ms",
        ours,
        raw,
        Budget::Over(10.0),
    );
    idle(report, daemon, "after all this", Duration::from_secs(30));
}

/// Milliseconds of `median 12.3ms` (the notation of Rust's durations).
fn median_of(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once("median ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = rest.split_at(end);
    let number: f64 = number.parse().ok()?;
    let unit = unit.split([',', ' ', '\n']).next()?;
    match unit {
        "s" => Some(number * 1e3),
        "ms" => Some(number),
        "µs" => Some(number / 1e3),
        _ => None,
    }
}
