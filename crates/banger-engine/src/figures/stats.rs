//! Figures of machines: what each takes of the host, and what its guest says of itself. All machines are asked at the
//! same time.

use std::collections::HashSet;
use std::time::Duration;

use banger_agent_api::GuestStats;
use banger_vmm::MachineFigures;
use futures_util::future::join_all;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use super::{ANSWER, Subject, agent_problem};
use crate::error::Error;
use crate::host::Host;
use crate::vm::capability::{system_disk, work_disk};
use crate::vm::machines::Machines;
use crate::vm::state::{Paths, Phase};

/// Figures of one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct VmStats {
    /// Its name.
    pub vm: String,
    /// For life.
    pub id: String,
    /// Where it stood when it was asked.
    pub phase: Phase,
    /// When these were taken.
    pub time: Timestamp,
    /// What it takes of the host, while it runs.
    pub host: Option<HostFigures>,
    /// What its guest says; or why it says nothing, while it runs.
    pub guest: Option<Result<GuestStats, String>>,
}

/// What a machine takes of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFigures {
    /// Since the host booted, when these were read: a clock for rates.
    pub uptime: Duration,
    /// Its VMM's and companions'.
    pub machine: MachineFigures,
    /// Virtual processors of this run.
    pub vcpus: u32,
    /// Bytes of memory that the guest of this run was given.
    pub memory: u64,
    /// Bytes its disks take on the host's file system.
    pub disk_used: u64,
}

/// Figures of the machines named, or of all that run; each once, in the order of the names.
pub(crate) async fn of(
    host: &Host,
    machines: &Machines,
    references: &[String],
) -> Result<Vec<VmStats>, Error> {
    let subjects: Vec<Subject> = if references.is_empty() {
        let all = machines.all();
        let mut all: Vec<_> = all.iter().map(Subject::of).collect();
        all.retain(|subject| subject.phase.running().is_some());
        all
    } else {
        let mut seen = HashSet::new();
        let mut named = Vec::new();
        for reference in references {
            let handle = machines.find(reference)?;
            if seen.insert(handle.id.clone()) {
                named.push(Subject::of(&handle));
            }
        }
        named
    };
    Ok(join_all(subjects.into_iter().map(|subject| of_one(host, subject))).await)
}

pub(super) async fn of_one(host: &Host, subject: Subject) -> VmStats {
    let Subject {
        id,
        row,
        phase,
        machine,
        guest,
    } = subject;
    let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, &id);
    let from_host = async {
        let machine = machine?.figures().await;
        let run = phase.running().and_then(|running| running.with.as_ref());
        let of = row.clone();
        // The file system may take its time.
        let disk_used = tokio::task::spawn_blocking(move || {
            system_disk::usage(&of, &paths).saturating_add(work_disk::usage(&paths))
        });
        Some(HostFigures {
            uptime: uptime(),
            machine,
            vcpus: run.map_or(row.vcpus, |run| run.vcpus),
            memory: u64::from(run.map_or(row.memory_mib, |run| run.memory_mib)) << 20,
            disk_used: disk_used.await.ok()?,
        })
    };
    let from_guest = async {
        let answer = guest?.stats(ANSWER).await;
        Some(answer.map_err(|e| agent_problem(&e)))
    };
    let (host, guest) = tokio::join!(from_host, from_guest);
    VmStats {
        vm: row.name,
        id,
        phase,
        time: Timestamp::now(),
        host,
        guest,
    }
}

/// Since the host booted, time asleep included.
fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(now.tv_sec.unsigned_abs(), nanoseconds)
}
