//! Where connections come from, and the line which says that they may come.

use crate::log;
use crate::server::Listener;
use crate::vsock::{VsockListener, VsockStream};
use banger_agent_api::{AGENT_PORT, AgentInfo, HELLO_PORT, HOST_CID, HelloLine};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

/// How long the hello line is offered to a host which refuses it, and the pauses in between.
const HELLO_TIME: Duration = Duration::from_secs(60);
const HELLO_FIRST_PAUSE: Duration = Duration::from_millis(5);
const HELLO_LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The guest's vsock port.
#[derive(Debug)]
pub(crate) struct Vsock(VsockListener);

impl Vsock {
    pub(crate) fn bind() -> io::Result<Self> {
        VsockListener::bind(AGENT_PORT).map(Self)
    }
}

impl Listener for Vsock {
    type Connection = VsockStream;

    async fn accept(&mut self) -> io::Result<VsockStream> {
        loop {
            let (stream, peer) = self.0.accept().await?;
            // With the loopback transport any user of the guest could connect, and the agent would make him root.
            if peer == HOST_CID {
                return Ok(stream);
            }
            log::line(format_args!("refused a connection from context id {peer}"));
        }
    }
}

/// A Unix socket which only its owner can connect to.
#[derive(Debug)]
pub(crate) struct Unix(UnixListener);

impl Unix {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        // The mode has to be right from the start: a connection is a shell as this user.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        listener.map(Self)
    }
}

impl Listener for Unix {
    type Connection = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        self.0.accept().await.map(|(stream, _)| stream)
    }
}

/// Tells the host that the agent serves. A host that does not listen is asked again for a minute, then left alone: it
/// may have adopted this guest and need no hello.
pub(crate) async fn say_hello(info: AgentInfo) {
    // A kernel whose release makes no word (its builder's choice) is asked for by a call.
    let line = HelloLine::of(&info).or_else(|_| HelloLine::new(info.protocol_version, &info.agent_version));
    let Ok(line) = line else {
        log::line(format_args!(
            "failed to say hello: the agent's version makes no hello line"
        ));
        return;
    };
    let line = line.to_string();
    let deadline = Instant::now() + HELLO_TIME;
    let mut pause = HELLO_FIRST_PAUSE;
    loop {
        let error = match deliver(&line).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if Instant::now() + pause >= deadline {
            log::line(format_args!("failed to say hello to the host: {error}"));
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(HELLO_LONGEST_PAUSE);
    }
}

async fn deliver(line: &str) -> io::Result<()> {
    let mut stream = VsockStream::connect(HOST_CID, HELLO_PORT).await?;
    stream.write_all(line.as_bytes()).await?;
    AsyncWriteExt::shutdown(&mut stream).await
}
