//! A daemon for tests of the command line: the real server of `banger-api`, with a service behind it whose "machine" is
//! this host. `exec` runs real processes, copies go to and from memory, operations take as long as they are told.
//! It behaves like the daemon where the command line can tell, and knows nothing of virtual machines.

mod process;
mod service;

use std::os::fd::OwnedFd;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use banger_api::server::{Access, Server, bind};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use service::{Local, World, vm};

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) world: Arc<World>,
    directory: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let world = Arc::new(World::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (listener, bound) = runtime.block_on(async { bind(&directory.path().join("s"), None).unwrap() });
        let service = Arc::new(Local(world.clone()));
        runtime.spawn(async move {
            let _bound = bound;
            Server::new(Access::of_this_process(None))
                .serve(listener, service, std::future::pending())
                .await;
        });
        Self {
            world,
            directory,
            _runtime: runtime,
        }
    }

    /// A machine that runs.
    pub(crate) fn add_vm(&self, name: &str) {
        self.world.vms.lock().unwrap().insert(name.into(), vm(name));
    }

    /// A machine that runs and carries a label.
    pub(crate) fn add_labelled(&self, name: &str, key: &str, value: &str) {
        let mut machine = vm(name);
        machine.labels.insert(key.into(), value.into());
        self.world.vms.lock().unwrap().insert(name.into(), machine);
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("s")
    }

    /// The command line, joined to this daemon. Standard input is empty.
    pub(crate) fn banger(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_banger"));
        command
            .args(arguments)
            .env_clear()
            .env("BANGER_SOCKET", self.socket());
        // Not there: nothing is remembered from one command to the next, and nothing of this host's is touched.
        command
            .env("BANGER_RUNTIME_DIR", self.directory.path().join("run"))
            .env("HOME", self.directory.path())
            .env("PATH", std::env::var_os("PATH").unwrap());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(
            self.banger(arguments)
                .spawn()
                .unwrap()
                .wait_with_output()
                .unwrap(),
        )
    }

    /// Names of the methods called, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.world.calls.lock().unwrap().clone()
    }
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Sends a signal to a command line that runs.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// What a command that ends like this has come to.
pub(crate) fn ended(code: i32, stdout: &str, stderr: &str) -> Ended {
    Ended {
        code: Some(code),
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

/// A pseudo-terminal: our side, and the name of the other.
pub(crate) fn pty() -> (OwnedFd, std::path::PathBuf) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    (master, name.into())
}

/// Waits for something to become true; fails loudly when it does not in 20 s.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(
            std::time::Instant::now() < deadline,
            "{what} did not happen in 20 s"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
