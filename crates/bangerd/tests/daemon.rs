//! The real `bangerd` in directories of its own: start, socket, strictness, users, signals, ordered end. No guests.

#![expect(clippy::unwrap_used, reason = "tests and their helpers fail by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use banger_api::client::{Client, ClientError};
use banger_api::types::{CheckState, Empty, ImageRef, OperationRef, VmCreate, VmRef};
use banger_api::{ErrorKind, RpcError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Directories for a daemon, and what it is started with.
struct Place {
    dir: tempfile::TempDir,
    config: String,
    arguments: Vec<String>,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            config: String::new(),
            arguments: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn socket(&self) -> PathBuf {
        self.path("run/bangerd.sock")
    }

    fn command(&self) -> Command {
        let config = self.path("config.toml");
        // Tests run as root, and nothing of theirs may be in the network namespace of the machine that runs them.
        let network = "\n[network]\nmode = \"user\"\n";
        std::fs::write(&config, format!("{}{network}", self.config)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bangerd"));
        command.arg("run").args(&self.arguments).env_clear();
        // An empty PATH: nothing of the host is probed.
        command
            .env("PATH", "")
            .env("HOME", self.dir.path())
            .env("BANGER_CONFIG", config);
        command
            .env("BANGER_STATE_DIR", self.state())
            .env("BANGER_RUNTIME_DIR", self.path("run"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a daemon and waits until it says that it is ready.
    fn start(&self) -> Daemon {
        let notify = self.path("notify");
        drop(std::fs::remove_file(&notify));
        let notifications = UnixDatagram::bind(&notify).unwrap();
        notifications.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = self.command().env("NOTIFY_SOCKET", &notify).spawn().unwrap();
        let mut daemon = Daemon {
            child,
            notifications,
            socket: self.socket(),
        };
        let first = daemon.notification();
        if first != "READY=1" {
            let log = daemon.end(Signal::KILL).1;
            panic!("{first:?} came instead of READY=1:\n{log}");
        }
        daemon
    }

    /// Starts a daemon that refuses to run; gives its exit status and what it said.
    fn refused(&self) -> (ExitStatus, String) {
        let mut child = self.command().spawn().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (child.wait().unwrap(), said)
    }

    /// A refusal is one line with a hint and exit code 1.
    fn refusal(&self) -> String {
        let (status, said) = self.refused();
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.starts_with("bangerd: failed to ") && said.contains("(hint: "),
            "{said}"
        );
        said
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A running daemon. Ended when dropped.
struct Daemon {
    child: Child,
    notifications: UnixDatagram,
    socket: PathBuf,
}

impl Daemon {
    /// The next word to the service manager.
    fn notification(&mut self) -> String {
        let mut buffer = [0; 256];
        match self.notifications.recv(&mut buffer) {
            Ok(length) => String::from_utf8_lossy(&buffer[..length]).trim().to_owned(),
            Err(e) => format!("nothing ({e})"),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Sends a signal and waits for the end; gives the exit status and the log.
    fn end(mut self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        self.wait()
    }

    fn wait(&mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (self.child.wait().unwrap(), log)
    }

    fn raw(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        BufReader::new(stream)
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended in most tests; both are errors then.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a line, gives the answer.
fn ask(stream: &mut BufReader<UnixStream>, line: &str) -> Value {
    stream
        .get_mut()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or(Value::Null)
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn rpc_error<T: std::fmt::Debug>(result: Result<T, ClientError>) -> RpcError {
    match result {
        Err(ClientError::Rpc(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn it_starts_serves_and_ends_in_order() {
    let place = Place::new();
    let mut daemon = place.start();
    assert_eq!((mode(&place.state()), mode(&place.path("run"))), (0o700, 0o700));
    assert_eq!(
        (mode(&place.socket()), mode(&place.state().join("lock"))),
        (0o600, 0o600)
    );

    let status = daemon.client().daemon_status(Empty {}).await.unwrap();
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(status.pid, daemon.child.id());
    assert_eq!(Path::new(&status.socket), place.socket());
    assert_eq!(Path::new(&status.state_directory), place.state());
    assert_eq!(
        status.config_file.as_deref().map(Path::new),
        Some(place.path("config.toml").as_path())
    );
    assert_eq!(status.config_unknown_keys, [""; 0]);
    assert!(status.memory > 1 << 20);
    assert!(status.agent.problem.is_some() || status.agent.path.is_some());

    daemon.signal(Signal::TERM);
    assert_eq!(daemon.notification(), "STOPPING=1");
    let (exit, log) = daemon.wait();
    assert_eq!(exit.code(), Some(0), "{log}");
    assert!(log.contains("stopped"), "{log}");
    assert!(!place.socket().exists());

    // The state is taken up again.
    let daemon = place.start();
    assert_eq!(daemon.client().vm_list(Default::default()).await.unwrap(), []);
    assert_eq!(daemon.end(Signal::INT).0.code(), Some(0));
}

#[tokio::test]
async fn a_key_that_means_nothing_is_told() {
    let mut place = Place::new();
    place.config = "colour = 1\n[vm]\nmemroy = \"1GiB\"\n".into();
    let daemon = place.start();
    let client = daemon.client();
    let status = client.daemon_status(Empty {}).await.unwrap();
    assert_eq!(status.config_unknown_keys, ["colour", "vm.memroy"]);
    let report = client.doctor_run(Empty {}).await.unwrap();
    let check = report
        .checks
        .iter()
        .find(|check| check.name == "configuration")
        .unwrap();
    assert_eq!(check.state, CheckState::Warning);
    let file = place.path("config.toml");
    assert!(
        check.reason.starts_with(file.to_str().unwrap()),
        "{}",
        check.reason
    );
    assert!(
        check.reason.ends_with("`colour`, `vm.memroy`"),
        "{}",
        check.reason
    );
    assert!(check.fix.is_some());
    assert_eq!(daemon.end(Signal::TERM).0.code(), Some(0));
}

#[tokio::test]
async fn a_client_can_stop_it() {
    let place = Place::new();
    let mut daemon = place.start();
    daemon.client().daemon_shutdown(Empty {}).await.unwrap();
    assert_eq!(daemon.wait().0.code(), Some(0));
    assert!(!place.socket().exists());
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_does_not_notice() {
    let place = Place::new();
    let daemon = place.start();
    let client = daemon.client();
    let before = std::fs::metadata(place.socket()).unwrap().ino();
    let said = place.refusal();
    assert!(
        said.contains(&format!(
            "already running on this state directory, process {}",
            daemon.child.id()
        )),
        "{said}"
    );
    assert_eq!(std::fs::metadata(place.socket()).unwrap().ino(), before);
    assert_eq!(
        client.daemon_status(Empty {}).await.unwrap().pid,
        daemon.child.id()
    );

    // Another state directory, the same socket.
    let mut other = Place::new();
    other.arguments = vec!["--socket".into(), place.socket().to_str().unwrap().into()];
    let (status, said) = other.refused();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("another process serves it"), "{said}");
    assert_eq!(
        client.daemon_status(Empty {}).await.unwrap().pid,
        daemon.child.id()
    );
}

#[tokio::test]
async fn the_socket_of_a_killed_daemon_is_taken_over() {
    let place = Place::new();
    let (status, _) = place.start().end(Signal::KILL);
    assert_eq!(status.code(), None);
    assert!(place.socket().exists());
    let daemon = place.start();
    assert!(daemon.client().daemon_status(Empty {}).await.is_ok());
}

#[tokio::test]
async fn a_new_daemon_waits_for_one_that_is_stopping() {
    let place = Place::new();
    let daemon = place.start();
    daemon.signal(Signal::TERM);
    // Before, while and after it goes: never an error but "already running", never two at once.
    loop {
        let mut next = place.command().spawn().unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(next.stderr.take().unwrap());
        while !said.contains("ready") && stderr.read_line(&mut said).unwrap() > 0 {}
        if said.contains("already running") {
            next.wait().unwrap();
            continue;
        }
        assert!(said.contains("ready"), "{said}");
        assert_eq!(
            Client::new(place.socket())
                .daemon_status(Empty {})
                .await
                .unwrap()
                .pid,
            next.id()
        );
        next.kill().unwrap();
        next.wait().unwrap();
        break;
    }
}

#[test]
fn malformed_requests_are_answered_over_the_raw_socket() {
    let place = Place::new();
    let daemon = place.start();
    let mut raw = daemon.raw();
    let code = |answer: &Value| answer["error"]["code"].as_i64();
    assert_eq!(code(&ask(&mut raw, "{")), Some(-32700));
    assert_eq!(code(&ask(&mut raw, "\u{1}")), Some(-32700));
    assert_eq!(code(&ask(&mut raw, "[1]")[0]), Some(-32600));
    assert_eq!(code(&ask(&mut raw, &"x".repeat(2 << 20))), Some(-32600));
    let unknown = ask(
        &mut raw,
        &json!({"jsonrpc": "2.0", "method": "vm.crate", "id": 1}).to_string(),
    );
    assert_eq!(
        (code(&unknown), &unknown["error"]["data"]["hint"]),
        (Some(-32601), &json!("did you mean \"vm.create\"?"))
    );
    let params = json!({"image": "debian", "memroy": 1});
    let unknown = ask(
        &mut raw,
        &json!({"jsonrpc": "2.0", "method": "vm.create", "params": params, "id": 2}).to_string(),
    );
    assert_eq!(unknown["error"]["message"], "vm.create: unknown field \"memroy\"");
    let status = ask(
        &mut raw,
        &json!({"jsonrpc": "2.0", "method": "daemon.status", "id": 3}).to_string(),
    );
    assert_eq!(status["result"]["pid"], daemon.child.id());
    let contract = ask(
        &mut raw,
        &json!({"jsonrpc": "2.0", "method": "rpc.discover", "id": 4}).to_string(),
    );
    assert_eq!(contract["result"], banger_api::contract::openrpc());
}

#[tokio::test]
async fn bad_arguments_are_the_calls_own_errors() {
    let place = Place::new();
    let daemon = place.start();
    let client = daemon.client();
    let kind = |error: RpcError| error.kind;
    assert_eq!(
        kind(rpc_error(client.vm_show(VmRef { vm: "none".into() }).await)),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(rpc_error(
            client.image_show(ImageRef { image: "none".into() }).await
        )),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind(rpc_error(
            client
                .op_watch(OperationRef {
                    operation: "none".into()
                })
                .await
        )),
        ErrorKind::NotFound
    );
    let create = |name: &str| VmCreate {
        name: Some(name.into()),
        image: "none".into(),
        ..VmCreate::default()
    };
    for name in ["", "a/b", "a.b", "a b", "Upper", "-a", &"x".repeat(64)] {
        assert_eq!(
            kind(rpc_error(client.vm_create(create(name)).await)),
            ErrorKind::InvalidArgument,
            "{name:?}"
        );
    }
    assert_eq!(
        kind(rpc_error(client.vm_create(create("fine")).await)),
        ErrorKind::NotFound
    );
    for broken in [
        VmCreate {
            vcpus: Some(0),
            ..create("a")
        },
        VmCreate {
            memory: Some(1 << 20),
            ..create("a")
        },
        VmCreate {
            memory: Some((1 << 30) + 1),
            ..create("a")
        },
        VmCreate {
            memory: Some(1 << 60),
            ..create("a")
        },
        VmCreate {
            disk: Some(1),
            ..create("a")
        },
    ] {
        let error = rpc_error(client.vm_create(broken.clone()).await);
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{broken:?}: {error:?}");
    }
    assert_eq!(client.vm_list(Default::default()).await.unwrap(), []);
    assert_eq!(client.op_list(Empty {}).await.unwrap(), []);
}

#[tokio::test]
async fn a_hangup_changes_nothing() {
    let place = Place::new();
    let daemon = place.start();
    for _ in 0..3 {
        daemon.signal(Signal::HUP);
        assert_eq!(
            daemon.client().daemon_status(Empty {}).await.unwrap().pid,
            daemon.child.id()
        );
    }
    let (status, log) = daemon.end(Signal::TERM);
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("SIGHUP ignored"), "{log}");
}

#[test]
fn the_log_is_json_where_asked_and_unknown_keys_are_warned_about() {
    let mut place = Place::new();
    place.config = "[daemon]\nlog_format = \"json\"\n[vm]\nmemroy = \"1GiB\"\n".into();
    let (_, log) = place.start().end(Signal::TERM);
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        lines
            .iter()
            .any(|line| line["level"] == "WARN" && line["key"] == "vm.memroy"),
        "{log}"
    );
    assert!(lines.iter().any(|line| line["message"] == "ready"), "{log}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_touched() {
    let mut place = Place::new();
    let refusal = |place: &Place, expected: &str| {
        let said = place.refusal();
        assert!(said.contains(expected), "{expected:?} is not in {said}");
        assert_eq!(place.names(), ["config.toml"]);
    };
    place.config = "[vm]\n\nmemory = \"lots\"\n".into();
    refusal(&place, "config.toml:3: `memory = \"lots\"`");
    place.config = "[daemon]\ngroup = \"no-such-group-here\"\n".into();
    refusal(&place, "no-such-group-here");
    place.config = String::new();
    for (flag, value, expected) in [
        ("--config", "/nonexistent/config.toml", "/nonexistent/config.toml"),
        (
            "--runtime-dir",
            "/nonexistent/a/b",
            "/nonexistent/a does not exist",
        ),
        ("--runtime-dir", "relative", "not an absolute path"),
        ("--state-dir", "relative", "not an absolute path"),
        (
            "--runtime-dir",
            &format!("/tmp/{}", "x".repeat(100)),
            "Linux allows 107",
        ),
        ("--state-dir", "/proc/banger", "/proc/banger"),
        ("--state-dir", "/dev/null", "not a directory"),
    ] {
        place.arguments = vec![flag.into(), value.into()];
        refusal(&place, expected);
    }
    place.arguments = vec!["--socket".into(), format!("/tmp/{}", "x".repeat(110))];
    refusal(&place, "115 bytes");
    std::fs::create_dir(place.path("open")).unwrap();
    std::fs::set_permissions(place.path("open"), PermissionsExt::from_mode(0o777)).unwrap();
    place.arguments = vec!["--state-dir".into(), place.path("open").to_str().unwrap().into()];
    assert!(place.refusal().contains("lets others write"));
    assert_eq!(place.names(), ["config.toml", "open"]);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused() {
    let root = rustix::process::geteuid().is_root();
    if root {
        // Root may write anywhere but where the kernel writes itself; see the test above.
        testkit::skip::<()>("needs a user without rights");
        return;
    }
    let place = Place::new();
    std::fs::create_dir(place.state()).unwrap();
    std::fs::set_permissions(place.state(), PermissionsExt::from_mode(0o500)).unwrap();
    assert!(place.refusal().contains("write to the state directory"));
    std::fs::set_permissions(place.state(), PermissionsExt::from_mode(0o700)).unwrap();
}

/// Connects as another user, in a thread that has dropped its rights, and asks for the status.
fn as_user(socket: &Path, id: u32, groups: &[u32]) -> std::io::Result<Value> {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let socket = socket.to_owned();
    let thread = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        // A daemon that refuses may have closed the connection already; its answer is there all the same.
        let request = json!({"jsonrpc": "2.0", "method": "daemon.status", "id": 1});
        drop(stream.get_mut().write_all(format!("{request}\n").as_bytes()));
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    });
    thread.join().unwrap()
}

#[test]
fn other_users_are_refused() {
    if !rustix::process::geteuid().is_root() {
        testkit::skip::<()>("needs root to become another user");
        return;
    }
    const GROUP: u32 = 54321;
    const OTHER: u32 = 54322;
    let mut place = Place::new();
    std::fs::set_permissions(place.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();

    let daemon = place.start();
    let refused = as_user(&daemon.socket, OTHER, &[]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    // Even where the modes would let them in, the credentials do not.
    std::fs::set_permissions(place.path("run"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&daemon.socket, PermissionsExt::from_mode(0o666)).unwrap();
    let answer = as_user(&daemon.socket, OTHER, &[GROUP]).unwrap();
    assert_eq!(answer["error"]["data"]["kind"], "permission_denied");
    assert_eq!(daemon.end(Signal::TERM).0.code(), Some(0));

    place.config = format!("[daemon]\ngroup = \"{GROUP}\"\n");
    let daemon = place.start();
    assert_eq!((mode(&place.path("run")), mode(&daemon.socket)), (0o750, 0o660));
    assert_eq!(std::fs::metadata(&daemon.socket).unwrap().gid(), GROUP);
    assert!(as_user(&daemon.socket, OTHER, &[]).is_err());
    for (id, groups) in [(GROUP, &[][..]), (OTHER, &[GROUP])] {
        assert_eq!(
            as_user(&daemon.socket, id, groups).unwrap()["result"]["pid"],
            daemon.child.id()
        );
    }
    assert_eq!(daemon.end(Signal::TERM).0.code(), Some(0));
}
