//! The WaitBooted call: when has the image's init started everything?
//!
//! The agent serves long before that, so that a guest can be used early; who needs its services waits here. systemd is
//! asked by its own program, `systemctl is-system-running --wait`, as soon as it can be: it answers on a socket which
//! appears in `/run/systemd`, where inotify(7) sees it come.

use super::service::Role;
use banger_agent_api::proto::BootState;
use banger_agent_api::{Failure, FailureKind};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

const MAX_WAIT: Duration = Duration::from_hours(1);

/// systemd's private socket, below `/run`, and the directory it comes in.
const RUN: &str = "/run";
const DIRECTORY: &str = "/run/systemd";
const SOCKET: &str = "/run/systemd/private";

/// When there is no time to wait, for systemd to answer how far it is.
const ANSWER: Duration = Duration::from_secs(5);

/// Where systemctl may be.
const SYSTEMCTL: [&str; 2] = ["/usr/bin/systemctl", "/bin/systemctl"];

/// Waits for at most `wait`.
pub(super) async fn wait(role: &Role, wait: Duration) -> Result<BootState, Failure> {
    match role {
        // It starts nothing: what there is to be started has been.
        Role::Init { .. } => Ok(BootState::Running),
        Role::UnderSystemd => systemd(wait.min(MAX_WAIT)).await,
        Role::UnderOtherInit | Role::Debug => Ok(BootState::Unspecified),
    }
}

async fn systemd(wait: Duration) -> Result<BootState, Failure> {
    let end = Instant::now() + wait;
    if !Path::new(SOCKET).exists() {
        match timeout_at(end, appears()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failure(&format!("wait for systemd: {error}"))),
            Err(_elapsed) => return Ok(BootState::Starting),
        }
    }
    if wait.is_zero() {
        return match timeout_at(Instant::now() + ANSWER, ask(false)).await {
            Ok(state) => state,
            Err(_elapsed) => Ok(BootState::Starting),
        };
    }
    match timeout_at(end, ask(true)).await {
        Ok(state) => state,
        Err(_elapsed) => Ok(BootState::Starting),
    }
}

/// Runs systemctl, which is killed when this is dropped.
async fn ask(wait: bool) -> Result<BootState, Failure> {
    let Some(program) = SYSTEMCTL.into_iter().find(|path| Path::new(path).exists()) else {
        return Err(failure("ask systemd how far it is: the image has no systemctl"));
    };
    let mut command = Command::new(program);
    command.arg("is-system-running");
    if wait {
        command.arg("--wait");
    }
    let output = command
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failure(&format!("run {program}: {error}")))?;
    let word = String::from_utf8_lossy(&output.stdout);
    state_of(word.trim()).ok_or_else(|| failure("understand what systemctl says of systemd"))
}

/// The words of systemctl(1), `is-system-running`.
fn state_of(word: &str) -> Option<BootState> {
    Some(match word {
        "initializing" | "starting" => BootState::Starting,
        "running" => BootState::Running,
        "degraded" => BootState::Degraded,
        "maintenance" => BootState::Maintenance,
        "stopping" => BootState::Stopping,
        _ => return None,
    })
}

/// Returns when systemd's socket is there.
async fn appears() -> io::Result<()> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, RUN, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    // SAFETY: an owned descriptor, which stays open and the same for as long as the `AsyncFd` has it.
    let events = unsafe { AsyncFd::register(watch) }?;
    loop {
        // Fails until the directory is there; a second time it is the same watch.
        let _not_yet = inotify::add_watch(
            events.get_ref(),
            DIRECTORY,
            WatchFlags::CREATE | WatchFlags::MOVED_TO,
        );
        // Looked at after the watch was set, so that what comes in between is not missed.
        if Path::new(SOCKET).exists() {
            return Ok(());
        }
        let mut ready = events.readable().await?;
        let mut unread = [0; 4096];
        // What happened matters less than that something did.
        while rustix::io::read(events.get_ref(), &mut unread).is_ok() {}
        ready.clear_ready();
    }
}

fn failure(message: &str) -> Failure {
    Failure::new(FailureKind::System, "systemd", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_words() {
        assert_eq!(state_of("degraded"), Some(BootState::Degraded));
        assert_eq!(state_of("starting"), Some(BootState::Starting));
        for unknown in ["", "offline", "unknown", "Running"] {
            assert_eq!(state_of(unknown), None, "{unknown}");
        }
    }

    #[tokio::test]
    async fn an_agent_as_init_has_started_everything() {
        let role = Role::Init { layers: Vec::new() };
        assert_eq!(wait(&role, Duration::ZERO).await, Ok(BootState::Running));
        let other = wait(&Role::UnderOtherInit, MAX_WAIT).await;
        assert_eq!(other, Ok(BootState::Unspecified));
    }
}
