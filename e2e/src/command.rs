//! One run of a program, most often `banger`: arguments and input in; exit code, output and time out, and a deadline
//! past which the test fails instead of hanging.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal};

/// Long enough for a Debian guest to boot under emulation on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);

/// A command to be run.
#[derive(Debug)]
pub struct Banger {
    command: Command,
    input: Option<Vec<u8>>,
    deadline: Duration,
}

impl Banger {
    /// Any program; [`crate::Daemon::banger`] is the usual way.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            input: None,
            deadline: DEADLINE,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable from its environment.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs it in that directory.
    #[must_use]
    pub fn directory(mut self, directory: &std::path::Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Gives it that standard input; otherwise it reads end of file.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Allows it that much time.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command itself, for tests that need its streams in their own hands.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Starts it.
    #[must_use]
    pub fn spawn(mut self) -> Running {
        let shown = self.shown();
        self.command.stdin(if self.input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let began = Instant::now();
        let mut child = self
            .command
            // A group of its own, so that what it starts can be ended with it.
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("failed to run {shown}: {e}"));
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), self.input) {
            // A command that ends without reading all of it closes the pipe; what it then says is for the test to judge.
            std::thread::spawn(move || drop(stdin.write_all(&input)));
        }
        let stdout = Stream::of(child.stdout.take());
        let stderr = Stream::of(child.stderr.take());
        Running {
            child,
            shown,
            began,
            deadline: self.deadline,
            stdout,
            stderr,
        }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(self) -> Finished {
        self.spawn().finish()
    }

    /// Runs it and expects success; returns its standard output.
    pub fn ok(self) -> String {
        self.run().expect(0).out()
    }

    /// Runs it and expects that exit code; returns its standard error.
    pub fn fails(self, code: i32) -> String {
        self.run().expect(code).err()
    }

    /// Runs it, expects success and reads its standard output as JSON.
    pub fn json(self) -> serde_json::Value {
        let finished = self.run().expect(0);
        serde_json::from_slice(&finished.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {finished}"))
    }

    fn shown(&self) -> String {
        let mut words = vec![self.command.get_program().to_string_lossy()];
        words.extend(self.command.get_args().map(OsStr::to_string_lossy));
        words.join(" ")
    }
}

/// A command that runs. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    began: Instant,
    deadline: Duration,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What a Ctrl-C at its terminal would do.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("send a signal");
    }

    /// Waits until its standard output holds that text.
    pub fn wait_stdout(&self, text: &str) {
        self.wait_text(&self.stdout, text);
    }

    /// Waits until its standard error holds that text.
    pub fn wait_stderr(&self, text: &str) {
        self.wait_text(&self.stderr, text);
    }

    fn wait_text(&self, stream: &Stream, text: &str) {
        if !stream.wait(self.deadline, |seen| String::from_utf8_lossy(seen).contains(text)) {
            let (out, err) = (self.stdout.bytes(), self.stderr.bytes());
            let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
            panic!(
                "{} never said {text:?}\n--- stdout\n{out}\n--- stderr\n{err}",
                self.shown
            );
        }
    }

    /// Waits until it has ended, and fails the test when it does not within its deadline.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        let left = self.deadline.saturating_sub(self.began.elapsed());
        if !ends_within(self.pid(), left) {
            // Not only the command: whatever it started in its group holds our pipes open.
            rustix::process::kill_process_group(self.pid(), Signal::KILL).ok();
            let (out, err) = (self.stdout.bytes(), self.stderr.bytes());
            let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
            panic!(
                "{} did not end within {:?}\n--- stdout\n{out}\n--- stderr\n{err}",
                self.shown, self.deadline
            );
        }
        let status = self.child.wait().expect("wait for a child");
        let took = self.began.elapsed();
        // A daemon that it started on demand must not hold its pipes: then this would never be seen.
        let closed = |stream: &Stream| stream.wait_end(Duration::from_secs(10));
        assert!(
            closed(&self.stdout) && closed(&self.stderr),
            "{} ended but somebody holds its output",
            self.shown
        );
        Finished {
            shown: self.shown.clone(),
            status,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.bytes(),
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Waits until a child of ours has ended, without collecting it (pidfd_open(2)).
pub(crate) fn ends_within(pid: Pid, deadline: Duration) -> bool {
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("open a pidfd");
    let end = Instant::now() + deadline;
    loop {
        let left = end
            .saturating_duration_since(Instant::now())
            .try_into()
            .expect("a deadline of sane length");
        let mut ready = [PollFd::new(&pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut ready, Some(&left)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("failed to wait for process {pid}: {error}"),
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Asserts the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "wrong exit code: {self}");
        self
    }

    /// Its standard output as text, without the last newline.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Its standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Exit code, or 128 and the signal's number.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        write!(
            f,
            "{}\nended with {} after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.shown,
            self.status,
            self.took,
            start(&self.stdout),
            start(&self.stderr)
        )
    }
}

/// Output that a thread collects as it comes.
#[derive(Debug, Clone)]
pub(crate) struct Stream(Arc<(Mutex<Seen>, Condvar)>);

#[derive(Debug, Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    pub(crate) fn of(source: Option<impl Read + Send + 'static>) -> Self {
        let stream = Self(Arc::default());
        let Some(mut source) = source else { return stream };
        let to = stream.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            loop {
                // A terminal whose other end is closed reports an error (EIO) where a pipe reports its end.
                let read = source.read(&mut buffer).unwrap_or(0);
                let mut seen = to.0.0.lock().unwrap_or_else(PoisonError::into_inner);
                seen.bytes.extend_from_slice(&buffer[..read]);
                seen.ended = read == 0;
                to.0.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        stream
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
            .clone()
    }

    /// Waits until what has come satisfies the condition; false when it ends or the deadline passes before.
    pub(crate) fn wait(&self, deadline: Duration, mut good: impl FnMut(&[u8]) -> bool) -> bool {
        let seen = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, _) = self
            .0
            .1
            .wait_timeout_while(seen, deadline, |seen| !good(&seen.bytes) && !seen.ended)
            .unwrap_or_else(PoisonError::into_inner);
        good(&seen.bytes)
    }

    pub(crate) fn wait_end(&self, deadline: Duration) -> bool {
        let seen = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, _) = self
            .0
            .1
            .wait_timeout_while(seen, deadline, |seen| !seen.ended)
            .unwrap_or_else(PoisonError::into_inner);
        seen.ended
    }
}
