//! systemd-resolved and a message bus for tests, in the network namespace of [`crate::in_network_namespace`]: unpacked
//! and never installed, because its package would take over the machine's own `/etc/resolv.conf`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_bind};

/// Names the directory with the unpacked packages `systemd-resolved` and `libsystemd-shared`.
const TREE: &str = "BANGER_TEST_RESOLVED";

const BUS: &str = "/run/dbus/system_bus_socket";

/// Anybody may do everything on this bus.
const BUS_CONFIGURATION: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/>
<allow receive_type="signal"/></policy></busconfig>"#;

/// How long a program has until it serves.
const PATIENCE: Duration = Duration::from_secs(60);

/// The two programs, which end with this.
#[derive(Debug)]
pub struct Resolver {
    tree: PathBuf,
    bus: Child,
    resolved: Option<Child>,
}

impl Resolver {
    /// Starts the bus and resolved. To be called in a network namespace of the test's own, whose thread has mounts of its
    /// own as well: `/run` and the accounts are replaced in it. `None`, said aloud, where the parts are missing.
    ///
    /// # Panics
    ///
    /// When they are there and do not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let daemon = crate::program("BANGER_TEST_DBUS_DAEMON", "dbus-daemon")?;
        let Some(tree) = std::env::var_os(TREE).map(PathBuf::from) else {
            return crate::skip(&format!("{TREE} is not set"));
        };
        mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).expect("an empty /run");
        for directory in ["/run/dbus", "/run/systemd/resolve"] {
            fs::create_dir_all(directory).expect("a directory in /run");
        }
        let account = "systemd-resolve:x:990:990::/:/usr/sbin/nologin";
        replaced("/etc/passwd", account);
        replaced("/etc/group", "systemd-resolve:x:990:");
        std::os::unix::fs::chown("/run/systemd/resolve", Some(990), Some(990)).expect("its owner");
        fs::write("/run/dbus.conf", BUS_CONFIGURATION).expect("the bus's configuration");
        let bus = Command::new(daemon)
            .args(["--config-file=/run/dbus.conf", "--nofork", "--nopidfile"])
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon");
        let mut resolver = Self {
            tree,
            bus,
            resolved: None,
        };
        eventually("the bus", || Path::new(BUS).exists());
        resolver.run();
        Some(resolver)
    }

    /// The bus's socket.
    #[must_use]
    pub fn bus(&self) -> &Path {
        Path::new(BUS)
    }

    /// Starts resolved, and waits until it answers.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn run(&mut self) {
        let program = self.tree.join("lib/systemd/systemd-resolved");
        self.resolved = Some(
            self.program(&program)
                .stderr(Stdio::null())
                .spawn()
                .expect("resolved"),
        );
        eventually("resolved", || self.resolvectl(&["dns"]).status.success());
    }

    /// Makes programs in this mount namespace ask resolved, as on a host where it is installed.
    ///
    /// # Panics
    ///
    /// When that cannot be set.
    pub fn ask_by_libc(&self) {
        let copy = "/run/resolv.conf";
        fs::write(copy, "nameserver 127.0.0.53\noptions edns0\n").expect("a file in /run");
        mount_bind(copy, "/etc/resolv.conf").expect("it over the other");
    }

    /// Kills resolved, as a crash would.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut resolved = self.resolved.take().expect("it runs");
        resolved.kill().expect("a signal");
        resolved.wait().expect("its end");
    }

    /// What `resolvectl` says.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "a test looks at all of it itself")]
    pub fn resolvectl(&self, arguments: &[&str]) -> Output {
        let program = self.tree.join("usr/bin/resolvectl");
        self.program(&program)
            .args(arguments)
            .output()
            .expect("resolvectl")
    }

    fn program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        // Where systemd itself is not installed.
        command.env(
            "LD_LIBRARY_PATH",
            self.tree.join("usr/lib/x86_64-linux-gnu/systemd"),
        );
        command
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for child in self.resolved.iter_mut().chain([&mut self.bus]) {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A file with a line more, for this mount namespace.
fn replaced(file: &str, line: &str) {
    let copy = Path::new("/run").join(Path::new(file).file_name().expect("a name"));
    let text = fs::read_to_string(file).expect("accounts");
    fs::write(&copy, format!("{text}{line}\n")).expect("a copy");
    mount_bind(&copy, file).expect("it over the other");
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}
