//! Streams between a client's frames and a real agent, which serves on a Unix socket of the test's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use banger_agent_api::{AgentClient, proto};
use bytes::BytesMut;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::*;

/// No test waits for ever.
#[track_caller]
fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let result = tokio::time::timeout(Duration::from_secs(60), future).await;
        result.unwrap_or_else(|_| panic!("{place}: it takes too long"))
    }
}

/// An agent on this machine. Ended when dropped.
struct Agent {
    process: Child,
    client: AgentClient,
    dir: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The agent's program: named by BANGER_TEST_AGENT, of the stage, or of this build.
fn find_agent() -> Option<PathBuf> {
    let stage = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/stage/libexec/banger/banger-agent");
    let this_build = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join("banger-agent")));
    let named = std::env::var_os("BANGER_TEST_AGENT").map(PathBuf::from);
    named
        .into_iter()
        .chain(this_build)
        .chain([stage])
        .find(|path| path.is_file())
}

impl Agent {
    /// Starts an agent, or says why the test is skipped.
    async fn start() -> Option<Self> {
        let Some(program) = find_agent() else {
            testkit::skip::<()>("no banger-agent; build it, or name it with BANGER_TEST_AGENT");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let process = Command::new(program)
            .args(["serve", "--unix"])
            .arg(&socket)
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Made first, so that the process ends whatever comes next.
        let agent = Self {
            process,
            client: AgentClient::for_plain_socket(&socket),
            dir,
        };
        // Until its socket is there, connecting fails at once.
        within(async {
            while agent.client.hello(Duration::from_secs(30)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Some(agent)
    }

    /// Opens a command as the service does.
    async fn exec(&self, command: &[&str]) -> Opened {
        let start = proto::ExecStart {
            argv: command.iter().map(ToString::to_string).collect(),
            stdin: true,
            workdir: "/".into(),
            ..proto::ExecStart::default()
        };
        let (input, output) = self.client.exec(start).await.unwrap();
        open(|session, stream| tokio::spawn(session.exec(stream, input, output)))
    }

    fn upload(&self, to: &Path) -> Opened {
        let path = to.to_str().unwrap().to_owned();
        let upload = self.client.upload(proto::UploadStart {
            path,
            ..proto::UploadStart::default()
        });
        open(|session, stream| tokio::spawn(session.upload(stream, upload)))
    }

    /// Everything that a download of `path` sends.
    async fn download(&self, path: &Path) -> (Vec<u8>, Frame) {
        let path = path.to_str().unwrap().to_owned();
        let request = proto::DownloadRequest {
            path,
            ..proto::DownloadRequest::default()
        };
        let download = self.client.download(request).await.unwrap();
        open(|session, stream| tokio::spawn(session.download(stream, download)))
            .collect()
            .await
    }
}

/// A stream as its client sees it.
struct Opened {
    stream: FrameStream,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

fn open(serve: impl FnOnce(Session, FrameStream) -> JoinHandle<()>) -> Opened {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let frames = |socket: UnixStream| {
        let (read, write) = socket.into_split();
        FrameStream::new(read, write, BytesMut::new())
    };
    let stopping = CancellationToken::new();
    let session = Session {
        vm: "dev".into(),
        stopping: stopping.clone(),
    };
    Opened {
        stream: frames(ours),
        stopping,
        task: serve(session, frames(theirs)),
    }
}

impl Opened {
    async fn next(&mut self) -> Frame {
        within(self.stream.next())
            .await
            .unwrap()
            .expect("the stream ended")
    }

    /// All bytes until the final frame, and that one.
    async fn collect(mut self) -> (Vec<u8>, Frame) {
        let mut bytes = Vec::new();
        let mut frame = self.next().await;
        while let Frame::Data(chunk) | Frame::Stdout(chunk) = &frame {
            bytes.extend_from_slice(chunk);
            frame = self.next().await;
        }
        assert!(frame.is_final(), "{frame:?}");
        within(self.task).await.unwrap();
        (bytes, frame)
    }

    /// The process id that the command prints first.
    async fn pid(&mut self) -> u32 {
        let Frame::Stdout(line) = self.next().await else {
            panic!("no process id")
        };
        std::str::from_utf8(&line).unwrap().trim().parse().unwrap()
    }
}

fn error_kind(frame: &Frame) -> ErrorKind {
    let Frame::Error(error) = frame else {
        panic!("{frame:?}")
    };
    error.kind
}

/// Waits until a process is no more.
async fn gone(pid: u32) {
    let path = PathBuf::from(format!("/proc/{pid}"));
    within(async {
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_go_through_a_command_unchanged() {
    let Some(agent) = Agent::start().await else { return };
    let opened = agent.exec(&["cat"]).await;
    let data = Bytes::from(
        (0..8_000_000_u32)
            .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
            .collect::<Vec<u8>>(),
    );
    let (mut reader, mut writer) = opened.stream.split();
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        writer.send(Frame::Stdin(sent)).await.unwrap();
        writer.send(Frame::StdinEof).await.unwrap();
        writer
    });
    let mut received = Vec::new();
    let mut frame = within(reader.next()).await.unwrap().unwrap();
    while let Frame::Stdout(chunk) = &frame {
        received.extend_from_slice(chunk);
        frame = within(reader.next()).await.unwrap().unwrap();
    }
    assert_eq!(frame, Frame::Exit(ExitStatus::Code(0)));
    assert!(received == data);
    drop(sending.await.unwrap());
    within(opened.task).await.unwrap();
}

#[tokio::test]
async fn output_and_errors_are_apart_and_the_status_comes_last() {
    let Some(agent) = Agent::start().await else { return };
    let mut opened = agent
        .exec(&["sh", "-c", "echo out; sleep 0.05; echo err >&2; exit 3"])
        .await;
    assert_eq!(opened.next().await, Frame::Stdout(Bytes::from_static(b"out\n")));
    assert_eq!(opened.next().await, Frame::Stderr(Bytes::from_static(b"err\n")));
    assert_eq!(opened.next().await, Frame::Exit(ExitStatus::Code(3)));
    within(opened.task).await.unwrap();
}

#[tokio::test]
async fn a_command_that_takes_no_input_still_says_how_it_ended() {
    let Some(agent) = Agent::start().await else { return };
    let Opened { stream, task, .. } = agent.exec(&["sh", "-c", "exec <&-; sleep 0.1; exit 7"]).await;
    let (mut reader, mut writer) = stream.split();
    let flood = tokio::spawn(async move {
        while writer
            .send(Frame::Stdin(Bytes::from_static(&[b'x'; 65536])))
            .await
            .is_ok()
        {}
    });
    assert_eq!(
        within(reader.next()).await.unwrap(),
        Some(Frame::Exit(ExitStatus::Code(7)))
    );
    within(task).await.unwrap();
    within(flood).await.unwrap();
}

#[tokio::test]
async fn signals_arrive_and_impossible_ones_are_refused() {
    let Some(agent) = Agent::start().await else { return };
    let mut opened = agent.exec(&["sh", "-c", "echo $$; exec sleep 1000"]).await;
    let pid = opened.pid().await;
    opened.stream.send(Frame::Signal(15)).await.unwrap();
    assert_eq!(opened.next().await, Frame::Exit(ExitStatus::Signal(15)));
    gone(pid).await;
    for number in [0, 65, -1, i32::MAX] {
        let mut opened = agent.exec(&["sh", "-c", "echo $$; exec sleep 1000"]).await;
        let pid = opened.pid().await;
        opened.stream.send(Frame::Signal(number)).await.unwrap();
        assert_eq!(
            error_kind(&opened.next().await),
            ErrorKind::InvalidArgument,
            "{number}"
        );
        gone(pid).await;
    }
}

#[tokio::test]
async fn a_client_that_goes_ends_its_command_even_one_that_does_not_read() {
    let Some(agent) = Agent::start().await else { return };
    let mut idle = agent.exec(&["sh", "-c", "echo $$; exec sleep 1000"]).await;
    let pid = idle.pid().await;
    drop(idle.stream);
    within(idle.task).await.unwrap();
    gone(pid).await;

    let mut stuck = agent.exec(&["sh", "-c", "echo $$; exec sleep 1000"]).await;
    let pid = stuck.pid().await;
    let Opened { stream, task, .. } = stuck;
    let (reader, mut writer) = stream.split();
    // Until nothing more goes in: every buffer on the way is full.
    let chunk = Bytes::from(vec![b'x'; 65536]);
    let mut sent = 0_usize;
    while tokio::time::timeout(
        Duration::from_millis(500),
        writer.send(Frame::Stdin(chunk.clone())),
    )
    .await
    .is_ok()
    {
        sent += chunk.len();
        assert!(sent < 64 << 20, "nothing holds the client back");
    }
    assert!(!task.is_finished());
    drop((reader, writer));
    within(task).await.unwrap();
    gone(pid).await;
}

#[tokio::test]
async fn a_daemon_that_stops_says_so_and_ends_the_command() {
    let Some(agent) = Agent::start().await else { return };
    let mut opened = agent.exec(&["sh", "-c", "echo $$; exec sleep 1000"]).await;
    let pid = opened.pid().await;
    opened.stopping.cancel();
    assert_eq!(error_kind(&opened.next().await), ErrorKind::Busy);
    within(opened.task).await.unwrap();
    gone(pid).await;
}

#[tokio::test]
async fn an_agent_that_dies_is_an_error_of_its_streams() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    let mut opened = agent.exec(&["sh", "-c", "echo $$; exec sleep 1000"]).await;
    let pid = opened.pid().await;
    agent.process.kill().unwrap();
    assert_eq!(error_kind(&opened.next().await), ErrorKind::GuestUnavailable);
    within(opened.task).await.unwrap();
    // Not ended by its agent, which is dead; in a guest its machine would be, too.
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn files_go_up_and_down() {
    let Some(agent) = Agent::start().await else { return };
    let (from, to) = (agent.dir.path().join("from"), agent.dir.path().join("to"));
    let content: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    std::fs::write(&from, &content).unwrap();
    std::fs::create_dir(&to).unwrap();
    let (archive, end) = agent.download(&from).await;
    assert_eq!(end, Frame::End);
    assert!(archive.len() > content.len());

    let mut opened = agent.upload(&to);
    for chunk in archive.chunks(100_000) {
        opened
            .stream
            .send(Frame::Data(Bytes::copy_from_slice(chunk)))
            .await
            .unwrap();
    }
    opened.stream.send(Frame::DataEof).await.unwrap();
    assert_eq!(opened.next().await, Frame::End);
    within(opened.task).await.unwrap();
    assert!(std::fs::read(to.join("from")).unwrap() == content);
}

#[tokio::test]
async fn uploads_that_fail_say_why() {
    let Some(agent) = Agent::start().await else { return };
    let mut junk = agent.upload(agent.dir.path());
    junk.stream
        .send(Frame::Data(Bytes::from(vec![b'x'; 4096])))
        .await
        .unwrap();
    junk.stream.send(Frame::DataEof).await.unwrap();
    assert_eq!(error_kind(&junk.next().await), ErrorKind::GuestRefused);

    let file = agent.dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let (archive, _) = agent.download(&file).await;
    let mut nowhere = agent.upload(Path::new("/nonexistent/a/b"));
    nowhere.stream.send(Frame::Data(archive.into())).await.unwrap();
    nowhere.stream.send(Frame::DataEof).await.unwrap();
    assert_eq!(error_kind(&nowhere.next().await), ErrorKind::NotFound);

    let mut confused = agent.upload(agent.dir.path());
    confused
        .stream
        .send(Frame::Stdin(Bytes::from_static(b"x")))
        .await
        .unwrap();
    assert_eq!(error_kind(&confused.next().await), ErrorKind::BadRequest);
}

#[tokio::test]
async fn logs_flow_until_their_end_or_until_nobody_reads() {
    let (sender, chunks) = mpsc::channel(1);
    let opened = open(|session, stream| tokio::spawn(session.logs(stream, chunks)));
    let sending = tokio::spawn(async move {
        for _ in 0..50 {
            sender.send(vec![b'x'; 65536]).await.unwrap();
        }
    });
    let (bytes, end) = opened.collect().await;
    assert_eq!((bytes.len(), end), (50 * 65536, Frame::End));
    sending.await.unwrap();

    let (sender, chunks) = mpsc::channel(1);
    let opened = open(|session, stream| tokio::spawn(session.logs(stream, chunks)));
    drop(opened.stream);
    within(sender.closed()).await;
    within(opened.task).await.unwrap();
}
