//! Copying files in and out, as tar streams: `banger cp`.
//!
//! Files are blocking work, so each transfer has a thread; a bounded channel of chunks joins it to its gRPC stream and
//! carries the backpressure. A client who goes away closes the channel, which ends the thread at its next chunk.

mod bridge;
mod destination;
mod pack;
mod place;
mod unpack;

use crate::account::{self, Account};
use crate::exec::user_failure;
use banger_agent_api::proto::upload_input::Input;
use banger_agent_api::proto::{
    DownloadOutput, DownloadRequest, UploadInput, UploadReply, UploadStart, download_output,
};
use banger_agent_api::{Failure, FailureKind, MAX_PATH};
use bridge::{ChunkReader, ChunkWriter, Piece};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Status, Streaming};

/// Chunks between a stream and its thread.
const QUEUE: usize = 4;

/// Unpacks what comes into the guest's file system.
pub(crate) async fn upload(
    start: UploadStart,
    mut inputs: Streaming<UploadInput>,
    permit: OwnedSemaphorePermit,
) -> Result<UploadReply, Failure> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let unpacking = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let (account, path) = resolve(&start.user, &start.path)?;
        unpack::unpack(&start, &account, &path, ChunkReader::new(receiver))
    });
    // Ends with the last piece, or when the thread has given up and dropped its receiver. Dropping the sender without
    // `End` tells the thread that the archive is incomplete.
    loop {
        let piece = match inputs.message().await {
            Ok(Some(UploadInput {
                input: Some(Input::Data(data)),
            })) => Piece::Data(data),
            Ok(Some(UploadInput {
                input: Some(Input::End(_)),
            })) => Piece::End,
            Ok(
                Some(UploadInput {
                    input: Some(Input::Start(_)) | None,
                })
                | None,
            )
            | Err(_) => break,
        };
        let last = matches!(piece, Piece::End);
        if sender.send(piece).await.is_err() || last {
            break;
        }
    }
    drop(sender);
    unpacking.await.unwrap_or_else(|join| {
        Err(Failure::new(
            FailureKind::System,
            "upload",
            format!("finish unpacking: {join}"),
        ))
    })
}

/// Packs a path of the guest; returns the reply stream, whose first message (the description) is already there.
pub(crate) async fn download(
    request: DownloadRequest,
    permit: OwnedSemaphorePermit,
) -> Result<mpsc::Receiver<Result<DownloadOutput, Status>>, Status> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (ready, described) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let source = resolve(&request.user, &request.path)
            .and_then(|(_, path)| pack::Source::open(&path, request.follow_link));
        let source = match source {
            Ok(source) => source,
            Err(failure) => {
                let _client_gone = ready.send(Err(failure));
                return;
            }
        };
        let started = download_output::Output::Started(source.describe());
        let started = DownloadOutput {
            output: Some(started),
        };
        if sender.blocking_send(Ok(started)).is_err() || ready.send(Ok(())).is_err() {
            return;
        }
        if let Err(failure) = pack::pack(&source, ChunkWriter::new(sender.clone())) {
            let _client_gone = sender.blocking_send(Err(failure.into_status()));
        }
    });
    match described.await {
        Ok(Ok(())) => Ok(receiver),
        Ok(Err(failure)) => Err(failure.into_status()),
        Err(_lost) => {
            let message = "begin packing: its thread was lost";
            Err(Failure::new(FailureKind::System, "download", message).into_status())
        }
    }
}

/// Finds the account, and makes the path absolute: relative ones start from its home.
fn resolve(user: &str, path: &str) -> Result<(Account, PathBuf), Failure> {
    let refuse = |what: &str| {
        Err(Failure::new(
            FailureKind::InvalidRequest,
            path,
            format!("copy with the path {path:?}: {what}"),
        ))
    };
    if path.is_empty() {
        return refuse("it is empty");
    }
    if path.len() >= MAX_PATH {
        return refuse("it is too long");
    }
    if path.contains('\0') {
        return refuse("it has a NUL byte");
    }
    let account = account::find(user).map_err(|error| user_failure(&error))?;
    let absolute = account.home.join(path);
    Ok((account, absolute))
}

/// A failure of the file system at `path`, named where it has a name.
fn io_failure(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let kind = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => FailureKind::PathNotFound,
        Some(Errno::NOTDIR | Errno::LOOP) => FailureKind::NotADirectory,
        Some(Errno::ISDIR) => FailureKind::IsADirectory,
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => FailureKind::NoSpace,
        Some(Errno::ROFS) => FailureKind::ReadOnly,
        Some(_) | None => FailureKind::System,
    };
    Failure::new(
        kind,
        path.to_string_lossy(),
        format!("{doing} {} in the guest: {error}", path.display()),
    )
}
