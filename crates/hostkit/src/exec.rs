//! External commands: the one way in which Banger runs a program and reads what it says.
//!
//! A [`Tool`] is a program that was found; [`Tool::command`] builds a [`Command`]; [`Command::run`] starts it as the
//! leader of a process group of its own, feeds and drains its pipes, and reports program, arguments, status and the
//! last lines of stderr if it fails. Everything read is bounded. The whole group is killed when the command's leader
//! has ended, on a timeout, and when the future is dropped, so nothing that was started stays behind.
//!
//! Processes that are meant to stay are started by [`crate::process::spawn_detached`]. Terminals and interactive
//! programs are not for this file.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::process::{self, Exit};

/// How many of the last lines of stderr an error carries.
const TAIL_LINES: usize = 12;
/// Longer lines are cut, in errors and for line callbacks.
const LINE_LIMIT: usize = 4096;
/// Captured standard output beyond this fails the command, unless [`Command::capture_limit`] says otherwise.
const CAPTURE_LIMIT: usize = 1 << 20;
/// How long a command has to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How long pipes may stay open once the group has been killed: a process that left the group can hold them.
const DRAIN: Duration = Duration::from_secs(2);

/// Why a command gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is no such program in any of the places looked at.
    #[error("find {name}: not in {}", places(looked))]
    NotFound {
        /// The program's name.
        name: String,
        /// The directories (or the one path) that were looked at, in order.
        looked: Vec<PathBuf>,
    },
    /// It could not be started.
    #[error("start {command}")]
    Start {
        /// Program and arguments.
        command: CommandText,
        /// What the system said.
        source: io::Error,
    },
    /// Its pipes or its process could not be dealt with.
    #[error("run {command}")]
    Io {
        /// Program and arguments.
        command: CommandText,
        /// What the system said.
        source: io::Error,
    },
    /// It ran and failed.
    #[error("run {command}: {exit}{}", said(stderr))]
    Failed {
        /// Program and arguments.
        command: CommandText,
        /// How it ended.
        exit: Exit,
        /// Last lines of its standard error.
        stderr: Vec<String>,
    },
    /// It took too long and was killed.
    #[error("run {command}: not done within {} s{}", after.as_secs_f32(), said(stderr))]
    TimedOut {
        /// Program and arguments.
        command: CommandText,
        /// How long it was given.
        after: Duration,
        /// Last lines of its standard error.
        stderr: Vec<String>,
    },
    /// It wrote more than its caller is prepared to hold, and was killed.
    #[error("run {command}: more than {limit} bytes of output")]
    TooMuchOutput {
        /// Program and arguments.
        command: CommandText,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Program and arguments of a command, shown as one would type them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandText {
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl std::fmt::Display for CommandText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}", self.program.display())?;
        for argument in &self.args {
            let text = argument.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%^".contains(c);
            if !text.is_empty() && text.chars().all(plain) {
                write!(f, " {text}")?;
            } else {
                write!(f, " '{}'", text.replace('\'', r"'\''"))?;
            }
        }
        f.write_str("`")
    }
}

fn places(looked: &[PathBuf]) -> String {
    if looked.is_empty() {
        return "any directory (no PATH)".to_owned();
    }
    looked
        .iter()
        .map(|place| place.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn said(stderr: &[String]) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(": {}", stderr.join(" | "))
    }
}

/// A program that exists and may be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    path: PathBuf,
}

impl Tool {
    /// Looks for an executable file called `name` in `dirs`, in order. A `name` with a slash is taken as a path.
    pub fn find<D: AsRef<Path>>(name: &str, dirs: impl IntoIterator<Item = D>) -> Result<Self, ExecError> {
        if name.contains('/') {
            return Self::at(name);
        }
        let mut looked = Vec::new();
        for dir in dirs {
            let path = dir.as_ref().join(name);
            if is_executable(&path) {
                return Ok(Self { path });
            }
            looked.push(dir.as_ref().to_owned());
        }
        Err(ExecError::NotFound {
            name: name.to_owned(),
            looked,
        })
    }

    /// Looks in the directories of a `PATH`-like list. Relative entries are skipped: they would mean whatever
    /// directory we happen to be in.
    pub fn find_in_path(name: &str, path: Option<&OsStr>) -> Result<Self, ExecError> {
        let dirs = path
            .into_iter()
            .flat_map(std::env::split_paths)
            .filter(|dir| dir.is_absolute());
        Self::find(name, dirs)
    }

    /// The executable file at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, ExecError> {
        let path = path.into();
        if is_executable(&path) {
            return Ok(Self { path });
        }
        let name = path.file_name().map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into(),
        );
        Err(ExecError::NotFound {
            name,
            looked: vec![path],
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs it.
    pub fn command<'a>(&self) -> Command<'a> {
        Command::new(&self.path)
    }
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What a command left when it succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its standard output, unless that went to a file.
    pub stdout: Vec<u8>,
    /// The last lines of its standard error.
    pub stderr: Vec<String>,
}

impl Output {
    /// Standard output as text without the line break at its end; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }
}

/// Which of a command's two streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a command's input comes from.
enum Input {
    Null,
    Bytes(Vec<u8>),
    File(File),
}

type LineCallback<'a> = Box<dyn FnMut(Stream, &str) + Send + 'a>;

/// One run of a program, to be configured and then [`run`](Self::run).
///
/// The environment is ours with `LC_ALL=C` (messages are read by programs and quoted in errors), the working
/// directory too, unless said otherwise.
#[must_use = "a command does nothing until it is run"]
pub struct Command<'a> {
    text: CommandText,
    env: Vec<(OsString, OsString)>,
    clear_env: bool,
    dir: Option<PathBuf>,
    input: Input,
    stdout_file: Option<File>,
    timeout: Option<Duration>,
    capture_limit: usize,
    on_line: Option<LineCallback<'a>>,
}

impl<'a> Command<'a> {
    fn new(program: &Path) -> Self {
        Self {
            text: CommandText {
                program: program.to_owned(),
                args: Vec::new(),
            },
            env: vec![("LC_ALL".into(), "C".into())],
            clear_env: false,
            dir: None,
            input: Input::Null,
            stdout_file: None,
            timeout: None,
            capture_limit: CAPTURE_LIMIT,
            on_line: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.text.args.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.text.args.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Inherits nothing of our environment.
    pub fn clear_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Runs it in this directory.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Feeds it these bytes; without, its standard input is empty. A command that does not read them all is fine.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Lets it read from this file.
    pub fn input_file(mut self, file: File) -> Self {
        self.input = Input::File(file);
        self
    }

    /// Lets it write its standard output to this file, unbounded; nothing of it is captured.
    pub fn output_file(mut self, file: File) -> Self {
        self.stdout_file = Some(file);
        self
    }

    /// Kills it when it is not done in time: SIGTERM to the group first, SIGKILL two seconds later.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many bytes of standard output may be captured (1 MiB otherwise); more fail the command.
    pub fn capture_limit(mut self, bytes: usize) -> Self {
        self.capture_limit = bytes;
        self
    }

    /// Calls back for every line as it comes, without its line break and cut at 4 KiB; for progress. A carriage
    /// return ends a line too. Standard output is still captured up to the limit.
    pub fn on_line(mut self, callback: impl FnMut(Stream, &str) + Send + 'a) -> Self {
        self.on_line = Some(Box::new(callback));
        self
    }

    /// Runs it to its end. Everything but exit code 0 is an error.
    ///
    /// Dropping the future kills the command with SIGKILL. Needs a Tokio runtime with I/O and time enabled.
    pub async fn run(self) -> Result<Output, ExecError> {
        let Self {
            text,
            env,
            clear_env,
            dir,
            input,
            stdout_file,
            timeout,
            capture_limit,
            on_line,
        } = self;
        let mut command = std::process::Command::new(&text.program);
        command.args(&text.args).process_group(0).stderr(Stdio::piped());
        if clear_env {
            command.env_clear();
        }
        command.envs(env);
        if let Some(dir) = dir {
            command.current_dir(dir);
        }
        let captured = stdout_file.is_none();
        command.stdout(stdout_file.map_or_else(Stdio::piped, Stdio::from));
        let bytes = match input {
            Input::Null => {
                command.stdin(Stdio::null());
                None
            }
            Input::Bytes(bytes) => {
                command.stdin(Stdio::piped());
                Some(bytes)
            }
            Input::File(file) => {
                command.stdin(file);
                None
            }
        };
        let child = command.spawn().map_err(|source| ExecError::Start {
            command: text.clone(),
            source,
        })?;
        let mut group = Group::new(child);
        let failed = |source| ExecError::Io {
            command: text.clone(),
            source,
        };
        let exit = group.watch().map_err(failed)?;
        let pipes = Pipes::take(&mut group.child, captured).map_err(failed)?;

        let mut captures = Captures {
            stdout: Vec::new(),
            limit: capture_limit,
            over: false,
            tail: Tail::default(),
            on_line,
        };
        let outcome = drive(&group, &exit, pipes, bytes, timeout, &mut captures)
            .await
            .map_err(failed)?;
        let Captures {
            stdout,
            limit,
            over,
            tail,
            on_line: _,
        } = captures;
        let stderr = tail.into_lines();
        match outcome {
            _ if over => Err(ExecError::TooMuchOutput { command: text, limit }),
            Outcome::TimedOut { after } => Err(ExecError::TimedOut {
                command: text,
                after,
                stderr,
            }),
            Outcome::Ended => match group.reap() {
                Exit::Code(0) => Ok(Output { stdout, stderr }),
                exit @ (Exit::Code(_) | Exit::Signal(_) | Exit::Unknown) => Err(ExecError::Failed {
                    command: text,
                    exit,
                    stderr,
                }),
            },
        }
    }
}

enum Outcome {
    Ended,
    TimedOut { after: Duration },
}

/// Feeds and drains until the command has ended or has run out of time.
async fn drive(
    group: &Group,
    exit: &process::ExitWatch,
    pipes: Pipes,
    input: Option<Vec<u8>>,
    timeout: Option<Duration>,
    captures: &mut Captures<'_>,
) -> io::Result<Outcome> {
    let Pipes {
        stdin,
        stdout,
        stderr,
    } = pipes;
    let feed = feed(stdin, input);
    let drain = captures.drain(stdout, stderr);
    tokio::pin!(feed, drain);
    let mut feeding = true;
    let mut draining = true;
    let started = tokio::time::Instant::now();
    let mut deadline = timeout.map(|timeout| started + timeout);
    let mut timed_out = None;
    // The leader decides when the command is over, not its pipes: a daemon that it left behind may hold them open.
    loop {
        tokio::select! {
            // Cancel-safe: readiness of a pidfd lasts.
            () = exit.wait() => break,
            // Both are pinned outside of the loop, so a pass through another arm loses nothing of them.
            fed = &mut feed, if feeding => { fed?; feeding = false; }
            drained = &mut drain, if draining => {
                draining = false;
                if drained? == Drained::OverLimit {
                    group.signal(Signal::KILL);
                }
            }
            // Cancel-safe: the instant is fixed.
            () = sleep_until(deadline) => match timed_out {
                None => {
                    timed_out = timeout;
                    group.signal(Signal::TERM);
                    // A stopped process sees SIGTERM only when it is continued.
                    group.signal(Signal::CONT);
                    deadline = Some(tokio::time::Instant::now() + GRACE);
                }
                Some(_) => {
                    group.signal(Signal::KILL);
                    deadline = None;
                }
            },
        }
    }
    // The leader is a zombie until it is reaped, so its number still names this group and no other.
    group.signal(Signal::KILL);
    if draining {
        // Too late is not an error: a process that left the group holds the pipe, and what the command wrote is here.
        if let Ok(drained) = tokio::time::timeout(DRAIN, &mut drain).await {
            drained?;
        }
    }
    Ok(match timed_out {
        Some(after) => Outcome::TimedOut { after },
        None => Outcome::Ended,
    })
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn feed(stdin: Option<pipe::Sender>, input: Option<Vec<u8>>) -> io::Result<()> {
    if let (Some(mut stdin), Some(input)) = (stdin, input) {
        match stdin.write_all(&input).await {
            // It closed its input: it has read all it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    Ok(())
}

/// A started command: its group is killed and its leader reaped when this is dropped.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Group {
    fn new(child: Child) -> Self {
        let leader = process::raw_pid(child.id());
        Self { child, leader }
    }

    fn watch(&self) -> io::Result<process::ExitWatch> {
        let leader = self
            .leader
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        process::ExitWatch::new(leader)
    }

    /// Signals the whole group. Only before the leader is reaped: until then its number cannot name anything else.
    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // It fails if every member is gone, which is as good.
            rustix::process::kill_process_group(leader, signal).ok();
        }
    }

    /// Collects the leader's status; it has ended, or is about to after SIGKILL.
    fn reap(&mut self) -> Exit {
        use std::os::unix::process::ExitStatusExt;
        self.leader = None;
        match self.child.wait() {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Err(_) => Exit::Unknown,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.leader.is_some() {
            self.signal(Signal::KILL);
            // Ends within moments: SIGKILL cannot be held off, short of a broken disk.
            self.reap();
        }
    }
}

/// Our ends of a command's pipes.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Pipes {
    fn take(child: &mut Child, captured: bool) -> io::Result<Self> {
        let receiver = |fd: OwnedFd| pipe::Receiver::from_owned_fd(fd);
        Ok(Self {
            stdin: child
                .stdin
                .take()
                .map(|end| pipe::Sender::from_owned_fd(end.into()))
                .transpose()?,
            stdout: child
                .stdout
                .take()
                .filter(|_| captured)
                .map(|end| receiver(end.into()))
                .transpose()?,
            stderr: child.stderr.take().map(|end| receiver(end.into())).transpose()?,
        })
    }
}

#[derive(PartialEq, Eq)]
enum Drained {
    Whole,
    OverLimit,
}

/// What is kept of a command's output.
struct Captures<'a> {
    stdout: Vec<u8>,
    limit: usize,
    over: bool,
    tail: Tail,
    on_line: Option<LineCallback<'a>>,
}

impl Captures<'_> {
    /// Reads both streams to their end, or until there is too much.
    async fn drain(
        &mut self,
        mut stdout: Option<pipe::Receiver>,
        mut stderr: Option<pipe::Receiver>,
    ) -> io::Result<Drained> {
        let mut out_lines = Lines::default();
        let mut err_lines = Lines::default();
        let mut out_buffer = [0; 16 * 1024];
        let mut err_buffer = [0; 4 * 1024];
        while stdout.is_some() || stderr.is_some() {
            tokio::select! {
                // Cancel-safe: a read that is dropped has read nothing.
                count = read(&mut stdout, &mut out_buffer), if stdout.is_some() => {
                    let bytes = out_buffer.get(..count?).unwrap_or_default();
                    if bytes.is_empty() {
                        stdout = None;
                    } else if self.stdout.len() + bytes.len() > self.limit {
                        self.over = true;
                        return Ok(Drained::OverLimit);
                    } else {
                        self.stdout.extend_from_slice(bytes);
                    }
                    if let Some(call) = &mut self.on_line {
                        out_lines.push(bytes, |line| call(Stream::Stdout, line));
                    }
                }
                // Cancel-safe likewise.
                count = read(&mut stderr, &mut err_buffer), if stderr.is_some() => {
                    let bytes = err_buffer.get(..count?).unwrap_or_default();
                    if bytes.is_empty() {
                        stderr = None;
                    }
                    err_lines.push(bytes, |line| {
                        if let Some(call) = &mut self.on_line {
                            call(Stream::Stderr, line);
                        }
                        self.tail.push(line);
                    });
                }
            }
        }
        Ok(Drained::Whole)
    }
}

async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// Cuts a byte stream into lines at line breaks and carriage returns. Empty lines are skipped.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes; none at all means the end, which completes a line that lacks its break.
    fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        let mut complete = |partial: &mut Vec<u8>| {
            if !partial.is_empty() {
                line(&String::from_utf8_lossy(partial));
                partial.clear();
            }
        };
        if bytes.is_empty() {
            complete(&mut self.partial);
        }
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                complete(&mut self.partial);
            } else if self.partial.len() < LINE_LIMIT {
                self.partial.push(byte);
            }
        }
    }
}

/// The last lines of a stream.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    fn push(&mut self, line: &str) {
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line.to_owned());
    }

    fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
