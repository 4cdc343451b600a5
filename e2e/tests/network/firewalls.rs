//! Beside other programs with rules, the real ones: ufw, firewalld and Docker, out of their packages, in a tree of their
//! own and in the namespaces of the host under test.
//!
//! Each drops what guests send. `doctor` names it; what `doctor` prints, run as it stands there, lets guests through and
//! no further than before; and the other's reload or restart takes nothing of ours away.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, wait_for};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{
    CONFIG, GATEWAY, HOST, INTERNET, LAN, World, answer, ask, checks, eventually, host_reaches, objects,
    pings, reaches, resolves, sh,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// A tree with the programs, that is this test's alone.
struct Tree {
    /// Where a memory file system is mounted, in this test's mount namespace alone. Never removed with what is in it.
    home: PathBuf,
    /// The tree, below it; what is written into it is in memory.
    root: PathBuf,
    running: Vec<Child>,
}

impl Tree {
    /// In the world's namespaces. `None`, said aloud, where the test bed has no such tree.
    fn open(bed: &Testbed) -> Option<Self> {
        let lower = std::env::var_os("BANGER_TEST_FIREWALLS")
            .map_or_else(|| bed.directory.join("firewalls/tree"), PathBuf::from);
        if !lower.join("usr/sbin/ufw").is_file() {
            e2e::testbed::skip("the test bed has no firewalls (cargo xtask testbed says why)");
            return None;
        }
        // Among the state of tests' daemons: what a killed test leaves there the next run removes.
        let runs = bed.directory.join("runs");
        std::fs::create_dir_all(&runs).expect("make the directory of the tests' state");
        let home = tempfile::tempdir_in(runs).expect("make a directory").keep();
        let tree = Self {
            root: home.join("root"),
            home,
            running: Vec::new(),
        };
        let (at, lower) = (tree.home.display(), lower.display());
        sh(&format!(
            "mount -t tmpfs none {at}; mkdir {at}/upper {at}/work {at}/root; \
             mount -t overlay -o lowerdir={lower},upperdir={at}/upper,workdir={at}/work none {at}/root; cd {at}/root; \
             mount -t proc none proc; mount -t sysfs none sys; mount -t cgroup2 none sys/fs/cgroup; mount -t tmpfs none dev; \
             mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/urandom c 1 9; \
             ln -s /proc/self/fd dev/fd; mount -t tmpfs none run; mkdir -p run/dbus run/lock run/docker"
        ));
        Some(tree)
    }

    /// A shell script in it that must succeed.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        e2e::Banger::new("chroot")
            .args([self.root.as_os_str()])
            .args(["sh", "-euc", script])
            .deadline(PATIENCE)
            .ok()
    }

    /// Runs a program of it beside us, and waits until a condition holds in it.
    #[track_caller]
    fn serve(&mut self, program: &[&str], ready: &str) {
        let log = self.root.join("tmp/log");
        let file = std::fs::File::options().create(true).append(true).open(&log);
        let file = file.expect("a log");
        let child = Command::new("chroot")
            .arg(&self.root)
            .args(program)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the log"))
            .stderr(file)
            .spawn()
            .expect("run chroot");
        self.running.push(child);
        let up = wait_for(PATIENCE, || {
            let mut asked = Command::new("chroot");
            asked.arg(&self.root).args(["sh", "-c", ready]);
            let asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).status();
            asked.is_ok_and(|status| status.success()).then_some(())
        });
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(up.is_some(), "{program:?} does not serve:\n{said}");
    }

    /// Ends the program that was begun last, in order.
    fn end(&mut self) {
        let Some(mut child) = self.running.pop() else {
            return;
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let asked = pid.map(|pid| kill_process(pid, Signal::TERM));
        let ended = wait_for(Duration::from_secs(30), || child.try_wait().ok().flatten());
        if ended.is_none() || asked.is_none() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        while !self.running.is_empty() {
            self.end();
        }
        // Only what is empty is removed: below this there are file systems of the machine's.
        let unmount = ["--recursive", "--lazy"];
        drop(Command::new("umount").args(unmount).arg(&self.home).status());
        drop(std::fs::remove_dir(&self.home));
    }
}

/// What doctor has to say of others' rules: who, and what to do.
fn warnings(daemon: &Daemon) -> Vec<(String, String)> {
    let found = checks(daemon, "firewall").into_iter();
    found
        .filter(|(state, _, _)| state != "ok")
        .map(|(_, why, fix)| (why, fix))
        .collect()
}

fn knows(guest: &Guest<'_>) -> bool {
    resolves(guest, "one.vm", "10.209.0.2")
}

/// One guest of two reaches the internet and the names, and nothing that it shall not.
#[track_caller]
fn open_as_ever(one: &Guest<'_>) {
    assert_eq!(answer(one, INTERNET), HOST);
    eventually("a name", || knows(one).then_some(()));
    reaches(one, GATEWAY);
    for closed in [GATEWAY, HOST, LAN] {
        assert_eq!(ask(one, closed), None, "{closed}");
    }
    assert!(!pings(one, "10.209.0.3"));
    host_reaches("10.209.0.2");
}

/// Follows doctor, who names that program and nobody else, and has nothing to say after it.
#[track_caller]
fn follow(daemon: &Daemon, tree: &Tree, who: &str) {
    let found = warnings(daemon);
    assert!(
        found.len() == 1 && found[0].0.starts_with(&format!("{who} drops")),
        "{found:?}"
    );
    tree.sh(&found[0].1);
    assert_eq!(warnings(daemon), []);
}

/// Ours, with the rules in them, and without the two sets into which the kernel writes.
fn tables() -> String {
    let text = sh("nft --stateless list table bridge banger; nft --stateless list table inet banger");
    let (sets, rest) = text
        .split_once("\tset new {")
        .expect("a set that the kernel writes into");
    let chains = rest.find("\tchain ").expect("chains after it");
    format!("{sets}{}", &rest[chains..])
}

fn two<'d>(daemon: &'d Daemon) -> (Guest<'d>, Guest<'d>) {
    let (one, other) = (
        Guest::start(daemon, "one", "busybox"),
        Guest::start(daemon, "other", "busybox"),
    );
    assert_eq!(
        (&one.show()["address"], &other.show()["address"]),
        (&"10.209.0.2".into(), &"10.209.0.3".into())
    );
    (one, other)
}

fn finish(daemon: Daemon) {
    daemon.banger(["vm", "rm", "--force", "one", "other"]).ok();
    daemon.finish();
    let left = objects();
    let ours = left
        .iter()
        .any(|name| name.contains("banger") || name.starts_with("bgr"));
    assert!(!ours, "{left:?}");
}

#[test]
fn beside_ufw() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let Some(tree) = Tree::open(&bed) else { return };
    let daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    let (one, _other) = two(&daemon);
    open_as_ever(&one);
    assert_eq!(warnings(&daemon), []);
    let before = tables();
    tree.sh("ufw --force enable");
    assert_eq!(ask(&one, INTERNET), None);
    assert!(!knows(&one));
    follow(&daemon, &tree, "ufw");
    open_as_ever(&one);
    tree.sh("ufw reload");
    open_as_ever(&one);
    assert_eq!(tables(), before);
    tree.sh("ufw disable");
    assert_eq!(warnings(&daemon), []);
    open_as_ever(&one);
    finish(daemon);
}

#[test]
fn beside_firewalld() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let Some(mut tree) = Tree::open(&bed) else { return };
    let daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    let (one, _other) = two(&daemon);
    open_as_ever(&one);
    let before = tables();
    let bus = ["dbus-daemon", "--system", "--nofork", "--nopidfile"];
    tree.serve(&bus, "test -S /run/dbus/system_bus_socket");
    tree.serve(&["firewalld", "--nofork", "--nopid"], "firewall-cmd --state");
    assert_eq!(ask(&one, INTERNET), None);
    assert!(!knows(&one));
    follow(&daemon, &tree, "firewalld");
    open_as_ever(&one);
    tree.sh("firewall-cmd --reload");
    open_as_ever(&one);
    tree.sh("firewall-cmd --complete-reload");
    open_as_ever(&one);
    assert_eq!(tables(), before);
    tree.end();
    open_as_ever(&one);
    finish(daemon);
}

#[test]
fn beside_docker() {
    let Some((bed, _world)) = World::enter() else {
        return;
    };
    let Some(mut tree) = Tree::open(&bed) else { return };
    let containerd = [
        "containerd",
        "--root",
        "/tmp/containerd",
        "--state",
        "/run/containerd",
    ];
    tree.serve(&containerd, "test -S /run/containerd/containerd.sock");
    let dockerd = [
        "dockerd",
        "--containerd=/run/containerd/containerd.sock",
        "--data-root=/tmp/docker",
        "--storage-driver=vfs",
        "--pidfile=/run/dockerd.pid",
    ];
    // Before us: Docker forwards, and drops what is not its own, where the host did not forward before.
    tree.serve(&dockerd, "docker info");
    let daemon = Daemon::start(&bed, Settings::prepared().config(CONFIG));
    let (one, _other) = two(&daemon);
    let before = tables();
    // Docker has nothing against what the host itself answers.
    eventually("a name", || knows(&one).then_some(()));
    one.banger("set").args(["--allow", "host"]).ok();
    answer(&one, GATEWAY);
    assert_eq!(ask(&one, INTERNET), None);
    one.banger("set").args(["--allow", "none"]).ok();
    follow(&daemon, &tree, "Docker");
    open_as_ever(&one);
    tree.end();
    tree.serve(&dockerd, "docker info");
    open_as_ever(&one);
    assert_eq!(warnings(&daemon), []);
    assert_eq!(tables(), before);
    finish(daemon);
    // Docker's containers need it.
    assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward"), "1");
}
