//! A command in the guest, joined to this process's standard streams, terminal and signals.
//!
//! ```text
//! stdin thread ──(4 chunks)──► sender task ──frames──► daemon
//! signals, window size ─(16)─►
//! stdout thread ◄─(8 frames)── receiver task ◄──frames── daemon
//! stderr thread ◄─(8 frames)──
//! ```
//!
//! Reads and writes that can block have threads of their own, so that a stalled pipe holds up neither signals nor the
//! other direction. Every queue is bounded: a reader that does not read stops the guest, not memory. Nothing is
//! buffered on the way; a chunk is one read, one frame, one write.
//!
//! Without a terminal, signals go to the guest's command. With one, keys do, and a signal sent to this process ends the
//! session, whether keys can be sent or not; the terminal is restored on every way out.

use std::os::fd::{BorrowedFd, OwnedFd};

use banger_api::client::Client;
use banger_api::frame::{CHUNK, ExitStatus, Frame, FrameReader, FrameWriter};
use banger_api::types::{ExecOpen, Terminal};
use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{CliError, Kind, chain};
use crate::interrupt::{Interrupts, exit_code};
use crate::stdio::{self, say};
use crate::terminal::{self, RawMode};

/// Ctrl-C that a command ignores this often ends the session here.
const PATIENCE: u32 = 3;

/// Which of our streams the command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    /// Standard input is sent; otherwise the command reads end of file.
    pub(crate) stdin: bool,
    /// The command gets a terminal.
    pub(crate) terminal: bool,
}

impl Streams {
    /// Refuses a terminal that keys cannot come from, before anything is begun.
    pub(crate) fn check(self) -> Result<(), CliError> {
        if self.stdin && self.terminal && !terminal::stdin_is_terminal() {
            return Err(
                CliError::usage("standard input is not a terminal, so -t cannot go with -i")
                    .hint("leave out -t to send a file or a pipe"),
            );
        }
        Ok(())
    }
}

/// Runs a command to its end; its exit code, or 128 + the signal that ended it.
///
/// `open` names the command; its streams are set here.
pub(crate) async fn run(
    client: &Client,
    interrupts: &mut Interrupts,
    streams: Streams,
    mut open: ExecOpen,
) -> Result<u8, CliError> {
    streams.check()?;
    let (rows, columns) = terminal::window_size();
    open.stdin = streams.stdin;
    open.terminal = streams.terminal.then(|| Terminal {
        term: terminal::term(),
        rows,
        columns,
    });
    let stream = tokio::select! {
        // Dropping the call closes its connection, which ends what it may have begun.
        stream = client.guest_exec(open) => stream?,
        // Cancel-safe: see `Interrupts::next`.
        signal = interrupts.next() => return Ok(exit_code(signal)),
    };
    let (reader, writer) = stream.split();
    // Declared before the tasks: the terminal is restored last, when nothing writes any more.
    let raw = match streams.stdin && streams.terminal {
        true => Some(
            RawMode::enter()
                .map_err(|error| CliError::general(format!("failed to set up the terminal: {error}")))?,
        ),
        false => None,
    };
    let (control, commands) = mpsc::channel(16);
    let input = match streams.stdin {
        true => Some(Input::start()?),
        false => None,
    };
    let (chunks, _stop) = input.map_or((None, None), |input| (Some(input.chunks), Some(input.stop)));
    let sender = tokio::spawn(send(writer, chunks, commands));
    let receiver = tokio::spawn(receive(reader));
    let result = attend(receiver, interrupts, streams, &control, raw.as_ref()).await;
    // The daemon has said its last word, or we leave: what was not sent is of no use.
    sender.abort();
    drop(raw);
    result
}

/// Passes on signals and the window's size until the session is over.
async fn attend(
    mut receiver: JoinHandle<Result<u8, CliError>>,
    interrupts: &mut Interrupts,
    streams: Streams,
    control: &mpsc::Sender<Frame>,
    raw: Option<&RawMode>,
) -> Result<u8, CliError> {
    let listen = |kind: SignalKind| {
        signal(kind).map_err(|error| CliError::general(format!("failed to listen for a signal: {error}")))
    };
    let mut resized = listen(SignalKind::window_change())?;
    let mut continued = listen(SignalKind::from_raw(libc::SIGCONT))?;
    let mut ignored = 0;
    loop {
        // Cancel safety: a join handle and signal streams keep what they have until it is taken.
        tokio::select! {
            ended = &mut receiver => {
                return ended.unwrap_or_else(|error| Err(CliError::general(format!("failed to read the stream: {error}"))));
            }
            number = interrupts.next() => {
                // The guest's terminal is the command's way to be interrupted; what ends this process is meant for it.
                if streams.terminal {
                    return Ok(exit_code(number));
                }
                ignored += u32::from(number == libc::SIGINT);
                if ignored >= PATIENCE {
                    say!("left: the command ignored Ctrl-C {PATIENCE} times");
                    return Ok(exit_code(number));
                }
                // Full: the guest takes nothing, and the user's third Ctrl-C will end it here.
                control.try_send(Frame::Signal(number)).ok();
            }
            _ = resized.recv(), if streams.terminal => {
                let (rows, columns) = terminal::window_size();
                // Full: a later size will come through.
                control.try_send(Frame::Resize { rows, columns }).ok();
            }
            _ = continued.recv() => {
                if let Some(raw) = raw {
                    // A terminal that has gone shows as end of input.
                    raw.apply().ok();
                }
            }
        }
    }
}

/// Sends frames until the stream is closed. Keeps the sending half open at the end of input: closing it would end the
/// command.
async fn send(
    mut writer: FrameWriter,
    mut chunks: Option<mpsc::Receiver<Bytes>>,
    mut control: mpsc::Receiver<Frame>,
) {
    loop {
        // Cancel safety: receiving from a channel takes nothing unless it completes.
        let frame = tokio::select! {
            frame = control.recv() => match frame {
                Some(frame) => frame,
                None => return,
            },
            chunk = next_chunk(&mut chunks) => match chunk {
                Some(bytes) => Frame::Stdin(bytes),
                None => {
                    chunks = None;
                    Frame::StdinEof
                }
            },
        };
        // A failure means that the daemon has closed the stream; the receiver knows why.
        if writer.send(frame).await.is_err() {
            return;
        }
    }
}

async fn next_chunk(chunks: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match chunks {
        Some(chunks) => chunks.recv().await,
        None => std::future::pending().await,
    }
}

/// Writes what comes until the final frame; then waits for the writes.
async fn receive(mut reader: FrameReader) -> Result<u8, CliError> {
    let stdout = Output::start(rustix::stdio::stdout());
    let stderr = Output::start(rustix::stdio::stderr());
    let lost = |reason: &str| {
        CliError::new(Kind::Exec, format!("lost the command in the guest: {reason}")).hint(
            "the machine may have stopped, or the daemon: see `banger vm show` and `banger daemon status`",
        )
    };
    let status = loop {
        match reader.next().await {
            Ok(Some(Frame::Stdout(bytes))) => {
                if stdout.chunks.send(bytes).await.is_err() {
                    // Nobody reads. Leaving ends the command, as SIGPIPE would end one here.
                    return stdout.finish().await.map(|()| stdio::BROKEN_PIPE);
                }
            }
            // The command is worth more than its complaints: a closed standard error does not end it.
            Ok(Some(Frame::Stderr(bytes))) => drop(stderr.chunks.send(bytes).await),
            Ok(Some(Frame::Exit(status))) => break Ok(status),
            Ok(Some(Frame::Error(error))) => break Err(CliError::from(error)),
            Ok(Some(
                Frame::Stdin(_)
                | Frame::StdinEof
                | Frame::Resize { .. }
                | Frame::Signal(_)
                | Frame::Data(_)
                | Frame::DataEof
                | Frame::End,
            )) => break Err(lost("the daemon sent a frame that does not belong here")),
            Ok(None) => break Err(lost("the daemon closed the stream")),
            Err(error) => break Err(lost(&format!("failed to {}", chain(&error)))),
        }
    };
    let closed = stdout.finish().await;
    // Complaints that could not be written are nobody's loss.
    stderr.finish().await.ok();
    let status = status?;
    closed?;
    Ok(match status {
        // Linux keeps the low byte of an exit code.
        ExitStatus::Code(code) => code.to_le_bytes()[0],
        ExitStatus::Signal(number) => exit_code(number),
    })
}

/// A thread that writes to one of our streams.
pub(crate) struct Output {
    pub(crate) chunks: mpsc::Sender<Bytes>,
    written: JoinHandle<Result<(), CliError>>,
}

impl Output {
    pub(crate) fn start(fd: BorrowedFd<'static>) -> Self {
        let (chunks, mut queue) = mpsc::channel::<Bytes>(8);
        let written = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = queue.blocking_recv() {
                match stdio::write_all(fd, &chunk) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => {
                        return Err(CliError::general(format!(
                            "failed to write the command's output: {error}"
                        )));
                    }
                }
            }
            Ok(())
        });
        Self { chunks, written }
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(self) -> Result<(), CliError> {
        drop(self.chunks);
        self.written
            .await
            .unwrap_or_else(|error| Err(CliError::general(format!("failed to write output: {error}"))))
    }
}

/// A thread that reads standard input, until its end or until `stop` is dropped.
pub(crate) struct Input {
    pub(crate) chunks: mpsc::Receiver<Bytes>,
    pub(crate) stop: OwnedFd,
}

impl Input {
    pub(crate) fn start() -> Result<Self, CliError> {
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| CliError::general(format!("failed to make a pipe: {error}")))?;
        let (queue, chunks) = mpsc::channel(4);
        // Not awaited: it ends with the stop pipe, and a session must not wait for a key.
        drop(tokio::task::spawn_blocking(move || {
            pump(rustix::stdio::stdin(), &stopped, &queue);
        }));
        Ok(Self { chunks, stop })
    }
}

/// Reads until the end of input, an error (which for the command is the end), or a stop: what the user types after the
/// session belongs to the shell.
fn pump(input: BorrowedFd<'_>, stopped: &OwnedFd, queue: &mpsc::Sender<Bytes>) {
    let mut buffer = BytesMut::new();
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(input, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) if !ready[1].revents().is_empty() => return,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        buffer.resize(CHUNK, 0);
        match rustix::io::read(input, &mut buffer[..]) {
            Ok(0) => return,
            Ok(n) => {
                // Full chunks are handed over whole; a key's byte does not take 64 KiB with it through the queue.
                let chunk = match n >= CHUNK / 4 {
                    true => buffer.split_to(n).freeze(),
                    false => Bytes::copy_from_slice(&buffer[..n]),
                };
                if queue.blocking_send(chunk).is_err() {
                    return;
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => {
                // A background job that may not read the terminal, or a directory as input.
                say!(
                    "warning: failed to read standard input: {}",
                    std::io::Error::from(error)
                );
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn input_is_read_whole_and_stops_on_demand() {
        let (input, mut feed) = std::io::pipe().unwrap();
        let (stopped, stop) = rustix::pipe::pipe().unwrap();
        let (queue, mut chunks) = mpsc::channel(4);
        let reader = std::thread::spawn(move || pump(input.as_fd(), &stopped, &queue));
        std::io::Write::write_all(&mut feed, b"key").unwrap();
        assert_eq!(chunks.recv().await.unwrap(), "key");
        let sent: Vec<u8> = (0..300_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || {
                std::io::Write::write_all(&mut feed, &sent).unwrap();
                feed
            }
        });
        let mut received = Vec::new();
        while received.len() < sent.len() {
            received.extend_from_slice(&chunks.recv().await.unwrap());
        }
        assert!(received == sent, "bytes differ");
        let feed = writer.join().unwrap();
        // The input stays open: only the stop can end the thread.
        drop(stop);
        reader.join().unwrap();
        assert_eq!(chunks.recv().await, None);
        drop(feed);
    }
}
