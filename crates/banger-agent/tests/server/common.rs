//! A real agent serving on a Unix socket of its own, and helpers to call it.

use banger_agent_api::proto::ExecStart;
use banger_agent_api::{AgentClient, AgentError, ExecEvent, ExitStatus, FailureKind};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Generous: the machine that tests may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// An agent process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Child,
    dir: TempDir,
}

impl Agent {
    /// Starts one and waits until its socket is there.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let process = launch(&dir.path().join("agent.sock"));
        let agent = Self { process, dir };
        agent.await_socket().await;
        agent
    }

    /// Kills the server and starts another at the same place.
    pub(crate) async fn restart(&mut self) {
        self.process.kill().expect("kill the agent");
        self.process.wait().expect("reap the agent");
        fs::remove_file(self.socket()).expect("remove the socket");
        self.process = launch(&self.socket());
        self.await_socket().await;
    }

    async fn await_socket(&self) {
        eventually("the agent's socket", || {
            std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
        })
        .await;
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) fn client(&self) -> AgentClient {
        AgentClient::for_plain_socket(&self.socket())
    }

    /// A directory that is removed with the agent.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Open descriptors of the agent.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd"))
            .expect("the agent's descriptors")
            .count()
    }

    /// Resident memory of the agent, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("the agent's status");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("VmRSS");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .expect("a number")
    }

    /// Children of the agent, zombies included.
    pub(crate) fn children(&self) -> Vec<u32> {
        let tasks = fs::read_dir(self.proc("task")).expect("the agent's threads");
        tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|line| {
                line.split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.process.id()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _already_dead = self.process.kill();
        let _status = self.process.wait();
    }
}

fn launch(socket: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_banger-agent"))
        .args(["serve", "--unix"])
        .arg(socket)
        .stdin(Stdio::null())
        .spawn()
        .expect("start the agent")
}

/// Waits until a condition holds; fails the test after [`DEADLINE`]. Lets the client's tasks run meanwhile.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A request for a command.
pub(crate) fn command(argv: &[&str]) -> ExecStart {
    ExecStart {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecStart::default()
    }
}

/// What a command left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: Option<ExitStatus>,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("UTF-8")
    }
}

/// Runs a command without input to its end.
pub(crate) async fn run(client: &AgentClient, start: ExecStart) -> Result<Outcome, AgentError> {
    let (_input, mut output) = client.exec(start).await?;
    let mut outcome = Outcome::default();
    while let Some(event) = output.next().await? {
        match event {
            ExecEvent::Stdout(bytes) => outcome.stdout.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => outcome.stderr.extend_from_slice(&bytes),
            ExecEvent::Exited(status) => outcome.status = Some(status),
        }
    }
    Ok(outcome)
}

/// The named failure of a call that must fail.
pub(crate) fn failure<T: std::fmt::Debug>(result: Result<T, AgentError>) -> FailureKind {
    let error = result.expect_err("the call must fail");
    error
        .failure()
        .unwrap_or_else(|| panic!("not a named failure: {error:?}"))
        .kind
}

/// Whether this process may change owners; says aloud when a test is skipped for that.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped {test}: it needs root");
    }
    root
}
