//! Sessions seen from the host: what one writes, fetched from where the caller has left off.

use crate::MAX_CHUNK;
use crate::client::unary;
use crate::error::AgentError;
use crate::exec::{ExitStatus, exit_status};
use crate::proto;
use crate::proto::agent_client::AgentClient as Rpc;
use crate::proto::session_output::Output;
use bytes::Bytes;
use std::time::Duration;
use tonic::Streaming;
use tonic::transport::Channel;

const METHOD: &str = "session follow";

/// What a session does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// Bytes that it wrote; never empty, at most 64 KiB.
    Wrote {
        /// Bytes that it wrote before these. More than the events before this one: what is between is lost.
        offset: u64,
        /// Milliseconds since 1970, by the guest's clock.
        time_ms: u64,
        /// On standard error.
        error: bool,
        /// The bytes.
        data: Bytes,
    },
    /// It ended; everything it wrote and that is kept came before. The last event.
    Exited(ExitStatus),
}

/// A session's output, as it comes.
#[derive(Debug)]
pub struct SessionOutput {
    stream: Streaming<proto::SessionOutput>,
    /// What the caller has.
    offset: u64,
}

impl SessionOutput {
    /// The next event; `None` after the last. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The connection to the guest broke, or the guest breaks the protocol.
    pub async fn next(&mut self) -> Result<Option<SessionEvent>, AgentError> {
        let message = self.stream.message().await;
        let Some(message) = message.map_err(|status| AgentError::from_status(METHOD, status))? else {
            return Ok(None);
        };
        match message.output {
            Some(Output::Piece(piece)) => self.piece(piece).map(Some),
            Some(Output::Exited(exited)) => Ok(Some(SessionEvent::Exited(exit_status(&exited)?))),
            None => Err(protocol("an empty message")),
        }
    }

    fn piece(&mut self, piece: proto::SessionPiece) -> Result<SessionEvent, AgentError> {
        let proto::SessionPiece {
            offset,
            time_ms,
            error,
            data,
        } = piece;
        if data.is_empty() || data.len() > MAX_CHUNK {
            return Err(protocol("a piece without bytes, or with too many"));
        }
        let end = offset.checked_add(data.len() as u64);
        self.offset = end
            .filter(|_| offset >= self.offset)
            .ok_or_else(|| protocol("a piece out of order"))?;
        Ok(SessionEvent::Wrote {
            offset,
            time_ms,
            error,
            data,
        })
    }
}

fn protocol(what: &'static str) -> AgentError {
    AgentError::Protocol { method: METHOD, what }
}

pub(crate) async fn start_session(
    mut rpc: Rpc<Channel>,
    id: &str,
    command: proto::ExecStart,
    deadline: Duration,
) -> Result<u32, AgentError> {
    let request = proto::SessionStartRequest {
        id: id.to_owned(),
        command: Some(command),
    };
    let reply = unary("session start", deadline, rpc.session_start(request)).await?;
    Ok(reply.pid)
}

pub(crate) async fn follow_session(
    mut rpc: Rpc<Channel>,
    id: &str,
    offset: u64,
) -> Result<SessionOutput, AgentError> {
    let request = proto::SessionFollowRequest {
        id: id.to_owned(),
        offset,
    };
    let response = rpc
        .session_follow(request)
        .await
        .map_err(|status| AgentError::from_status(METHOD, status))?;
    Ok(SessionOutput {
        stream: response.into_inner(),
        offset,
    })
}
