//! Frames: what a connection carries once `guest.exec`, `guest.upload`, `guest.download` or `vm.logs` has opened a
//! stream. This is the only place that knows their bytes; what is done with them is the daemon's and the CLI's affair.
//!
//! ```text
//! frame   = kind (1 byte) · length (4 bytes, big endian) · payload (length bytes, at most 1 MiB)
//!
//! kind          from     payload
//!  1 stdin      client   bytes
//!  2 stdout     daemon   bytes
//!  3 stderr     daemon   bytes
//!  4 stdin eof  client   empty
//!  5 resize     client   rows u16 · columns u16
//!  6 signal     client   number i32
//!  7 data       both     bytes of a tar archive or of a console
//!  8 data eof   client   empty: the upload is complete
//!  9 exit       daemon   0 · status i32  or  1 · signal i32; final
//! 10 error      daemon   RpcError as JSON; final
//! 11 end        daemon   empty: success; final
//! ```
//!
//! ```text
//! guest.exec      client: stdin* stdin-eof resize* signal*    daemon: (stdout | stderr)*  then exit or error
//! guest.upload    client: data* data-eof                      daemon: end or error, also before the eof
//! guest.download  client: nothing                             daemon: data*               then end or error
//! vm.logs         client: nothing                             daemon: data*               then end or error
//! ```
//!
//! Every stream ends with one final frame from the daemon; a connection that closes without one was broken off. The
//! client keeps its writing half open until then: closing it says that the client has gone, and ends the guest's command.
//!
//! Integers are big endian. Payloads are not copied: [`Bytes`] go from the socket's buffer to the consumer and back.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Decoder, Encoder};

use crate::error::RpcError;

/// Longest payload of one frame, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Payload size that senders aim at, in bytes.
pub const CHUNK: usize = 64 << 10;

/// Bytes before the payload.
const HEADER: usize = 5;

/// How a guest's command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes for the command's standard input.
    Stdin(Bytes),
    /// Bytes of its standard output, or of its terminal.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// No more standard input.
    StdinEof,
    /// The terminal's new size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// A signal for the command, by Linux number.
    Signal(i32),
    /// Bytes of a tar archive or of a console.
    Data(Bytes),
    /// The upload is complete.
    DataEof,
    /// The command has ended. Final.
    Exit(ExitStatus),
    /// The stream failed. Final.
    Error(RpcError),
    /// The stream succeeded. Final.
    End,
}

impl Frame {
    /// No frame follows this one.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Exit(_) | Self::Error(_) | Self::End => true,
            Self::Stdin(_)
            | Self::Stdout(_)
            | Self::Stderr(_)
            | Self::StdinEof
            | Self::Resize { .. }
            | Self::Signal(_)
            | Self::Data(_)
            | Self::DataEof => false,
        }
    }

    /// The frame's kind and payload.
    fn into_parts(self) -> (Kind, Bytes) {
        match self {
            Self::Stdin(bytes) => (Kind::Stdin, bytes),
            Self::Stdout(bytes) => (Kind::Stdout, bytes),
            Self::Stderr(bytes) => (Kind::Stderr, bytes),
            Self::StdinEof => (Kind::StdinEof, Bytes::new()),
            Self::Resize { rows, columns } => {
                let mut payload = BytesMut::with_capacity(4);
                payload.put_u16(rows);
                payload.put_u16(columns);
                (Kind::Resize, payload.freeze())
            }
            Self::Signal(number) => (Kind::Signal, Bytes::copy_from_slice(&number.to_be_bytes())),
            Self::Data(bytes) => (Kind::Data, bytes),
            Self::DataEof => (Kind::DataEof, Bytes::new()),
            Self::Exit(status) => {
                let (tag, value) = match status {
                    ExitStatus::Code(code) => (0, code),
                    ExitStatus::Signal(signal) => (1, signal),
                };
                let mut payload = BytesMut::with_capacity(5);
                payload.put_u8(tag);
                payload.put_i32(value);
                (Kind::Exit, payload.freeze())
            }
            Self::Error(error) => (Kind::Error, error_payload(error)),
            Self::End => (Kind::End, Bytes::new()),
        }
    }
}

/// An error as JSON that fits a frame: details go first, then the end of the message.
fn error_payload(mut error: RpcError) -> Bytes {
    loop {
        // Strings and an enum always serialise; were that ever to change, an empty object is refused by the other side.
        let json = serde_json::to_vec(&error).unwrap_or_else(|_| b"{}".to_vec());
        if json.len() <= MAX_PAYLOAD {
            return Bytes::from(json);
        }
        if error.details.is_empty() && error.hint.is_none() {
            // JSON escapes one byte as six at most.
            let mut end = MAX_PAYLOAD / 8;
            while !error.message.is_char_boundary(end) {
                end -= 1;
            }
            error.message.truncate(end);
        }
        error.details.clear();
        error.hint = None;
    }
}

/// Why bytes are not frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed.
    #[error("read from the stream")]
    Io(#[from] std::io::Error),
    /// The other side speaks something else, or a newer version.
    #[error("understand a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// The length does not fit the kind.
    #[error("accept a frame of kind {kind} with {length} bytes: expected {expected}")]
    Length {
        /// Kind's number.
        kind: u8,
        /// Announced length.
        length: u32,
        /// What would have been right.
        expected: &'static str,
    },
    /// The length fits, the content does not.
    #[error("understand the content of a frame of kind {kind}")]
    Content {
        /// Kind's number.
        kind: u8,
    },
    /// The connection was closed within a frame.
    #[error("read a whole frame: the connection was closed within it")]
    Truncated,
}

/// Frame kinds, by their number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Stdin = 1,
    Stdout = 2,
    Stderr = 3,
    StdinEof = 4,
    Resize = 5,
    Signal = 6,
    Data = 7,
    DataEof = 8,
    Exit = 9,
    Error = 10,
    End = 11,
}

impl Kind {
    fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Stdin,
            2 => Self::Stdout,
            3 => Self::Stderr,
            4 => Self::StdinEof,
            5 => Self::Resize,
            6 => Self::Signal,
            7 => Self::Data,
            8 => Self::DataEof,
            9 => Self::Exit,
            10 => Self::Error,
            11 => Self::End,
            _ => return None,
        })
    }

    /// Accepts or refuses an announced length, before anything is allocated for it.
    fn check(self, length: u32) -> Result<usize, FrameError> {
        let (fits, expected) = match self {
            Self::Stdin | Self::Stdout | Self::Stderr | Self::Data | Self::Error => (
                usize::try_from(length).is_ok_and(|n| n <= MAX_PAYLOAD),
                "at most 1 MiB",
            ),
            Self::StdinEof | Self::DataEof | Self::End => (length == 0, "none"),
            Self::Resize | Self::Signal => (length == 4, "4"),
            Self::Exit => (length == 5, "5"),
        };
        match usize::try_from(length) {
            Ok(length) if fits => Ok(length),
            Ok(_) | Err(_) => Err(FrameError::Length {
                kind: self as u8,
                length,
                expected,
            }),
        }
    }

    /// Makes the frame of a payload whose length [`Kind::check`] has accepted.
    fn frame(self, mut payload: Bytes) -> Result<Frame, FrameError> {
        Ok(match self {
            Self::Stdin => Frame::Stdin(payload),
            Self::Stdout => Frame::Stdout(payload),
            Self::Stderr => Frame::Stderr(payload),
            Self::StdinEof => Frame::StdinEof,
            Self::Resize => Frame::Resize {
                rows: payload.get_u16(),
                columns: payload.get_u16(),
            },
            Self::Signal => Frame::Signal(payload.get_i32()),
            Self::Data => Frame::Data(payload),
            Self::DataEof => Frame::DataEof,
            Self::Exit => match (payload.get_u8(), payload.get_i32()) {
                (0, code) => Frame::Exit(ExitStatus::Code(code)),
                (1, signal) => Frame::Exit(ExitStatus::Signal(signal)),
                (_, _) => return Err(FrameError::Content { kind: self as u8 }),
            },
            Self::Error => Frame::Error(
                serde_json::from_slice(&payload).map_err(|_| FrameError::Content { kind: self as u8 })?,
            ),
            Self::End => Frame::End,
        })
    }
}

/// Header of one frame.
fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    // Callers have cut the payload to MAX_PAYLOAD, which fits.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind as u8, length[0], length[1], length[2], length[3]]
}

/// The frame format as a codec. A data frame longer than [`MAX_PAYLOAD`] is encoded as several.
#[derive(Debug, Clone, Copy, Default)]
pub struct FrameCodec;

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(&number) = source.first() else {
            return Ok(None);
        };
        let kind = Kind::from_wire(number).ok_or(FrameError::UnknownKind(number))?;
        let Some(head) = source.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = kind.check(u32::from_be_bytes([head[1], head[2], head[3], head[4]]))?;
        let missing = (HEADER + length).saturating_sub(source.len());
        if missing > 0 {
            source.reserve(missing);
            return Ok(None);
        }
        source.advance(HEADER);
        kind.frame(source.split_to(length).freeze()).map(Some)
    }

    fn decode_eof(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        match self.decode(source)? {
            Some(frame) => Ok(Some(frame)),
            None if source.is_empty() => Ok(None),
            None => Err(FrameError::Truncated),
        }
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, target: &mut BytesMut) -> Result<(), FrameError> {
        let (kind, mut payload) = frame.into_parts();
        loop {
            let part = payload.split_to(payload.len().min(MAX_PAYLOAD));
            target.reserve(HEADER + part.len());
            target.put_slice(&header(kind, part.len()));
            target.put_slice(&part);
            if payload.is_empty() {
                return Ok(());
            }
        }
    }
}

/// A connection that carries frames. Dropping it closes the connection.
#[derive(Debug)]
pub struct FrameStream {
    reader: FrameReader,
    writer: FrameWriter,
}

impl FrameStream {
    /// Takes over a connection. `received` are bytes that came after the line which opened the stream.
    #[must_use]
    pub fn new(reader: OwnedReadHalf, writer: OwnedWriteHalf, received: BytesMut) -> Self {
        Self {
            reader: FrameReader {
                socket: reader,
                buffer: received,
            },
            writer: FrameWriter {
                socket: writer,
                unsent: Bytes::new().chain(Bytes::new()),
            },
        }
    }

    /// The two directions, to be used by two tasks.
    #[must_use]
    pub fn split(self) -> (FrameReader, FrameWriter) {
        (self.reader, self.writer)
    }

    /// See [`FrameReader::next`].
    ///
    /// # Errors
    /// As [`FrameReader::next`].
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        self.reader.next().await
    }

    /// See [`FrameWriter::send`].
    ///
    /// # Errors
    /// As [`FrameWriter::send`].
    pub async fn send(&mut self, frame: Frame) -> std::io::Result<()> {
        self.writer.send(frame).await
    }
}

/// The receiving half of a [`FrameStream`].
#[derive(Debug)]
pub struct FrameReader {
    socket: OwnedReadHalf,
    buffer: BytesMut,
}

impl FrameReader {
    /// Waits until the other side has closed its writing half, whether or not all it sent has been read: for a receiver
    /// that does not read on for now, and must not miss that nobody waits for it any more. Cancel-safe.
    pub async fn closed(&self) {
        // Of what a socket can be ready for, priority waits for urgent data and for the end of the other side's writing
        // (EPOLLRDHUP, epoll_ctl(2)), but not for data. Urgent data is no part of the protocol, and an error means that
        // the runtime ends: in every case nothing more is to be expected.
        drop(self.socket.ready(Interest::PRIORITY).await);
    }

    /// The next frame; `None` when the other side closed the connection between two frames. Cancel-safe: what has been
    /// read stays in the buffer.
    ///
    /// # Errors
    /// The socket failed or its bytes are not frames. The stream cannot be used any more.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = FrameCodec.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(HEADER + CHUNK);
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return FrameCodec.decode_eof(&mut self.buffer);
            }
        }
    }
}

/// The sending half of a [`FrameStream`]. Dropping it tells the other side that this one has gone.
#[derive(Debug)]
pub struct FrameWriter {
    socket: OwnedWriteHalf,
    /// Rest of a frame whose sending was dropped half-way.
    unsent: bytes::buf::Chain<Bytes, Bytes>,
}

impl FrameWriter {
    /// Sends a frame; a data frame longer than [`MAX_PAYLOAD`] goes as several. Waits while the other side does not read.
    ///
    /// A call that is dropped half-way keeps the frames whole: the rest of the one at work goes out before the next.
    ///
    /// # Errors
    /// The socket failed: the other side has gone.
    pub async fn send(&mut self, frame: Frame) -> std::io::Result<()> {
        let (kind, mut payload) = frame.into_parts();
        loop {
            self.flush().await?;
            let part = payload.split_to(payload.len().min(MAX_PAYLOAD));
            self.unsent = Bytes::copy_from_slice(&header(kind, part.len())).chain(part);
            if payload.is_empty() {
                return self.flush().await;
            }
        }
    }

    /// Sends what a dropped [`FrameWriter::send`] left over.
    ///
    /// # Errors
    /// The socket failed: the other side has gone.
    pub async fn flush(&mut self) -> std::io::Result<()> {
        if self.unsent.has_remaining() {
            self.socket.write_all_buf(&mut self.unsent).await?;
            // Lets go of the payload's memory.
            self.unsent = Bytes::new().chain(Bytes::new());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
