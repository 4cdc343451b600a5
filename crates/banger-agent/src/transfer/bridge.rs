//! Blocking readers and writers over the channels which join a transfer's thread to its gRPC stream.

use banger_agent_api::MAX_CHUNK;
use banger_agent_api::proto::{DownloadOutput, download_output::Output};
use bytes::{Buf, Bytes, BytesMut};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tonic::Status;

/// A part of an incoming archive.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    End,
}

/// How many bytes a [`ChunkReader`] may still give out.
///
/// The tar reader keeps long names and extended headers in memory, as long as the archive says they are. Limiting what
/// it may read while it looks for the next entry bounds that.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance(Arc<AtomicU64>);

impl Allowance {
    pub(super) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// Reads the pieces of an incoming archive as one stream.
#[derive(Debug)]
pub(super) struct ChunkReader {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    allowance: Allowance,
}

impl ChunkReader {
    pub(super) fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self {
            receiver,
            current: Bytes::new(),
            ended: false,
            allowance: Allowance::default(),
        }
    }

    pub(super) fn allowance(&self) -> Allowance {
        self.allowance.clone()
    }

    /// Reads and drops what follows the archive.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the client has gone away before it said that the archive is complete.
    pub(super) fn drain(mut self) -> io::Result<()> {
        self.current.clear();
        while self.refill()? {
            self.current.clear();
        }
        Ok(())
    }

    /// Makes `current` non-empty; `false` at the end.
    fn refill(&mut self) -> io::Result<bool> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(false);
            }
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(true)
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || !self.refill()? {
            return Ok(0);
        }
        let left = self.allowance.0.load(Ordering::Relaxed);
        let length = buffer.len().min(self.current.len());
        let Some(left) = left.checked_sub(length as u64) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a name or an extended header is too long",
            ));
        };
        self.allowance.0.store(left, Ordering::Relaxed);
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Writes an outgoing archive as messages of up to 64 KiB.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    sender: mpsc::Sender<Result<DownloadOutput, Status>>,
    buffer: BytesMut,
}

impl ChunkWriter {
    pub(super) fn new(sender: mpsc::Sender<Result<DownloadOutput, Status>>) -> Self {
        Self {
            sender,
            buffer: BytesMut::with_capacity(MAX_CHUNK),
        }
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(MAX_CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == MAX_CHUNK {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = self.buffer.split().freeze();
        self.buffer.reserve(MAX_CHUNK);
        let message = DownloadOutput {
            output: Some(Output::Data(data)),
        };
        self.sender
            .blocking_send(Ok(message))
            .map_err(|_client_gone| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(pieces: Vec<Piece>) -> ChunkReader {
        let (sender, receiver) = mpsc::channel(pieces.len().max(1));
        for piece in pieces {
            sender.try_send(piece).expect("room");
        }
        ChunkReader::new(receiver)
    }

    #[test]
    fn pieces_are_one_stream() {
        let data = |text: &'static str| Piece::Data(Bytes::from_static(text.as_bytes()));
        let mut reader = reader(vec![data("ab"), data(""), data("cde"), Piece::End]);
        reader.allowance().set(5);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("complete");
        assert_eq!(text, "abcde");
        reader.drain().expect("ended");
    }

    #[test]
    fn a_stream_without_its_end_is_an_error() {
        let mut cut = reader(vec![Piece::Data(Bytes::from_static(b"ab"))]);
        cut.allowance().set(100);
        let error = cut.read_to_end(&mut Vec::new()).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(
            reader(vec![Piece::Data(Bytes::from_static(b"ab"))])
                .drain()
                .is_err()
        );
    }

    #[test]
    fn no_more_than_the_allowance_is_given_out() {
        let mut reader = reader(vec![Piece::Data(Bytes::from_static(b"abcdef")), Piece::End]);
        reader.allowance().set(4);
        let mut four = [0; 4];
        reader.read_exact(&mut four).expect("allowed");
        let error = reader.read(&mut four).expect_err("spent");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
