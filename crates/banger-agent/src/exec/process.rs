//! A running process seen by its pidfd: waiting for it, signalling its group, reaping it.

use super::spawn::Process;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(u32),
    Signal { number: u32, core_dumped: bool },
}

/// Reaps a process which has exited, or waits for that.
pub(crate) fn reap(pidfd: &OwnedFd) -> io::Result<Exit> {
    let status = loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => break status,
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let number = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
    match (number(status.exit_status()), number(status.terminating_signal())) {
        (Some(code), _) => Ok(Exit::Code(code & 0xff)),
        (None, Some(number)) => Ok(Exit::Signal {
            number,
            core_dumped: status.dumped(),
        }),
        (None, None) => Err(io::Error::other("the process has neither exited nor been killed")),
    }
}

/// The leader of a process group which this server has started.
///
/// Its group is signalled only while the leader has not been reaped: until then the kernel cannot give its number to
/// anybody else.
#[derive(Debug)]
pub(crate) struct Leader {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    reaped: OnceLock<Exit>,
}

impl Leader {
    /// Takes charge of a process. Must be called within the runtime that will wait for it.
    pub(crate) fn new(process: Process) -> io::Result<Self> {
        let pid = Pid::from_raw(process.pid).ok_or_else(|| io::Error::other("a process without number"))?;
        // SAFETY: an owned descriptor, which stays open and the same for as long as the `AsyncFd` has it.
        match unsafe { AsyncFd::register_with_interest(process.pidfd, Interest::READABLE) } {
            Ok(pidfd) => Ok(Self {
                pid,
                pidfd,
                reaped: OnceLock::new(),
            }),
            Err(error) => {
                // Nobody could wait for it: end it here and now.
                let (pidfd, error) = error.into_parts();
                let _gone = kill_process_group(pid, Signal::KILL);
                let _exit = reap(&pidfd);
                Err(error)
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the end and reaps. Cancel-safe: an end that was seen is remembered.
    pub(crate) async fn wait(&self) -> io::Result<Exit> {
        if let Some(exit) = self.reaped.get() {
            return Ok(*exit);
        }
        self.ended().await?;
        // No await in between: whoever reaps also remembers.
        let exit = reap(self.pidfd.get_ref())?;
        Ok(*self.reaped.get_or_init(|| exit))
    }

    /// Waits for the end without reaping. A pidfd becomes readable when its process has exited (pidfd_open(2)).
    async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(|_ready| ())
    }

    /// Signals the process group; `false` when the leader has been reaped or no process is left.
    pub(crate) fn signal_group(&self, signal: Signal) -> bool {
        self.reaped.get().is_none() && kill_process_group(self.pid, signal).is_ok()
    }

    /// Ends the process group: SIGHUP, after `grace` SIGKILL; then reaps the leader.
    pub(crate) async fn terminate(&self, grace: Duration) -> io::Result<Exit> {
        if let Some(exit) = self.reaped.get() {
            return Ok(*exit);
        }
        // A stopped process would not act on the first.
        self.signal_group(Signal::HUP);
        self.signal_group(Signal::CONT);
        // The leader's end ends the grace for its whole group.
        let _in_time = tokio::time::timeout(grace, self.ended()).await;
        self.signal_group(Signal::KILL);
        self.wait().await
    }
}
