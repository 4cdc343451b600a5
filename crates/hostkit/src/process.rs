//! Long-lived processes that may outlast the program which started them.
//!
//! [`spawn_detached`] starts one in a session of its own, [`Process::open`] takes up one that an earlier run of the
//! program started, and both give the same handle: a pidfd, which names exactly one process for as long as it is
//! held, whatever happens to its number. Between two runs of the program a process is remembered as a
//! [`ProcessId`]: its number together with its start time, since numbers are given out again. Start times count from
//! boot, so whoever keeps ids across reboots checks the command line too ([`command_line`], [`has_token`]).
//!
//! Short commands whose output matters go through [`crate::exec`]. This file does not supervise: nothing here
//! restarts anything, and dropping a [`Process`] leaves the process alone.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most bytes of one `/proc/PID/cmdline` that are looked at. The kernel allows megabytes; what we look for is ours
/// and short.
const CMDLINE_LIMIT: u64 = 64 * 1024;

/// A process's number and when it started: together they name one process between two boots of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// The process's number in our pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, see proc_pid_stat(5).
    pub start_time: u64,
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.pid)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned or called `exit` with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It is gone, but its status went to another parent.
    Unknown,
}

impl Exit {
    /// Whether it ended by itself with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "signal {number} ({name})"),
                None => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// The names people know, for the signals that end a process which did not ask for it.
fn signal_name(number: i32) -> Option<&'static str> {
    let name = match number {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    };
    Some(name)
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no such program.
    #[error("start {}: no such program", program.display())]
    NotFound {
        /// The path that was tried.
        program: PathBuf,
    },
    /// The program exists, the system refused.
    #[error("start {}", program.display())]
    Refused {
        /// The path that was tried.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was started and then could not be watched; it has been killed.
    #[error("watch {} (pid {pid}) after starting it", program.display())]
    Unwatchable {
        /// The path that was started.
        program: PathBuf,
        /// The process's number.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a process could not be taken up or signalled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No process with this id runs: it is gone, or its number belongs to another process by now.
    #[error("find process {id}: it is gone")]
    Gone {
        /// Which process was looked for.
        id: ProcessId,
    },
    /// The system refused.
    #[error("{action} process {id}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On which process.
        id: ProcessId,
        /// What the system said.
        source: io::Error,
    },
}

/// What to start, for [`spawn_detached`].
#[derive(Debug)]
pub struct Detached {
    /// Path of the program; `PATH` is not searched.
    pub program: PathBuf,
    /// Arguments after the program's name.
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Standard output; `/dev/null` where absent.
    pub stdout: Option<File>,
    /// Standard error; `/dev/null` where absent.
    pub stderr: Option<File>,
    /// Descriptors the process receives under the number they have here (so an argument can name them). Every other
    /// descriptor above 2 is closed.
    pub inherit: Vec<OwnedFd>,
    /// Value for `/proc/self/oom_score_adj`, -1000 to 1000; lowering it needs privileges.
    pub oom_score_adj: Option<i16>,
}

impl Detached {
    /// A program without arguments, environment, output or descriptors.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdout: None,
            stderr: None,
            inherit: Vec::new(),
            oom_score_adj: None,
        }
    }
}

/// A running (or just ended) process, held by a pidfd.
///
/// Dropping it neither ends the process nor reaps it. Whoever starts children awaits [`Process::exited`] once, or
/// they stay zombies until this program ends.
pub struct Process {
    id: ProcessId,
    watch: ExitWatch,
    exit: OnceLock<Exit>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("id", &self.id)
            .field("exit", &self.exit.get())
            .finish()
    }
}

/// Starts a program in a new session, detached from our terminal and our fate.
///
/// It gets stdin from `/dev/null`, working directory `/`, umask 077, an empty signal mask with default handlers, and
/// only the descriptors listed. Must be called within a Tokio runtime that has I/O enabled.
pub fn spawn_detached(spec: Detached) -> Result<Process, SpawnError> {
    let Detached {
        program,
        args,
        env,
        stdout,
        stderr,
        inherit,
        oom_score_adj,
    } = spec;
    let inherited: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let oom = oom_score_adj.map(|score| score.to_string());
    let mut command = Command::new(&program);
    command
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(stdout.map_or_else(Stdio::null, Stdio::from))
        .stderr(stderr.map_or_else(Stdio::null, Stdio::from));
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls are allowed.
    // It makes system calls on plain numbers and on buffers allocated before the fork, and allocates nothing.
    unsafe {
        command.pre_exec(move || prepare_child(&inherited, oom.as_deref()));
    }
    let child = command.spawn().map_err(|source| {
        let program = program.clone();
        if source.kind() == io::ErrorKind::NotFound {
            SpawnError::NotFound { program }
        } else {
            SpawnError::Refused { program, source }
        }
    })?;
    let pid = child.id();
    // The child is not reaped before we do it, so its number cannot have been given to another process yet. (`std`'s
    // handle neither kills nor waits when dropped.)
    watch_child(pid).map_err(|source| {
        if let Some(raw) = raw_pid(pid) {
            // Both can only fail if the child is gone already, which is what they are for.
            rustix::process::kill_process(raw, Signal::KILL).ok();
            rustix::process::waitpid(Some(raw), rustix::process::WaitOptions::empty()).ok();
        }
        SpawnError::Unwatchable { program, pid, source }
    })
}

/// The part of a detached start that runs in the child, between fork and exec.
fn prepare_child(inherited: &[RawFd], oom: Option<&str>) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Handlers become defaults at exec by themselves, ignored signals and the mask do not.
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: installs a default disposition; numbers that have none (SIGKILL, libc's own) give EINVAL.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset_t is valid memory for sigemptyset to fill; both calls are async-signal-safe.
    let masked = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if masked != 0 {
        return Err(io::Error::last_os_error());
    }
    // Marked, not closed: the pipe on which std reports a failing exec must live until exec.
    // SAFETY: changes flags of descriptor numbers in this process's own table.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for &fd in inherited {
        // SAFETY: the parent holds the descriptor open across the fork; only its flag changes, in the child.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if let Some(score) = oom {
        let file = rustix::fs::open(
            c"/proc/self/oom_score_adj",
            rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        rustix::io::write(&file, score.as_bytes())?;
    }
    Ok(())
}

/// Takes a pidfd on our own child that nobody has reaped.
fn watch_child(pid: u32) -> io::Result<Process> {
    let raw = raw_pid(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
    let start_time = stat(pid)?.start_time;
    Process::new(ProcessId { pid, start_time }, pidfd)
}

impl Process {
    fn new(id: ProcessId, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            id,
            watch: ExitWatch::of(pidfd)?,
            exit: OnceLock::new(),
        })
    }

    /// Takes up a process by id, whoever started it. Must be called within a Tokio runtime that has I/O enabled.
    ///
    /// The pidfd is taken first and the start time compared after, so that the process that was checked is the one
    /// that is held. A zombie counts as running: [`Self::exited`] then returns at once.
    pub fn open(id: ProcessId) -> Result<Self, ProcessError> {
        let refused = |action, source| ProcessError::Refused { action, id, source };
        let raw = raw_pid(id.pid).ok_or(ProcessError::Gone { id })?;
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            // EINVAL: the number belongs to a thread that does not lead a process, so not to the process we mean.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Err(ProcessError::Gone { id }),
            Err(errno) => return Err(refused("open", errno.into())),
        };
        match stat(id.pid) {
            Ok(found) if found.start_time == id.start_time => {}
            Ok(_) => return Err(ProcessError::Gone { id }),
            Err(source) if is_gone(&source) => return Err(ProcessError::Gone { id }),
            Err(source) => return Err(refused("read the status of", source)),
        }
        Self::new(id, pidfd).map_err(|source| refused("watch", source))
    }

    /// Number and start time, to be remembered.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits until the process has ended, and reaps it if it is our child.
    ///
    /// Any number of callers may wait; all get the same answer. Cancel-safe: the status is kept in the handle as soon
    /// as it is collected.
    pub async fn exited(&self) -> Exit {
        self.watch.wait().await;
        // Only a runtime that is shutting down stops waiting early, and then nobody sees the answer.
        self.try_exited().unwrap_or(Exit::Unknown)
    }

    /// How the process ended, or `None` while it runs. Reaps it if it is our child.
    #[must_use]
    pub fn try_exited(&self) -> Option<Exit> {
        if let Some(exit) = self.exit.get() {
            return Some(*exit);
        }
        if !self.watch.has_ended() {
            return None;
        }
        // Of two callers arriving here together one collects the status; `get_or_init` makes the other wait for it.
        Some(*self.exit.get_or_init(|| {
            let waited = rustix::process::waitid(
                WaitId::PidFd(self.watch.pidfd().as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
            match waited {
                Ok(Some(status)) => exit_of(&status),
                // ECHILD: not our child, or another handle on the same child collected the status.
                Ok(None) | Err(_) => Exit::Unknown,
            }
        }))
    }

    /// Sends a signal. `Ok(false)` if the process has ended already.
    pub fn kill(&self, signal: Signal) -> Result<bool, ProcessError> {
        match rustix::process::pidfd_send_signal(self.watch.pidfd(), signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(errno) => Err(ProcessError::Refused {
                action: "signal",
                id: self.id,
                source: errno.into(),
            }),
        }
    }

    /// Memory and processor time used so far.
    pub fn usage(&self) -> Result<Usage, ProcessError> {
        self.stat().map(|found| found.usage())
    }

    /// Whether a signal has stopped it (SIGSTOP, SIGTSTP …) or a debugger holds it: none of its threads run, and it does
    /// nothing until it is told to go on.
    pub fn is_stopped(&self) -> Result<bool, ProcessError> {
        self.stat().map(|found| matches!(found.state, b'T' | b't'))
    }

    fn stat(&self) -> Result<Stat, ProcessError> {
        let id = self.id;
        match stat(id.pid) {
            // Compared again: the process may have ended and its number may have been given out since.
            Ok(found) if found.start_time == id.start_time => Ok(found),
            Ok(_) => Err(ProcessError::Gone { id }),
            Err(source) if is_gone(&source) => Err(ProcessError::Gone { id }),
            Err(source) => Err(ProcessError::Refused {
                action: "read the status of",
                id,
                source,
            }),
        }
    }
}

/// Waits for the end of a process without collecting its status, for [`crate::exec`], which signals the process
/// group once more before it reaps the leader.
pub(crate) struct ExitWatch {
    pidfd: AsyncFd<OwnedFd>,
}

impl ExitWatch {
    /// Watches a child that has not been reaped.
    pub(crate) fn new(child: Pid) -> io::Result<Self> {
        Self::of(rustix::process::pidfd_open(child, PidfdFlags::NONBLOCK)?)
    }

    fn of(pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: `OwnedFd` returns the same descriptor every time and keeps it open until it is dropped, which
        // happens after `AsyncFd` has taken it off the poller; it is never replaced or moved out.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self { pidfd })
    }

    fn pidfd(&self) -> &OwnedFd {
        self.pidfd.get_ref()
    }

    /// Whether the process has ended: its pidfd is readable from then on (pidfd_open(2)).
    fn has_ended(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            self.pidfd(),
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(count) if count > 0)
    }

    /// Returns when the process has ended (or the runtime is shutting down). Cancel-safe.
    pub(crate) async fn wait(&self) {
        while !self.has_ended() {
            match self.pidfd.readable().await {
                // Readiness that came too early is taken back; a pidfd never becomes unreadable again.
                Ok(mut ready) => {
                    if !self.has_ended() {
                        ready.clear_ready();
                    }
                }
                Err(_) => return,
            }
        }
    }
}

/// Translates what waitid(2) says.
pub(crate) fn exit_of(status: &WaitIdStatus) -> Exit {
    if let Some(code) = status.exit_status() {
        Exit::Code(code)
    } else if let Some(signal) = status.terminating_signal() {
        Exit::Signal(signal)
    } else {
        Exit::Unknown
    }
}

/// The number as the kernel's interfaces take it; `None` for 0 and for what no kernel gives out.
pub(crate) fn raw_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid)
        .ok()
        .filter(|&raw| raw > 0)
        .and_then(Pid::from_raw)
}

/// Files of a process that ended vanish (ENOENT) or, once open, stop answering (ESRCH).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// What a process has used since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in bytes, shared pages included. The kernel counts in batches of some dozen pages for each
    /// thread, so a small process may show 0.
    pub resident: u64,
    /// Processor time in user mode, all threads.
    pub user: Duration,
    /// Processor time in the kernel, all threads.
    pub system: Duration,
}

/// The fields of `/proc/PID/stat` that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    /// A letter: `R` runs, `S` sleeps, `T` stopped by a signal, `t` by a debugger …
    state: u8,
    user_ticks: u64,
    system_ticks: u64,
    start_time: u64,
    resident_pages: u64,
}

impl Stat {
    /// Parses proc_pid_stat(5). The name, field 2, is in parentheses and may itself hold spaces, parentheses and
    /// line breaks, so the numbers are counted from the *last* closing parenthesis.
    fn parse(text: &[u8]) -> Option<Self> {
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let numbers = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = numbers.split_ascii_whitespace().collect();
        // The first of these is field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            user_ticks: field(14)?,
            system_ticks: field(15)?,
            start_time: field(22)?,
            resident_pages: field(24)?,
        })
    }

    fn usage(&self) -> Usage {
        let ticks_per_second = sysconf(libc::_SC_CLK_TCK).unwrap_or(100);
        let page = sysconf(libc::_SC_PAGESIZE).unwrap_or(4096);
        let time = |ticks: u64| {
            let millis = u128::from(ticks) * 1000 / u128::from(ticks_per_second);
            Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
        };
        Usage {
            resident: self.resident_pages.saturating_mul(page),
            user: time(self.user_ticks),
            system: time(self.system_ticks),
        }
    }
}

fn sysconf(name: libc::c_int) -> Option<u64> {
    // SAFETY: reads a constant of the system.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).ok().filter(|&value| value > 0)
}

fn stat(pid: u32) -> io::Result<Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    Stat::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))
}

/// The id of the process that has this number now; `None` if there is none.
#[must_use]
pub fn id_of(pid: u32) -> Option<ProcessId> {
    stat(pid).ok().map(|found| ProcessId {
        pid,
        start_time: found.start_time,
    })
}

/// A process and the arguments it was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// Which process.
    pub id: ProcessId,
    /// Effective user of the process.
    pub uid: u32,
    /// Arguments, the program's name first. Empty for zombies and kernel threads.
    pub args: Vec<OsString>,
}

/// The command line of one process, `None` if it is gone (or its number is another's by now).
#[must_use]
pub fn command_line(id: ProcessId) -> Option<CommandLine> {
    read_command_line(Path::new("/proc"), id.pid).filter(|found| found.id == id)
}

fn read_command_line(proc: &Path, pid: u32) -> Option<CommandLine> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    let dir = proc.join(pid.to_string());
    let start_time = || Stat::parse(&std::fs::read(dir.join("stat")).ok()?).map(|found| found.start_time);
    let before = start_time()?;
    let uid = std::fs::metadata(&dir).ok()?.uid();
    let mut text = Vec::new();
    File::open(dir.join("cmdline"))
        .ok()?
        .take(CMDLINE_LIMIT)
        .read_to_end(&mut text)
        .ok()?;
    // Read twice: what was read in between then belongs to this process.
    (start_time()? == before).then(|| CommandLine {
        id: ProcessId {
            pid,
            start_time: before,
        },
        uid,
        args: split_arguments(&text),
    })
}

/// Splits `/proc/PID/cmdline`, where a NUL follows each argument.
fn split_arguments(text: &[u8]) -> Vec<OsString> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|&byte| byte == 0)
        .map(|argument| OsString::from_vec(argument.to_vec()))
        .collect()
}

/// Every process whose command line we may read, in no particular order. A snapshot: processes come and go meanwhile.
pub fn command_lines() -> io::Result<Vec<CommandLine>> {
    let proc = Path::new("/proc");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc)? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        found.extend(read_command_line(proc, pid));
    }
    Ok(found)
}

/// Processes with an argument that holds `token` as a whole word (see [`has_token`]), the caller excepted.
///
/// A match is a suspicion, no proof: an editor with a path of ours on its command line matches as well. Whoever means
/// to signal a process looks at its arguments first.
pub fn find_by_token(token: &str) -> io::Result<Vec<CommandLine>> {
    let ourselves = std::process::id();
    let mut found = command_lines()?;
    found.retain(|line| {
        line.id.pid != ourselves && line.args.iter().any(|argument| has_token(argument, token))
    });
    Ok(found)
}

/// Whether `argument` holds `token` with no ASCII letter or digit directly before or after it.
#[must_use]
pub fn has_token(argument: &std::ffi::OsStr, token: &str) -> bool {
    let (text, token) = (argument.as_encoded_bytes(), token.as_bytes());
    let is_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    if token.is_empty() {
        return false;
    }
    text.windows(token.len()).enumerate().any(|(start, window)| {
        window == token
            && !is_word(start.checked_sub(1).and_then(|before| text.get(before)))
            && !is_word(text.get(start + token.len()))
    })
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
