//! One connection to a guest's vsock port, through the Unix socket that stands for the guest's vsock device.
//!
//! Firecracker (`docs/vsock.md`) and vhost-device-vsock both speak the "hybrid vsock" exchange: the host connects to
//! the Unix socket, writes `CONNECT <port>\n`, and once the guest has accepted reads `OK <host-side port>\n`; from then
//! on the stream is the connection. Where nothing listens in the guest the socket is closed without a word.
//!
//! The reply is read byte-exact: what follows its newline belongs to the protocol above.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// `sun_path` of unix(7) without its terminating NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Longest reply: `OK `, ten digits, newline.
const MAX_REPLY: usize = 14;

/// After these times without an answer another attempt is made beside those under way. vhost-device-vsock (0.3.0) knows
/// its connections by descriptor and forgets closed ones late: a connection that gets the number of one just closed is
/// taken for it, and its CONNECT is never read. So it goes to dials right after others have ended, as the one after a
/// guest's hello has, and all of a daemon that was killed. Earlier attempts stay open, so that each has a number of its
/// own, until one is answered.
const FURTHER_ATTEMPTS: [Duration; 6] = [
    Duration::from_millis(250),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// The longest that one attempt stays open.
const ATTEMPT: Duration = Duration::from_secs(60);

/// Shortest reply, `OK 0\n`: that much can be read at once without reading past the newline.
const MIN_REPLY: usize = 5;

/// Why there is no connection to the guest.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The kernel would refuse the path.
    #[error("connect to {}: the path is longer than {MAX_SOCKET_PATH} bytes", path.display())]
    PathTooLong {
        /// The Unix socket.
        path: PathBuf,
    },
    /// The Unix socket does not answer: most likely the VMM is not running.
    #[error("connect to {}", path.display())]
    Connect {
        /// The Unix socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The VMM is there, but nothing listens on the port in the guest yet, or the connection was reset, as the first
    /// one after a snapshot's restore often is.
    #[error("reach port {port} through {}: nothing in the guest listens there", path.display())]
    NotListening {
        /// The Unix socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
    },
    /// The VMM took the connection and said nothing in time.
    #[error("reach port {port} through {}: no answer within {} ms", path.display(), waited.as_millis())]
    TimedOut {
        /// The Unix socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
        /// How long was waited.
        waited: Duration,
    },
    /// The answer is not `OK <number>\n`.
    #[error("reach port {port} through {}: the reply {reply:?} is not \"OK <port>\"", path.display())]
    BadReply {
        /// The Unix socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
        /// What came, at most 14 bytes, lossily decoded.
        reply: String,
    },
    /// Reading or writing failed in another way.
    #[error("reach port {port} through {}", path.display())]
    Io {
        /// The Unix socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DialError {
    /// Whether the same call may succeed a little later without anybody doing anything.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::NotListening { .. } | Self::TimedOut { .. } => true,
            // A full backlog; a missing or refusing socket means that there is no VMM.
            Self::Connect { source, .. } => source.kind() == io::ErrorKind::WouldBlock,
            Self::PathTooLong { .. } | Self::BadReply { .. } | Self::Io { .. } => false,
        }
    }
}

/// Connects to `port` in the guest behind the Unix socket `path`, waiting at most `timeout` for the whole exchange.
///
/// # Errors
///
/// See [`DialError`]; [`DialError::is_retriable`] tells which are worth another attempt.
pub async fn dial(path: &Path, port: u32, timeout: Duration) -> Result<UnixStream, DialError> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(DialError::PathTooLong {
            path: path.to_owned(),
        });
    }
    match tokio::time::timeout(timeout, first_of_several(path, port)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(DialError::TimedOut {
            path: path.to_owned(),
            port,
            waited: timeout,
        }),
    }
}

/// The exchange, and more of them beside it where it takes long; the first connection wins. An error ends it only when
/// no attempt is left under way.
async fn first_of_several(path: &Path, port: u32) -> Result<UnixStream, DialError> {
    let mut further = FURTHER_ATTEMPTS.into_iter();
    let (out, mut outcomes) = mpsc::channel(1 + FURTHER_ATTEMPTS.len());
    let mut under_way = 0;
    let attempt = || {
        let (path, out) = (path.to_owned(), out.clone());
        // On its own to its end, whether or not anybody waits any more: vhost-device-vsock may be stuck for good when a
        // connection is closed between CONNECT and OK.
        drop(tokio::spawn(async move {
            if let Ok(outcome) = tokio::time::timeout(ATTEMPT, exchange(&path, port)).await {
                // Whoever waited may have another by now; then this one is closed.
                drop(out.send(outcome).await);
            }
        }));
    };
    attempt();
    under_way += 1;
    loop {
        let pause = further.next();
        let next = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        // Neither arm loses anything when the other wins.
        tokio::select! {
            outcome = outcomes.recv() => {
                under_way -= 1;
                match outcome {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(error)) if under_way == 0 => return Err(error),
                    Some(Err(_)) | None => {}
                }
            }
            () = next => {
                attempt();
                under_way += 1;
            }
        }
    }
}

async fn exchange(path: &Path, port: u32) -> Result<UnixStream, DialError> {
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|source| DialError::Connect {
            path: path.to_owned(),
            source,
        })?;
    let io_error = |source: io::Error| {
        let path = path.to_owned();
        if is_close(source.kind()) {
            DialError::NotListening { path, port }
        } else {
            DialError::Io { path, port, source }
        }
    };
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await
        .map_err(io_error)?;

    let mut reply = [0u8; MAX_REPLY];
    stream
        .read_exact(&mut reply[..MIN_REPLY])
        .await
        .map_err(io_error)?;
    let mut length = MIN_REPLY;
    while reply[length - 1] != b'\n' && length < MAX_REPLY {
        reply[length] = stream.read_u8().await.map_err(io_error)?;
        length += 1;
    }
    if is_ok(&reply[..length]) {
        Ok(stream)
    } else {
        let reply = String::from_utf8_lossy(&reply[..length]).into_owned();
        Err(DialError::BadReply {
            path: path.to_owned(),
            port,
            reply,
        })
    }
}

/// Whether an error means that the peer has closed or reset the connection.
fn is_close(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Whether the line is `OK `, a decimal number and a newline.
fn is_ok(line: &[u8]) -> bool {
    line.strip_prefix(b"OK ")
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Dials a peer which expects CONNECT, sends `reply` and closes; gives back what can then be read.
    async fn against(reply: &'static [u8]) -> Result<Vec<u8>, DialError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let peer = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = [0u8; 13];
            stream.read_exact(&mut request).await.expect("request");
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(reply).await.expect("reply");
        });
        let result = dial(&path, 1024, TIMEOUT).await;
        peer.await.expect("peer");
        let mut rest = Vec::new();
        result?.read_to_end(&mut rest).await.expect("rest");
        Ok(rest)
    }

    #[tokio::test]
    async fn nothing_past_the_reply_is_read() {
        assert_eq!(
            against(b"OK 1073741824\nPRI * HTTP/2.0")
                .await
                .expect("connected"),
            b"PRI * HTTP/2.0"
        );
        assert_eq!(against(b"OK 0\n\n").await.expect("connected"), b"\n");
        assert_eq!(against(b"OK 4294967295\n").await.expect("connected"), b"");
    }

    #[tokio::test]
    async fn a_close_means_that_nothing_listens() {
        for reply in [&b""[..], b"OK", b"OK 12345"] {
            let error = against(reply).await.expect_err("closed");
            assert!(
                matches!(error, DialError::NotListening { port: 1024, .. }),
                "{error:?}"
            );
            assert!(error.is_retriable());
        }
    }

    #[tokio::test]
    async fn other_replies_are_refused() {
        for reply in [
            &b"NO 1234\n"[..],
            b"OK  12\n",
            b"OK -1\n",
            b"OK 12345678901\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
        ] {
            let error = against(reply).await.expect_err("refused");
            assert!(matches!(error, DialError::BadReply { .. }), "{error:?}");
            assert!(!error.is_retriable());
        }
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("vsock.sock");
        let _listener = UnixListener::bind(&path).expect("bind");
        let error = dial(&path, 1024, Duration::from_millis(20))
            .await
            .expect_err("silence");
        assert!(matches!(error, DialError::TimedOut { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn attempts_that_are_never_answered_cost_no_more_than_further_ones() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let peer = tokio::spawn(async move {
            let mut lost = Vec::new();
            for _ in 0..3 {
                lost.push(listener.accept().await.expect("accept"));
            }
            let (mut stream, _) = listener.accept().await.expect("accept again");
            stream.write_all(b"OK 7\n").await.expect("reply");
            // The lost ones are open until another has been answered.
            (lost, stream)
        });
        dial(&path, 1024, TIMEOUT).await.expect("connected");
        peer.await.expect("peer");
    }

    #[tokio::test]
    async fn a_missing_socket_and_a_long_path_say_so() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = dial(&dir.path().join("none"), 1024, TIMEOUT)
            .await
            .expect_err("missing");
        assert!(
            matches!(error, DialError::Connect { .. }) && !error.is_retriable(),
            "{error:?}"
        );
        let error = dial(&dir.path().join("x".repeat(120)), 1024, TIMEOUT)
            .await
            .expect_err("long");
        assert!(matches!(error, DialError::PathTooLong { .. }), "{error:?}");
    }
}
