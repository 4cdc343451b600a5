//! One daemon per state directory: flock(2) on `STATE_DIR/lock`, which the kernel lets go of however the daemon ends.
//! The file holds the daemon's process id, and whether it is stopping, for messages only.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How long a daemon that has said it is stopping is waited for, and what is left of one that was killed: a process that
/// it had just forked holds the lock until it executes its program.
const WAIT: Duration = Duration::from_secs(15);

/// Pause between two tries meanwhile.
const RETRY: Duration = Duration::from_millis(20);

/// What a daemon that is stopping adds to its process id.
const STOPPING: &str = "stopping";

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another daemon runs.
    #[error(
        "lock {}: another bangerd is already running on this state directory{}",
        path.display(),
        match holder { Some(pid) => format!(", process {pid}"), None => String::new() }
    )]
    Held { path: PathBuf, holder: Option<u32> },
    /// The system refused.
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

/// The lock; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of a state directory. Waits for a daemon that is stopping or dead, and for no other.
    pub(crate) fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let fail = |action| {
            let path = path.clone();
            move |source| LockError::Io { action, path, source }
        };
        // Not truncated: until the lock is ours, the content is another daemon's. Rust opens with O_CLOEXEC, so that the
        // VMMs, which outlive the daemon, do not inherit the lock.
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail("open"))?;
        let deadline = Instant::now() + WAIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(e) => return Err(fail("lock")(e.into())),
            }
            let (holder, stopping) = holder(&mut file);
            let ends = stopping || holder.is_some_and(is_dead);
            if !ends || Instant::now() > deadline {
                return Err(LockError::Held { path, holder });
            }
            std::thread::sleep(RETRY);
        }
        let mut lock = Self {
            file,
            path: path.clone(),
        };
        lock.write("").map_err(fail("write"))?;
        Ok(lock)
    }

    /// Says that this daemon is about to go, so that the next one waits.
    pub(crate) fn announce_stop(&mut self) {
        if let Err(error) = self.write(STOPPING) {
            tracing::warn!(path = %self.path.display(), %error, "cannot write the lock");
        }
    }

    fn write(&mut self, note: &str) -> std::io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file
            .write_all(format!("{} {note}", std::process::id()).trim_end().as_bytes())
    }
}

/// Whether a process is gone, or a zombie (the state after the name in proc_pid_stat(5)).
fn is_dead(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let state = stat.as_deref().ok().and_then(|stat| stat.rsplit_once(") "));
    state.is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// The holder's process id and whether it is stopping, as far as the file says.
fn holder(file: &mut File) -> (Option<u32>, bool) {
    let mut text = String::new();
    // What cannot be read is not known; the lock itself does not depend on it.
    let read = file
        .rewind()
        .and_then(|()| file.take(64).read_to_string(&mut text));
    if read.is_err() {
        return (None, false);
    }
    let mut words = text.split_whitespace();
    (
        words.next().and_then(|pid| pid.parse().ok()),
        words.next() == Some(STOPPING),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("lock"),
            "123456 a longer content of one that died",
        )
        .unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        let Err(LockError::Held { holder, .. }) = Lock::take(dir.path()) else {
            panic!("taken twice")
        };
        assert_eq!(holder, Some(std::process::id()));
        drop(lock);
        drop(Lock::take(dir.path()).unwrap());
    }

    #[test]
    fn what_is_left_of_a_killed_daemon_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        // A zombie until it is waited for, then nothing at all: both are no daemon.
        while !is_dead(dead.id()) {
            std::thread::yield_now();
        }
        std::fs::write(dir.path().join("lock"), dead.id().to_string()).unwrap();
        let path = dir.path().to_owned();
        let next = std::thread::spawn(move || Lock::take(&path).map(drop));
        std::thread::sleep(RETRY * 3);
        assert!(!next.is_finished());
        dead.wait().unwrap();
        assert!(is_dead(dead.id()));
        drop(lock);
        next.join().unwrap().unwrap();
    }

    #[test]
    fn a_daemon_that_is_stopping_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = Lock::take(dir.path()).unwrap();
        lock.announce_stop();
        let path = dir.path().to_owned();
        let next = std::thread::spawn(move || Lock::take(&path).map(drop));
        std::thread::sleep(Duration::from_millis(120));
        assert!(!next.is_finished());
        drop(lock);
        next.join().unwrap().unwrap();
    }
}
