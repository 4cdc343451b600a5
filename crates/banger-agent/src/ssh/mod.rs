//! ssh into the guest: one call, one connection, one `sshd -i` of the image's (inetd mode, sshd(8)).
//!
//! ```text
//! SshInput stream → serve() ┐
//!                           ├─ socket pair ─ sshd -i -f /run/banger-agent/ssh/N/sshd_config ─ sessions
//! SshOutput stream ← copy() ┘
//! ```
//!
//! Needs no port, no network and no sshd that runs: the agent starts one with a configuration and keys of its own
//! ([`files`], [`config`]) and leaves the image's alone. Backpressure is the socket's and the stream's, as with commands.
//!
//! A call ends when sshd does, or when the client goes: then sshd sees the end of its connection and closes its
//! sessions as it does when a network breaks. What users left running in the background stays, as ever.

mod config;
mod files;

use crate::exec::process::Leader;
use crate::exec::{prepare, spawn};
use banger_agent_api::proto::ssh_input::Input;
use banger_agent_api::proto::{ExecStart, SshInput, SshOutput, SshStart};
use banger_agent_api::{Failure, FailureKind, MAX_CHUNK};
use bytes::BytesMut;
use files::Files;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Status, Streaming};

/// Where the files of connections are in a guest. Not `/run/banger`, which is the daemon's of a guest that is a host.
const DIRECTORY: &str = "/run/banger-agent/ssh";

/// Where images have sshd: Debian and most, what was built by hand, Arch, NixOS.
const PLACES: [&str; 7] = [
    "/usr/sbin/sshd",
    "/usr/local/sbin/sshd",
    "/sbin/sshd",
    "/usr/bin/sshd",
    "/usr/local/bin/sshd",
    "/bin/sshd",
    "/run/current-system/sw/bin/sshd",
];

/// Debian's sshd wants this directory, which its unit makes; one that wants another has it from its package.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

const PAM: &str = "/etc/pam.d/sshd";

/// Output messages between an sshd and its connection.
const OUTPUT_QUEUE: usize = 2;

/// For sshd to close its sessions once its connection is gone; then SIGHUP, and after [`HANGUP_GRACE`] SIGKILL.
const CLOSING: Duration = Duration::from_secs(10);
const HANGUP_GRACE: Duration = Duration::from_secs(2);

/// For sshd to say what is wrong with it, and what of that is passed on.
const DIAGNOSIS: Duration = Duration::from_secs(10);
const DIAGNOSIS_BYTES: usize = 512;

/// The sending half of a call's reply stream.
type Sender = mpsc::Sender<Result<SshOutput, Status>>;

/// Where the files go.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    directory: PathBuf,
    /// The directory must be in memory, and what sshd wants of its system may be made.
    in_guest: bool,
}

impl Place {
    /// In a guest which the agent has booted.
    pub(crate) fn in_guest() -> Self {
        Self {
            directory: DIRECTORY.into(),
            in_guest: true,
        }
    }

    /// Beside the socket of an agent that only serves for debugging.
    pub(crate) fn beside(socket: &Path) -> Self {
        Self {
            directory: socket.with_extension("ssh"),
            in_guest: false,
        }
    }
}

/// An sshd that runs, and the agent's end of its connection.
struct Started {
    sshd: &'static str,
    process: spawn::Process,
    connection: OwnedFd,
    files: Files,
}

/// Starts an sshd and returns the receiving half of what it sends.
///
/// To be run as a task of its own: dropped half way it would leave a process behind.
pub(crate) async fn start(
    start: SshStart,
    inputs: Streaming<SshInput>,
    place: Place,
    open_files: libc::rlimit,
    permit: OwnedSemaphorePermit,
) -> Result<mpsc::Receiver<Result<SshOutput, Status>>, Failure> {
    let launching = tokio::task::spawn_blocking(move || launch(&start, &place, open_files));
    let started = launching
        .await
        .unwrap_or_else(|join| Err(system("start sshd", &io::Error::other(join))))?;
    let Started {
        sshd,
        process,
        connection,
        files,
    } = started;
    let register = |error: io::Error| system("register sshd's connection", &error);
    let leader = Leader::new(process).map_err(register)?;
    let connection = std::os::unix::net::UnixStream::from(connection);
    let registered = connection
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(connection));
    let connection = match registered {
        Ok(connection) => connection,
        Err(error) => {
            let _exit = leader.terminate(Duration::ZERO).await;
            return Err(register(error));
        }
    };
    let (sender, receiver) = mpsc::channel(OUTPUT_QUEUE);
    tokio::spawn(async move {
        let (read, write) = connection.into_split();
        let mut said_something = false;
        // Dropped with the other: what was read and not yet written is of no use to an sshd that has gone, nor what was
        // read of sshd to a client that has.
        let ended = tokio::select! {
            ended = copy(read, &sender, &mut said_something) => ended,
            () = serve(write, inputs) => Ok(()),
            () = sender.closed() => Ok(()),
        };
        // Both halves of the connection are closed by now, which is what sshd ends of.
        if tokio::time::timeout(CLOSING, leader.wait()).await.is_err() {
            let _exit = leader.terminate(HANGUP_GRACE).await;
        }
        // An sshd that has anything to say begins with its version.
        let failure = match ended {
            Err(error) => Some(system("read from sshd", &error)),
            Ok(()) if !said_something && !sender.is_closed() => Some(diagnosis(sshd, &files.config()).await),
            Ok(()) => None,
        };
        if let Some(failure) = failure {
            let _client_gone = sender.send(Err(failure.into_status())).await;
        }
        // Removing a directory of three small files in memory.
        drop(files);
        drop(permit);
    });
    Ok(receiver)
}

/// Writes the files and starts sshd. Blocks.
fn launch(start: &SshStart, place: &Place, open_files: libc::rlimit) -> Result<Started, Failure> {
    let sshd = PLACES
        .into_iter()
        .find(|path| rustix::fs::access(*path, rustix::fs::Access::EXEC_OK).is_ok())
        .ok_or_else(|| {
            let message = "start sshd in the guest: its image has none (package openssh-server)";
            Failure::new(FailureKind::NoSshServer, "sshd", message)
        })?;
    if place.in_guest {
        make_privilege_separation();
    }
    let surroundings = config::Surroundings {
        pam: fs::read_to_string(PAM).ok(),
        tunables: std::env::var("GLIBC_TUNABLES")
            .ok()
            .filter(|text| !text.is_empty()),
    };
    let files = Files::write(&place.directory, start, &surroundings, place.in_guest)?;
    let exec = ExecStart {
        argv: vec![
            // sshd wants to know its absolute path, to execute itself.
            sshd.to_owned(),
            "-i".to_owned(),
            "-f".to_owned(),
            files.config().to_string_lossy().into_owned(),
        ],
        workdir: "/".to_owned(),
        ..ExecStart::default()
    };
    let prepared = prepare::prepare(&exec)?;
    let made = |errno: rustix::io::Errno| system("make sshd's connection", &errno.into());
    let (connection, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(made)?;
    let input = theirs
        .try_clone()
        .map_err(|error| system("make sshd's connection", &error))?;
    // What sshd logs goes to the guest's syslog.
    let errors =
        rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(made)?;
    let plan = prepared.into_plan([input, theirs, errors], false, open_files);
    let process = spawn::spawn(&plan).map_err(|error| prepare::spawn_failure(&exec, &error))?;
    Ok(Started {
        sshd,
        process,
        connection,
        files,
    })
}

/// Makes the directory without which Debian's sshd does not start. Where it cannot be made, sshd says so.
fn make_privilege_separation() {
    let made = fs::DirBuilder::new().mode(0o755).create(PRIVILEGE_SEPARATION);
    match made {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => crate::log::line(format_args!("failed to make {PRIVILEGE_SEPARATION}: {error}")),
    }
}

/// Passes what sshd sends to the client, until sshd closes the connection or the client goes.
async fn copy(mut read: OwnedReadHalf, sender: &Sender, said_something: &mut bool) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MAX_CHUNK);
        // Limited, because a buffer may have room for more than a message.
        let mut limited = (&mut read).take(MAX_CHUNK as u64);
        match limited.read_buf(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // sshd has closed without reading all that the client sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
        *said_something = true;
        let data = buffer.split().freeze();
        if sender.send(Ok(SshOutput { data })).await.is_err() {
            return Ok(());
        }
    }
}

/// Passes what the client sends to sshd. Returns when the client has gone, or breaks the protocol; a client that has
/// sent everything may still be listening.
async fn serve(mut write: OwnedWriteHalf, mut inputs: Streaming<SshInput>) {
    loop {
        match inputs.message().await {
            Ok(Some(SshInput {
                input: Some(Input::Data(data)),
            })) => {
                if write.write_all(&data).await.is_err() {
                    // sshd is ending: its last words are on their way.
                    return std::future::pending().await;
                }
            }
            Ok(Some(SshInput {
                input: Some(Input::Eof(_)),
            })) => {
                let _sshd_gone = write.shutdown().await;
                return std::future::pending().await;
            }
            Ok(
                Some(SshInput {
                    input: Some(Input::Start(_)) | None,
                })
                | None,
            )
            | Err(_) => return,
        }
    }
}

/// Why an sshd ended without a word: what its own test of its configuration says (`-t`, sshd(8)).
async fn diagnosis(sshd: &str, config: &Path) -> Failure {
    let mut command = tokio::process::Command::new(sshd);
    command
        .args(["-t", "-f"])
        .arg(config)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let said = match tokio::time::timeout(DIAGNOSIS, command.output()).await {
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<_> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            let mut text = lines.join("; ");
            text.truncate(text.floor_char_boundary(DIAGNOSIS_BYTES));
            text
        }
        Ok(Err(error)) => error.to_string(),
        Err(_elapsed) => String::new(),
    };
    let said = match said.as_str() {
        "" => "see the guest's log",
        said => said,
    };
    let message = format!("start {sshd} in the guest: it ended at once: {said}");
    Failure::new(FailureKind::System, sshd, message)
}

fn system(doing: &str, error: &io::Error) -> Failure {
    Failure::new(
        FailureKind::System,
        "ssh",
        format!("{doing} in the guest: {error}"),
    )
}
