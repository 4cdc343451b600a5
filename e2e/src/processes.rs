//! Which processes belong to a daemon under test: those that carry one of its directories in their arguments or their
//! environment (proc(5)). That finds the daemon, its VMMs, what bootstraps run, and command lines that still wait.

use std::path::Path;

/// A process as found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its arguments, joined by blanks.
    pub command: String,
}

/// All processes but our own that carry one of the markers. Zombies do not count: they hold nothing.
#[must_use]
pub fn with_markers(markers: &[&str]) -> Vec<Process> {
    let ourselves = rustix::process::getpid().as_raw_nonzero().get();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == ourselves || is_zombie(&entry.path()) {
            continue;
        }
        // A process may end between two reads; it is then gone and rightly not found.
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let carries = |text: &[u8]| {
            markers
                .iter()
                .any(|marker| text.windows(marker.len()).any(|part| part == marker.as_bytes()))
        };
        if carries(&command) || carries(&environment) {
            let command = String::from_utf8_lossy(&command)
                .replace('\0', " ")
                .trim_end()
                .to_owned();
            found.push(Process { pid, command });
        }
    }
    found.sort();
    found
}

/// How many file descriptors a process has open.
#[must_use]
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("list the open files")
        .count()
}

/// Kills processes at once, by their ids.
pub fn kill(processes: &[Process]) {
    for process in processes {
        if let Some(pid) = rustix::process::Pid::from_raw(process.pid) {
            // It may have ended by itself meanwhile.
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
}

fn is_zombie(process: &Path) -> bool {
    // The state follows the name, which is in parentheses and may itself contain any character.
    std::fs::read_to_string(process.join("stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z')))
        .unwrap_or(true)
}
