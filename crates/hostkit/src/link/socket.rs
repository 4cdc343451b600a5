//! A conversation with the kernel over a netlink(7) socket: one request, its answers, an acknowledgement.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, netlink, recv, send, socket_with,
};

use super::message::{self, Message, Request, flags, kind};

/// The kernel answers within the sending of a request, but for a list's later parts, which wait for the reader.
const PATIENCE: Duration = Duration::from_secs(10);
/// What one read returns at most: the kernel fills up to 32 KiB of a list at once.
const BUFFER: usize = 64 << 10;
/// How often a list is asked for anew when it changes under way.
const DUMPS: usize = 16;

/// What the kernel says about a request that it refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) source: io::Error,
    /// Its explanation; often none.
    pub(super) words: String,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self {
            source,
            words: String::new(),
        }
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// A socket for rtnetlink(7), of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        // No protocol is protocol 0, NETLINK_ROUTE.
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Connected to the kernel: nobody else's messages arrive here.
        connect(&fd, &netlink::SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
        // Older kernels explain less and repeat the request; neither is in the way.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            set_option(&fd, option).ok();
        }
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Asks for something to be done. `Ok` when the kernel has acknowledged.
    pub(super) fn tell(&mut self, request: Request) -> Result<(), Refusal> {
        self.converse(request, |_| {}).map(drop)
    }

    /// Asks, and hands over each message of the answer. `Ok` when the kernel has acknowledged.
    pub(super) fn ask(&mut self, request: Request, each: impl FnMut(Message<'_>)) -> Result<(), Refusal> {
        self.converse(request, each).map(drop)
    }

    /// Asks for a list, anew while it changes under way. `parse` takes what it wants of a message.
    pub(super) fn list<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(Message<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, Refusal> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut found = Vec::new();
            let interrupted = self.converse(request.clone(), |message| parse(message, &mut found))?;
            // A list of which a part is older than the rest is better than none.
            if !interrupted || tries == DUMPS {
                return Ok(found);
            }
        }
    }

    /// Whether the answer was a list that changed under way.
    fn converse(&mut self, request: Request, mut each: impl FnMut(Message<'_>)) -> Result<bool, Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        rustix::io::retry_on_intr(|| send(&self.fd, &bytes, SendFlags::empty()))?;
        let mut interrupted = false;
        loop {
            let received =
                rustix::io::retry_on_intr(|| recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC));
            let (_, length) = received?;
            let mut rest = self
                .buffer
                .get(..length)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
            while let Some(message) = message::take(&mut rest) {
                // The rest of an answer that was given up on.
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & flags::DUMP_INTERRUPTED != 0;
                match message.kind {
                    kind::ERROR | kind::DONE => return verdict(message).map(|()| interrupted),
                    _ => each(message),
                }
            }
        }
    }
}

/// Both an error and the end of a list begin with a number: 0, or an errno with a minus.
fn verdict(message: Message<'_>) -> Result<(), Refusal> {
    let code = message::u32_at(message.body, 0).map_or(0, u32::cast_signed);
    if code == 0 {
        return Ok(());
    }
    let mut words = String::new();
    if message.flags & flags::EXPLAINED != 0 {
        // The number, then the header of the request, or all of it.
        let request = message::u32_at(message.body, 4)
            .filter(|_| message.flags & flags::CAPPED == 0)
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(message::HEADER);
        let start = match message.kind {
            kind::DONE => 4,
            _ => 4 + request.next_multiple_of(4),
        };
        for (kind, contents) in message::attributes_after(start, message.body) {
            if kind == message::ERROR_MESSAGE {
                words = message::text(contents);
            }
        }
    }
    Err(Refusal {
        source: io::Error::from_raw_os_error(code.saturating_neg()),
        words,
    })
}

fn set_option(fd: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: `on` is an int of that length, which the kernel only reads.
    let outcome = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
