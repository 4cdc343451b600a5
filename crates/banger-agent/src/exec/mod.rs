//! Running commands: one task for each, between a gRPC stream and a process.
//!
//! ```text
//! ExecInput stream → inputs() → stdin pipe / terminal ┐
//!                                                     ├ process group (spawn, process)
//! ExecOutput stream ← bounded channel ← pump() × 1–2 ─┘
//! ```
//!
//! Backpressure is the channel's: when the client stops reading, HTTP/2's window fills, the channel fills, `pump` waits,
//! the pipe fills, the command blocks in write(2). The other way round, `inputs` does not take the next message before
//! the command has taken the last.
//!
//! A call ends in one of two ways. The command exits: its output is completed, `Exited` is sent. Or the client goes
//! away: the process group gets SIGHUP, then SIGKILL. Either way the leader is reaped and every descriptor closed by
//! this module before its permit is given back.

pub(crate) mod prepare;
pub(crate) mod process;
pub(crate) mod spawn;
pub(crate) mod stream;
mod terminal;

pub(crate) use prepare::user_failure;

use banger_agent_api::proto::exec_exited::How;
use banger_agent_api::proto::exec_input::Input;
use banger_agent_api::proto::exec_output::Output;
use banger_agent_api::proto::{ExecExited, ExecInput, ExecOutput, ExecStart, ExecStarted};
use banger_agent_api::{Failure, FailureKind};

use process::{Exit, Leader};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustix::termios::tcgetpgrp;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stream::Stream;
use terminal::Terminal;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tonic::{Status, Streaming};

/// Output messages between a command and its connection.
const OUTPUT_QUEUE: usize = 2;

/// Between SIGHUP and SIGKILL when a client has gone away.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// The sending half of a call's reply stream.
type Sender = mpsc::Sender<Result<ExecOutput, Status>>;

/// The commands that run, by process id: what a Signal call looks in.
#[derive(Debug, Default, Clone)]
pub(crate) struct Running {
    commands: Arc<Mutex<HashMap<u32, Arc<Command>>>>,
}

impl Running {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<Command>>> {
        // Nothing panics while it is held; a poisoned map is as good as any.
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command that was started here no longer runs, or is no longer to be found.
    pub(crate) fn forget(&self, pid: u32) {
        self.map().remove(&pid);
    }

    /// Signals the groups of all running commands.
    pub(crate) fn signal_all(&self, signal: Signal) {
        let commands: Vec<_> = self.map().values().cloned().collect();
        for command in commands {
            command.leader.signal_group(signal);
        }
    }

    /// Signals the group of a running command.
    pub(crate) fn signal(&self, pid: u32, number: u32) -> Result<(), Failure> {
        let signal = signal_of(number)?;
        let command = self.map().get(&pid).cloned();
        if command.is_some_and(|command| command.signal(signal)) {
            Ok(())
        } else {
            let message = format!("signal the command with process id {pid}: it does not run");
            Err(Failure::new(FailureKind::NoSuchCommand, pid.to_string(), message))
        }
    }
}

/// The signal of this number, which user space may send.
pub(crate) fn signal_of(number: u32) -> Result<Signal, Failure> {
    i32::try_from(number)
        .ok()
        .and_then(signal_from_number)
        .ok_or_else(|| {
            let message = format!("send signal {number}: there is no such signal");
            Failure::new(FailureKind::InvalidRequest, number.to_string(), message)
        })
}

/// A number from 1 to 64 that user space may send; 32 and 33 belong to the threads library.
fn signal_from_number(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number).or_else(|| {
        // SAFETY: the number is a real-time signal; `Signal` wants it not to be one that libc keeps for itself.
        (34..=64)
            .contains(&number)
            .then(|| unsafe { Signal::from_raw_unchecked(number) })
    })
}

/// One running command.
#[derive(Debug)]
pub(crate) struct Command {
    leader: Leader,
    /// The terminal, or standard output.
    output: Stream,
    /// Absent with a terminal.
    error: Option<Stream>,
    terminal: bool,
}

/// How a call came to its end.
enum Ending {
    Exited(io::Result<Exit>),
    ClientGone,
}

/// The agent's ends of a command's standard streams, before they are registered with the runtime.
struct Ends {
    process: spawn::Process,
    input: Option<OwnedFd>,
    output: OwnedFd,
    error: Option<OwnedFd>,
}

/// Starts a command and returns the receiving half of its output, whose first message is already there.
///
/// To be run as a task of its own: dropped half way it would leave a process behind. A caller who goes away drops the
/// receiver instead, which ends the command.
pub(crate) async fn start(
    start: ExecStart,
    inputs: Streaming<ExecInput>,
    running: Running,
    open_files: libc::rlimit,
    permit: OwnedSemaphorePermit,
) -> Result<mpsc::Receiver<Result<ExecOutput, Status>>, Failure> {
    let Begun { command, input, pid } = begin(start, &running, open_files).await?;
    let (sender, receiver) = mpsc::channel(OUTPUT_QUEUE);
    // The channel is empty, so this cannot fail.
    let _sent = sender.try_send(Ok(message(Output::Started(ExecStarted { pid }))));
    tokio::spawn(async move {
        let result = command.run(input, inputs, &sender).await;
        running.forget(pid);
        if let Err(error) = result {
            let failure = system("follow the command", &error);
            let _client_gone = sender.send(Err(failure.into_status())).await;
        }
        drop(command);
        drop(permit);
    });
    Ok(receiver)
}

/// A command that has just been started, and is among those that run until it is forgotten there.
pub(crate) struct Begun {
    pub(crate) command: Arc<Command>,
    /// Its standard input, or its terminal; none where that is /dev/null.
    pub(crate) input: Option<Stream>,
    pub(crate) pid: u32,
}

/// Starts a command. To be run to its end, as [`start`] is.
pub(crate) async fn begin(
    start: ExecStart,
    running: &Running,
    open_files: libc::rlimit,
) -> Result<Begun, Failure> {
    let terminal = start.terminal.is_some();
    // Reads files of the guest and waits for execve, either of which may hang on the guest's file systems.
    let ends = tokio::task::spawn_blocking(move || launch(&start, open_files))
        .await
        .unwrap_or_else(|join| Err(system("start the command", &io::Error::other(join))))?;
    let register = |error: io::Error| system("register the command's streams", &error);
    let pid = u32::try_from(ends.process.pid).unwrap_or_default();
    let leader = Leader::new(ends.process).map_err(register)?;
    let streams = || -> io::Result<_> {
        let input = ends.input.map(Stream::new).transpose()?;
        Ok((
            input,
            Stream::new(ends.output)?,
            ends.error.map(Stream::new).transpose()?,
        ))
    };
    let (input, output, error) = match streams() {
        Ok(streams) => streams,
        Err(error) => {
            let _exit = leader.terminate(Duration::ZERO).await;
            return Err(register(error));
        }
    };
    let command = Arc::new(Command {
        leader,
        output,
        error,
        terminal,
    });
    running.map().insert(pid, Arc::clone(&command));
    Ok(Begun { command, input, pid })
}

/// Does once what starting a command takes, up to the point where a process would run: reads the guest's users, makes a
/// thread for blocking work and a child that finds no program.
///
/// To be called while the host makes up its mind: where processors are emulated, code and files that are used for the
/// first time cost milliseconds, and the first command of a guest is one that somebody waits for.
pub(crate) async fn rehearse(open_files: libc::rlimit) {
    let start = ExecStart {
        // Below a file there is nothing.
        argv: vec!["/proc/version/none".to_owned()],
        ..ExecStart::default()
    };
    // It fails, as it should.
    let _not_found = tokio::task::spawn_blocking(move || launch(&start, open_files)).await;
}

/// Makes the streams and starts the process. Blocks.
fn launch(start: &ExecStart, open_files: libc::rlimit) -> Result<Ends, Failure> {
    let prepared = prepare::prepare(start)?;
    let streams = |error: io::Error| system("make the command's streams", &error);
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| streams(errno.into()));
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(streams);
    let (stdio, input, output, error) = if let Some(wanted) = &start.terminal {
        let size = wanted.size.unwrap_or_default();
        let (rows, cols) = terminal_size(size.rows, size.cols)?;
        let Terminal { master, slave } = Terminal::open(rows, cols, prepared.account.uid).map_err(streams)?;
        let input = copy(&master)?;
        ([copy(&slave)?, copy(&slave)?, slave], Some(input), master, None)
    } else {
        let (stdin, input) = if start.stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            (null.map_err(|errno| streams(errno.into()))?, None)
        };
        let (output, stdout) = pipe()?;
        let (error, stderr) = pipe()?;
        ([stdin, stdout, stderr], input, output, Some(error))
    };
    // The plan, and with it the command's ends, is dropped here: or its output would never end.
    let plan = prepared.into_plan(stdio, start.terminal.is_some(), open_files);
    let process = spawn::spawn(&plan).map_err(|error| prepare::spawn_failure(start, &error))?;
    Ok(Ends {
        process,
        input,
        output,
        error,
    })
}

impl Command {
    /// Hands on everything that the command writes, and tells how it ended when that is complete. Output is handed on until
    /// `send` says that nobody listens any more.
    pub(crate) async fn follow<F>(&self, send: impl Fn(Output) -> F) -> io::Result<Exit>
    where
        F: Future<Output = bool>,
    {
        let (ended, watching) = watch::channel(false);
        let stdout = self
            .output
            .pump(watching.clone(), |bytes| send(Output::Stdout(bytes)));
        let stderr = async {
            match &self.error {
                Some(error) => error.pump(watching, |bytes| send(Output::Stderr(bytes))).await,
                None => Ok(()),
            }
        };
        let exit = async {
            let exit = self.leader.wait().await;
            ended.send_replace(true);
            exit
        };
        let (exit, stdout, stderr) = tokio::join!(exit, stdout, stderr);
        stdout?;
        stderr?;
        exit
    }

    /// Ends the command and everything in its process group.
    pub(crate) async fn terminate(&self) -> io::Result<Exit> {
        self.leader.terminate(HANGUP_GRACE).await
    }

    /// Follows the command to its end, or to the client's.
    async fn run(
        &self,
        input: Option<Stream>,
        inputs: Streaming<ExecInput>,
        sender: &Sender,
    ) -> io::Result<()> {
        let send = |output: Output| async move { sender.send(Ok(message(output))).await.is_ok() };
        let whole = self.follow(send);
        // Dropping any of these loses nothing that is needed afterwards: `whole` only when the client, to whom its
        // bytes would go, has left; `closed` and `serve` when the command has ended.
        let ending = tokio::select! {
            exit = whole => Ending::Exited(exit),
            () = sender.closed() => Ending::ClientGone,
            () = self.serve(input, inputs) => Ending::ClientGone,
        };
        match ending {
            Ending::Exited(Ok(exit)) => {
                let _client_gone = send(Output::Exited(exited(exit))).await;
                Ok(())
            }
            Ending::Exited(Err(error)) => {
                self.terminate().await?;
                Err(error)
            }
            Ending::ClientGone => self.terminate().await.map(|_exit| ()),
        }
    }

    /// Applies the client's messages; returns when the client has gone away, and never otherwise.
    async fn serve(&self, mut input: Option<Stream>, mut inputs: Streaming<ExecInput>) {
        loop {
            match inputs.message().await {
                Ok(Some(ExecInput {
                    input: Some(Input::Stdin(bytes)),
                })) => {
                    if let Some(stream) = &input
                        && stream.write_all(&bytes).await.is_err()
                    {
                        // The command has closed its standard input; it may still have much to say.
                        input = None;
                    }
                }
                Ok(Some(ExecInput {
                    input: Some(Input::StdinEof(_)),
                })) => self.end_input(&mut input).await,
                Ok(Some(ExecInput {
                    input: Some(Input::Resize(size)),
                })) => {
                    if self.terminal
                        && let Ok((rows, cols)) = terminal_size(size.rows, size.cols)
                    {
                        let _hung_up = terminal::resize(self.output.fd(), rows, cols);
                    }
                }
                // A second start, or a message from a newer client: nothing to do.
                Ok(Some(ExecInput {
                    input: Some(Input::Start(_)) | None,
                })) => {}
                Ok(None) => {
                    self.end_input(&mut input).await;
                    return std::future::pending().await;
                }
                Err(_reset) => return,
            }
        }
    }

    async fn end_input(&self, input: &mut Option<Stream>) {
        // Dropping a pipe's end closes it; a terminal has to be told.
        if let Some(stream) = input.take()
            && self.terminal
        {
            let _hung_up = stream.write_all(terminal::END_OF_FILE).await;
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> bool {
        if self.terminal
            && let Ok(foreground) = tcgetpgrp(self.output.fd())
            && foreground != self.leader.pid()
        {
            return rustix::process::kill_process_group(foreground, signal).is_ok();
        }
        self.leader.signal_group(signal)
    }
}

pub(crate) fn exited(exit: Exit) -> ExecExited {
    match exit {
        Exit::Code(code) => ExecExited {
            how: Some(How::Code(code)),
            core_dumped: false,
        },
        Exit::Signal { number, core_dumped } => ExecExited {
            how: Some(How::Signal(number)),
            core_dumped,
        },
    }
}

fn message(output: Output) -> ExecOutput {
    ExecOutput { output: Some(output) }
}

fn terminal_size(rows: u32, cols: u32) -> Result<(u16, u16), Failure> {
    match (u16::try_from(rows), u16::try_from(cols)) {
        (Ok(rows), Ok(cols)) => Ok((rows, cols)),
        (Err(_), _) | (_, Err(_)) => {
            let message = format!("make a terminal of {rows} rows and {cols} columns");
            Err(Failure::new(FailureKind::InvalidRequest, "terminal", message))
        }
    }
}

pub(crate) fn system(doing: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::System, "exec", format!("{doing}: {error}"))
}
