//! Frames of a client's connection to and from a guest's agent.
//!
//! Nothing is buffered here beyond one chunk each way: a side that does not read stops the other one, through the socket
//! or the agent's flow control. A client that has gone ends what it had begun, because dropping the agent's stream does.
//! A daemon that stops says so in a last frame.

mod ssh;

use std::convert::Infallible;
use std::time::Duration;

use banger_agent_api::{
    AgentError, Download, ExecEvent, ExecInput, ExecOutput, ExecSignals, InputClosed, Upload,
};
use banger_api::frame::{ExitStatus, Frame, FrameReader, FrameStream, FrameWriter};
use banger_api::{ErrorKind, RpcError};
use banger_engine::session::Piece;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::convert::agent_error;

/// How long the agent may take to send a signal on.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(5);

/// A command's time between the signals that end it, as long as the agent's own.
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// Linux's numbers, which the guest's are, whatever the host.
const SIGHUP: u8 = 1;
const SIGKILL: u8 = 9;

/// What a stream works on, and what ends it from outside.
pub(crate) struct Session {
    /// The machine as the client named it, for messages.
    pub(crate) vm: String,
    /// Set when the daemon stops.
    pub(crate) stopping: CancellationToken,
}

/// Why a stream is over.
enum Ended {
    /// With this final frame.
    Final(Frame),
    /// The client has gone, or does not speak our language.
    Gone,
}

impl Ended {
    fn failed(error: RpcError) -> Self {
        Self::Final(Frame::Error(error))
    }
}

impl Session {
    fn agent_failed(&self, error: &AgentError) -> Ended {
        Ended::failed(agent_error(&self.vm, error))
    }

    /// Waits until the daemon stops.
    async fn stopped(&self) -> Ended {
        self.stopping.cancelled().await;
        Ended::failed(
            RpcError::new(ErrorKind::Busy, "the daemon is stopping")
                .hint("try again: the next command starts it anew"),
        )
    }

    /// Serves `guest.exec`.
    pub(crate) async fn exec(self, stream: FrameStream, input: ExecInput, mut output: ExecOutput) {
        let (mut reader, mut writer) = stream.split();
        let signals = input.signals();
        let ended = tokio::select! {
            // What is dropped when another arm is first: a frame half-sent is finished before the last one; input not
            // passed on is of no use to a command that has ended.
            ended = self.exec_output(&mut output, &mut writer) => ended,
            ended = exec_input(&mut reader, input) => ended,
            ended = self.stopped() => ended,
        };
        // Ends the command, if it still runs.
        drop(output);
        match ended {
            Ended::Final(Frame::Exit(_)) => finish(&mut writer, ended).await,
            Ended::Final(_) | Ended::Gone => {
                tokio::join!(finish(&mut writer, ended), end_command(&signals));
            }
        }
    }

    async fn exec_output(&self, output: &mut ExecOutput, writer: &mut FrameWriter) -> Ended {
        loop {
            let frame = match output.next().await {
                Ok(Some(ExecEvent::Stdout(bytes))) => Frame::Stdout(bytes),
                Ok(Some(ExecEvent::Stderr(bytes))) => Frame::Stderr(bytes),
                Ok(Some(ExecEvent::Exited(status))) => return Ended::Final(Frame::Exit(exit_status(status))),
                Ok(None) => {
                    let error = RpcError::new(ErrorKind::GuestUnavailable, "the command's end is not known");
                    return Ended::failed(error);
                }
                Err(error) => return self.agent_failed(&error),
            };
            if writer.send(frame).await.is_err() {
                return Ended::Gone;
            }
        }
    }

    /// Serves `guest.upload`.
    pub(crate) async fn upload(self, stream: FrameStream, upload: Upload) {
        let (mut reader, mut writer) = stream.split();
        let ended = tokio::select! {
            // Dropping the upload cancels it; what was unpacked stays.
            ended = self.upload_data(&mut reader, upload) => ended,
            ended = self.stopped() => ended,
        };
        finish(&mut writer, ended).await;
    }

    async fn upload_data(&self, reader: &mut FrameReader, mut upload: Upload) -> Ended {
        loop {
            match data(reader, "guest.upload").await {
                Ok(Some(bytes)) => {
                    let sent = tokio::select! {
                        sent = upload.send(bytes) => sent,
                        () = reader.closed() => return Ended::Gone,
                    };
                    if let Err(error) = sent {
                        return self.agent_failed(&error);
                    }
                }
                Ok(None) => break,
                Err(ended) => return ended,
            }
        }
        tokio::select! {
            finished = upload.finish() => match finished {
                Ok(_) => Ended::Final(Frame::End),
                Err(error) => self.agent_failed(&error),
            },
            () = reader.closed() => Ended::Gone,
        }
    }

    /// Serves `guest.download`.
    pub(crate) async fn download(self, stream: FrameStream, mut download: Download) {
        let (reader, mut writer) = stream.split();
        let ended = tokio::select! {
            ended = async {
                loop {
                    match download.next().await {
                        Ok(Some(bytes)) => {
                            if writer.send(Frame::Data(bytes)).await.is_err() {
                                return Ended::Gone;
                            }
                        }
                        Ok(None) => return Ended::Final(Frame::End),
                        Err(error) => return self.agent_failed(&error),
                    }
                }
            } => ended,
            () = reader.closed() => Ended::Gone,
            ended = self.stopped() => ended,
        };
        finish(&mut writer, ended).await;
    }

    /// Serves `session.logs`.
    pub(crate) async fn session_logs(self, stream: FrameStream, pieces: mpsc::Receiver<Piece>) {
        let frame = |piece: Piece| match piece.error {
            true => Frame::Stderr(piece.data),
            false => Frame::Stdout(piece.data),
        };
        self.send_all(stream, pieces, frame).await;
    }

    /// Serves `vm.logs`.
    pub(crate) async fn logs(self, stream: FrameStream, chunks: mpsc::Receiver<Vec<u8>>) {
        let frame = |chunk| Frame::Data(Bytes::from(chunk));
        self.send_all(stream, chunks, frame).await;
    }

    /// Sends what comes as frames, and then the end.
    async fn send_all<T>(self, stream: FrameStream, mut from: mpsc::Receiver<T>, frame: fn(T) -> Frame) {
        let (reader, mut writer) = stream.split();
        let ended = tokio::select! {
            ended = async {
                while let Some(next) = from.recv().await {
                    if writer.send(frame(next)).await.is_err() {
                        return Ended::Gone;
                    }
                }
                Ended::Final(Frame::End)
            } => ended,
            () = reader.closed() => Ended::Gone,
            ended = self.stopped() => ended,
        };
        finish(&mut writer, ended).await;
    }
}

/// Passes a client's frames to a command, until the client goes. A command that takes no more input is no reason to
/// end: how it ended comes through its output.
async fn exec_input(reader: &mut FrameReader, input: ExecInput) -> Ended {
    match exec_frames(reader, &input).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn exec_frames(reader: &mut FrameReader, input: &ExecInput) -> Result<Infallible, Ended> {
    let signals = input.signals();
    let refused_is_fine = |InputClosed| ();
    loop {
        // A break in the middle of a frame, or bytes that are none, count as gone: there is nobody to answer to.
        let frame = reader.next().await.map_err(|_| Ended::Gone)?.ok_or(Ended::Gone)?;
        let passing = async {
            match frame {
                Frame::Stdin(bytes) => input.stdin(bytes).await.unwrap_or_else(refused_is_fine),
                Frame::StdinEof => input.close_stdin().await.unwrap_or_else(refused_is_fine),
                Frame::Resize { rows, columns } => {
                    input.resize(rows, columns).await.unwrap_or_else(refused_is_fine);
                }
                Frame::Signal(number) => signal(&signals, number).await?,
                Frame::Stdout(_)
                | Frame::Stderr(_)
                | Frame::Data(_)
                | Frame::DataEof
                | Frame::Exit(_)
                | Frame::Error(_)
                | Frame::End => return Err(unexpected("guest.exec")),
            }
            Ok(())
        };
        tokio::select! {
            passed = passing => passed?,
            // While the command does not read, neither do we, and must see the client go all the same.
            () = reader.closed() => return Err(Ended::Gone),
        }
    }
}

/// Sends a signal to a command. One that cannot be delivered is no reason to end: the command may just have ended.
async fn signal(signals: &ExecSignals, number: i32) -> Result<(), Ended> {
    let Some(number) = u8::try_from(number)
        .ok()
        .filter(|number| (1..=64).contains(number))
    else {
        let error = RpcError::new(
            ErrorKind::InvalidArgument,
            format!("there is no signal {number}: they go from 1 to 64"),
        );
        return Err(Ended::failed(error));
    };
    if let Err(error) = signals.send(number, SIGNAL_DEADLINE).await {
        tracing::debug!(number, error = crate::chain(&error), "a signal was not delivered");
    }
    Ok(())
}

/// Makes sure of the end of a command whose stream was dropped. The agent ends it when it learns of that; but where the
/// command does not read its input, the rest of that input waits in the HTTP/2 connection and holds the call open.
async fn end_command(signals: &ExecSignals) {
    for (number, grace) in [(SIGHUP, HANGUP_GRACE), (SIGKILL, Duration::ZERO)] {
        if let Err(error) = signals.send(number, SIGNAL_DEADLINE).await {
            // The usual way: it has ended already.
            tracing::debug!(error = crate::chain(&error), "a command was not signalled");
            return;
        }
        tokio::time::sleep(grace).await;
    }
}

/// The next bytes that a client sends; `None`: it has said that nothing more comes.
async fn data(reader: &mut FrameReader, method: &'static str) -> Result<Option<Bytes>, Ended> {
    match reader.next().await {
        Ok(Some(Frame::Data(bytes))) => Ok(Some(bytes)),
        Ok(Some(Frame::DataEof)) => Ok(None),
        Ok(Some(
            Frame::Stdin(_)
            | Frame::Stdout(_)
            | Frame::Stderr(_)
            | Frame::StdinEof
            | Frame::Resize { .. }
            | Frame::Signal(_)
            | Frame::Exit(_)
            | Frame::Error(_)
            | Frame::End,
        )) => Err(unexpected(method)),
        Ok(None) | Err(_) => Err(Ended::Gone),
    }
}

/// A frame of the wrong kind, or in the wrong direction.
fn unexpected(method: &str) -> Ended {
    Ended::failed(RpcError::new(
        ErrorKind::BadRequest,
        format!("a frame that does not belong into {method}"),
    ))
}

fn exit_status(status: banger_agent_api::ExitStatus) -> ExitStatus {
    match status {
        banger_agent_api::ExitStatus::Code(code) => ExitStatus::Code(code.into()),
        banger_agent_api::ExitStatus::Signal {
            number,
            core_dumped: _,
        } => ExitStatus::Signal(number.into()),
    }
}

/// Sends the final frame. Waits for a client that is slow, say behind a pager: without this frame all it has got would
/// count for nothing. A client that has gone fails the send, and a daemon that stops gives up on it.
async fn finish(writer: &mut FrameWriter, ended: Ended) {
    match ended {
        Ended::Final(frame) => writer.send(frame).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "a client went away before the end of its stream");
        }),
        Ended::Gone => tracing::debug!("a client left its stream"),
    }
}

#[cfg(test)]
mod tests;
