//! One `bangerd` with directories of its own, and the promise that nothing of it is left when the test ends.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::command::{Banger, ends_within};
use crate::processes::{self, Process};
use crate::snapshot::Snapshot;
use crate::state;
use crate::testbed::Testbed;
use crate::wait_for;

/// A daemon comes up in milliseconds; this is for a machine whose processors all emulate guests.
const READY: Duration = Duration::from_secs(30);

/// A file system of the daemon's own.
#[derive(Debug, Clone)]
enum Disk {
    /// Of that size.
    Tmpfs(String),
    /// Of that kind, in a file.
    Image(&'static str),
}

/// How a daemon is to be started.
#[derive(Debug, Clone)]
pub struct Settings {
    prepared: bool,
    config: String,
    disk: Option<Disk>,
    environment: Vec<(String, String)>,
    crash_points: bool,
}

impl Settings {
    /// On a copy of the prepared state: both images, their kernels, the initramfs.
    #[must_use]
    pub fn prepared() -> Self {
        Self {
            prepared: true,
            ..Self::empty()
        }
    }

    /// With neither images nor kernels.
    #[must_use]
    pub fn empty() -> Self {
        let config = "[vmm]\nchoice = \"qemu\"\n".to_owned();
        Self {
            prepared: false,
            config,
            disk: None,
            environment: Vec::new(),
            crash_points: false,
        }
    }

    /// Another configuration file than the usual one, which only pins QEMU.
    #[must_use]
    pub fn config(mut self, config: impl Into<String>) -> Self {
        self.config = config.into();
        self
    }

    /// Adds to the configuration file.
    #[must_use]
    pub fn add_config(mut self, config: &str) -> Self {
        self.config.push_str(config);
        self
    }

    /// The state directory lies in a file system of that size (a `size=` of tmpfs(5)), which only the daemon sees. Needs
    /// root. The prepared state, where asked for, is copied into it.
    #[must_use]
    pub fn small_disk(mut self, size: impl Into<String>) -> Self {
        self.disk = Some(Disk::Tmpfs(size.into()));
        // Such a file system is about running out of space, not about being refused before.
        self.config.push_str("[daemon]\nspace_floor = \"0\"\n");
        self
    }

    /// The state directory lies in a new file system of that kind (`xfs`, `btrfs`, `ext4`) in a file of 8 GiB, which only the
    /// daemon sees. Needs root and `mkfs.KIND`.
    #[must_use]
    pub fn file_system(mut self, kind: &'static str) -> Self {
        self.disk = Some(Disk::Image(kind));
        self
    }

    /// The build of the daemon that can be made to die at named points, see [`Testbed::crash_daemon`]. It is not part of
    /// the stage, so it is told where its companions are.
    #[must_use]
    pub fn crash_points(mut self, bed: &Testbed) -> Self {
        let libexec = bed.stage.join("libexec/banger");
        self.config = format!(
            "[vmm]\nchoice = \"qemu\"\nvhost_device_vsock = {:?}\n[agent]\npath = {:?}\n",
            libexec.join("vhost-device-vsock"),
            libexec.join("banger-agent")
        );
        self.crash_points = true;
        self
    }

    /// Sets a variable of the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A daemon under test.
#[derive(Debug)]
pub struct Daemon {
    bed: Testbed,
    settings: Settings,
    /// Short, because socket paths are limited to 107 bytes (unix(7)).
    home: tempfile::TempDir,
    /// On the test bed's file system, because hard links stay within one.
    state: tempfile::TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a daemon and waits until it says that it serves.
    #[must_use]
    pub fn start(bed: &Testbed, settings: Settings) -> Self {
        let mut daemon = Self::ready(bed, settings);
        daemon.launch();
        daemon
    }

    /// One that is still to be launched, in a network namespace, say: preparing images needs the machine's own network.
    #[must_use]
    pub fn ready(bed: &Testbed, settings: Settings) -> Self {
        let prepared = settings.prepared.then(|| state::prepared(bed));
        let daemon = Self::new(bed, settings);
        if let Some(prepared) = prepared {
            state::link(&prepared, daemon.state.path());
        }
        daemon
    }

    /// Directories and configuration for a daemon that something else starts, or that is started by [`Self::launch`].
    #[must_use]
    pub fn new(bed: &Testbed, settings: Settings) -> Self {
        let home = tempfile::Builder::new()
            .prefix("bgt-")
            .tempdir()
            .expect("make a directory");
        let runs = bed.directory.join("runs");
        std::fs::create_dir_all(&runs).expect("make the directory of the tests' state");
        let state = tempfile::Builder::new()
            .prefix("")
            .tempdir_in(runs)
            .expect("make a state directory");
        write_config(&home.path().join("config.toml"), &settings.config);
        Self {
            bed: bed.clone(),
            settings,
            home,
            state,
            child: None,
        }
    }

    /// The test bed.
    #[must_use]
    pub fn bed(&self) -> &Testbed {
        &self.bed
    }

    /// Starts the daemon and waits until it says that it serves.
    pub fn launch(&mut self) {
        let ready = self.launch_with(&[]);
        assert!(ready.is_ok(), "bangerd ended with {ready:?}:\n{}", self.log());
    }

    /// The file with the daemon's own file system, made when it is asked for first.
    fn image(&self, kind: &str) -> PathBuf {
        let image = self.disk_image();
        if !image.exists() {
            let file = std::fs::File::create_new(&image).expect("make an image");
            file.set_len(8 << 30).expect("make an image");
            let made = Command::new(format!("mkfs.{kind}"))
                .arg("-q")
                .arg(&image)
                .status();
            assert!(made.expect("run mkfs").success(), "mkfs.{kind} failed");
        }
        image
    }

    /// The file with the daemon's own file system, see [`Settings::file_system`].
    #[must_use]
    pub fn disk_image(&self) -> PathBuf {
        self.home.path().join("disk.img")
    }

    fn program(&self) -> PathBuf {
        if self.settings.crash_points {
            self.bed.crash_daemon.clone().expect("a daemon with crash points")
        } else {
            self.bed.program("bangerd")
        }
    }

    /// Starts the daemon with these variables and waits until it says that it serves.
    ///
    /// # Errors
    /// How it ended, when it did instead.
    pub fn launch_with(&mut self, environment: &[(&str, &str)]) -> Result<(), ExitStatus> {
        assert!(self.child.is_none(), "one daemon at a time");
        let notify = self.home.path().join("notify");
        drop(std::fs::remove_file(&notify));
        let listener = UnixDatagram::bind(&notify).expect("listen for the daemon's word");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("open the log");

        let mut command = match &self.settings.disk {
            None => Command::new(self.program()),
            Some(disk) => {
                // A mount namespace that ends with the daemon and its machines: no mount can stay behind, and a loop device
                // goes with its mount. A second daemon finds what the first one left.
                let script = r#"case $1 in
                        tmpfs) mount -t tmpfs -o "size=$2" tmpfs "$3" ;;
                        *) mount -t "$1" -o loop "$2" "$3" ;;
                    esac && { [ -e "$3/banger.db" ] || { cp -a "$4/." "$3" && sync -f "$3"; }; } &&
                    mount --bind "$3" "$4" && shift 4 && exec "$@""#;
                let mount_point = self.home.path().join("disk");
                std::fs::create_dir_all(&mount_point).expect("make a directory");
                let (kind, what) = match disk {
                    Disk::Tmpfs(size) => ("tmpfs", PathBuf::from(size)),
                    Disk::Image(kind) => (*kind, self.image(kind)),
                };
                let mut command = Command::new("unshare");
                command
                    .args(["--mount", "sh", "-c", script, "sh", kind])
                    .arg(what)
                    .arg(mount_point)
                    .arg(self.state.path());
                command.arg(self.program());
                command
            }
        };
        command
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        command
            .env("NOTIFY_SOCKET", &notify)
            .envs(self.settings.environment.iter().cloned())
            .envs(environment.iter().copied());
        let child = command.spawn().expect("run bangerd");
        self.child = Some(child);

        listener
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("set a timeout");
        let end = Instant::now() + READY;
        let mut message = [0; 512];
        loop {
            match listener.recv(&mut message) {
                // sd_notify(3): assignments, a line each.
                Ok(length)
                    if message[..length]
                        .split(|&b| b == b'\n')
                        .any(|line| line == b"READY=1") =>
                {
                    return Ok(());
                }
                Ok(_) | Err(_) => {}
            }
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().expect("wait for bangerd"));
            if let Some(status) = ended {
                self.child = None;
                return Err(status);
            }
            assert!(
                Instant::now() < end,
                "bangerd did not get ready within {READY:?}:\n{}",
                self.log()
            );
        }
    }

    /// The variables that lead a daemon or a command line to this one's directories.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("BANGER_STATE_DIR", self.state.path().to_owned()),
            ("BANGER_RUNTIME_DIR", self.runtime()),
            ("BANGER_CONFIG", self.home.path().join("config.toml")),
        ]
    }

    /// Runs the command line against this daemon, which it does not start by itself.
    pub fn banger<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, arguments: I) -> Banger {
        let mut banger = Banger::new(self.bed.program("banger")).env("BANGER_NO_AUTOSTART", "1");
        for (name, value) in self.environment() {
            banger = banger.env(name, value);
        }
        banger.env_remove("BANGER_SOCKET").args(arguments)
    }

    /// Its sockets' directory.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.home.path().join("run")
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime().join("bangerd.sock")
    }

    /// Its state directory as seen from here: with [`Settings::small_disk`], through the daemon's own mounts.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        match (&self.settings.disk, &self.child) {
            (Some(_), Some(child)) => {
                let relative = self.state.path().strip_prefix("/").expect("an absolute path");
                Path::new("/proc")
                    .join(child.id().to_string())
                    .join("root")
                    .join(relative)
            }
            (Some(_), None) | (None, _) => self.state.path().to_owned(),
        }
    }

    /// A directory for the test's own files, removed with the daemon.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.home.path().join("scratch");
        std::fs::create_dir_all(&scratch).expect("make a directory");
        scratch
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a daemon that runs").id()
    }

    /// Whether it runs, as far as was noticed.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Tells it to end, and does not wait.
    pub fn signal_end(&self) {
        let child = self.child.as_ref().expect("a daemon that runs");
        rustix::process::kill_process(Pid::from_child(child), Signal::TERM).expect("signal bangerd");
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> String {
        std::fs::read_to_string(self.home.path().join("config.toml")).expect("read the configuration")
    }

    /// Writes another configuration, for the next launch.
    pub fn configure(&self, config: &str) {
        write_config(&self.home.path().join("config.toml"), config);
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("bangerd.log")
    }

    /// What the daemon has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Kills the daemon as the kernel would when memory runs out. Machines go on.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a daemon that runs");
        child.kill().expect("kill bangerd");
        child.wait().expect("wait for bangerd");
    }

    /// Waits until the daemon has been killed by itself.
    ///
    /// # Panics
    /// When it is still there after that long, or has ended in another way.
    pub fn wait_killed(&mut self, deadline: Duration) {
        let child = self.child.as_mut().expect("a daemon that runs");
        assert!(
            ends_within(Pid::from_child(child), deadline),
            "bangerd lives on after {deadline:?}"
        );
        let status = child.wait().expect("wait for bangerd");
        self.child = None;
        assert_eq!(
            status.signal(),
            Some(Signal::KILL.as_raw()),
            "{status}:\n{}",
            self.log()
        );
    }

    /// Asks the daemon to end, as systemd does, and asserts that it ends well. Machines go on.
    pub fn terminate(&mut self) {
        let mut child = self.child.take().expect("a daemon that runs");
        let pid = Pid::from_child(&child);
        rustix::process::kill_process(pid, Signal::TERM).expect("signal bangerd");
        let ended = ends_within(pid, READY);
        if !ended {
            drop(child.kill());
        }
        let status = child.wait().expect("wait for bangerd");
        assert!(
            ended,
            "bangerd did not end within {READY:?} of SIGTERM:\n{}",
            self.log()
        );
        assert!(status.success(), "bangerd ended with {status}:\n{}", self.log());
    }

    /// Processes that carry this daemon's directories, without the daemon itself, and without the questions for their
    /// versions that it asks its programs when it first needs them.
    #[must_use]
    pub fn machine_processes(&self) -> Vec<Process> {
        let own = self.child.as_ref().map(Child::id);
        let mut found = self.processes();
        found.retain(|p| u32::try_from(p.pid).ok() != own && !p.command.ends_with(" --version"));
        found
    }

    fn processes(&self) -> Vec<Process> {
        let markers = [self.home.path(), self.state.path()].map(|path| path.to_str().expect("an ASCII path"));
        processes::with_markers(&markers)
    }

    /// What is there now, to be compared with later.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self)
    }

    /// Removes every machine, ends the daemon and asserts that nothing is left. Dropping does the same.
    pub fn finish(self) {
        drop(self);
    }

    fn wind_up(&mut self) {
        if self.child.is_some() {
            let machines = self.banger(["ls", "-q"]).ok();
            if !machines.is_empty() {
                self.banger(["vm", "rm", "--force"]).args(machines.lines()).ok();
            }
            let runtime = self.runtime();
            let sockets = names(&runtime);
            assert!(
                sockets.iter().all(|name| !name.starts_with("bgr")),
                "left in the runtime directory: {sockets:?}"
            );
            let disks = names(&self.state().join("vms"));
            assert!(disks.is_empty(), "left in the state directory: {disks:?}");
            self.terminate();
        }
        // The command line's own processes may be at their last instructions.
        let left = wait_for(Duration::from_secs(60), || {
            self.processes().is_empty().then_some(())
        });
        assert!(left.is_some(), "left running: {:#?}", self.processes());
        assert!(!self.socket().exists(), "the socket is left");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed already: say what the daemon saw, and clear up by force.
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- the daemon's last lines");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        } else {
            // A failed promise is a failed test, but what is left must go all the same.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.wind_up()));
            if outcome.is_err() {
                self.clear();
                panic!("something is left; see above");
            }
        }
        self.clear();
    }
}

impl Daemon {
    fn clear(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        processes::kill(&self.processes());
    }
}

/// A configuration without a network of its own says that machines have the VMM's: tests run as root, and nothing of theirs
/// may be in the network namespace of the machine that runs them.
fn write_config(path: &Path, config: &str) {
    // QEMU's own, which every host has: a test of passt asks for it.
    let network = match config.contains("[network]") {
        true => "",
        false => "\n[network]\nmode = \"user\"\npasst = \"off\"\n",
    };
    std::fs::write(path, format!("{config}{network}")).expect("write the configuration");
}

/// Names in a directory; empty where there is none.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
