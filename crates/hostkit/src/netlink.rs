//! What is the same for all of netlink(7): messages and attributes as bytes, and sockets that hear what the kernel tells
//! everybody who listens.
//!
//! ```text
//!   message:    length u32, type u16, flags u16, sequence u32, port u32 | a header of its type | attributes
//!   attribute:  length u16, type u16 | contents, padded to four bytes; contents may be attributes again
//! ```
//! Place: under [`crate::link`] (rtnetlink) and [`crate::nft`] (nfnetlink), which know what the messages mean. Source: the
//! kernel's `include/uapi/linux/netlink.h` and `Documentation/userspace-api/netlink/intro.rst`.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with, sockopt,
};
use tokio::io::unix::AsyncFd;

/// Length of the header of all messages.
pub(crate) const HEADER: usize = 16;
/// Bits of an attribute's type that say what it is; the others say how it is encoded.
const TYPE: u16 = 0x3fff;
/// What one read returns at most. The kernel puts a few messages into one, far fewer than fit.
const BUFFER: usize = 64 << 10;
/// What may wait for the reader, in bytes: the rules of some thousand machines, replaced at once.
const WAITING: usize = 8 << 20;

/// One message of the kernel's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The header of its type, and attributes.
    pub(crate) body: &'a [u8],
}

/// Takes the first message of `bytes`; `None` where there is no whole one.
pub(crate) fn take<'a>(bytes: &mut &'a [u8]) -> Option<Message<'a>> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let message = bytes.get(..length)?;
    let body = message.get(HEADER..)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(Message {
        kind: u16_at(message, 4)?,
        flags: u16_at(message, 6)?,
        sequence: u32_at(message, 8)?,
        body,
    })
}

/// The attributes in `bytes`, as type and contents. Ends at the first that is not whole.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let contents = rest.get(4..length)?;
        let kind = u16_at(rest, 2)? & TYPE;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, contents))
    })
}

/// The attributes after a header of this length.
pub(crate) fn attributes_after(header: usize, body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(body.get(header..).unwrap_or_default())
}

/// Text up to the zero byte; what is not UTF-8 is replaced.
pub(crate) fn text(contents: &[u8]) -> String {
    let length = contents
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(contents.len());
    String::from_utf8_lossy(&contents[..length]).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

/// A socket that hears the messages of some groups, of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// What a [`Listener`] has heard.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Heard<'a> {
    /// The kernel has told this.
    Message(Message<'a>),
    /// More was told than could wait: something was missed.
    Lost,
}

impl Listener {
    /// Listens to groups, 1 to 32 each, of a protocol; none is rtnetlink. To be called where a Tokio runtime is.
    pub(crate) fn join(protocol: Option<Protocol>, groups: &[u32]) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            protocol,
        )?;
        // Beyond the host's limit with CAP_NET_ADMIN; otherwise what it allows.
        if sockopt::set_socket_recv_buffer_size_force(&fd, WAITING).is_err() {
            sockopt::set_socket_recv_buffer_size(&fd, WAITING)?;
        }
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        bind(&fd, &netlink::SocketAddrNetlink::new(0, mask))?;
        // SAFETY: the descriptor is owned by what it is registered with, and not replaced in it.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self {
            fd,
            buffer: vec![0; BUFFER],
        })
    }

    /// Waits until there is something to hear, and hands it over. Dropping it loses nothing.
    pub(crate) async fn hear(&mut self, each: impl FnMut(Heard<'_>)) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| receive(fd.get_ref(), &mut self.buffer)) {
                Ok(received) => return hand_over(received, &self.buffer, each),
                Err(_not_yet) => {}
            }
        }
    }

    /// Hands over what there is to hear already.
    pub(crate) fn hear_waiting(&mut self, mut each: impl FnMut(Heard<'_>)) -> io::Result<()> {
        loop {
            match receive(self.fd.get_ref(), &mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                received => hand_over(received, &self.buffer, &mut each)?,
            }
        }
    }
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let received = rustix::io::retry_on_intr(|| recv(fd, &mut *buffer, RecvFlags::TRUNC));
    let (_, length) = received?;
    Ok(length)
}

fn hand_over(received: io::Result<usize>, buffer: &[u8], mut each: impl FnMut(Heard<'_>)) -> io::Result<()> {
    let length = match received {
        Ok(length) => length,
        Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
            each(Heard::Lost);
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    match buffer.get(..length) {
        Some(mut rest) => {
            while let Some(message) = take(&mut rest) {
                each(Heard::Message(message));
            }
        }
        None => each(Heard::Lost),
    }
    Ok(())
}
