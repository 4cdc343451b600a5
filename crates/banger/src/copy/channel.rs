//! A bounded channel of chunks with a blocking end for the tar crate.

use std::io::{self, ErrorKind, Read, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use banger_api::frame::CHUNK;

/// Chunks in flight: 1 MiB in all.
pub(crate) const QUEUE: usize = 16;

/// The blocking end that writes; cuts what it is given into chunks.
#[derive(Debug)]
pub(crate) struct ChannelWriter {
    queue: mpsc::Sender<Bytes>,
    chunk: BytesMut,
}

impl ChannelWriter {
    pub(crate) fn new(queue: mpsc::Sender<Bytes>) -> Self {
        Self {
            queue,
            chunk: BytesMut::with_capacity(CHUNK),
        }
    }
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    /// Sends what there is; fails when nobody takes it any more.
    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK)).freeze();
        self.queue
            .blocking_send(chunk)
            .map_err(|_| ErrorKind::BrokenPipe.into())
    }
}

/// The blocking end that reads. The channel's end is the end of the stream; whether that was the right end, the side
/// that writes knows.
#[derive(Debug)]
pub(crate) struct ChannelReader {
    queue: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl ChannelReader {
    pub(crate) fn new(queue: mpsc::Receiver<Bytes>) -> Self {
        Self {
            queue,
            chunk: Bytes::new(),
        }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.queue.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let taken = self.chunk.split_to(self.chunk.len().min(buffer.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_survive_in_bounded_chunks() {
        let sent: Vec<u8> = (0..700_001_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let (to, mut from) = mpsc::channel(2);
        let (onwards, end) = mpsc::channel(2);
        let writer = tokio::task::spawn_blocking({
            let sent = sent.clone();
            move || {
                let mut writer = ChannelWriter::new(to);
                writer.write_all(&sent)?;
                writer.flush()
            }
        });
        let reader = tokio::task::spawn_blocking(move || {
            let mut received = Vec::new();
            ChannelReader::new(end)
                .read_to_end(&mut received)
                .map(|_| received)
        });
        while let Some(chunk) = from.recv().await {
            assert!(!chunk.is_empty() && chunk.len() <= CHUNK);
            onwards.send(chunk).await.unwrap();
        }
        drop(onwards);
        writer.await.unwrap().unwrap();
        assert!(reader.await.unwrap().unwrap() == sent);
    }

    #[test]
    fn a_closed_channel_is_a_broken_pipe() {
        let (to, from) = mpsc::channel(1);
        drop(from);
        let error = ChannelWriter::new(to).write_all(&vec![0; CHUNK]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
