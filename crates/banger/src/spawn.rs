//! The daemon on demand: finds `bangerd`, starts it detached and waits until it listens.
//!
//! Two commands may do this at once. The daemon's lock lets one daemon live; the other one ends with "already running",
//! and both commands connect to the survivor. So a child that ended is only an error when nobody listens either.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{CliError, Kind};
use crate::paths::Paths;

/// How long a daemon may take until it listens.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often its socket is tried.
const INTERVAL: Duration = Duration::from_millis(5);

/// When to try again after our daemon has found another one running.
const RESPAWN: Duration = Duration::from_millis(500);

/// Most of a failed daemon's log that is looked at, in bytes.
const LOG_TAIL: u64 = 4096;

/// Name of the daemon's program.
const PROGRAM: &str = "bangerd";

/// Whether a daemon listens on the socket.
pub(crate) fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// The daemon's program: beside this one, where packages put it, or on the path.
pub(crate) fn find_program() -> Result<PathBuf, CliError> {
    let mut places = Vec::new();
    if let Some(beside) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(beside.to_owned());
        places.push(beside.join("../libexec/banger"));
    }
    places.push("/usr/local/libexec/banger".into());
    places.push("/usr/libexec/banger".into());
    places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let mut candidates = places.iter().map(|place| place.join(PROGRAM));
    candidates
        .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file())
        .ok_or_else(|| {
            let mut error = CliError::new(
                Kind::Prerequisite,
                format!("failed to find the daemon's program, {PROGRAM}"),
            )
            .hint(format!("install {PROGRAM} beside banger"));
            error.details = places
                .iter()
                .map(|place| format!("looked in {}", place.display()))
                .collect();
            error
        })
}

/// Starts the daemon and waits until it listens.
pub(crate) async fn start(paths: &Paths) -> Result<(), CliError> {
    let program = find_program()?;
    let (log, log_start) = open_log(&paths.log)?;
    let deadline = Instant::now() + DEADLINE;
    let mut child = Some(spawn(&program, &log)?);
    let mut respawn = deadline;
    loop {
        if listens(&paths.socket) {
            return Ok(());
        }
        let now = Instant::now();
        if now >= deadline {
            let reason = format!("it does not listen on {} after 10 s", paths.socket.display());
            return Err(cannot_start(&reason, paths));
        }
        if let Some(running) = &mut child
            && let Ok(Some(status)) = running.try_wait()
        {
            if !lost_the_race(&paths.log, log_start) {
                let reason =
                    last_line(&paths.log, log_start).unwrap_or_else(|| format!("{status}, without a word"));
                return Err(cannot_start(&reason, paths));
            }
            // Another daemon runs: it will listen soon, or is on its way out and will make room.
            child = None;
            respawn = now + RESPAWN;
        }
        if child.is_none() && now >= respawn {
            child = Some(spawn(&program, &log)?);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The daemon says why in one line, `bangerd: failed to … (hint: …)`.
fn cannot_start(reason: &str, paths: &Paths) -> CliError {
    let reason = reason.strip_prefix("bangerd: ").unwrap_or(reason);
    if let Some((reason, hint)) = reason
        .strip_suffix(')')
        .and_then(|reason| reason.rsplit_once(" (hint: "))
    {
        return CliError::new(Kind::Unreachable, format!("the daemon does not start: {reason}")).hint(hint);
    }
    CliError::new(Kind::Unreachable, format!("failed to start the daemon: {reason}")).hint(format!(
        "its log is {}; `banger daemon run` starts it in the foreground",
        paths.log.display()
    ))
}

/// Opens the log at its end, making its directory where it is missing.
fn open_log(path: &Path) -> Result<(File, u64), CliError> {
    let failed = |error: std::io::Error| {
        let permission = error.kind() == std::io::ErrorKind::PermissionDenied;
        let kind = if permission {
            Kind::Permission
        } else {
            Kind::Unreachable
        };
        CliError::new(
            kind,
            format!(
                "failed to start the daemon: cannot open its log {}: {error}",
                path.display()
            ),
        )
        .hint("BANGER_STATE_DIR or the configuration's `daemon.state_dir` put its state elsewhere")
    };
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
    }
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let end = log.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((log, end))
}

fn spawn(program: &Path, log: &File) -> Result<std::process::Child, CliError> {
    let failed = |error: std::io::Error| {
        CliError::new(
            Kind::Unreachable,
            format!(
                "failed to start the daemon: cannot run {}: {error}",
                program.display()
            ),
        )
    };
    let mut command = Command::new(program);
    command.arg("run").current_dir("/").stdin(Stdio::null());
    command
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log.try_clone().map_err(failed)?);
    // SAFETY: between fork and exec only async-signal-safe system calls are made: setsid(2) and close_range(2).
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // What this process inherited (a test's pipe, a shell's redirection) would be held open for the daemon's
            // life. Marked rather than closed: std reports a failed exec through a pipe of its own. A kernel before
            // 5.11 refuses the flag; then the descriptors stay, which harms nobody.
            libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    command.spawn().map_err(failed)
}

/// Whether the daemon ended because another one runs.
fn lost_the_race(log: &Path, from: u64) -> bool {
    tail(log, from).is_some_and(|text| text.contains("already running"))
}

/// The last line that is not blank.
fn last_line(log: &Path, from: u64) -> Option<String> {
    let text = tail(log, from)?;
    text.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned)
}

/// The end of what was written to the log since `from`.
fn tail(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let end = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_TAIL))))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_line_of_this_attempt() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("state/bangerd.log");
        let (mut file, start) = open_log(&log).unwrap();
        assert_eq!(start, 0);
        std::io::Write::write_all(&mut file, b"an old failure\n").unwrap();
        let (mut file, start) = open_log(&log).unwrap();
        assert_eq!(last_line(&log, start), None);
        std::io::Write::write_all(&mut file, b"one\nthe reason\n\n").unwrap();
        assert_eq!(last_line(&log, start).as_deref(), Some("the reason"));
        assert!(!lost_the_race(&log, start));
        std::io::Write::write_all(&mut file, b"error: already running as process 7\n").unwrap();
        assert!(lost_the_race(&log, start));
        std::io::Write::write_all(&mut file, "x".repeat(10_000).as_bytes()).unwrap();
        assert_eq!(last_line(&log, start).unwrap().len(), 4096);
    }
}
