//! The typed client: one function a method, from the contract. Made for a command line that lives for milliseconds:
//! connects when it must, and works on a current-thread runtime.
//!
//! Calls share a connection as long as they do not overlap; a subscription or a stream has one of its own. Dropping the
//! future of a call gives up waiting for the answer, nothing else: what the call began goes on in the daemon.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use crate::error::{RpcError, WireError};
use crate::frame::FrameStream;
use crate::line::{Line, LineReader};

/// Longest answer accepted, in bytes. The daemon is trusted; this is against a wrong socket.
const MAX_ANSWER: usize = 64 << 20;

/// Why the daemon could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no socket: no daemon runs, or it serves elsewhere.
    NoSocket,
    /// There is a socket and nobody behind it: the daemon died.
    Refused,
    /// The socket's mode or a directory above it does not let this user in.
    Permission,
    /// The path does not fit a socket address (107 bytes).
    PathTooLong,
    /// The daemon does not accept connections fast enough.
    Backlog,
    /// Something else.
    Other,
}

impl Unreachable {
    fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::NoSocket
        } else if error.kind() == io::ErrorKind::ConnectionRefused {
            Self::Refused
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            Self::Permission
        } else if error.kind() == io::ErrorKind::WouldBlock {
            Self::Backlog
        } else {
            Self::Other
        }
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection. Nothing was asked.
    #[error("reach the daemon at {path:?}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What that means.
        reason: Unreachable,
        /// Why.
        source: io::Error,
    },
    /// The connection broke while an answer was awaited. What was asked may have been done.
    #[error("hear the daemon's answer to {method}")]
    Broken {
        /// The method called.
        method: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What came is no answer: something else serves the socket, or a daemon of another version.
    #[error("understand the daemon's answer to {method}: {problem}")]
    Protocol {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The daemon refused, or failed.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// A client of one daemon. Cheap to make; connects when first used.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    /// A connection on which nothing is in flight.
    idle: Mutex<Option<Connection>>,
}

impl Client {
    /// A client of the daemon that serves `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            idle: Mutex::new(None),
        }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects, and keeps the connection for the next call. For callers who want to know whether a daemon is there.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub async fn connect(&self) -> Result<(), ClientError> {
        let connection = Connection::open(&self.socket).await?;
        self.put_back(connection);
        Ok(())
    }

    /// Calls a method.
    pub(crate) async fn call<P: Serialize, R: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &P,
    ) -> Result<R, ClientError> {
        let line = request_line(method, params)?;
        let mut connection = match self.take_idle() {
            // Closed since it was last used, say by a daemon that was restarted. A request that could not be written was
            // not read, so it can be sent again.
            Some(mut connection) => match connection.send(&line).await {
                Ok(()) => connection,
                Err(_) => self.send_afresh(method, &line).await?,
            },
            None => self.send_afresh(method, &line).await?,
        };
        let answer = connection.answer(method).await?;
        let result = parse_result(method, &answer)?;
        self.put_back(connection);
        Ok(result)
    }

    /// Subscribes, on a connection of its own.
    pub(crate) async fn subscribe<P: Serialize, T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &P,
    ) -> Result<Subscription<T>, ClientError> {
        #[derive(Deserialize)]
        struct Accepted {
            subscription: u64,
        }
        let mut connection = self.send_afresh(method, &request_line(method, params)?).await?;
        let answer = connection.answer(method).await?;
        let Accepted { subscription } = parse_result(method, &answer)?;
        Ok(Subscription {
            connection,
            method,
            subscription,
            over: false,
            event: PhantomData,
        })
    }

    /// Opens a stream, on a connection of its own.
    pub(crate) async fn open_stream<P: Serialize>(
        &self,
        method: &'static str,
        params: &P,
    ) -> Result<FrameStream, ClientError> {
        #[derive(Deserialize)]
        struct Accepted {
            stream: bool,
        }
        let mut connection = self.send_afresh(method, &request_line(method, params)?).await?;
        let answer = connection.answer(method).await?;
        match parse_result(method, &answer)? {
            Accepted { stream: true } => {
                let (read, received) = connection.lines.into_parts();
                Ok(FrameStream::new(read, connection.write, received))
            }
            Accepted { stream: false } => Err(protocol(method, "the stream was neither opened nor refused")),
        }
    }

    /// Sends a request on a new connection.
    async fn send_afresh(&self, method: &'static str, line: &[u8]) -> Result<Connection, ClientError> {
        let mut connection = Connection::open(&self.socket).await?;
        match connection.send(line).await {
            Ok(()) => Ok(connection),
            // A daemon that turns us away says why before it closes.
            Err(source) => match connection.answer(method).await {
                Err(ClientError::Rpc(error)) => Err(ClientError::Rpc(error)),
                Ok(_) | Err(_) => Err(broken(method, source)),
            },
        }
    }

    /// The idle connection, unless the daemon has closed it.
    fn take_idle(&self) -> Option<Connection> {
        let mut connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (!connection.lines.is_stale()).then_some(connection)
    }

    fn put_back(&self, connection: Connection) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

/// Events of a method, until it ends. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription<T> {
    connection: Connection,
    method: &'static str,
    subscription: u64,
    over: bool,
    event: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Subscription<T> {
    /// The next event; `None` after the last. Cancel-safe.
    ///
    /// # Errors
    /// The subscription failed or its connection broke. Nothing comes after an error.
    pub async fn next(&mut self) -> Option<Result<T, ClientError>> {
        if self.over {
            return None;
        }
        let event = match self.connection.line(self.method).await {
            Ok(line) => self.event(&line),
            Err(error) => Some(Err(error)),
        };
        self.over = !matches!(event, Some(Ok(_)));
        event
    }

    fn event(&self, line: &[u8]) -> Option<Result<T, ClientError>> {
        #[derive(Deserialize)]
        struct Notification<'a> {
            #[serde(borrow)]
            params: Params<'a>,
        }
        #[derive(Deserialize)]
        struct Params<'a> {
            subscription: u64,
            #[serde(borrow)]
            result: Option<&'a RawValue>,
            error: Option<WireError>,
            end: Option<bool>,
        }
        let notification: Notification<'_> = match serde_json::from_slice(line) {
            Ok(notification) => notification,
            Err(e) => return Some(Err(protocol(self.method, e))),
        };
        let params = notification.params;
        if params.subscription != self.subscription {
            return Some(Err(protocol(self.method, "an event of another subscription")));
        }
        match (params.result, params.error, params.end) {
            (Some(event), None, None) => {
                Some(serde_json::from_str(event.get()).map_err(|e| protocol(self.method, e)))
            }
            (None, Some(error), None) => Some(Err(ClientError::Rpc(error.into()))),
            (None, None, Some(true)) => None,
            (_, _, _) => Some(Err(protocol(
                self.method,
                "neither an event nor an error nor the end",
            ))),
        }
    }
}

/// One connection. At most one request is in flight on it, so that every request has the same id.
#[derive(Debug)]
struct Connection {
    lines: LineReader,
    write: OwnedWriteHalf,
}

/// The id of every request.
const ID: u32 = 1;

impl Connection {
    async fn open(socket: &Path) -> Result<Self, ClientError> {
        let unreachable = |reason, source| ClientError::Unreachable {
            path: socket.to_owned(),
            reason,
            source,
        };
        if socket.as_os_str().len() > crate::server::MAX_SOCKET_PATH {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is longer than 107 bytes");
            return Err(unreachable(Unreachable::PathTooLong, source));
        }
        match UnixStream::connect(socket).await {
            Ok(stream) => {
                let (read, write) = stream.into_split();
                Ok(Self {
                    lines: LineReader::new(read, MAX_ANSWER, 0),
                    write,
                })
            }
            Err(source) => Err(unreachable(Unreachable::of(&source), source)),
        }
    }

    async fn send(&mut self, line: &[u8]) -> io::Result<()> {
        self.write.write_all(line).await
    }

    /// The next line.
    async fn line(&mut self, method: &'static str) -> Result<Bytes, ClientError> {
        match self.lines.next().await {
            Ok(Line::Text(line)) => Ok(line),
            Ok(Line::TooLong | Line::Endless) => Err(protocol(method, "it is longer than 64 MiB")),
            Ok(Line::End) => Err(broken(method, io::ErrorKind::UnexpectedEof.into())),
            Err(source) => Err(broken(method, source)),
        }
    }

    /// The answer to the request in flight: its result as JSON.
    async fn answer(&mut self, method: &'static str) -> Result<Box<RawValue>, ClientError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            result: Option<&'a RawValue>,
            error: Option<WireError>,
            id: Option<u32>,
        }
        let line = self.line(method).await?;
        let answer: Answer<'_> = serde_json::from_slice(&line).map_err(|e| protocol(method, e))?;
        match (answer.result, answer.error, answer.id) {
            (Some(result), None, Some(ID)) => Ok(result.to_owned()),
            // Without an id: about the connection, or a request that could not be read. Either way there is only this one.
            (None, Some(error), Some(ID) | None) => Err(ClientError::Rpc(error.into())),
            (_, _, Some(ID) | None) => Err(protocol(method, "neither a result nor an error")),
            (_, _, Some(_)) => Err(protocol(method, "it answers another request")),
        }
    }
}

fn request_line<P: Serialize>(method: &'static str, params: &P) -> Result<Vec<u8>, ClientError> {
    #[derive(Serialize)]
    struct Request<'a, P> {
        jsonrpc: &'static str,
        method: &'static str,
        params: &'a P,
        id: u32,
    }
    let mut line = serde_json::to_vec(&Request {
        jsonrpc: "2.0",
        method,
        params,
        id: ID,
    })
    .map_err(|e| protocol(method, format_args!("the request cannot be written as JSON: {e}")))?;
    line.push(b'\n');
    Ok(line)
}

fn parse_result<R: DeserializeOwned>(method: &'static str, result: &RawValue) -> Result<R, ClientError> {
    serde_json::from_str(result.get()).map_err(|e| protocol(method, e))
}

/// A connection that ended, in words that do not depend on what the daemon had yet to read when it did (a socket that is
/// closed with unread data in it resets its peer, unix(7)).
fn broken(method: &'static str, source: io::Error) -> ClientError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let kind = source.kind();
    let source = if [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&kind) {
        io::Error::new(kind, "the daemon closed the connection")
    } else {
        source
    };
    ClientError::Broken { method, source }
}

fn protocol(method: &'static str, problem: impl std::fmt::Display) -> ClientError {
    ClientError::Protocol {
        method,
        problem: problem.to_string(),
    }
}
