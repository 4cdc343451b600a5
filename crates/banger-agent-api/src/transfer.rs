//! Tar streams to and from a guest, seen from the host. This module moves bytes; what they mean is the caller's.

use crate::error::AgentError;
use crate::proto::agent_client::AgentClient as Rpc;
use crate::proto::download_output::Output;
use crate::proto::upload_input::Input;
use crate::{MAX_CHUNK, proto};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

/// Archive chunks between a caller and the connection.
const UPLOAD_QUEUE: usize = 4;

/// What an upload made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
}

/// A tar stream on its way into a guest. Dropping it before [`Upload::finish`] cancels it: what was unpacked so far
/// stays, and nothing more is.
#[derive(Debug)]
pub struct Upload {
    sender: mpsc::Sender<proto::UploadInput>,
    /// `None` once its result has been handed out.
    call: Option<JoinHandle<Result<Response<proto::UploadReply>, Status>>>,
}

impl Upload {
    /// Sends a piece of the archive of any size; waits while the guest is busy.
    ///
    /// # Errors
    ///
    /// The guest gave up: its reason, or the connection's.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), AgentError> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(MAX_CHUNK));
            self.input(Input::Data(chunk)).await?;
        }
        Ok(())
    }

    /// Says that the archive is complete and waits until the guest has unpacked it.
    ///
    /// # Errors
    ///
    /// The guest's reason, or the connection's.
    pub async fn finish(mut self) -> Result<Uploaded, AgentError> {
        self.input(Input::End(proto::UploadEnd {})).await?;
        let reply = self.reply().await?;
        Ok(Uploaded {
            entries: reply.entries,
            bytes: reply.bytes,
        })
    }

    async fn input(&mut self, input: Input) -> Result<(), AgentError> {
        match self.sender.send(proto::UploadInput { input: Some(input) }).await {
            Ok(()) => Ok(()),
            // The call has dropped the receiver, so it has ended or is about to.
            Err(_closed) => match self.reply().await {
                Ok(_) => Err(protocol("the guest finished before the archive did")),
                Err(error) => Err(error),
            },
        }
    }

    async fn reply(&mut self) -> Result<proto::UploadReply, AgentError> {
        let Some(call) = &mut self.call else {
            return Err(protocol("the upload has failed before"));
        };
        let result = call.await;
        self.call = None;
        match result {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(AgentError::from_status("upload", status)),
            // Only when the runtime shuts down under us.
            Err(_join) => Err(protocol("the call was given up")),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Without this the task would see a clean end of its input; aborting resets the stream.
        if let Some(call) = &self.call {
            call.abort();
        }
    }
}

pub(crate) fn start_upload(mut rpc: Rpc<Channel>, start: proto::UploadStart) -> Upload {
    let (sender, mut receiver) = mpsc::channel(UPLOAD_QUEUE);
    let mut first = Some(proto::UploadInput {
        input: Some(Input::Start(start)),
    });
    let inputs = futures_util::stream::poll_fn(move |context| match first.take() {
        Some(message) => std::task::Poll::Ready(Some(message)),
        None => receiver.poll_recv(context),
    });
    // The call has to be driven while the caller produces the archive.
    let call = tokio::spawn(async move { rpc.upload(inputs).await });
    Upload {
        sender,
        call: Some(call),
    }
}

/// A tar stream on its way out of a guest, with one top entry. Dropping it cancels it.
///
/// Everything in it is the guest's word: whoever unpacks it guards against names that leave the destination.
#[derive(Debug)]
pub struct Download {
    stream: Streaming<proto::DownloadOutput>,
    name: String,
    is_dir: bool,
}

impl Download {
    /// The top entry's name: one path component as the guest says it, or "." for the root directory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the top entry is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.is_dir
    }

    /// The next piece of the archive, at most 64 KiB and never empty; `None` at its end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The guest's reason, or the connection's.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AgentError> {
        loop {
            match receive(&mut self.stream).await? {
                Some(Output::Data(data)) if data.len() > MAX_CHUNK => {
                    return Err(protocol("a chunk is too large"));
                }
                Some(Output::Data(data)) if data.is_empty() => {}
                Some(Output::Data(data)) => return Ok(Some(data)),
                Some(Output::Started(_)) => return Err(protocol("the download started twice")),
                None => return Ok(None),
            }
        }
    }
}

pub(crate) async fn start_download(
    mut rpc: Rpc<Channel>,
    request: proto::DownloadRequest,
) -> Result<Download, AgentError> {
    let response = rpc
        .download(request)
        .await
        .map_err(|status| AgentError::from_status("download", status))?;
    let mut stream = response.into_inner();
    match receive(&mut stream).await? {
        Some(Output::Started(proto::DownloadStarted { name, is_dir })) => {
            // The name becomes a path component on the host.
            let component =
                !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']) && name != "..";
            if component {
                Ok(Download { stream, name, is_dir })
            } else {
                Err(protocol("the top entry's name is not a file name"))
            }
        }
        Some(Output::Data(_)) | None => Err(protocol("the first message does not describe the download")),
    }
}

async fn receive(stream: &mut Streaming<proto::DownloadOutput>) -> Result<Option<Output>, AgentError> {
    match stream.message().await {
        Ok(Some(proto::DownloadOutput { output: Some(output) })) => Ok(Some(output)),
        Ok(Some(proto::DownloadOutput { output: None })) => Err(protocol("a message of an unknown kind")),
        Ok(None) => Ok(None),
        Err(status) => Err(AgentError::from_status("download", status)),
    }
}

fn protocol(what: &'static str) -> AgentError {
    AgentError::Protocol {
        method: "transfer",
        what,
    }
}
