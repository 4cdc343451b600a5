//! Machine processes recognised by their arguments, and ended by their records: what is needed when there is no
//! [`Machine`](crate::Machine) to ask.
//!
//! The ledger knows every process from its spawn on; between the spawn and the ledger's row only the token in the
//! arguments betrays it. Which argument carries the token is fixed here for both drivers.

use std::time::Duration;

use hostkit::process::{self, CommandLine, Process, ProcessError, Signal};

use crate::error::KillError;
use crate::vmm::{ProcessRecord, ProcessRole};

/// The option after which each role's token stands, with an option that must be there as well: together no program
/// but ours is called with them and a token of our form.
const MARKS: [(ProcessRole, &str, &str); 4] = [
    (ProcessRole::Vmm, "--id", "--api-sock"),
    (ProcessRole::Vmm, "-name", "-qmp"),
    (ProcessRole::VsockDevice, "--groups", "--uds-path"),
    (ProcessRole::Passt, "--search", "--fd"),
];

/// How long a killed process may take to be gone.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Whether this is a token as machines have it: `bgr`, then lowercase letters and digits, 64 bytes at most
/// (Firecracker allows no longer id).
pub(crate) fn is_token(text: &str) -> bool {
    let rest = text.strip_prefix("bgr").unwrap_or_default();
    (1..=61).contains(&rest.len())
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The token and role of a process, if its arguments say that it belongs to a machine.
#[must_use]
pub fn identify(line: &CommandLine) -> Option<(String, ProcessRole)> {
    let after = |option: &str| {
        let mut args = line.args.iter().skip(1);
        args.find(|argument| *argument == option)?;
        args.next()
    };
    MARKS.iter().find_map(|&(role, option, also)| {
        let token = after(option)?.to_str().filter(|token| is_token(token))?;
        after(also)?;
        Some((token.to_owned(), role))
    })
}

/// All processes of machines on this host that belong to our user, each with its machine's token: what is running,
/// and what an earlier run of the daemon left behind.
pub fn find_processes() -> std::io::Result<Vec<(String, ProcessRecord)>> {
    let user = rustix::process::geteuid().as_raw();
    let lines = process::command_lines()?;
    Ok(lines
        .iter()
        .filter_map(|line| identify(line).map(|(token, role)| (line, token, role)))
        .filter(|(line, _, role)| may_be_ours(*role, line.uid, user))
        .map(|(line, token, role)| (token, ProcessRecord { role, id: line.id }))
        .collect())
}

/// Whether a process with this owner can be one that we have started.
fn may_be_ours(role: ProcessRole, owner: u32, user: u32) -> bool {
    match role {
        ProcessRole::Vmm | ProcessRole::VsockDevice => owner == user,
        // Started by root it becomes another user, and root is shown as the owner of a process that guards its memory
        // (PR_SET_DUMPABLE of prctl(2), proc(5)).
        ProcessRole::Passt => owner == user || user == 0 || owner == 0,
    }
}

/// Ends these processes of the machine `token` and waits until they are gone. What is gone already, or is another
/// process by now, is left alone; so it may be repeated.
pub async fn kill_processes(token: &str, records: &[ProcessRecord]) -> Result<(), KillError> {
    let mut killed = Vec::new();
    for record in records {
        let refused = |source| KillError::Refused {
            role: record.role,
            source,
        };
        let process = match Process::open(record.id) {
            Ok(process) => process,
            Err(ProcessError::Gone { .. }) => continue,
            Err(source @ ProcessError::Refused { .. }) => return Err(refused(source)),
        };
        // Start times repeat after a reboot of the host; arguments tell. A zombie has none and is harmless to signal.
        if !belongs(record, token) {
            continue;
        }
        process.kill(Signal::KILL).map_err(refused)?;
        killed.push((*record, process));
    }
    let all_gone = async {
        for (_, process) in &killed {
            process.exited().await;
        }
    };
    match tokio::time::timeout(KILL_DEADLINE, all_gone).await {
        Ok(()) => Ok(()),
        Err(_) => Err(KillError::Stuck {
            left: killed
                .iter()
                .filter(|(_, process)| process.try_exited().is_none())
                .map(|(record, _)| *record)
                .collect(),
            after: KILL_DEADLINE,
        }),
    }
}

/// Whether the arguments of the process with this id are those of the machine. A zombie passes: it has no arguments
/// any more. The caller holds a pidfd on the process, so the id cannot change hands between.
pub(crate) fn belongs(record: &ProcessRecord, token: &str) -> bool {
    match process::command_line(record.id) {
        Some(line) if line.args.is_empty() => true,
        Some(line) => identify(&line) == Some((token.to_owned(), record.role)),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use hostkit::process::{Detached, Exit, ProcessId, spawn_detached};

    use super::*;

    fn line(args: &[&str]) -> CommandLine {
        let id = ProcessId {
            pid: 1,
            start_time: 1,
        };
        CommandLine {
            id,
            uid: 0,
            args: args.iter().map(OsString::from).collect(),
        }
    }

    #[test]
    fn tokens() {
        assert!(is_token("bgrabc0123456"));
        let longest = format!("bgr{}", "a".repeat(61));
        assert!(is_token(&longest));
        for bad in [
            "",
            "bgr",
            "abc",
            "bgrABC",
            "bgr/abc",
            "bgr-abc",
            "xbgrabc",
            &format!("{longest}a"),
        ] {
            assert!(!is_token(bad), "{bad}");
        }
    }

    #[test]
    fn only_our_own_command_lines_are_recognised() {
        let found = |args: &[&str]| identify(&line(args));
        let vmm = Some(("bgrabc0123456".to_owned(), ProcessRole::Vmm));
        assert_eq!(
            found(&["firecracker", "--id", "bgrabc0123456", "--api-sock", "x"]),
            vmm
        );
        assert_eq!(
            found(&["qemu", "-qmp", "chardev:qmp", "-name", "bgrabc0123456"]),
            vmm
        );
        assert_eq!(
            found(&["vdv", "--uds-path", "x", "--groups", "bgrabc0123456"]),
            Some(("bgrabc0123456".to_owned(), ProcessRole::VsockDevice))
        );
        assert_eq!(
            found(&["passt", "--fd", "7", "--search", "bgrabc0123456"]),
            Some(("bgrabc0123456".to_owned(), ProcessRole::Passt))
        );
        for other in [
            &["vim", "/run/banger/bgrabc0123456/qmp.sock"][..],
            &["pgrep", "-f", "--id", "bgrabc0123456"],
            &["firecracker", "--id", "other", "--api-sock", "x"],
            &["qemu", "-name"],
            &["passt", "--search", "bgrabc0123456"],
            &["qemu", "-name", "bgrabc0123456,debug-threads=on", "-qmp", "x"],
            &[],
        ] {
            assert_eq!(found(other), None, "{other:?}");
        }
    }

    #[test]
    fn passt_may_have_changed_its_user() {
        for (owner, user, ours) in [(7, 7, true), (7, 8, false), (65534, 0, true), (0, 8, true)] {
            assert_eq!(may_be_ours(ProcessRole::Passt, owner, user), ours);
        }
        assert!(!may_be_ours(ProcessRole::Vmm, 65534, 0));
    }

    #[tokio::test]
    async fn records_are_killed_only_when_the_arguments_fit() {
        let token = "bgrkilltest01";
        let mut spec = Detached::new("/bin/sh");
        spec.args = [
            "-c",
            "kill -STOP $$; exit",
            "x",
            "--groups",
            token,
            "--uds-path",
            "y",
        ]
        .map(OsString::from)
        .to_vec();
        let process = spawn_detached(spec).unwrap();
        let record = ProcessRecord {
            role: ProcessRole::VsockDevice,
            id: process.id(),
        };
        assert!(find_processes().unwrap().contains(&(token.to_owned(), record)));

        kill_processes("bgrother", &[record]).await.unwrap();
        kill_processes(
            token,
            &[ProcessRecord {
                role: ProcessRole::Vmm,
                ..record
            }],
        )
        .await
        .unwrap();
        let earlier = ProcessId {
            start_time: record.id.start_time - 1,
            ..record.id
        };
        kill_processes(
            token,
            &[ProcessRecord {
                id: earlier,
                ..record
            }],
        )
        .await
        .unwrap();
        assert_eq!(process.try_exited(), None);

        kill_processes(token, &[record]).await.unwrap();
        // Whichever handle reaps it first knows the signal.
        assert!(matches!(process.exited().await, Exit::Unknown | Exit::Signal(9)));
        kill_processes(token, &[record]).await.unwrap();
    }
}
