//! The two halves of an ssh connection into a guest, seen from the host: plain bytes, of which this crate knows nothing.
//!
//! Backpressure runs from end to end, as with a command's streams ([`crate::ExecInput`]).

use crate::error::AgentError;
use crate::proto::agent_client::AgentClient as Rpc;
use crate::proto::ssh_input::Input;
use crate::requests::{Cancel, requests};
use crate::{InputClosed, MAX_CHUNK, proto};
use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

const METHOD: &str = "ssh";

/// The way to the guest's sshd. Dropping it closes the connection.
#[derive(Debug)]
pub struct SshInput {
    sender: mpsc::Sender<proto::SshInput>,
}

impl SshInput {
    /// Sends bytes, in chunks; waits while sshd does not read.
    ///
    /// # Errors
    ///
    /// [`InputClosed`]: the rest was not sent; [`SshOutput::next`] says why.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), InputClosed> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            self.message(Input::Data(chunk)).await?;
        }
        Ok(())
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    ///
    /// [`InputClosed`].
    pub async fn finish(&self) -> Result<(), InputClosed> {
        self.message(Input::Eof(proto::SshEof {})).await
    }

    async fn message(&self, input: Input) -> Result<(), InputClosed> {
        self.sender
            .send(proto::SshInput { input: Some(input) })
            .await
            .map_err(|_closed| InputClosed)
    }
}

/// What comes from the guest's sshd. Dropping it closes the connection.
#[derive(Debug)]
pub struct SshOutput {
    stream: Streaming<proto::SshOutput>,
    _cancel: Cancel,
}

impl SshOutput {
    /// The next bytes, never empty, at most 64 KiB; `None` when sshd has closed the connection. Cancel-safe.
    ///
    /// # Errors
    ///
    /// sshd could not be started, the connection to the guest broke, or the guest breaks the protocol.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AgentError> {
        loop {
            match self.stream.message().await {
                Ok(Some(proto::SshOutput { data })) if data.len() > MAX_CHUNK => {
                    return Err(AgentError::Protocol {
                        method: METHOD,
                        what: "a chunk is too large",
                    });
                }
                Ok(Some(proto::SshOutput { data })) if data.is_empty() => {}
                Ok(Some(proto::SshOutput { data })) => return Ok(Some(data)),
                Ok(None) => return Ok(None),
                Err(status) => return Err(AgentError::from_status(METHOD, status)),
            }
        }
    }
}

/// Begins the call; returns when the guest has started its sshd.
pub(crate) async fn start_ssh(
    mut rpc: Rpc<Channel>,
    start: proto::SshStart,
) -> Result<(SshInput, SshOutput), AgentError> {
    let (sender, cancel, inputs) = requests(proto::SshInput {
        input: Some(Input::Start(start)),
    });
    let response = rpc
        .ssh(inputs)
        .await
        .map_err(|status| AgentError::from_status(METHOD, status))?;
    let output = SshOutput {
        stream: response.into_inner(),
        _cancel: cancel,
    };
    Ok((SshInput { sender }, output))
}
