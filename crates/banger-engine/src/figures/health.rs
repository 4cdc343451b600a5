//! Health of one machine: its processes, its agent, its disks, its network, each with what was found and what to do.
//!
//! ```text
//!   process   vmm: its processes run, none is stopped             control: the VMM answers, its processors run
//!   agent     agent: a ping, and how long it took
//!   disks     filesystems: how full the guest's are               space: room on the host's    snapshot: of kind dm
//!   network   network: the card that this run was given
//! ```
//!
//! The checks are plain functions over what was found ([`process`], [`guest_disks`] …); asking is separate, and all of
//! it at the same time.

use std::time::{Duration, Instant};

use banger_agent_api::{AgentError, DialError, FileSystem, GuestStats};
use banger_vmm::{ControlError, ProcessRecord, ProcessRole, RunState, VmmKind};
use hostkit::dm::Snapshot;

use super::{ANSWER, Subject, agent_problem};
use crate::doctor::{Check, Outcome};
use crate::error::chain;
use crate::host::Host;
use crate::limits::bytes;
use crate::space;
use crate::vm::capability::system_disk;
use crate::vm::state::{Phase, Running, vmm_kind};
use crate::vm::task::Handle;

const PROCESS: &str = "process";
const AGENT: &str = "agent";
const DISKS: &str = "disks";
const NETWORK: &str = "network";
/// The check of the guest's file systems.
const FILE_SYSTEMS: &str = "filesystems";

/// A file system fuller than this will soon refuse something.
const FULL: u64 = 95;
/// A snapshot that runs full is lost, so the warning comes early.
const SNAPSHOT_FULL: u64 = 80;

/// How a machine fares on the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Healthy,
    /// It works, and something should be seen to.
    Degraded,
    /// It does not do what it should.
    Unhealthy,
    /// It does not run, and is not meant to.
    Stopped,
}

/// How a machine fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmHealth {
    /// Its name.
    pub vm: String,
    /// Where it stood.
    pub phase: Phase,
    /// The worst of the checks.
    pub health: Health,
    /// All of them.
    pub checks: Vec<Check>,
}

/// Looks at one machine.
pub(crate) async fn of(host: &Host, handle: &Handle) -> VmHealth {
    let subject = Subject::of(handle);
    let checks = match &subject.phase {
        Phase::Running(_) | Phase::Stopping(_) => running(host, &subject).await,
        Phase::Stopped => Vec::new(),
        Phase::Failed(failure) => vec![ended(&subject.row.name, &failure.reason, false)],
        Phase::Due(due) => match &due.failure {
            Some(failure) => vec![ended(&subject.row.name, &failure.reason, true)],
            None => vec![passing("it is about to be started")],
        },
        Phase::Creating => vec![passing("its disks are being made")],
        Phase::Starting => vec![passing("it is being started")],
        Phase::Resetting => vec![passing("its system disk is being renewed")],
        Phase::Removing => vec![passing("it is being removed")],
    };
    let health = match (&subject.phase, worst(&checks)) {
        (Phase::Stopped, _) => Health::Stopped,
        (_, Outcome::Fine) => Health::Healthy,
        (_, Outcome::Warning) => Health::Degraded,
        (_, Outcome::Failure) => Health::Unhealthy,
    };
    VmHealth {
        vm: subject.row.name,
        phase: subject.phase,
        health,
        checks,
    }
}

fn worst(checks: &[Check]) -> Outcome {
    let outcomes = checks.iter().map(|check| check.outcome);
    outcomes.max().unwrap_or(Outcome::Fine)
}

fn ended(vm: &str, reason: &str, again: bool) -> Check {
    let fix = if again {
        format!("it is started again by itself; `banger vm logs {vm}` shows its console")
    } else {
        format!("banger vm logs {vm}; banger vm start {vm}")
    };
    Check::failure(PROCESS, "run", reason, fix)
}

fn passing(what: &str) -> Check {
    Check::warning(PROCESS, "run", what, "wait: `banger op ls` shows what is at work")
}

pub(super) async fn running(host: &Host, subject: &Subject) -> Vec<Check> {
    let (Some(machine), Some(guest)) = (&subject.machine, &subject.guest) else {
        return vec![passing("it is changing its state")];
    };
    let stopped = machine.stopped_processes();
    let control = async {
        // One that is stopped would only be waited for.
        if stopped.contains(&ProcessRole::Vmm) {
            return None;
        }
        let began = Instant::now();
        let answer = tokio::time::timeout(ANSWER, machine.control_alive()).await;
        Some((answer.ok(), began.elapsed()))
    };
    let answer = async {
        let began = Instant::now();
        guest.ping(ANSWER).await.map(|_uptime| began.elapsed())
    };
    let snapshot = async { system_disk::snapshot_usage(&subject.row).await };
    let (control, answer, stats, snapshot) = tokio::join!(control, answer, guest.stats(ANSWER), snapshot);

    let vm = subject.row.name.as_str();
    let lost = machine.network_lost();
    let mut processes = machine.processes();
    processes.retain(|record| !(lost && record.role == ProcessRole::Passt));
    processes.sort_by_key(|record| record.role);
    let mut checks = vec![process(vm, &processes, &stopped)];
    checks.extend(control.map(|(state, took)| self::control(vm, state, took)));
    checks.push(agent(vm, &answer));
    match &stats {
        Ok(stats) => checks.extend(guest_disks(vm, stats)),
        Err(e) => checks.push(Check::warning(
            DISKS,
            FILE_SYSTEMS,
            format!("not known: {}", agent_problem(e)),
            format!("see what its agent does: banger vm logs {vm}"),
        )),
    }
    checks.push(Check {
        group: DISKS,
        ..space::pressure(host)
    });
    match snapshot {
        Ok(usage) => checks.extend(usage.map(|usage| self::snapshot(vm, usage))),
        Err(e) => checks.push(Check::warning(
            DISKS,
            "snapshot",
            format!("how full it is is not known: {}", e.report().message),
            "see `banger doctor`",
        )),
    }
    let tap_is_lost = host.network.has_lost_tap(&subject.row.id);
    checks.push(match (lost, tap_is_lost) {
        (true, _) => network_lost(vm),
        (false, true) => tap_lost(vm),
        (false, false) => network(subject, stats.as_ref().ok()),
    });
    checks
}

fn process(vm: &str, processes: &[ProcessRecord], stopped: &[ProcessRole]) -> Check {
    let named = |record: &ProcessRecord| format!("{} (pid {})", record.role, record.id);
    let held: Vec<_> = processes
        .iter()
        .filter(|record| stopped.contains(&record.role))
        .collect();
    if held.is_empty() {
        let all: Vec<_> = processes.iter().map(named).collect();
        return Check::fine(PROCESS, "vmm", format!("{} run", all.join(" and ")));
    }
    let (names, pids): (Vec<_>, Vec<_>) = held
        .iter()
        .map(|record| (named(record), record.id.pid.to_string()))
        .unzip();
    Check::failure(
        PROCESS,
        "vmm",
        format!("stopped by a signal: {}", names.join(" and ")),
        format!(
            "let it go on: kill -CONT {}; or end it: banger vm kill {vm}",
            pids.join(" ")
        ),
    )
}

fn control(vm: &str, state: Option<Result<RunState, ControlError>>, took: Duration) -> Check {
    let end = format!("end it and start it anew: banger vm kill {vm}; banger vm start {vm}");
    match state {
        Some(Ok(RunState::Running)) => Check::fine(
            PROCESS,
            "control",
            format!("answers its control socket in {}", milliseconds(took)),
        ),
        Some(Ok(RunState::Paused)) => {
            Check::warning(PROCESS, "control", "the guest's processors are paused", end)
        }
        Some(Ok(RunState::Other)) => Check::failure(
            PROCESS,
            "control",
            "the guest's processors do not run: the VMM stopped them",
            end,
        ),
        Some(Err(e)) => Check::failure(
            PROCESS,
            "control",
            format!("does not answer its control socket: failed to {}", chain(&e)),
            end,
        ),
        None => Check::failure(
            PROCESS,
            "control",
            format!("does not answer its control socket within {} s", ANSWER.as_secs()),
            end,
        ),
    }
}

fn agent(vm: &str, answer: &Result<Duration, AgentError>) -> Check {
    match answer {
        Ok(took) => Check::fine(AGENT, AGENT, format!("answers in {}", milliseconds(*took))),
        // A socket that has been removed does not come back while its VMM runs.
        Err(e) if is_socket_gone(e) => Check::failure(
            AGENT,
            AGENT,
            agent_problem(e),
            format!("restart it, which makes its socket anew: banger vm restart {vm}"),
        ),
        Err(e) => Check::failure(
            AGENT,
            AGENT,
            agent_problem(e),
            format!("see what the guest does: banger vm logs {vm}; or restart it: banger vm restart {vm}"),
        ),
    }
}

fn is_socket_gone(error: &AgentError) -> bool {
    match error.dial_error() {
        Some(DialError::Connect { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
        Some(
            DialError::PathTooLong { .. }
            | DialError::NotListening { .. }
            | DialError::TimedOut { .. }
            | DialError::BadReply { .. }
            | DialError::Io { .. },
        )
        | None => false,
    }
}

/// One check for each file system that is nearly full, or one that says how full the fullest is.
fn guest_disks(vm: &str, stats: &GuestStats) -> Vec<Check> {
    let name = FILE_SYSTEMS;
    let mut checks: Vec<Check> = stats
        .file_systems
        .iter()
        .filter(|found| !found.read_only)
        .filter_map(|found| {
            let what = if percent(used(found), writable(found)) > FULL {
                full(found)
            } else if percent(found.inodes - found.inodes_free, found.inodes) > FULL {
                format!(
                    "{} can take {} more files of {}",
                    found.mount, found.inodes_free, found.inodes
                )
            } else {
                return None;
            };
            let fix = format!("make room in the guest, or let the disk grow: banger vm set {vm} --disk SIZE");
            Some(Check::warning(DISKS, name, what, fix))
        })
        .collect();
    if checks.is_empty() {
        let fullest = stats
            .file_systems
            .iter()
            .filter(|found| !found.read_only)
            .max_by_key(|found| percent(used(found), writable(found)));
        checks.push(match fullest {
            Some(found) => Check::fine(DISKS, name, full(found)),
            None if stats.file_systems_incomplete => Check::warning(
                DISKS,
                name,
                "a file system of the guest does not answer",
                format!("see what the guest does: banger vm logs {vm}"),
            ),
            None => Check::fine(
                DISKS,
                name,
                "the guest has no file system of its own that is written to",
            ),
        });
    }
    checks
}

/// As df(1) counts: what is kept for root is neither used nor to be had.
fn used(found: &FileSystem) -> u64 {
    found.used
}

fn writable(found: &FileSystem) -> u64 {
    found.used.saturating_add(found.available)
}

fn full(found: &FileSystem) -> String {
    let all = writable(found);
    format!(
        "{} is {} % full: {} of {}",
        found.mount,
        percent(found.used, all),
        bytes(&found.used),
        bytes(&all)
    )
}

/// Rounded up; nothing of nothing is empty.
fn percent(part: u64, whole: u64) -> u64 {
    let share = (u128::from(part) * 100).div_ceil(u128::from(whole.max(1)));
    u64::try_from(share).unwrap_or(u64::MAX)
}

fn snapshot(vm: &str, usage: Snapshot) -> Check {
    let name = "snapshot";
    let way_out = format!("save what is needed (`banger cp`), then renew the disk: banger vm reset {vm}");
    match usage {
        Snapshot::Valid { used, total } => {
            let share = percent(used, total);
            let found = format!(
                "the system disk's snapshot is {share} % full: {} of {}",
                bytes(&used.saturating_mul(512)),
                bytes(&total.saturating_mul(512))
            );
            if share > SNAPSHOT_FULL {
                Check::warning(DISKS, name, format!("{found}; full, it is lost"), way_out)
            } else {
                Check::fine(DISKS, name, found)
            }
        }
        Snapshot::Invalid => Check::failure(
            DISKS,
            name,
            "the system disk's snapshot is invalid: what was in it is lost",
            way_out,
        ),
        Snapshot::Overflow => Check::failure(
            DISKS,
            name,
            "the system disk's snapshot ran full: nothing more can be written",
            way_out,
        ),
    }
}

/// passt has died under a machine.
fn network_lost(vm: &str) -> Check {
    Check::failure(
        NETWORK,
        NETWORK,
        "passt, which carries the guest's packets, has ended: the guest reaches nothing outside",
        format!(
            "give it another one: banger vm restart {vm}; `banger exec` and published ports work without"
        ),
    )
}

/// Somebody has deleted the tap under a machine.
fn tap_lost(vm: &str) -> Check {
    Check::failure(
        NETWORK,
        NETWORK,
        "its tap on the host is gone, somebody has deleted it: the guest reaches nothing, and nothing the guest",
        format!(
            "give it another one: banger vm restart {vm}; `banger exec` and published ports work without"
        ),
    )
}

/// Whether the guest has the card that this run was given.
fn network(subject: &Subject, stats: Option<&GuestStats>) -> Check {
    let name = NETWORK;
    let run = subject.phase.running();
    let wanted = run
        .and_then(|run| run.with.as_ref())
        .map_or(subject.row.nat, |with| with.nat);
    let vmm = run.and_then(|run| vmm_kind(&run.vmm));
    let bridged = run.is_some_and(Running::on_bridge);
    match (wanted, vmm) {
        // There is a card whatever is set: what it reaches is a matter of rules.
        (_, _) if bridged => {}
        (false, _) => return Check::fine(NETWORK, name, "none, as set"),
        (true, Some(VmmKind::Firecracker)) => {
            return Check::warning(
                NETWORK,
                name,
                "none: Firecracker has no network without privileges",
                "run it with QEMU where it needs a network: banger vm set --vmm qemu",
            );
        }
        (true, Some(VmmKind::Qemu) | None) => {}
    }
    let Some(stats) = stats else {
        return Check::warning(
            NETWORK,
            name,
            "not known: the guest gave no figures",
            "see what the checks above say",
        );
    };
    let up: Vec<_> = stats
        .interfaces
        .iter()
        .filter(|found| found.up)
        .map(|found| {
            format!(
                "{} ({} in, {} out)",
                found.name,
                bytes(&found.received),
                bytes(&found.sent)
            )
        })
        .collect();
    if up.is_empty() {
        let vm = &subject.row.name;
        return Check::warning(
            NETWORK,
            name,
            "no interface of the guest is up",
            format!("bring it up in the guest (ip link set eth0 up), or restart it: banger vm restart {vm}"),
        );
    }
    Check::fine(NETWORK, name, format!("up: {}", up.join(", ")))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
#[path = "health_tests.rs"]
pub(super) mod tests;
