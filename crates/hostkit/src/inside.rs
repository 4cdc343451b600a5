//! Processes at work in a directory: what a program that was killed has left running there.
//!
//! A process that nobody waits for any more has no parent that would betray it. What does is where it stands (its
//! working directory, its root directory, proc_pid_cwd(5), proc_pid_root(5)) and what it was told: a value of its
//! environment or an argument that is the directory or lies in it. Children inherit the first three.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::process::{self, ProcessId};

/// Environments are at most a third of the stack's limit; more than this is nobody's.
const ENVIRONMENT_LIMIT: u64 = 4 << 20;

/// Our user's processes at work in a directory, the caller excepted. A snapshot: ask again after ending them, since they
/// may have started others meanwhile.
pub fn processes_inside(directory: &Path) -> io::Result<Vec<ProcessId>> {
    let user = rustix::process::geteuid().as_raw();
    let ourselves = std::process::id();
    let mut found = process::command_lines()?;
    found.retain(|line| {
        line.uid == user
            && line.id.pid != ourselves
            && (line.args.iter().any(|argument| names(argument, directory))
                || stands_in(line.id.pid, directory)
                || was_told(line.id.pid, directory))
    });
    Ok(found.into_iter().map(|line| line.id).collect())
}

fn stands_in(pid: u32, directory: &Path) -> bool {
    ["cwd", "root"]
        .into_iter()
        .filter_map(|link| std::fs::read_link(format!("/proc/{pid}/{link}")).ok())
        .any(|place| place.starts_with(directory))
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
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    fn sleeper(prepare: impl FnOnce(&mut Command) -> &mut Command) -> Ended {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        Ended(prepare(&mut command).spawn().unwrap())
    }

    #[test]
    fn those_that_stand_in_it_or_were_told_of_it_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("work");
        let beside = dir.path().join("work-beside");
        for path in [&directory, &beside] {
            std::fs::create_dir(path).unwrap();
        }
        let standing = sleeper(|c| c.current_dir(&directory));
        let told = sleeper(|c| c.env("SOMEWHERE", directory.join("deep")));
        let stranger = sleeper(|c| c.current_dir(&beside).env("SOMEWHERE", &beside));
        let found = processes_inside(&directory).unwrap();
        let has = |child: &Ended| found.iter().any(|id| id.pid == child.0.id());
        assert!(has(&standing));
        assert!(has(&told));
        assert!(!has(&stranger));
    }
}
