//! One JSON document a line, read with a bound. Used by both sides of the socket; knows nothing of JSON.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;

/// Room made for each read, in bytes. Requests and most answers fit.
const READ: usize = 4 << 10;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line, without its newline.
    Text(Bytes),
    /// A line grew beyond the limit. The reader skips the rest of it when asked for the next.
    TooLong,
    /// An oversized line went on beyond what is worth skipping.
    Endless,
    /// The other side closed its writing half. An unfinished line before it counts for nothing.
    End,
}

/// Reads lines from a socket.
#[derive(Debug)]
pub(crate) struct LineReader {
    socket: OwnedReadHalf,
    buffer: BytesMut,
    /// Bytes at the buffer's front known to hold no newline.
    searched: usize,
    /// Bytes of an oversized line dropped so far, while one is being skipped.
    skipped: Option<usize>,
    limit: usize,
    skip_limit: usize,
}

impl LineReader {
    /// Lines of at most `limit` bytes; of a longer one, up to `skip_limit` bytes are read and dropped.
    pub(crate) fn new(socket: OwnedReadHalf, limit: usize, skip_limit: usize) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
            searched: 0,
            skipped: None,
            limit,
            skip_limit,
        }
    }

    /// The next line. Cancel-safe: what has been read stays in the buffer.
    pub(crate) async fn next(&mut self) -> std::io::Result<Line> {
        loop {
            let newline = self.buffer[self.searched..]
                .iter()
                .position(|&b| b == b'\n')
                .map(|n| n + self.searched);
            match (newline, &mut self.skipped) {
                (Some(end), Some(_)) => {
                    self.buffer.advance(end + 1);
                    self.skipped = None;
                    self.searched = 0;
                    continue;
                }
                (Some(end), None) if end <= self.limit => {
                    let line = self.buffer.split_to(end).freeze();
                    self.buffer.advance(1);
                    self.searched = 0;
                    return Ok(Line::Text(line));
                }
                (None, Some(skipped)) => {
                    *skipped += self.buffer.len();
                    self.buffer.clear();
                    self.searched = 0;
                    if *skipped > self.skip_limit {
                        return Ok(Line::Endless);
                    }
                }
                (None, None) if self.buffer.len() <= self.limit => self.searched = self.buffer.len(),
                (Some(_) | None, None) => {
                    self.skipped = Some(0);
                    self.searched = 0;
                    return Ok(Line::TooLong);
                }
            }
            self.buffer.reserve(READ);
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(Line::End);
            }
        }
    }

    /// Whether the other side has closed the connection or sent something that nobody asked for. Does not wait.
    pub(crate) fn is_stale(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return true;
        }
        match self.socket.try_read_buf(&mut self.buffer) {
            Ok(_) => true,
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    /// The socket and the bytes after the last line.
    pub(crate) fn into_parts(self) -> (OwnedReadHalf, BytesMut) {
        (self.socket, self.buffer)
    }
}
