//! Processes left at work in a directory: what a program that was killed has left running there.
//!
//! What betrays them is where they stand (their working directory, their root directory, proc_pid_cwd(5),
//! proc_pid_root(5)) and what they were told: a value of their environment or an argument that is the directory or lies in
//! it. Children inherit the first three.
//!
//! Others look like that too: a shell whose user has gone there, an editor, whatever was started from such a shell
//! (`OLDPWD`). What tells them is that somebody waits for them still. A process that does not lead its session, and whose
//! parent is of another one, has lost the parent that it came from (credentials(7)); it and what it has started are left.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::process::{self, ProcessId};

/// Environments are at most a third of the stack's limit; more than this is nobody's.
const ENVIRONMENT_LIMIT: u64 = 4 << 20;

/// Deeper than any chain of parents of what is left.
const PARENTS: usize = 1000;

/// Our user's processes that are left at work in a directory. A snapshot: ask again after ending them, since they may have
/// started others meanwhile. What has the directory for its root is at home nowhere else and always one of them.
pub fn processes_inside(directory: &Path) -> io::Result<Vec<ProcessId>> {
    let user = rustix::process::geteuid().as_raw();
    let ourselves = std::process::id();
    let mut found = process::command_lines()?;
    found.retain(|line| {
        line.uid == user
            && line.id.pid != ourselves
            && (leads_into(line.id.pid, "root", directory)
                || ((line.args.iter().any(|argument| names(argument, directory))
                    || leads_into(line.id.pid, "cwd", directory)
                    || was_told(line.id.pid, directory))
                    && is_left(line.id.pid)))
    });
    Ok(found.into_iter().map(|line| line.id).collect())
}

fn leads_into(pid: u32, link: &str, directory: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|place| place.starts_with(directory))
}

/// Whether a process, or one that it descends from, has lost the parent that it came from.
fn is_left(pid: u32) -> bool {
    let mut process = pid;
    let ourselves = std::process::id();
    for _ in 0..PARENTS {
        let Some((parent, session)) = family(process) else {
            return false;
        };
        if session == process {
            return false;
        }
        // Whatever has become of our own parents.
        if parent == ourselves {
            return false;
        }
        // In a container that has a shell for its first process both are of one session.
        if parent <= 1 || family(parent).is_none_or(|(_, of_parent)| of_parent != session) {
            return true;
        }
        process = parent;
    }
    false
}

/// Parent and session of a process, fields 4 and 6 of proc_pid_stat(5).
fn family(pid: u32) -> Option<(u32, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
}

fn was_told(pid: u32, directory: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRONMENT_LIMIT).read_to_end(&mut text));
    read.is_ok()
        && text.split(|&byte| byte == 0).any(|variable| {
            let value = variable.splitn(2, |&byte| byte == b'=').nth(1);
            value.is_some_and(|value| names(OsStr::from_bytes(value), directory))
        })
}

/// Whether a text is the directory or a path in it.
fn names(text: &OsStr, directory: &Path) -> bool {
    Path::new(text).starts_with(directory)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Ended with the test.
    struct Ended(u32);

    impl Drop for Ended {
        fn drop(&mut self) {
            let pid = i32::try_from(self.0)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // It may have been ended by the test.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }

    /// One whose parent is gone, and one that we wait for.
    #[expect(
        clippy::disallowed_methods,
        reason = "what is started must have been left by its parent, which hostkit::exec does not let happen"
    )]
    fn sleepers(prepare: impl Fn(&mut Command) -> &mut Command) -> (Ended, Ended) {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 > /dev/null 2>&1 & echo $!"]);
        let output = prepare(&mut command).output().unwrap();
        let left = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        (Ended(left), Ended(prepare(&mut command).spawn().unwrap().id()))
    }

    #[test]
    fn those_that_are_left_and_stand_in_it_or_were_told_of_it_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("work");
        let beside = dir.path().join("work-beside");
        for path in [&directory, &beside] {
            std::fs::create_dir(path).unwrap();
        }
        let (standing, somebodys) = sleepers(|c| c.current_dir(&directory));
        let (told, somebody_told) = sleepers(|c| c.env("SOMEWHERE", directory.join("deep")));
        let (stranger, _waited_for) = sleepers(|c| c.current_dir(&beside).env("SOMEWHERE", &beside));
        let found = processes_inside(&directory).unwrap();
        let has = |process: &Ended| found.iter().any(|id| id.pid == process.0);
        assert!(has(&standing));
        assert!(has(&told));
        assert!(!has(&stranger));
        // A shell whose user has gone there, and what was started from it.
        assert!(!has(&somebodys));
        assert!(!has(&somebody_told));
    }
}
