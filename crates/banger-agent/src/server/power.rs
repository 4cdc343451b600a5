//! Ending the machine: a reboot, which makes Firecracker exit and QEMU with `-no-reboot` too.
//!
//! ```text
//! graceful ─┬─ systemd: SIGRTMIN+5 to process 1 ──┐
//!           ├─ other init: SIGINT to process 1 ───┼─ deadline passed → immediate
//!           └─ agent: SIGTERM all → SIGKILL all ──┴─ everything ended → immediate
//! immediate ── file systems synced and made read-only, reboot(2)
//! ```
//!
//! The reply to the call goes out first; the machine's end is seen by whoever watches the VMM.

use super::service::{Context, Role};
use crate::exec::Running;
use crate::log;
use banger_agent_api::proto::ShutdownMode;
use banger_agent_api::{Failure, FailureKind};
use rustix::mount::{
    FsPickFlags, MountFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick, mount_remount,
};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Where the request names no deadline, and the longest it can name.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

/// For replies to leave the guest before the guest ends.
const REPLY_TIME: Duration = Duration::from_millis(50);

/// Of an agent's graceful shutdown: at most this long between SIGTERM and SIGKILL, and for SIGKILL to take effect.
const TERM_TIME: Duration = Duration::from_secs(10);
const KILL_TIME: Duration = Duration::from_secs(2);

/// How often the process table is looked at while its processes end.
const LOOK: Duration = Duration::from_millis(10);

/// systemd(1): "Reboots the machine via the reboot.target" is SIGRTMIN+5; SIGRTMIN is 34 for user space.
const SYSTEMD_REBOOT: libc::c_int = 34 + 5;

/// Begins a shutdown and returns.
pub(crate) fn begin(
    context: &Arc<Context>,
    running: &Running,
    mode: ShutdownMode,
    deadline_ms: u32,
) -> Result<(), Failure> {
    if matches!(context.role, Role::Debug) {
        let message = "shut down the machine: this agent serves for debugging and has not booted it";
        return Err(Failure::new(FailureKind::InvalidRequest, "shutdown", message));
    }
    let graceful = match mode {
        ShutdownMode::Unspecified | ShutdownMode::Graceful => true,
        ShutdownMode::Immediate => false,
    };
    let deadline = match deadline_ms {
        0 => DEFAULT_DEADLINE,
        ms => Duration::from_millis(ms.into()).min(MAX_DEADLINE),
    };
    let (context, running) = (Arc::clone(context), running.clone());
    tokio::spawn(async move {
        tokio::time::sleep(REPLY_TIME).await;
        if graceful {
            log::line(format_args!("shutting down, within {} ms", deadline.as_millis()));
            wind_down(&context.role, &running, Instant::now() + deadline).await;
        }
        // How the last commands ended is on its way.
        tokio::time::sleep(REPLY_TIME).await;
        // Blocking is right: nothing else is to be done any more.
        finish(&context.role);
    });
    Ok(())
}

/// Lets everything end in order; returns when that is done or the deadline has passed.
async fn wind_down(role: &Role, running: &Running, deadline: Instant) {
    let asked = match role {
        Role::Init { .. } => {
            signal_everybody(Signal::TERM);
            // Interactive shells ignore SIGTERM; this is what they end on when their terminal goes away.
            for (pid, living) in others() {
                if living.has_terminal {
                    let _gone = kill_process(pid, Signal::HUP);
                }
            }
            everybody_gone(deadline.min(Instant::now() + TERM_TIME)).await;
            signal_everybody(Signal::KILL);
            everybody_gone(deadline.min(Instant::now() + KILL_TIME)).await;
            return;
        }
        // SAFETY: a system call without pointers.
        Role::UnderSystemd => unsafe { libc::kill(1, SYSTEMD_REBOOT) == 0 },
        // What the kernel sends for Ctrl-Alt-Del: sysvinit, OpenRC, runit and busybox init all reboot on it.
        Role::UnderOtherInit => kill_process(Pid::INIT, Signal::INT).is_ok(),
        Role::Debug => return,
    };
    if asked {
        // The agent's commands belong to no service: init would come to them last, and wait long for those which do not
        // mind SIGTERM.
        running.signal_all(Signal::TERM);
        running.signal_all(Signal::HUP);
        tokio::time::sleep_until(deadline.min(Instant::now() + TERM_TIME)).await;
        running.signal_all(Signal::KILL);
        // Ends with the machine, if all goes well: systemd spares this process until it reboots.
        tokio::time::sleep_until(deadline).await;
        log::line(format_args!("the image's init has not rebooted in time"));
    } else {
        log::line(format_args!("failed to ask the image's init to reboot"));
    }
}

/// kill(2): −1 means every process but this one and process 1.
fn signal_everybody(signal: Signal) {
    // SAFETY: a system call without pointers.
    unsafe {
        // Fails only when there is nobody left.
        libc::kill(-1, signal.as_raw());
    }
}

/// Ends every process but this one and process 1, at once.
pub(super) async fn end_everybody(deadline: Instant) {
    signal_everybody(Signal::KILL);
    everybody_gone(deadline).await;
}

async fn everybody_gone(deadline: Instant) {
    while Instant::now() < deadline && !others().is_empty() {
        tokio::time::sleep(LOOK).await;
    }
}

/// A process of user space which has not exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Living {
    has_terminal: bool,
}

/// The living processes beside this one and process 1.
fn others() -> Vec<(Pid, Living)> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = rustix::process::getpid();
    processes
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let stat = std::fs::read(entry.path().join("stat")).ok()?;
            let living = parse_stat(&String::from_utf8_lossy(&stat))?;
            (pid != own && pid != Pid::INIT).then_some((pid, living))
        })
        .collect()
}

/// Reads a line of `/proc/PID/stat` (proc(5)); `None` for kernel threads and for what has exited.
fn parse_stat(stat: &str) -> Option<Living> {
    // The second field is the name in parentheses and may itself hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?;
    let _group = fields.next()?;
    let _session = fields.next()?;
    let terminal = fields.next()?;
    // Process 2 is the parent of every kernel thread, and has no parent itself.
    let user_space = parent != "2" && parent != "0";
    (user_space && !matches!(state, "Z" | "X")).then_some(Living {
        has_terminal: terminal != "0",
    })
}

/// Makes the disks consistent and reboots.
fn finish(role: &Role) {
    rustix::fs::sync();
    // Both fail while files are open for writing (immediate mode); the sync above has done what could be done.
    let _busy = mount_remount("/", MountFlags::RDONLY, c"");
    if let Role::Init { layers } = role {
        for layer in layers {
            let _busy = fspick(
                layer,
                "",
                FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC,
            )
            .and_then(|layer| {
                fsconfig_set_flag(&layer, "ro")?;
                fsconfig_reconfigure(&layer)
            });
        }
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::Restart) {
        log::line(format_args!("failed to reboot: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_living_processes_of_user_space_count() {
        let living = |has_terminal| Some(Living { has_terminal });
        assert_eq!(parse_stat("12 (sh) S 1 12 12 0 -1"), living(false));
        assert_eq!(parse_stat("12 (a) Z 2) R 1 12 12 34816 -1"), living(true));
        assert_eq!(parse_stat("13 (sh) Z 1 13 13 0 -1"), None);
        assert_eq!(parse_stat("14 (kworker/0:1) I 2 0 0 0 -1"), None);
        assert_eq!(parse_stat("2 (kthreadd) S 0 0 0 0 -1"), None);
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[tokio::test]
    async fn a_debugging_agent_never_ends_its_machine() {
        let open_files = libc::rlimit {
            rlim_cur: 1024,
            rlim_max: 1024,
        };
        let context = Arc::new(Context {
            role: Role::Debug,
            disks: None,
            ssh: crate::ssh::Place::in_guest(),
            open_files,
        });
        let refused = begin(&context, &Running::default(), ShutdownMode::Immediate, 0).expect_err("refused");
        assert_eq!(refused.kind, FailureKind::InvalidRequest);
    }
}
