//! `banger daemon stop`: ends the daemon in order.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use banger_api::client::Client;
use banger_api::types::Empty;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::spawn;
use crate::stdio::say;

/// How long the daemon may take to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// Stop the daemon; machines go on running
///
/// The next command that needs the daemon starts it again, and it finds its machines.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger daemon stop
")]
pub(crate) struct Stop {}

impl Stop {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = match context.running_client().await {
            Ok(client) => client,
            Err(error) if error.kind == Kind::Unreachable && !spawn::listens(context.socket()) => {
                // What was asked for is so.
                say!("the daemon is not running");
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        let pid = client.daemon_status(Empty {}).await?.pid;
        shut_down(context, &client, pid).await?;
        Ok(0)
    }
}

/// Asks the daemon to end, and waits until it has.
pub(super) async fn shut_down(context: &Context, client: &Client, pid: u32) -> Result<(), CliError> {
    // Opened before it ends, so that the number cannot have become another process.
    let process = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    client.daemon_shutdown(Empty {}).await?;
    let ended = match process {
        Some(process) => tokio::task::spawn_blocking(move || wait(&process))
            .await
            .unwrap_or(false),
        // Gone already, or in another pid namespace.
        None => true,
    };
    if ended && !spawn::listens(context.socket()) {
        return Ok(());
    }
    Err(CliError::new(
        Kind::Timeout,
        format!("the daemon was asked to stop and process {pid} has not ended in 30 s"),
    ))
}

/// Waits for a process's end: its descriptor becomes readable (pidfd_open(2)).
fn wait(process: &OwnedFd) -> bool {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
