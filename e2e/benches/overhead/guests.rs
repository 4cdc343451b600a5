//! The ways into a guest that need no network and no privileges: published ports and ssh, both over vsock. In Debian, whose
//! perl can listen on vsock itself and which has an sshd.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::testbed::find_program;
use e2e::{Banger, Daemon, Guest};

use crate::pairs::Pairs;
use crate::raw::Recipe;
use crate::report::{Budget, Report};
use crate::rows::time;
use crate::stream;

const ROUNDS: usize = 10;
/// Each is seconds of an emulated processor's cryptography.
const LOGINS: usize = 7;
/// Where the guest's services listen, on TCP and on vsock alike: who sends there, and who takes.
const SOURCE: u16 = 5001;
const SINK: u16 = 5002;
/// A guest whose processor is emulated answers within that.
const PATIENCE: Duration = Duration::from_secs(120);

/// `perl -e SERVER FAMILY PORT SCRIPT`: gives each connection to a shell, as its standard input and output, and ends as soon
/// as it listens. vsock(7) has the address of its family: port and context, here any.
const SERVER: &str = r#"use Socket; use POSIX; my ($family, $port, $script) = @ARGV;
my $tcp = $family eq "tcp";
my $at = $tcp ? pack_sockaddr_in($port, INADDR_LOOPBACK) : pack("SSLLx4", 40, 0, $port, 0xffffffff);
socket(my $all, $tcp ? AF_INET : 40, SOCK_STREAM, 0) or die $!;
bind($all, $at) or die $!;
listen($all, 8) or die $!;
open(STDIN, "<", "/dev/null"); open(STDOUT, ">", "/dev/null"); open(STDERR, ">", "/dev/null");
exit if fork;
setsid();
$SIG{CHLD} = "IGNORE";
while (accept(my $one, $all)) {
    next if fork;
    open(STDIN, "<&", $one); open(STDOUT, ">&", $one); close $one;
    exec "sh", "-c", $script;
}"#;

/// Bytes through a published port against the guest's vsock socket itself: what daemon and agent add. And against the output
/// of a plain call of the agent, which has the same framing: what is the daemon's, and the guest's loopback.
pub(crate) fn publish(report: &mut Report, daemon: &Daemon) {
    let guest = Guest::start(daemon, "published", "debian");
    // What its systemd starts meanwhile would be measured as well.
    guest.banger("wait").ok();
    for family in ["tcp", "vsock"] {
        for (port, script) in [(SOURCE, stream::SOURCE), (SINK, stream::SINK)] {
            let server = ["perl", "-e", SERVER, family, &port.to_string(), script];
            guest.exec(server).ok();
        }
    }
    let published = daemon
        .banger(["vm", "publish", "published", "--output", "json"])
        .args([SOURCE, SINK].map(|port| port.to_string()))
        .json();
    let host_port = |port: u16| {
        let all = published.as_array().expect("a list");
        let found = all.iter().find(|found| found["guest_port"] == port);
        let port = found.and_then(|found| found["host_port"].as_u64());
        port.and_then(|port| u16::try_from(port).ok()).expect("a port")
    };
    let (source, sink) = (host_port(SOURCE), host_port(SINK));
    let shown = guest.show();
    let socket = Path::new(shown["running"]["vsock"].as_str().expect("a socket"));

    let recipe = Recipe::of(daemon, &guest);
    let [mut from, mut call, mut to] = <[Pairs; 3]>::default();
    // The first of each is not kept: their programs are read then.
    for round in 0..=ROUNDS {
        from.take(
            round,
            || stream::take(&mut published_port(source)),
            || stream::take(&mut vsock(socket, SOURCE)),
        );
        call.take(
            round,
            || stream::take(&mut published_port(source)),
            || by_agent_call(&recipe, socket),
        );
        to.take(
            round,
            || stream::give(&mut published_port(sink)),
            || stream::give(&mut vsock(socket, SINK)),
        );
    }
    guest.banger("rm").args(["--force"]).ok();
    for (name, pairs) in [
        ("guest to host, published (raw: vsock)", from),
        ("guest to host, published (raw: agent call)", call),
        ("host to guest, published (raw: vsock)", to),
    ] {
        report.add(name, "MiB/s", pairs.ours, pairs.raw, Budget::Compared);
    }
}

/// MiB a second of a command's output, by a call of the agent.
fn by_agent_call(recipe: &Recipe, socket: &Path) -> f64 {
    let mut call = Command::new(recipe.agent_call());
    call.arg(socket).args(["exec", "--", "sh", "-c", stream::SOURCE]);
    call.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut call = call.spawn().expect("run agent-call");
    let rate = stream::take(call.stdout.as_mut().expect("its output"));
    let status = call.wait().expect("wait for agent-call");
    assert!(status.success(), "agent-call ended with {status}");
    rate
}

fn published_port(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect to a published port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// A connection to a vsock port of the guest, as the VMM's socket gives it: a line for a line, then bytes.
fn vsock(socket: &Path, port: u16) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("connect to the VMM's socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    // In one piece, which is how `vhost-device-vsock` wants to read it.
    let line = format!("CONNECT {port}\n");
    stream.write_all(line.as_bytes()).expect("ask for a port");
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("a port that answers");
        line.push(byte[0]);
    }
    assert!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
    stream
}

/// A login by ssh against the same sshd on a plain call of the agent, and against `exec`.
pub(crate) fn ssh(report: &mut Report, daemon: &Daemon) {
    let missing = ["ssh", "ssh-keygen"]
        .iter()
        .find(|program| find_program(program).is_none());
    if let Some(program) = missing {
        report.left_out("ssh", &format!("{program} is missing: make setup"));
        return;
    }
    let guest = Guest::start(daemon, "login", "debian");
    guest.banger("wait").ok();
    let home = daemon.scratch().join("ssh");
    std::fs::create_dir_all(&home).expect("make a directory");
    let shown = daemon
        .banger(["ssh-config", "show"])
        .env("HOME", &home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .ok();
    let config = home.join("shown");
    std::fs::write(&config, shown + "\n").expect("write what was shown");
    let raw = raw_config(daemon, &guest, &home);
    let login = |config: &Path| {
        let command = Banger::new("ssh").env("HOME", &home).args(["-F"]).args([config]);
        time(command.args(["login.vm", "true"]))
    };
    let (mut pairs, mut execs) = (Pairs::default(), Vec::new());
    for round in 0..=LOGINS {
        pairs.take(round, || login(&config), || login(&raw));
        if round > 0 {
            execs.push(time(guest.exec(["true"])));
        }
    }
    guest.banger("rm").args(["--force"]).ok();
    for (name, raw) in [
        ("ssh NAME.vm true (raw: sshd by agent call)", pairs.raw),
        ("ssh NAME.vm true (raw: banger exec)", execs),
    ] {
        report.add(name, "ms", pairs.ours.clone(), raw, Budget::Compared);
    }
}

/// A configuration of ssh that reaches the guest's sshd as the image has it, with a key that the guest was given.
fn raw_config(daemon: &Daemon, guest: &Guest<'_>, home: &Path) -> PathBuf {
    let key = home.join("key");
    Banger::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .args([&key])
        .ok();
    let public = std::fs::read_to_string(key.with_extension("pub")).expect("a key");
    guest
        .exec_with(&["-i"])
        .args(["--", "sh", "-c"])
        .args(["mkdir -p -m 700 /run/sshd /root/.ssh && cat > /root/.ssh/authorized_keys"])
        .input(public)
        .ok();
    let recipe = Recipe::of(daemon, guest);
    let shown = guest.show();
    let socket = shown["running"]["vsock"].as_str().expect("a socket");
    let text = format!(
        "Host *\n  User root\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n  StrictHostKeyChecking no\n  \
         UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  ProxyCommand {} {socket} exec -i -- /usr/sbin/sshd -i\n",
        key.display(),
        recipe.agent_call().display()
    );
    let config = home.join("raw");
    std::fs::write(&config, text).expect("write a configuration");
    config
}
