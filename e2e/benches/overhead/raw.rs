//! The raw VMM: the same programs with the same arguments, kernel, initramfs and disks as Banger started them, started
//! by hand, and the agent called directly.
//!
//! The arguments are read off a machine of Banger's that runs (proc_pid_cmdline(5)), so that they cannot drift apart.
//! Only paths are changed, and the two sockets that Banger's driver hands down as descriptors are made here in the same
//! way: the connection to `vhost-device-vsock`, and the listening socket of QEMU's monitor.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{Banger, Daemon, Guest, wait_for};
use rustix::io::FdFlags;

/// How one machine was started.
#[derive(Debug)]
pub(crate) struct Recipe {
    vsock_device: Vec<String>,
    qemu: Vec<String>,
    runtime: PathBuf,
    state: PathBuf,
    agent_call: PathBuf,
}

/// When what happened, from the first process on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The agent answered its first call.
    pub(crate) answer: Duration,
    /// It had run its first command.
    pub(crate) exec: Duration,
}

impl Recipe {
    /// Reads the recipe off a machine that runs.
    pub(crate) fn of(daemon: &Daemon, guest: &Guest<'_>) -> Self {
        let id = guest.show()["id"].as_str().expect("an id").to_owned();
        let token = format!("bgr{id}");
        let arguments = |program: &str| -> Vec<String> {
            let process = daemon
                .machine_processes()
                .into_iter()
                .find(|p| {
                    p.command.contains(&token)
                        && p.command.split(' ').next().is_some_and(|p| p.contains(program))
                })
                .unwrap_or_else(|| panic!("no {program} for {token}"));
            let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).expect("its arguments");
            let line = String::from_utf8(line).expect("UTF-8 arguments");
            line.trim_end_matches('\0')
                .split('\0')
                .map(str::to_owned)
                .collect()
        };
        // Beside the stage: `make bench` builds it.
        let agent_call = daemon
            .bed()
            .stage
            .with_file_name("release")
            .join("examples/agent-call");
        assert!(
            agent_call.is_file(),
            "{} is missing: make bench builds it",
            agent_call.display()
        );
        Self {
            vsock_device: arguments("vhost-device-vsock"),
            qemu: arguments("qemu-system"),
            runtime: daemon.runtime().join(&token),
            state: daemon.state().join("vms").join(&token),
            agent_call,
        }
    }

    /// The machine's writable disk.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.state.join("overlay.img")
    }

    /// The raw agent call, as a program.
    pub(crate) fn agent_call(&self) -> &Path {
        &self.agent_call
    }

    /// Starts the machine by hand in a directory that holds its copy of the overlay, waits for the agent's first answer
    /// and its first command, and ends it.
    pub(crate) fn run(&self, directory: &Path) -> Times {
        self.boot(directory).times
    }

    /// As [`Self::run`], and leaves it running. What it has of the host's network is what is there under the same names.
    pub(crate) fn boot(&self, directory: &Path) -> Booted {
        let moved = |argument: &String| {
            let directory = directory.to_str().expect("an ASCII path");
            argument
                .replace(self.runtime.to_str().expect("an ASCII path"), directory)
                .replace(self.state.to_str().expect("an ASCII path"), directory)
        };
        let log = || {
            let log = std::fs::File::options()
                .create(true)
                .append(true)
                .open(directory.join("vmm.log"));
            log.expect("open a log")
        };
        let socket = directory.join("vsock.sock");
        let mut call = Command::new(&self.agent_call);
        call.arg(&socket)
            .args(["wait-hello", "true"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut call = Ended(call.spawn().expect("run agent-call"));
        // Listening before the machine exists, as the daemon does.
        wait_for(Duration::from_secs(10), || {
            directory.join("vsock.sock_1025").exists().then_some(())
        })
        .expect("a listener");

        let began = Instant::now();
        let mut device = session(&self.vsock_device[0]);
        device
            .args(self.vsock_device[1..].iter().map(moved))
            .env("RUST_LOG", "warn");
        device.stdin(Stdio::null()).stdout(log()).stderr(log());
        let device = Ended(device.spawn().expect("run vhost-device-vsock"));
        let vhost = connect(&directory.join("vhost.sock"));
        let monitor = UnixListener::bind(directory.join("qmp.sock")).expect("listen for the monitor");

        let arguments = self.qemu[1..].iter().map(moved);
        let qemu = with_descriptors(
            arguments,
            &OwnedFd::from(vhost),
            &OwnedFd::from(monitor),
            |arguments| {
                let mut qemu = session(&self.qemu[0]);
                qemu.args(arguments)
                    .stdin(Stdio::null())
                    .stdout(log())
                    .stderr(log());
                Ended(qemu.spawn().expect("run QEMU"))
            },
        );

        let mut answer = None;
        let said = BufReader::new(call.0.stderr.take().expect("its standard error"));
        let mut all = String::new();
        for line in said.lines() {
            let line = line.expect("a line of agent-call");
            // The answer to its first call; what comes before is the guest's own word that it serves.
            if line.contains("agent_version") && answer.is_none() {
                answer = Some(began.elapsed());
            }
            all.push_str(&line);
            all.push('\n');
        }
        let exec = began.elapsed();
        let status = call.0.wait().expect("wait for agent-call");
        assert!(status.success(), "agent-call ended with {status}:\n{all}");
        let times = Times {
            answer: answer.unwrap_or_else(|| panic!("no answer in:\n{all}")),
            exec,
        };
        Booted {
            times,
            _qemu: qemu,
            _device: device,
            agent_call: self.agent_call.clone(),
            socket,
        }
    }
}

/// A machine that was started by hand. Ended when dropped.
pub(crate) struct Booted {
    times: Times,
    _qemu: Ended,
    _device: Ended,
    agent_call: PathBuf,
    socket: PathBuf,
}

impl Booted {
    /// Runs a shell script in it, which must succeed.
    pub(crate) fn sh(&self, script: &str) {
        Banger::new(&self.agent_call)
            .args([&self.socket])
            .args(["exec", "--", "sh", "-c", script])
            .ok();
    }
}

/// A program in a session of its own, as Banger starts its own: the kernel divides its processors by sessions first (sched(7),
/// "The autogroup feature"), so that on a busy machine it makes a difference.
fn session(program: &str) -> Command {
    let mut command = Command::new("setsid");
    command.arg(program);
    command
}

/// Puts our descriptors in the place of those that the arguments name, and lets them be inherited by what `start` starts.
fn with_descriptors<T>(
    arguments: impl Iterator<Item = String>,
    vhost: &OwnedFd,
    monitor: &OwnedFd,
    start: impl FnOnce(Vec<String>) -> T,
) -> T {
    let arguments = arguments.map(|argument| {
        let descriptor = if argument.contains("id=vsock") || argument.contains("vhost") {
            vhost
        } else {
            monitor
        };
        replace_descriptor(&argument, descriptor.as_raw_fd())
    });
    let arguments = arguments.collect();
    for descriptor in [vhost, monitor] {
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).expect("let a descriptor be inherited");
    }
    start(arguments)
}

/// `…fd=7…` with another number.
fn replace_descriptor(argument: &str, number: i32) -> String {
    match argument.split_once("fd=") {
        Some((before, after)) if before.is_empty() || before.ends_with(',') => {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}fd={number}{rest}")
        }
        Some(_) | None => argument.to_owned(),
    }
}

fn connect(socket: &Path) -> UnixStream {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > end => {
                panic!("failed to connect to {}: {error}", socket.display())
            }
            // It has no event for "listens": asked every millisecond, which is less than what is measured by far.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A process that ends with its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
