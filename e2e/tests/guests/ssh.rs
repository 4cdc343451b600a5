//! ssh into guests, with the host's own ssh, scp, sftp and rsync: no network, no port, no question about host keys, and
//! nothing of the user's touched.

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::testbed::{find_program, require};
use e2e::{Banger, Daemon, Guest, Pty, Settings, Testbed};

/// What is sent whole: a gibibyte, which is so many times the same 64 MiB that compress to nothing smaller.
const PART: usize = 64 << 20;
const PARTS: usize = 16;

/// For a gibibyte through an emulated sshd, on a machine that has more to do.
const BULK_DEADLINE: Duration = Duration::from_secs(1000);

/// What the daemon may hold more than before while all of it goes through, in KiB: its windows and a few chunks.
const DAEMON_GROWTH_KIB: u64 = 32 << 10;

/// A user with a home of his own, and the configuration that `banger ssh-config show` prints.
struct User<'d> {
    daemon: &'d Daemon,
    home: PathBuf,
    config: PathBuf,
}

impl<'d> User<'d> {
    fn new(daemon: &'d Daemon, name: &str) -> Self {
        let home = daemon.scratch().join(name);
        fs::create_dir_all(&home).expect("make a home");
        let user = Self {
            daemon,
            config: home.join("shown"),
            home,
        };
        let shown = user.banger(["ssh-config", "show"]).ok();
        fs::write(&user.config, shown + "\n").expect("write what was shown");
        user
    }

    fn banger<const N: usize>(&self, arguments: [&str; N]) -> Banger {
        self.daemon
            .banger(arguments)
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", self.home.join("config"))
    }

    /// ssh, scp, sftp: whatever takes `-F`.
    fn run<const N: usize>(&self, program: &str, arguments: [&str; N]) -> Banger {
        Banger::new(program)
            .env("HOME", &self.home)
            .args(["-F", self.config.to_str().expect("UTF-8")])
            .args(arguments)
    }

    fn ssh<const N: usize>(&self, arguments: [&str; N]) -> Banger {
        self.run("ssh", arguments)
    }

    /// The key with which this user logs in.
    fn key(&self) -> PathBuf {
        let banger = self.home.join("config/banger");
        let mut found = fs::read_dir(banger).expect("a directory").flatten();
        found
            .next()
            .expect("one of this daemon")
            .path()
            .join("id_ed25519")
    }
}

/// Asserts that a command did well and had nothing to say besides its output.
#[track_caller]
fn quietly(command: Banger) -> String {
    let finished = command.run().expect(0);
    assert_eq!(finished.err(), "", "{finished}");
    finished.out()
}

fn has_ssh() -> bool {
    let there = ["ssh", "scp", "sftp", "ssh-keygen"]
        .iter()
        .all(|program| find_program(program).is_some());
    if !there {
        require("the OpenSSH client is missing: make setup");
    }
    there
}

/// Names in `~/.ssh` of who runs the tests.
fn own_ssh() -> Vec<(PathBuf, Option<std::time::SystemTime>)> {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let mut found: Vec<_> = fs::read_dir(home.join(".ssh"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            (
                entry.path(),
                entry.metadata().and_then(|found| found.modified()).ok(),
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn logins_commands_and_files() {
    let Some(bed) = Testbed::find() else { return };
    if !has_ssh() {
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = own_ssh();
    let guest = Guest::start(&daemon, "dev", "debian");
    // While the guest boots, only root is let in.
    guest.banger("wait").ok();
    let user = User::new(&daemon, "user");
    // No network is needed.
    guest.sh("ip link set eth0 down");

    assert_eq!(
        quietly(user.banger(["ssh", "dev", "--", "hostname; id -un"])),
        "dev\nroot"
    );
    user.banger(["ssh", "dev", "exit 42"]).run().expect(42);
    user.ssh(["dev.vm", "exit 43"]).run().expect(43);
    let every_byte: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let echo = user
        .banger(["ssh", "dev", "--", "cat"])
        .input(every_byte.clone())
        .run()
        .expect(0);
    assert!(echo.stdout == every_byte, "{} bytes came back", echo.stdout.len());
    let both = user
        .banger(["ssh", "dev", "--", "echo out; echo err >&2"])
        .run()
        .expect(0);
    assert_eq!((both.out().as_str(), both.err().as_str()), ("out", "err\n"));
    // Many at once.
    let many: Vec<_> = (0..6)
        .map(|n| user.ssh(["dev.vm", &format!("echo {n}")]).spawn())
        .collect();
    for (n, one) in many.into_iter().enumerate() {
        assert_eq!(one.finish().expect(0).out(), n.to_string());
    }

    terminal(&user);
    others(&user, &guest);
    copies(&user, &guest);
    forwarding(&user);
    one_connection_for_many_sessions(&user);

    // Nothing stays: neither in the guest, where keys were in memory only, nor in anybody's ~/.ssh.
    let gone = e2e::wait_for(Duration::from_secs(60), || {
        let left = guest.sh("ls /run/banger-agent/ssh; pgrep -af '[s]shd.*banger-agent' || true");
        left.is_empty().then_some(())
    });
    assert!(
        gone.is_some(),
        "left: {}",
        guest.sh("ls /run/banger-agent/ssh; ps ax")
    );
    assert_eq!(
        guest.sh("stat -fc %T /run/banger-agent/ssh; stat -c %a:%U /run/banger-agent/ssh"),
        "tmpfs\n711:root"
    );
    assert!(!user.home.join(".ssh").exists());
    assert_eq!(own_ssh(), before);
    daemon.finish();
}

/// A person at a terminal.
fn terminal(user: &User<'_>) {
    let mut pty = Pty::spawn(user.banger(["ssh", "dev"]).env("TERM", "xterm"), 33, 99);
    pty.send("stty size; echo $TERM; tty; PS1=\n");
    pty.wait("33 99");
    pty.resize(44, 111);
    pty.send("while ! stty size | grep '44 111'; do sleep 0.1; done; exit 7\n");
    let (code, seen) = pty.finish();
    assert_eq!(code, Some(7), "{seen}");
    assert!(seen.contains("/dev/pts/") && seen.contains("xterm"), "{seen}");
    let (code, seen) = Pty::spawn(
        user.banger(["ssh", "dev", "-t", "--", "test -t 0 && echo is-a-tty"]),
        24,
        80,
    )
    .finish();
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("is-a-tty"), "{seen}");
}

/// Users of the image, whatever their homes look like, and their own keys.
fn others(user: &User<'_>, guest: &Guest<'_>) {
    guest.sh("useradd -m -s /bin/sh joe; useradd -M -s /bin/sh homeless; chown 4321:4321 /home/joe; chmod 777 /home/joe");
    assert_eq!(quietly(user.banger(["ssh", "joe@dev", "--", "id -un"])), "joe");
    assert_eq!(
        quietly(user.banger(["ssh", "dev", "-l", "joe", "pwd"])),
        "/home/joe"
    );
    assert_eq!(quietly(user.ssh(["joe@dev.vm", "id -u"])), guest.sh("id -u joe"));
    // PAM says where it stands instead of a home.
    let homeless = user.ssh(["homeless@dev.vm", "id -un"]).run().expect(0);
    assert_eq!(homeless.out(), "homeless");
    let nobody = user.ssh(["not-there@dev.vm", "true"]).fails(255);
    assert!(nobody.contains("Permission denied"), "{nobody}");
    // A login is a session of systemd's, as with the image's own sshd.
    assert_eq!(
        quietly(user.banger(["ssh", "dev", "--", "test -n \"$XDG_SESSION_ID\" && echo session"])),
        "session"
    );

    let own = user.home.join("own");
    Banger::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .args([&own])
        .ok();
    let public = fs::read_to_string(own.with_extension("pub")).expect("a key");
    guest.sh(&format!(
        "mkdir -p /home/joe/.ssh; echo '{}' > /home/joe/.ssh/authorized_keys",
        public.trim()
    ));
    let proxy = fs::read_to_string(&user.config).expect("shown");
    let proxy = proxy
        .lines()
        .find(|line| line.contains("ProxyCommand"))
        .expect("one")
        .trim();
    let with_own = Banger::new("ssh")
        .args(["-F", "/dev/null", "-o", &proxy.replacen(' ', "=", 1)])
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-i",
        ])
        .args([&own])
        .args(["joe@dev.vm", "id -un"]);
    assert_eq!(with_own.ok(), "joe");
}

fn copies(user: &User<'_>, guest: &Guest<'_>) {
    let tree = user.home.join("tree");
    fs::create_dir_all(tree.join("a/b")).expect("make a tree");
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[2])
        .collect();
    fs::write(tree.join("a/bytes"), &bytes).expect("write");
    fs::write(tree.join("a/b/with blank"), "x").expect("write");
    std::os::unix::fs::symlink("b/with blank", tree.join("a/link")).expect("link");
    let (from, back) = (tree.to_str().expect("UTF-8"), user.home.join("back"));
    let sum = |root: &Path| {
        let found = Banger::new("sh").args([
            "-c",
            "cd \"$0\" && find . | sort && find . -type f -exec md5sum {} + | sort",
        ]);
        found.args([root]).ok()
    };

    quietly(user.run("scp", ["-rqp", from, "dev.vm:/srv/scp"]));
    quietly(user.run(
        "scp",
        ["-rqp", "dev.vm:/srv/scp/a", back.to_str().expect("UTF-8")],
    ));
    assert!(fs::read(back.join("bytes")).expect("came back") == bytes);

    let batch = user.home.join("batch");
    fs::write(
        &batch,
        format!("put {from}/a/bytes /srv/sftp\nget /srv/sftp {from}/../sftp\n"),
    )
    .expect("write");
    user.run("sftp", ["-qb", batch.to_str().expect("UTF-8"), "dev.vm"])
        .ok();
    assert!(fs::read(user.home.join("sftp")).expect("came back") == bytes);

    let shell = format!("ssh -F {}", user.config.display());
    let rsync = |arguments: &[&str]| {
        Banger::new("rsync")
            .env("HOME", &user.home)
            .args(["-a", "--delete", "-e", &shell])
            .args(arguments)
    };
    if find_program("rsync").is_none() {
        require("rsync is missing: make setup");
    } else {
        quietly(rsync(&[&format!("{from}/"), "dev.vm:/srv/rsync/"]));
        fs::write(tree.join("a/bytes"), &bytes[..2_000_000]).expect("change");
        fs::remove_file(tree.join("a/link")).expect("remove");
        quietly(rsync(&[&format!("{from}/"), "dev.vm:/srv/rsync/"]));
        let again = user.home.join("again");
        quietly(rsync(&["dev.vm:/srv/rsync/", again.to_str().expect("UTF-8")]));
        assert_eq!(sum(&again), sum(&tree));
    }
    let tar = Banger::new("sh")
        .args([
            "-c",
            "tar -C \"$0\" -c . | ssh -F \"$1\" dev.vm 'mkdir /srv/tar && tar -C /srv/tar -x'",
        ])
        .args([&tree, &user.config]);
    quietly(tar);
    let there = guest.sh("cd /srv/tar && find . | sort && find . -type f -exec md5sum {} + | sort");
    assert_eq!(there, sum(&tree));
}

/// `-L` to a server in the guest: the image's own sshd, which says what it is.
fn forwarding(user: &User<'_>) {
    let free = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("a port")
        .port();
    let tunnel = user
        .ssh([
            "-N",
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &format!("127.0.0.1:{free}:127.0.0.1:22"),
            "dev.vm",
        ])
        .spawn();
    let connection = e2e::wait_for(Duration::from_secs(60), || {
        TcpStream::connect(("127.0.0.1", free)).ok()
    });
    let mut banner = [0; 8];
    connection
        .expect("a tunnel")
        .read_exact(&mut banner)
        .expect("a banner");
    assert_eq!(&banner, b"SSH-2.0-");
    tunnel.signal(rustix::process::Signal::TERM);
    drop(tunnel.finish());
}

/// As editors do it.
fn one_connection_for_many_sessions(user: &User<'_>) {
    let path = user.home.join("control");
    let control = format!("ControlPath={}", path.display());
    let master = user.ssh(["-M", "-N", "-o", &control, "dev.vm"]).spawn();
    let there = e2e::wait_for(Duration::from_secs(60), || path.exists().then_some(()));
    assert!(there.is_some(), "no connection");
    let sessions: Vec<_> = (0..20)
        .map(|n| {
            user.ssh(["-o", &control, "dev.vm", &format!("echo {n}; sleep 1")])
                .spawn()
        })
        .collect();
    for (n, session) in sessions.into_iter().enumerate() {
        assert_eq!(session.finish().expect(0).out(), n.to_string());
    }
    user.ssh(["-O", "exit", "-o", &control, "dev.vm"]).run().expect(0);
    drop(master.finish());
}

#[test]
fn keys_follow_machines_and_are_renewed() {
    let Some(bed) = Testbed::find() else { return };
    if !has_ssh() {
        return;
    }
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let options = ["--memory", "384M", "--vcpus", "1"];
    for name in ["one", "two"] {
        let guest = Guest::start_with(&daemon, name, "debian", &options);
        guest.sh(&format!("echo I am {name} > /etc/marker"));
    }
    let host_key = |daemon: &Daemon, name: &str| {
        let user = User::new(daemon, "keys");
        user.ssh([&format!("{name}.vm"), "true"]).ok();
        let known = fs::read_to_string(user.key().with_file_name("known_hosts")).expect("written");
        let line = known
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}.vm ")));
        line.expect("known").to_owned()
    };
    let (one, two) = (host_key(&daemon, "one"), host_key(&daemon, "two"));
    assert_ne!(one, two);
    {
        let user = User::new(&daemon, "user");
        for name in ["one", "two"] {
            assert_eq!(
                quietly(user.ssh([&format!("{name}.vm"), "cat /etc/marker"])),
                format!("I am {name}")
            );
        }
        // Each takes the other's name: the same command reaches the other, and nothing is asked or warned of.
        for (from, to) in [("one", "three"), ("two", "one"), ("three", "two")] {
            daemon.banger(["vm", "rename", from, to]).ok();
        }
        assert_eq!(quietly(user.ssh(["one.vm", "cat /etc/marker"])), "I am two");
        assert_eq!(quietly(user.ssh(["two.vm", "cat /etc/marker"])), "I am one");
        assert_eq!(host_key(&daemon, "one"), two);

        // Renewed by somebody else: no action of this user, and the former key opens nothing.
        let former = user.home.join("former");
        fs::copy(user.key(), &former).expect("keep it");
        let other = User::new(&daemon, "other");
        other.banger(["ssh-config", "rotate"]).ok();
        assert_eq!(quietly(user.ssh(["two.vm", "cat /etc/marker"])), "I am one");
        assert_ne!(
            fs::read(user.key()).expect("a key"),
            fs::read(&former).expect("a key")
        );
        let known = user.key().with_file_name("known_hosts");
        let text = fs::read_to_string(&user.config).expect("shown");
        let proxy = text
            .lines()
            .find(|line| line.contains("ProxyCommand"))
            .expect("one")
            .trim();
        let refused = Banger::new("ssh")
            .args(["-F", "/dev/null", "-o", &proxy.replacen(' ', "=", 1), "-o"])
            .args([format!("UserKnownHostsFile={}", known.display())])
            .args(["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-i"])
            .args([&former])
            .args(["root@two.vm", "true"])
            .fails(255);
        assert!(refused.contains("Permission denied"), "{refused}");
    }
    // Keys are the machine's for life: through another daemon and another disk.
    daemon.terminate();
    daemon.launch();
    assert_eq!(host_key(&daemon, "one"), two);
    daemon.banger(["vm", "reset", "--force", "one"]).ok();
    assert_eq!(host_key(&daemon, "one"), two);
    let user = User::new(&daemon, "user");
    assert_eq!(
        quietly(user.ssh(["one.vm", "test -e /etc/marker || echo renewed"])),
        "renewed"
    );
    daemon.finish();
}

#[test]
fn what_cannot_be_reached_says_so() {
    let Some(bed) = Testbed::find() else { return };
    if !has_ssh() {
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "plain", "busybox");
    let user = User::new(&daemon, "user");
    let missing = user.banger(["ssh", "plain"]).fails(255);
    assert!(
        missing.contains("its image has none") && missing.contains("openssh-server"),
        "{missing}"
    );
    guest.banger("stop").ok();
    let stopped = user.banger(["ssh", "plain", "true"]).fails(125);
    assert!(stopped.contains("banger vm start plain"), "{stopped}");
    let stopped = user.ssh(["plain.vm", "true"]).fails(255);
    assert!(
        stopped.contains("is not running") && stopped.contains("banger vm start plain"),
        "{stopped}"
    );
    let nobody = user.ssh(["nobody.vm", "true"]).fails(255);
    assert!(nobody.contains("no machine \"nobody\""), "{nobody}");
    let nobody = user.banger(["ssh", "palin"]).fails(125);
    assert!(nobody.contains("did you mean \"plain\""), "{nobody}");
    // A name of another sort is none of ours, and the user's own settings stay in force behind the Include.
    let own = user.home.join("own");
    fs::write(&own, "User everywhere\nHost other\n  Port 2222\n").expect("write");
    user.banger(["ssh-config", "install", "--file", own.to_str().expect("UTF-8")])
        .ok();
    let effective = |host: &str| {
        Banger::new("ssh")
            .args(["-G", "-F"])
            .args([&own])
            .args([host])
            .ok()
    };
    assert!(effective("plain.vm").contains("user root\n") && effective("plain.vm").contains("ssh-proxy"));
    let other = effective("other");
    assert!(
        other.contains("user everywhere\n") && other.contains("port 2222\n"),
        "{other}"
    );
    assert!(!other.contains("ssh-proxy"), "{other}");
    user.banger(["ssh-config", "remove", "--file", own.to_str().expect("UTF-8")])
        .ok();
    let left = fs::read_to_string(&own).expect("there");
    assert_eq!(left, "User everywhere\nHost other\n  Port 2222\n");
    daemon.finish();
}

#[test]
fn much_data_arrives_whole() {
    let Some(bed) = Testbed::find() else { return };
    if !has_ssh() {
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared());
    let _guest = Guest::start(&daemon, "bulk", "debian");
    // Who logs in while it boots is told so (pam_nologin), on standard error.
    daemon.banger(["vm", "wait", "bulk"]).ok();
    let user = User::new(&daemon, "user");
    let mut bytes = vec![0; PART];
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for chunk in bytes.chunks_mut(8) {
        // xorshift64: cheap.
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let part = user.home.join("part");
    fs::write(&part, bytes).expect("write");
    let shell = |script: &str| {
        Banger::new("sh")
            .env("HOME", &user.home)
            .args(["-euc", script])
            .args([&part, &user.config])
            .deadline(BULK_DEADLINE)
    };
    let all = format!("for i in $(seq {PARTS}); do cat \"$0\"; done");
    let sent = shell(&format!("{all} | md5sum")).ok();

    // Into the guest, which says what has arrived; then something else out of it, which it makes without effort.
    let before = forget_peak(daemon.pid());
    let began = Instant::now();
    let arrived = quietly(shell(&format!("{all} | ssh -F \"$1\" bulk.vm md5sum")));
    let took = began.elapsed();
    let grown = memory(daemon.pid(), "VmHWM").saturating_sub(before);
    println!(
        "{} MiB into a guest in {:.1} s; the daemon grew by {grown} KiB",
        (PART * PARTS) >> 20,
        took.as_secs_f32()
    );
    assert_eq!(arrived, sent);
    assert!(grown < DAEMON_GROWTH_KIB, "the daemon grew by {grown} KiB");

    let numbers = "seq 8000000";
    let made = shell(&format!("{numbers} | md5sum")).ok();
    let there = user.ssh(["bulk.vm", &format!("{numbers} | md5sum")]).ok();
    let back = shell(&format!("ssh -F \"$1\" bulk.vm '{numbers}' | md5sum")).ok();
    assert_eq!((there, back), (made.clone(), made));
    daemon.finish();
}

/// A process's memory from proc_pid_status(5), in KiB.
fn memory(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let number = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("a number")
}

/// Its peak is what it has now, from here on; which is how much.
fn forget_peak(pid: u32) -> u64 {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("forget a peak");
    memory(pid, "VmHWM")
}
