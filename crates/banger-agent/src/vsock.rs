//! AF_VSOCK streams for tokio (vsock(7)): a listener, a connection to the host, nothing else.
//!
//! Writes are vectored. HTTP/2 hands a frame's nine header bytes and its payload over separately, and without writev(2)
//! each would become a packet, and a notification of the VMM, of its own.

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::io::{self, IoSlice};
use std::os::raw::c_int;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Connections that wait to be accepted.
const BACKLOG: c_int = 128;

/// `sockaddr_vm`'s size as the kernel's calls want it.
const ADDRESS_SIZE: libc::socklen_t = {
    let size = size_of::<libc::sockaddr_vm>();
    assert!(size < 256, "a sockaddr_vm is 16 bytes");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let size = size as libc::socklen_t;
    size
};

/// A socket that listens on a port of every context id this machine has.
#[derive(Debug)]
pub(crate) struct VsockListener {
    fd: AsyncFd<OwnedFd>,
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct VsockStream {
    fd: AsyncFd<OwnedFd>,
}

impl VsockListener {
    /// Must be called within the runtime.
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        let fd = socket()?;
        let address = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: an open socket, and an address that lives during the call.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_SIZE) })?;
        // SAFETY: an open, bound socket.
        check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
        Ok(Self { fd: register(fd)? })
    }

    /// The next connection, and the context id it comes from. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<(VsockStream, u32)> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(result) = ready.try_io(|fd| accept(fd.get_ref())) {
                let (fd, cid) = result?;
                return Ok((VsockStream { fd: register(fd)? }, cid));
            }
        }
    }
}

fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
    let mut peer = address(0, 0);
    let mut size = ADDRESS_SIZE;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: an open socket, and room for the address it returns.
    let fd =
        check(unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut peer).cast(), &raw mut size, flags) })?;
    // SAFETY: a new descriptor, which nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, peer.svm_cid))
}

impl VsockStream {
    /// Connects to a port of another context id.
    pub(crate) async fn connect(cid: u32, port: u32) -> io::Result<Self> {
        let fd = socket()?;
        let address = address(cid, port);
        // SAFETY: an open socket, and an address that lives during the call.
        let result =
            check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_SIZE) });
        let pending = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(error) => return Err(error),
        };
        let fd = register(fd)?;
        if pending {
            // connect(2): writable when decided, and then SO_ERROR has the decision.
            let _decided = fd.writable().await?;
            rustix::net::sockopt::socket_error(fd.get_ref())??;
        }
        Ok(Self { fd })
    }

    /// Waits until `operation` can make progress, and does it.
    fn poll_io<T>(
        &self,
        context: &mut Context<'_>,
        writing: bool,
        mut operation: impl FnMut(&OwnedFd) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let mut ready = if writing {
                ready!(self.fd.poll_write_ready(context))?
            } else {
                ready!(self.fd.poll_read_ready(context))?
            };
            match ready.try_io(|fd| operation(fd.get_ref())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_io(context, false, |fd| {
            // SAFETY: nothing is de-initialised; the kernel only writes.
            let unfilled = unsafe { buffer.unfilled_mut() };
            let (initialised, _) = rustix::io::read(fd, unfilled)?;
            let length = initialised.len();
            // SAFETY: the kernel has just written that many bytes there.
            unsafe { buffer.assume_init(length) };
            buffer.advance(length);
            Ok(())
        })
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(context, true, |fd| send(fd, &[IoSlice::new(bytes)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(context, true, |fd| send(fd, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel holds nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(
            self.fd.get_ref(),
            rustix::net::Shutdown::Write,
        )?))
    }
}

/// SIGPIPE needs no thought: Rust programs ignore it.
fn send(fd: &OwnedFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(rustix::io::writev(fd.as_fd(), slices)?)
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a call without pointers.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor, which stays open and the same for as long as the `AsyncFd` has it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: plain data, for which zeros are valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK.try_into().unwrap_or_default();
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
