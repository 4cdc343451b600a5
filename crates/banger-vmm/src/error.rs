//! What can go wrong, one enum per operation.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hostkit::exec::ExecError;
use hostkit::process::{Exit, ProcessError, SpawnError};

use crate::check::SpecProblem;
use crate::vmm::{ProcessRecord, ProcessRole};

/// The last lines a process left in its log, for an error message; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTail(pub Vec<String>);

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("it left no message"),
            lines => f.write_str(&lines.join(" | ")),
        }
    }
}

/// Why a machine did not start. Whatever had been spawned is gone.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification has problems; nothing was touched.
    #[error("check the machine: {}", join(problems))]
    Spec {
        /// All of them.
        problems: Vec<SpecProblem>,
    },
    /// A file or socket could not be prepared.
    #[error("{action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process could not be started.
    #[error("start the {role} process")]
    Spawn {
        /// Its role.
        role: ProcessRole,
        /// Why.
        source: SpawnError,
    },
    /// The ledger did not take a process down, so it was not kept running.
    #[error("record the {role} process")]
    Record {
        /// Its role.
        role: ProcessRole,
        /// What the ledger said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A process ended while the machine was starting.
    #[error("start the machine: {role} ended with {exit}: {log}")]
    Exited {
        /// Which.
        role: ProcessRole,
        /// How.
        exit: Exit,
        /// The last lines of the log.
        log: LogTail,
    },
    /// A process did not answer in time. Trying again can help where the host was overloaded.
    #[error("start the machine: {role} did not answer within {} s: {log}", within.as_secs())]
    Silent {
        /// Which.
        role: ProcessRole,
        /// How long it was given.
        within: Duration,
        /// The last lines of the log.
        log: LogTail,
    },
    /// Neither passt nor QEMU itself can be the machine's user-mode network.
    #[error("connect the machine: QEMU has no user-mode network here, and {reason}")]
    Network {
        /// Why passt is none, for people.
        reason: String,
    },
    /// The VMM answered, but not as it should.
    #[error("start the machine")]
    Control {
        /// What it said.
        source: ControlError,
    },
}

fn join(problems: &[SpecProblem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Why a machine could not be taken up again.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// None of its processes runs any more.
    #[error("adopt the machine: it has ended")]
    Gone,
    /// Some processes run, others do not: the machine is of no use and the rest wants killing.
    #[error("adopt the machine: its {} ended", roles(ended))]
    Partial {
        /// Roles without a running process.
        ended: Vec<ProcessRole>,
        /// What still runs.
        running: Vec<ProcessRecord>,
    },
    /// A process with the recorded id runs, but it is not this machine's.
    #[error("adopt the machine: process {} is not its {}", record.id, record.role)]
    Stranger {
        /// The record that does not fit.
        record: ProcessRecord,
    },
    /// A process could not be looked at.
    #[error("adopt the machine's {role}")]
    Process {
        /// Which.
        role: ProcessRole,
        /// Why.
        source: ProcessError,
    },
}

fn roles(ended: &[ProcessRole]) -> String {
    ended
        .iter()
        .map(|role| role.as_str())
        .collect::<Vec<_>>()
        .join(" and ")
}

/// Why a machine could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The system refused the signal.
    #[error("kill the {role} process")]
    Refused {
        /// Role of the process.
        role: ProcessRole,
        /// Why.
        source: ProcessError,
    },
    /// Killed, but still there: a process that waits for a broken disk or network file system cannot be ended.
    #[error("end the machine: {} still there {} s after SIGKILL", processes(left), after.as_secs())]
    Stuck {
        /// What is left.
        left: Vec<ProcessRecord>,
        /// How long was waited.
        after: Duration,
    },
}

fn processes(left: &[ProcessRecord]) -> String {
    left.iter()
        .map(|record| format!("{} ({})", record.role, record.id))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Why the VMM's control socket was of no use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens: the VMM is gone or going.
    #[error("connect to {}", socket.display())]
    Connect {
        /// The control socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("talk over {}", socket.display())]
    Broken {
        /// The control socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time: stopped, overloaded or hung.
    #[error("wait for an answer to `{request}` over {}: none within {} s", socket.display(), within.as_secs())]
    Silent {
        /// The control socket.
        socket: PathBuf,
        /// What was asked.
        request: String,
        /// How long was waited.
        within: Duration,
    },
    /// It answered something that this protocol does not have.
    #[error("understand the answer over {}: {detail}", socket.display())]
    Protocol {
        /// The control socket.
        socket: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The machine has no disk of that name.
    #[error("find the disk {id:?}: the machine was not started with it")]
    NoDisk {
        /// Which.
        id: String,
    },
    /// It understood and refused.
    #[error("run `{request}`: the VMM says: {message}")]
    Refused {
        /// What was asked.
        request: String,
        /// Its words.
        message: String,
    },
}

/// Why a program cannot be used as VMM.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It did not run, or is not there.
    #[error("ask {program} for its version")]
    Run {
        /// Name of the program.
        program: &'static str,
        /// Why.
        source: ExecError,
    },
    /// It ran and said something else than a version.
    #[error("read the version of {}: it says {output:?}", path.display())]
    Version {
        /// The program.
        path: PathBuf,
        /// The beginning of what it said.
        output: String,
    },
    /// A version that this driver does not support.
    #[error("use {} {version}: at least {least} is needed", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
        /// The oldest supported one.
        least: &'static str,
    },
}
