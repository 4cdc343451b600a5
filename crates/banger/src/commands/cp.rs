//! `banger cp`: files and trees between host and machine.

use std::ffi::OsString;
use std::io;

use banger_api::client::Client;
use banger_api::frame::{Frame, FrameStream};
use banger_api::types::{DownloadOpen, UploadOpen};
use bytes::Bytes;
use clap::Args;
use tokio::sync::mpsc;

use crate::args::Location;
use crate::context::Context;
use crate::copy::channel::{ChannelReader, ChannelWriter, QUEUE};
use crate::copy::destination::Destination;
use crate::copy::meter::Meter;
use crate::copy::pack::{PackError, Source};
use crate::copy::repack::{RepackError, repack};
use crate::copy::unpack::{Keep, unpack};
use crate::copy::warnings::Warnings;
use crate::error::{CliError, Kind, chain};
use crate::interrupt::{Interrupts, exit_code};
use crate::stdio;
use crate::terminal;

/// Copy files and trees between this host and a machine
///
/// One side is VM:PATH, where a relative PATH starts at root's home and VM: alone is that home; the other is a path of
/// this host, or - for a tar stream on standard input or output. An existing directory takes the copy in under its own
/// name; otherwise the copy gets the name of DST, and the directory above must exist. SRC/. copies what is in SRC, and so
/// does VM: what is in the home.
///
/// Modes, times, symbolic and hard links are kept. So are numeric owners, where the receiving side is root; a machine
/// always is. Host files are read and written with your own rights, and what a machine sends stays below DST.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger cp ./notes.txt dev:
  banger cp src/. dev:/srv/app
  banger cp dev: ./home
  banger cp dev:/var/log ./logs
  tar c . | banger cp - dev:/srv
  banger cp dev:/etc - | tar t
")]
pub(crate) struct Cp {
    /// What to copy: PATH, VM:PATH or -
    #[arg(value_name = "SRC")]
    source: Location,
    /// Where to: PATH, VM:PATH or -
    #[arg(value_name = "DST")]
    destination: Location,
    /// Keep owners and set-user-id modes in any case; fails where that cannot be done
    #[arg(short, long)]
    archive: bool,
    /// Give everything to the receiving user (root in a machine), and do not keep owners
    #[arg(long, conflicts_with = "archive")]
    no_owner: bool,
    /// Follow SRC where it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Cp {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Self {
            source,
            destination,
            archive,
            no_owner,
            follow_link,
            quiet,
        } = self;
        let meter = Meter::new(quiet);
        match (source, destination) {
            (Location::Host(path), Location::Guest { vm, path: to }) => {
                let source = Source::new(&path, follow_link).map_err(|error| pack_error(&error))?;
                source.check().map_err(|error| pack_error(&error))?;
                let open = UploadOpen {
                    vm,
                    path: to,
                    contents_only: source.contents_only,
                    keep_owner: !no_owner,
                };
                let client = context.client().await?;
                upload(&client, open, meter, move |to| {
                    source
                        .pack(to, &mut Warnings::default())
                        .map_err(|error| pack_error(&error))
                })
                .await
            }
            (Location::Stream, Location::Guest { vm, path }) => {
                if terminal::stdin_is_terminal() {
                    return Err(CliError::usage("standard input is a terminal and no tar archive"));
                }
                let open = UploadOpen {
                    vm,
                    path,
                    contents_only: true,
                    keep_owner: !no_owner,
                };
                let client = context.client().await?;
                upload(&client, open, meter, |to| {
                    repack(io::stdin().lock(), to, &mut Warnings::default()).map_err(|error| match error {
                        RepackError::Send(_) => sending(),
                        RepackError::Read(_) | RepackError::Upwards(_) => {
                            CliError::general(error.to_string())
                        }
                    })
                })
                .await
            }
            (Location::Guest { vm, path }, Location::Host(to)) => {
                let root = rustix::process::geteuid().is_root();
                if archive && !root {
                    return Err(
                        CliError::new(Kind::Permission, "only root can keep owners on this host")
                            .hint("leave out -a, and everything will belong to you"),
                    );
                }
                let keep = Keep {
                    owners: root && !no_owner,
                    special_modes: archive,
                };
                let (open, name, contents_only) = download_source(vm, &path, follow_link);
                let client = context.client().await?;
                download(
                    &client,
                    open,
                    Destination {
                        path: to,
                        name,
                        contents_only,
                    },
                    keep,
                    meter,
                )
                .await
            }
            (Location::Guest { vm, path }, Location::Stream) => {
                if terminal::stdout_is_terminal() {
                    return Err(CliError::usage("a tar archive is not written to a terminal")
                        .hint("send it through a pipe, as in `banger cp VM:PATH - | tar t`"));
                }
                let (open, _, _) = download_source(vm, &path, follow_link);
                pass_on(&context.client().await?, open, meter).await
            }
            (Location::Guest { .. }, Location::Guest { .. }) => Err(CliError::usage(
                "one side must be this host: from machine to machine takes two steps",
            )
            .hint("or a pipe: banger cp A:PATH - | banger cp - B:DIR")),
            (Location::Host(_) | Location::Stream, Location::Host(_) | Location::Stream) => {
                Err(CliError::usage("one side must be in a machine, as VM:PATH"))
            }
        }
    }
}

/// What to ask for, the copy's own name, and whether the directory's content is meant.
fn download_source(vm: String, path: &str, follow_link: bool) -> (DownloadOpen, Option<OsString>, bool) {
    let contents_only = path == "." || path.ends_with("/.");
    let asked = match path.strip_suffix("/.") {
        Some("") => "/",
        Some(path) => path,
        None => path,
    };
    let name = match asked.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => None,
        Some(name) => Some(name.into()),
    };
    // `link/.` is the directory that the link leads to.
    let follow_link = follow_link || contents_only;
    (
        DownloadOpen {
            vm,
            path: asked.to_owned(),
            follow_link,
        },
        name,
        contents_only,
    )
}

fn pack_error(error: &PackError) -> CliError {
    let kind = match error {
        PackError::Read { source, .. } => Kind::of_io(source),
        PackError::Send(_) => return sending(),
        PackError::Changed(_) | PackError::Special(_) => Kind::General,
    };
    CliError::new(kind, error.to_string())
}

/// The archive could not be sent on; the other side's own error says why.
fn sending() -> CliError {
    CliError::general("the copy was broken off")
}

fn lost(reason: &str) -> CliError {
    CliError::new(Kind::Unreachable, format!("lost the copy: {reason}"))
}

/// What a frame from the daemon means for a copy.
enum Heard {
    Data(Bytes),
    End,
}

async fn hear(
    next: impl Future<Output = Result<Option<Frame>, banger_api::frame::FrameError>>,
) -> Result<Heard, CliError> {
    match next.await {
        Ok(Some(Frame::Data(bytes))) => Ok(Heard::Data(bytes)),
        Ok(Some(Frame::End)) => Ok(Heard::End),
        Ok(Some(Frame::Error(error))) => Err(error.into()),
        Ok(Some(
            Frame::Stdin(_)
            | Frame::Stdout(_)
            | Frame::Stderr(_)
            | Frame::StdinEof
            | Frame::Resize { .. }
            | Frame::Signal(_)
            | Frame::DataEof
            | Frame::Exit(_),
        )) => Err(lost("the daemon sent a frame that does not belong here")),
        Ok(None) => Err(lost("the daemon closed the stream")),
        Err(error) => Err(lost(&format!("failed to {}", chain(&error)))),
    }
}

/// Sends the archive that `pack` writes.
async fn upload<P>(client: &Client, open: UploadOpen, mut meter: Meter, pack: P) -> Result<u8, CliError>
where
    P: FnOnce(ChannelWriter) -> Result<(), CliError> + Send + 'static,
{
    let (mut reader, mut writer) = client.guest_upload(open).await?.split();
    let (queue, mut chunks) = mpsc::channel(QUEUE);
    let mut packing = tokio::task::spawn_blocking(move || pack(ChannelWriter::new(queue)));
    let send = async {
        while let Some(chunk) = chunks.recv().await {
            let size = chunk.len();
            if writer.send(Frame::Data(chunk)).await.is_err() {
                // The daemon has said why, on the other half.
                return std::future::pending().await;
            }
            meter.add(size);
        }
        (&mut packing)
            .await
            .unwrap_or_else(|error| Err(CliError::general(format!("failed to read: {error}"))))?;
        if writer.send(Frame::DataEof).await.is_err() {
            return std::future::pending().await;
        }
        std::future::pending::<Result<(), CliError>>().await
    };
    // Both futures live until one of them decides; neither is polled again.
    let end = tokio::select! {
        heard = hear(reader.next()) => match heard? {
            Heard::End => Ok(0),
            Heard::Data(_) => Err(lost("the daemon sent data to an upload")),
        },
        failed = send => failed.map(|()| 0),
    };
    if end.is_ok() {
        meter.done("sent");
    }
    end
}

/// Receives an archive and unpacks it.
async fn download(
    client: &Client,
    open: DownloadOpen,
    destination: Destination,
    keep: Keep,
    mut meter: Meter,
) -> Result<u8, CliError> {
    let mut interrupts = Interrupts::listen()?;
    let mut stream = client.guest_download(open).await?;
    let (queue, chunks) = mpsc::channel(QUEUE);
    let unpacking = tokio::task::spawn_blocking(move || {
        unpack(
            ChannelReader::new(chunks),
            &destination,
            keep,
            &mut Warnings::default(),
        )
    });
    // Cancel safety: what is dropped is dropped for good; the thread sees the end of its channel and cleans up.
    let received = tokio::select! {
        received = receive(&mut stream, &queue, &mut meter) => received,
        signal = interrupts.next() => Ok(Received::Interrupted(signal)),
    };
    drop(queue);
    let unpacked = unpacking
        .await
        .map_err(|error| CliError::general(format!("failed to unpack: {error}")))?;
    match (received?, unpacked) {
        (Received::Interrupted(signal), _) => Ok(exit_code(signal)),
        (Received::All | Received::Refused, Ok(())) => {
            meter.done("received");
            Ok(0)
        }
        (Received::All | Received::Refused, Err(error)) => Err(CliError::general(error.to_string())),
    }
}

/// How receiving ended.
enum Received {
    /// All of it came.
    All,
    /// The thread takes no more; it knows why.
    Refused,
    Interrupted(i32),
}

async fn receive(
    stream: &mut FrameStream,
    queue: &mpsc::Sender<Bytes>,
    meter: &mut Meter,
) -> Result<Received, CliError> {
    loop {
        match hear(stream.next()).await? {
            Heard::Data(bytes) => {
                meter.add(bytes.len());
                if queue.send(bytes).await.is_err() {
                    return Ok(Received::Refused);
                }
            }
            Heard::End => return Ok(Received::All),
        }
    }
}

/// Receives an archive and passes it on to standard output as it is.
async fn pass_on(client: &Client, open: DownloadOpen, mut meter: Meter) -> Result<u8, CliError> {
    let mut stream = client.guest_download(open).await?;
    loop {
        match hear(stream.next()).await? {
            Heard::Data(bytes) => match stdio::write_out(&bytes) {
                Ok(()) => meter.add(bytes.len()),
                Err(stdio::WriteError::Closed) => return Ok(stdio::BROKEN_PIPE),
                Err(stdio::WriteError::Failed(error)) => return Err(error),
            },
            Heard::End => {
                meter.done("received");
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_path_means() {
        let meaning = |path: &str| {
            let (open, name, contents_only) = download_source("dev".into(), path, false);
            (
                open.path,
                name.map(|name| name.into_string().unwrap()),
                contents_only,
                open.follow_link,
            )
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            meaning("/etc/passwd"),
            ("/etc/passwd".into(), some("passwd"), false, false)
        );
        assert_eq!(meaning("/etc/"), ("/etc/".into(), some("etc"), false, false));
        assert_eq!(meaning("/etc/."), ("/etc".into(), some("etc"), true, true));
        assert_eq!(meaning("/."), ("/".into(), None, true, true));
        assert_eq!(meaning("/"), ("/".into(), None, false, false));
        // What `dev:` alone stands for.
        assert_eq!(meaning("."), (".".into(), None, true, true));
        assert_eq!(meaning("a/.."), ("a/..".into(), None, false, false));
    }
}
