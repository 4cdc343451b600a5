//! The processes of one machine: spawned together, watched together, ended together.
//!
//! ```text
//!   Launching --spawn--> reported to the ledger --...--> supervise() --> Supervised (handle)
//!       |                                                    |
//!     abandon(), or dropped: SIGKILL to all               one task: the first vital process to end takes the others
//!                                                          along; all reaped; sockets removed; exit published
//! ```
//!
//! Nothing here knows what the processes do. The task ends with the machine; dropping the handle does not end it, since
//! somebody has to reap children.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hostkit::process::{Detached, Exit, Process, ProcessError, Signal, spawn_detached};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::error::{AdoptError, KillError, LaunchError};
use crate::figures::MachineFigures;
use crate::files;
use crate::identify::{KILL_DEADLINE, belongs};
use crate::spec::MachineSpec;
use crate::vmm::{MachineExit, ProcessLog, ProcessRecord, ProcessRole};

/// How long the VMM has to end by itself once a companion has: the companion ends when the VMM hangs up, and may be
/// seen to end first. Spent only where a companion died by itself; on a busy host an end takes its while to be reaped.
const BLAME_GRACE: Duration = Duration::from_secs(1);

/// One process and its part.
#[derive(Debug, Clone)]
struct Member {
    role: ProcessRole,
    process: Arc<Process>,
}

impl Member {
    fn record(&self) -> ProcessRecord {
        ProcessRecord {
            role: self.role,
            id: self.process.id(),
        }
    }
}

/// The processes of a launch under way. Dropping it kills them.
pub(crate) struct Launching<'a> {
    members: Vec<Member>,
    ledger: &'a dyn ProcessLog,
    log: &'a Path,
    log_start: u64,
}

impl<'a> Launching<'a> {
    /// `log` is the file whose last lines explain a failure; only what is written from now on counts.
    pub(crate) fn new(ledger: &'a dyn ProcessLog, log: &'a Path) -> Self {
        let log_start = std::fs::metadata(log).map_or(0, |meta| meta.len());
        Self {
            members: Vec::new(),
            ledger,
            log,
            log_start,
        }
    }

    /// Starts a process and reports it.
    pub(crate) async fn spawn(&mut self, role: ProcessRole, spec: Detached) -> Result<(), LaunchError> {
        debug!(%role, program = %spec.program.display(), args = ?spec.args, "spawn");
        let process = Arc::new(spawn_detached(spec).map_err(|source| LaunchError::Spawn { role, source })?);
        let member = Member { role, process };
        let record = member.record();
        self.members.push(member);
        self.ledger
            .spawned(&record)
            .await
            .map_err(|source| LaunchError::Record { role, source })
    }

    /// Waits for something that `role` is to do, unless it or a vital process ends first, or time runs out.
    pub(crate) async fn wait_for<T>(
        &self,
        role: ProcessRole,
        within: Duration,
        what: impl Future<Output = T>,
    ) -> Result<T, LaunchError> {
        let mut ends = JoinSet::new();
        for member in self.members.clone() {
            if member.role == role || member.role.is_vital() {
                ends.spawn(async move { (member.role, member.process.exited().await) });
            }
        }
        tokio::select! {
            // Not cancel-safe for `what`, which is given up in the other arms.
            done = what => Ok(done),
            // Cancel-safe: the handles keep the exit.
            ended = ends.join_next() => {
                let (role, exit) = ended.and_then(Result::ok).unwrap_or((role, Exit::Unknown));
                Err(LaunchError::Exited { role, exit, log: files::tail(self.log, self.log_start) })
            }
            // Cancel-safe: the timer starts anew with every call.
            () = tokio::time::sleep(within) => {
                Err(LaunchError::Silent { role, within, log: files::tail(self.log, self.log_start) })
            }
        }
    }

    /// Ends a process without which the launch can go on, and waits until it is gone.
    pub(crate) async fn give_up(&mut self, role: ProcessRole) {
        let (given_up, kept) = self.members.drain(..).partition(|member| member.role == role);
        self.members = kept;
        let given_up: Vec<Member> = given_up;
        kill_all(&given_up);
        reap(given_up).await;
    }

    /// A control connection broke: if that was because a process ended, that is the better error.
    pub(crate) async fn explain(&self, error: LaunchError) -> LaunchError {
        let LaunchError::Control { .. } = &error else {
            return error;
        };
        match self
            .wait_for(ProcessRole::Vmm, BLAME_GRACE, std::future::pending::<()>())
            .await
        {
            Err(exited @ LaunchError::Exited { .. }) => exited,
            Ok(()) | Err(_) => error,
        }
    }

    /// Kills what was spawned and waits until it is gone.
    pub(crate) async fn abandon(mut self) {
        let members = std::mem::take(&mut self.members);
        kill_all(&members);
        reap(members).await;
    }

    /// The launch has succeeded: from here on the processes are on their own.
    pub(crate) fn supervise(mut self, cleanup: Cleanup) -> Supervised {
        Supervised::start(std::mem::take(&mut self.members), cleanup)
    }
}

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        let members = std::mem::take(&mut self.members);
        if members.is_empty() {
            return;
        }
        kill_all(&members);
        // Without a runtime this program is ending, and its children go to init.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(reap(members)));
        }
    }
}

fn kill_all(members: &[Member]) {
    for member in members {
        if let Err(error) = member.process.kill(Signal::KILL) {
            warn!(role = %member.role, pid = member.process.id().pid, %error, "a process cannot be killed");
        }
    }
}

async fn reap(members: Vec<Member>) {
    let wait = async {
        for member in &members {
            member.process.exited().await;
        }
    };
    if tokio::time::timeout(KILL_DEADLINE, wait).await.is_err() {
        warn!(?members, "killed processes do not end");
    }
}

/// What is left to do when all processes of a machine are gone.
pub(crate) struct Cleanup {
    /// Sockets that the processes leave.
    pub(crate) sockets: Vec<PathBuf>,
    /// Learns why the machine ended, if the VMM said so.
    pub(crate) reason: std::pin::Pin<Box<dyn Future<Output = Option<String>> + Send>>,
}

/// The handle on the processes of a machine.
pub(crate) struct Supervised {
    members: Vec<Member>,
    exit: watch::Receiver<Option<MachineExit>>,
}

impl fmt::Debug for Supervised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.processes()).finish()
    }
}

impl Supervised {
    fn start(members: Vec<Member>, cleanup: Cleanup) -> Self {
        let (publish, exit) = watch::channel(None);
        drop(tokio::spawn(watch_over(members.clone(), cleanup, publish)));
        Self { members, exit }
    }

    /// Takes up the processes that the ledger holds for a machine; exactly one of each of `roles` must run.
    pub(crate) fn adopt(
        spec: &MachineSpec,
        records: &[ProcessRecord],
        roles: &[ProcessRole],
        cleanup: Cleanup,
    ) -> Result<Self, AdoptError> {
        let mut members = Vec::new();
        let mut running = Vec::new();
        for record in records {
            let role = record.role;
            match Process::open(record.id) {
                Ok(process) if process.try_exited().is_some() => {}
                Ok(_) if !belongs(record, &spec.token) => {
                    return Err(AdoptError::Stranger { record: *record });
                }
                Ok(process) => {
                    running.push(*record);
                    members.push(Member {
                        role,
                        process: Arc::new(process),
                    });
                }
                Err(ProcessError::Gone { .. }) => {}
                Err(source @ ProcessError::Refused { .. }) => {
                    return Err(AdoptError::Process { role, source });
                }
            }
        }
        if members.is_empty() {
            return Err(AdoptError::Gone);
        }
        let ended: Vec<_> = roles
            .iter()
            .copied()
            .filter(|role| !members.iter().any(|member| member.role == *role))
            .collect();
        if !ended.is_empty() {
            return Err(AdoptError::Partial { ended, running });
        }
        Ok(Self::start(members, cleanup))
    }

    pub(crate) fn processes(&self) -> Vec<ProcessRecord> {
        self.members.iter().map(Member::record).collect()
    }

    /// Whether a process with that part still runs.
    pub(crate) fn runs(&self, role: ProcessRole) -> bool {
        let mut members = self.members.iter();
        members.any(|member| member.role == role && member.process.try_exited().is_none())
    }

    /// Processor time and resident memory of the processes that still run.
    pub(crate) fn usage(&self) -> MachineFigures {
        let mut figures = MachineFigures::default();
        for member in &self.members {
            // One that has ended has none.
            if let Ok(usage) = member.process.usage() {
                figures.cpu += usage.user + usage.system;
                figures.resident = figures.resident.saturating_add(usage.resident);
            }
        }
        figures
    }

    pub(crate) fn stopped_processes(&self) -> Vec<ProcessRole> {
        let stopped = |member: &&Member| member.process.is_stopped().unwrap_or(false);
        self.members
            .iter()
            .filter(stopped)
            .map(|member| member.role)
            .collect()
    }

    pub(crate) async fn exited(&self) -> MachineExit {
        let mut exit = self.exit.clone();
        // Cancel-safe: each caller waits on a receiver of its own.
        match exit.wait_for(Option::is_some).await {
            Ok(published) => published.clone(),
            // The task went without publishing: the runtime is shutting down.
            Err(_) => None,
        }
        .unwrap_or(MachineExit {
            role: ProcessRole::Vmm,
            exit: Exit::Unknown,
            reason: None,
        })
    }

    pub(crate) async fn kill(&self) -> Result<(), KillError> {
        // Every process first, and only then a complaint about one.
        let mut refused = Ok(());
        for member in &self.members {
            if let Err(source) = member.process.kill(Signal::KILL) {
                refused = Err(KillError::Refused {
                    role: member.role,
                    source,
                });
            }
        }
        refused?;
        match tokio::time::timeout(KILL_DEADLINE, self.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(KillError::Stuck {
                left: self
                    .members
                    .iter()
                    .filter(|member| member.process.try_exited().is_none())
                    .map(Member::record)
                    .collect(),
                after: KILL_DEADLINE,
            }),
        }
    }
}

/// The supervising task of one machine.
async fn watch_over(members: Vec<Member>, cleanup: Cleanup, publish: watch::Sender<Option<MachineExit>>) {
    let mut ends = JoinSet::new();
    for member in members.clone() {
        ends.spawn(async move { (member.role, member.process.exited().await) });
    }
    let mut first = loop {
        match ends.join_next().await {
            Some(Ok((role, exit))) if !role.is_vital() => {
                warn!(%role, %exit, "a process ended without which its machine goes on");
            }
            Some(Ok(vital)) => break vital,
            Some(Err(_)) | None => return,
        }
    };
    if first.0 != ProcessRole::Vmm {
        // Did the VMM end, and this one because of it?
        if let Ok(Some(Ok(second))) = tokio::time::timeout(BLAME_GRACE, ends.join_next()).await
            && second.0 == ProcessRole::Vmm
        {
            first = second;
        }
    }
    kill_all(&members);
    while ends.join_next().await.is_some() {}
    let Cleanup { sockets, reason } = cleanup;
    let reason = reason.await;
    for socket in &sockets {
        if let Err(error) = files::remove_socket(socket) {
            warn!(socket = %socket.display(), %error, "a socket of an ended machine stays");
        }
    }
    let (role, exit) = first;
    publish.send_replace(Some(MachineExit { role, exit, reason }));
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
