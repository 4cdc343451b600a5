//! Starts a process the way a login does: own session, own user, own terminal, nothing inherited.
//!
//! `clone(CLONE_VM | CLONE_VFORK)` as glibc's posix_spawn does it: the child borrows the agent's memory until it calls
//! execve, so starting costs the same however large the agent is (in guests without hardware virtualization, copying
//! page tables is what costs). That makes rules for the child's code, all of it in [`child`]:
//!
//! - raw system calls and plain memory only: no allocation, no locks, no libc wrapper which keeps state per process
//!   (glibc's setuid would call upon the agent's own threads to follow);
//! - every signal stays blocked until just before execve, after all handlers were reset: a handler of the agent would
//!   otherwise run twice in one memory;
//! - it reports failure by writing to memory which the agent, stopped until then, reads.
//!
//! Nothing here knows of gRPC; [`super::prepare`] makes the [`Plan`].

use rustix::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ffi::CString;
use std::io;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr;

/// Stack of the child until execve, in 16-byte units: 64 KiB.
const STACK_UNITS: usize = 4096;

/// The highest signal number of Linux on x86-64.
const MAX_SIGNAL: c_int = 64;

/// Everything needed to start a process, ready for system calls.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Paths tried in order, as execvp(3) does with PATH.
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) workdir: CString,
    /// A working directory which cannot be entered is replaced by `/` (the user's home when none was asked for).
    pub(crate) workdir_optional: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Become standard input, output and error; each is above 2.
    pub(crate) stdio: [OwnedFd; 3],
    /// Standard input is a terminal, which is to control the process.
    pub(crate) terminal: bool,
    /// `RLIMIT_NOFILE` of the process.
    pub(crate) open_files: libc::rlimit,
}

/// The step at which a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Making the process.
    Clone,
    /// Session, standard streams, terminal, limits.
    Setup,
    /// User and groups.
    Credentials,
    /// Entering the working directory.
    Workdir,
    /// No candidate exists.
    NotFound,
    /// A candidate exists and cannot be executed.
    NotExecutable,
    /// A candidate exists, but not the interpreter or loader it names.
    NoInterpreter,
}

/// A process was not started.
#[derive(Debug, thiserror::Error)]
#[error("start the process ({step:?})")]
pub(crate) struct SpawnError {
    pub(crate) step: Step,
    pub(crate) source: io::Error,
}

/// A process that runs, or waits to be reaped.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: libc::pid_t,
    pub(crate) pidfd: OwnedFd,
}

/// What parent and child share. Only plain data and pointers into the parent's memory.
struct Shared {
    candidates: *const *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    workdir: *const c_char,
    workdir_optional: bool,
    uid: u32,
    gid: u32,
    groups: *const u32,
    groups_len: usize,
    stdio: [RawFd; 3],
    terminal: bool,
    open_files: libc::rlimit,
    /// Written by the child: where it stopped, and why.
    failure: Option<(Step, c_int)>,
}

/// Starts a process and returns once it has been executed, or has failed to. Blocks for as long as execve takes.
///
/// # Errors
///
/// The step which failed, with the kernel's reason; nothing is left behind.
pub(crate) fn spawn(plan: &Plan) -> Result<Process, SpawnError> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (candidates, argv, env) = (
        pointers(&plan.candidates),
        pointers(&plan.argv),
        pointers(&plan.env),
    );
    let mut shared = Shared {
        candidates: candidates.as_ptr(),
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        workdir: plan.workdir.as_ptr(),
        workdir_optional: plan.workdir_optional,
        uid: plan.uid,
        gid: plan.gid,
        groups: plan.groups.as_ptr(),
        groups_len: plan.groups.len(),
        stdio: [
            plan.stdio[0].as_raw_fd(),
            plan.stdio[1].as_raw_fd(),
            plan.stdio[2].as_raw_fd(),
        ],
        terminal: plan.terminal,
        open_files: plan.open_files,
        failure: None,
    };
    let mut stack = vec![0u128; STACK_UNITS];
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;

    let blocked = BlockedSignals::new();
    // SAFETY: the stack is 64 KiB, aligned to 16, unshared, and outlives the child's use of it, as does `shared`:
    // with CLONE_VFORK the call returns only when the child has executed or exited. `child` keeps the rules above.
    let pid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr().add(STACK_UNITS).cast(),
            flags,
            (&raw mut shared).cast(),
            &raw mut pidfd,
        )
    };
    let clone_error = io::Error::last_os_error();
    drop(blocked);
    if pid < 0 {
        return Err(SpawnError {
            step: Step::Clone,
            source: clone_error,
        });
    }
    // SAFETY: with CLONE_PIDFD a successful clone has stored a new descriptor there; nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let process = Process { pid, pidfd };
    // SAFETY: `shared` is alive; a volatile read because the other writer is invisible to the compiler.
    match unsafe { ptr::read_volatile(&raw const shared.failure) } {
        None => Ok(process),
        Some((step, errno)) => {
            // It has exited already; reap it.
            let _status = super::process::reap(&process.pidfd);
            Err(SpawnError {
                step,
                source: io::Error::from_raw_os_error(errno),
            })
        }
    }
}

/// Keeps every signal from being delivered to this thread while it lives.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn new() -> Self {
        // SAFETY: plain data, filled in by the calls; neither can fail with these arguments.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Self { before }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: restores the mask `new` has saved.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}

/// The child. See the rules in the module's documentation.
extern "C" fn child(argument: *mut c_void) -> c_int {
    let shared = argument.cast::<Shared>();
    // SAFETY: the parent passes a valid pointer and sleeps until this process executes or exits.
    unsafe {
        let failure = run_child(&*shared);
        ptr::write_volatile(&raw mut (*shared).failure, Some(failure));
        libc::_exit(127)
    }
}

/// Returns only when something failed: the step and errno.
///
/// # Safety
///
/// Only in a child of [`spawn`]; all of `shared`'s pointers are valid and null-terminated.
unsafe fn run_child(shared: &Shared) -> (Step, c_int) {
    // SAFETY: raw system calls on valid pointers, as the contract says.
    unsafe {
        if libc::setsid() < 0 {
            return (Step::Setup, errno());
        }
        for (target, fd) in (0..).zip(shared.stdio) {
            if libc::dup2(fd, target) < 0 {
                return (Step::Setup, errno());
            }
        }
        if shared.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return (Step::Setup, errno());
        }
        // Everything of the agent is close-on-exec already; this covers whatever a library may have forgotten.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NOFILE,
            &raw const shared.open_files,
            ptr::null_mut::<libc::rlimit>(),
        );
        libc::umask(0o022);

        // The raw calls change this process only; glibc's wrappers would signal every thread of the agent.
        if libc::syscall(libc::SYS_setgroups, shared.groups_len, shared.groups) < 0
            || libc::syscall(libc::SYS_setresgid, shared.gid, shared.gid, shared.gid) < 0
            || libc::syscall(libc::SYS_setresuid, shared.uid, shared.uid, shared.uid) < 0
        {
            return (Step::Credentials, errno());
        }
        if libc::chdir(shared.workdir) < 0 && (!shared.workdir_optional || libc::chdir(c"/".as_ptr()) < 0) {
            return (Step::Workdir, errno());
        }
        reset_signals();

        let mut worst = (Step::NotFound, libc::ENOENT);
        let mut next = shared.candidates;
        while !(*next).is_null() {
            libc::execve(*next, shared.argv, shared.env);
            let error = errno();
            match error {
                libc::ENOENT | libc::ENOTDIR => {
                    // The file is there: what is missing is the interpreter or the loader.
                    if libc::access(*next, libc::F_OK) == 0 {
                        return (Step::NoInterpreter, error);
                    }
                }
                // As execvp(3): go on along PATH, but remember it.
                libc::EACCES => worst = (Step::NotExecutable, error),
                _ => return (Step::NotExecutable, error),
            }
            next = next.add(1);
        }
        worst
    }
}

/// The kernel's `struct sigaction` on x86-64 and aarch64 (64-bit masks): handler, flags, restorer, mask.
type KernelSigaction = [u64; 4];

/// Gives every signal its default action, then unblocks all.
///
/// # Safety
///
/// Only in a child of [`spawn`].
unsafe fn reset_signals() {
    // SAFETY: plain data and system calls. Numbers which cannot be changed are refused, which does no harm.
    unsafe {
        // All zeros: the default action, no flags, no mask. The raw call, because glibc's refuses the two signals which
        // it uses itself, and those may have been ignored by whoever started the agent.
        let default: KernelSigaction = std::mem::zeroed();
        for signal in 1..=MAX_SIGNAL {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                ptr::null_mut::<KernelSigaction>(),
                size_of::<u64>(),
            );
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// # Safety
///
/// Right after a failed call. The child shares the suspended parent thread's errno, which nobody else reads.
unsafe fn errno() -> c_int {
    // SAFETY: always a valid pointer.
    unsafe { *libc::__errno_location() }
}
