//! Pipes and terminals of a command as async byte streams, and the rule for when its output is complete.

use bytes::{Bytes, BytesMut};
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;

/// Largest piece of output in one message. Half of the protocol's limit: with 256 commands whose readers have all
/// stopped this is most of what the agent holds.
const CHUNK: usize = 64 * 1024;

/// How long output is waited for after the command has ended, when a process it left behind keeps its pipe open.
const LINGER: Duration = Duration::from_millis(500);

/// A pipe's end or a terminal's master side, non-blocking.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: AsyncFd<OwnedFd>,
}

impl Stream {
    /// Must be called within the runtime. Only this end becomes non-blocking: a pipe's ends are separate descriptions.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        // SAFETY: an owned descriptor, which stays open and the same for as long as the `AsyncFd` has it.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        self.fd.get_ref()
    }

    /// The next bytes, at most `CHUNK`; empty at the end. Cancel-safe: nothing is read unless it is returned.
    async fn read(&self, buffer: &mut BytesMut) -> io::Result<Bytes> {
        loop {
            let mut ready = self.fd.readable().await?;
            let result = ready.try_io(|fd| {
                // Goes on where the last chunk ended; makes room when little is left, for which it takes back the memory
                // of chunks that have been sent.
                if buffer.capacity() - buffer.len() < CHUNK / 2 {
                    buffer.reserve(CHUNK);
                }
                let room = buffer.spare_capacity_mut();
                let most = room.len().min(CHUNK);
                let (read, _) = rustix::io::read(fd.get_ref(), &mut room[..most])?;
                let length = read.len();
                // SAFETY: the kernel has just written that many bytes behind the buffer's length.
                unsafe { buffer.set_len(buffer.len() + length) };
                Ok(length)
            });
            match result {
                Ok(Ok(_length)) => return Ok(buffer.split().freeze()),
                // A terminal whose last other side has closed (Linux, pty(7)): the end.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Ok(Bytes::new());
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all bytes, waiting while the command does not read.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Hands everything the command writes to `send`, until its output is complete or `send` says that nobody listens.
    ///
    /// Complete means: every process which held the other end has closed it; or the command has `ended`, what was in
    /// the pipe then has been delivered, and [`LINGER`] has passed. So nothing the command itself wrote is ever lost
    /// (the kernel's buffer had it when the command ended), and a daemon it left behind cannot hold up its exit.
    pub(crate) async fn pump<F>(
        &self,
        mut ended: watch::Receiver<bool>,
        mut send: impl FnMut(Bytes) -> F,
    ) -> io::Result<()>
    where
        F: Future<Output = bool>,
    {
        let mut buffer = BytesMut::new();
        loop {
            // Both arms are cancel-safe: `read` returns what it has read, and a watch keeps its value.
            let chunk = tokio::select! {
                chunk = self.read(&mut buffer) => chunk?,
                // An error means that the sender is gone, which only happens after it has sent.
                _ended_or_gone = ended.wait_for(|ended| *ended) => break,
            };
            if chunk.is_empty() || !send(chunk).await {
                return Ok(());
            }
        }
        let mut owed = rustix::io::ioctl_fionread(self.fd()).unwrap_or(0);
        let deadline = Instant::now() + LINGER;
        loop {
            let chunk = if owed > 0 {
                self.read(&mut buffer).await?
            } else {
                match tokio::time::timeout_at(deadline, self.read(&mut buffer)).await {
                    Ok(chunk) => chunk?,
                    Err(_elapsed) => return Ok(()),
                }
            };
            owed = owed.saturating_sub(chunk.len() as u64);
            if chunk.is_empty() || !send(chunk).await {
                return Ok(());
            }
            // A process left behind which writes without end is cut off too.
            if owed == 0 && Instant::now() >= deadline {
                return Ok(());
            }
        }
    }
}
