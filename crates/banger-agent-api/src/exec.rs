//! The two halves of a running command, seen from the host.
//!
//! Backpressure runs from end to end: [`ExecInput::stdin`] waits while the guest's command does not read, and a caller
//! that does not call [`ExecOutput::next`] stops the guest's command from writing once the windows are full.

use crate::client::unary;
use crate::error::AgentError;
use crate::proto::agent_client::AgentClient as Rpc;
use crate::proto::exec_exited::How;
use crate::proto::exec_input::Input;
use crate::proto::exec_output::Output;
use crate::requests::{Cancel, requests};
use crate::{MAX_CHUNK, proto};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

const METHOD: &str = "exec";

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// The guest kernel's number, 1 to 64.
        number: u8,
        /// The kernel wrote a core dump.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// What a shell's `$?` would say: the code, or 128 plus the signal's number.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal { number, .. } => number.saturating_add(128),
        }
    }
}

/// What a running command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes on its standard output, or on its terminal; never empty, at most 64 KiB.
    Stdout(Bytes),
    /// Bytes on its standard error; never empty, at most 64 KiB.
    Stderr(Bytes),
    /// It ended; everything it wrote came before. The last event.
    Exited(ExitStatus),
}

/// The way to a running command. Dropping it ends the command's standard input.
#[derive(Debug)]
pub struct ExecInput {
    sender: mpsc::Sender<proto::ExecInput>,
    signals: ExecSignals,
}

/// The command takes no more input: it, its input, or the connection has ended; [`ExecOutput::next`] says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send to a command which takes no more input")]
pub struct InputClosed;

impl ExecInput {
    /// Sends bytes to the command's standard input or terminal, in chunks; waits while it does not read.
    ///
    /// # Errors
    ///
    /// [`InputClosed`]: the rest was not sent.
    pub async fn stdin(&self, mut bytes: Bytes) -> Result<(), InputClosed> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            self.send(Input::Stdin(chunk)).await?;
        }
        Ok(())
    }

    /// Closes the command's standard input; with a terminal, types its end-of-file character.
    ///
    /// # Errors
    ///
    /// [`InputClosed`].
    pub async fn close_stdin(&self) -> Result<(), InputClosed> {
        self.send(Input::StdinEof(proto::ExecStdinEof {})).await
    }

    /// Resizes the command's terminal; without one nothing happens.
    ///
    /// # Errors
    ///
    /// [`InputClosed`].
    pub async fn resize(&self, rows: u16, cols: u16) -> Result<(), InputClosed> {
        let size = proto::TerminalSize {
            rows: rows.into(),
            cols: cols.into(),
        };
        self.send(Input::Resize(size)).await
    }

    /// A handle for signalling the command, which never waits behind its standard input.
    #[must_use]
    pub fn signals(&self) -> ExecSignals {
        self.signals.clone()
    }

    async fn send(&self, input: Input) -> Result<(), InputClosed> {
        self.sender
            .send(proto::ExecInput { input: Some(input) })
            .await
            .map_err(|_closed| InputClosed)
    }
}

/// Sends signals to a running command.
#[derive(Debug, Clone)]
pub struct ExecSignals {
    rpc: Rpc<Channel>,
    pid: u32,
}

impl ExecSignals {
    /// Sends a signal (1 to 64, Linux numbers) to the command's process group, or to its terminal's foreground group.
    ///
    /// # Errors
    ///
    /// [`FailureKind::NoSuchCommand`](crate::FailureKind::NoSuchCommand) when it has ended; no connection, or no answer
    /// within `deadline`.
    pub async fn send(&self, number: u8, deadline: Duration) -> Result<(), AgentError> {
        let request = proto::SignalRequest {
            pid: self.pid,
            number: number.into(),
        };
        let mut rpc = self.rpc.clone();
        unary("signal", deadline, rpc.signal(request))
            .await
            .map(|proto::SignalReply {}| ())
    }
}

/// What comes from a running command. Dropping it ends the command.
#[derive(Debug)]
pub struct ExecOutput {
    stream: Streaming<proto::ExecOutput>,
    pid: u32,
    ended: bool,
    _cancel: Cancel,
}

impl ExecOutput {
    /// The command's process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The next event; `None` after [`ExecEvent::Exited`]. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The connection broke before the command's end was known, or the guest breaks the protocol.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, AgentError> {
        while !self.ended {
            let Some(message) = receive(&mut self.stream).await? else {
                return Err(protocol("the stream ended before the command"));
            };
            match message {
                Output::Stdout(bytes) if bytes.len() <= MAX_CHUNK => {
                    if !bytes.is_empty() {
                        return Ok(Some(ExecEvent::Stdout(bytes)));
                    }
                }
                Output::Stderr(bytes) if bytes.len() <= MAX_CHUNK => {
                    if !bytes.is_empty() {
                        return Ok(Some(ExecEvent::Stderr(bytes)));
                    }
                }
                Output::Stdout(_) | Output::Stderr(_) => return Err(protocol("a chunk is too large")),
                Output::Started(_) => return Err(protocol("the command started twice")),
                Output::Exited(exited) => {
                    self.ended = true;
                    return exit_status(&exited).map(|status| Some(ExecEvent::Exited(status)));
                }
            }
        }
        Ok(None)
    }
}

/// Begins the call; returns when the guest says that the command runs.
pub(crate) async fn start_exec(
    mut rpc: Rpc<Channel>,
    start: proto::ExecStart,
) -> Result<(ExecInput, ExecOutput), AgentError> {
    let (sender, cancel, inputs) = requests(proto::ExecInput {
        input: Some(Input::Start(start)),
    });
    let response = rpc
        .exec(inputs)
        .await
        .map_err(|status| AgentError::from_status(METHOD, status))?;
    let mut stream = response.into_inner();
    match receive(&mut stream).await? {
        Some(Output::Started(started)) => {
            let signals = ExecSignals {
                rpc,
                pid: started.pid,
            };
            let output = ExecOutput {
                stream,
                pid: started.pid,
                ended: false,
                _cancel: cancel,
            };
            Ok((ExecInput { sender, signals }, output))
        }
        Some(Output::Stdout(_) | Output::Stderr(_) | Output::Exited(_)) | None => Err(protocol(
            "the first message does not say that the command started",
        )),
    }
}

async fn receive(stream: &mut Streaming<proto::ExecOutput>) -> Result<Option<Output>, AgentError> {
    match stream.message().await {
        Ok(Some(proto::ExecOutput { output: Some(output) })) => Ok(Some(output)),
        // An output this release does not know cannot be skipped safely: it may be data.
        Ok(Some(proto::ExecOutput { output: None })) => Err(protocol("a message of an unknown kind")),
        Ok(None) => Ok(None),
        Err(status) => Err(AgentError::from_status(METHOD, status)),
    }
}

pub(crate) fn exit_status(exited: &proto::ExecExited) -> Result<ExitStatus, AgentError> {
    match exited.how {
        Some(How::Code(code)) => u8::try_from(code)
            .map(ExitStatus::Code)
            .map_err(|_| protocol("an exit code above 255")),
        Some(How::Signal(number)) => match u8::try_from(number) {
            Ok(number @ 1..=64) => Ok(ExitStatus::Signal {
                number,
                core_dumped: exited.core_dumped,
            }),
            Ok(_) | Err(_) => Err(protocol("a signal outside 1 to 64")),
        },
        None => Err(protocol("an exit without code or signal")),
    }
}

fn protocol(what: &'static str) -> AgentError {
    AgentError::Protocol { method: METHOD, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_from_the_guest_are_checked() {
        let exited = |how, core_dumped| proto::ExecExited { how, core_dumped };
        assert_eq!(
            exit_status(&exited(Some(How::Code(3)), false)).expect("valid"),
            ExitStatus::Code(3)
        );
        let killed = exit_status(&exited(Some(How::Signal(11)), true)).expect("valid");
        assert_eq!(
            killed,
            ExitStatus::Signal {
                number: 11,
                core_dumped: true
            }
        );
        assert_eq!(killed.shell_code(), 139);
        for how in [
            None,
            Some(How::Code(256)),
            Some(How::Signal(0)),
            Some(How::Signal(65)),
        ] {
            assert!(exit_status(&exited(how, false)).is_err(), "{how:?}");
        }
    }
}
