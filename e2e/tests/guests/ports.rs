//! Published ports of real guests: bytes both ways, who has a port, and what a published port outlives.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use e2e::{Daemon, Guest, Random, Settings, Testbed, wait_for};
use serde_json::{Value, json};

/// For an answer of a guest whose processor is emulated on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const PORT: u16 = 8080;

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&at, PATIENCE).unwrap_or_else(|e| panic!("{at}: {e}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// The body of what a web server at that port has at that path.
fn get(port: u16, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(at(port));
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| std::io::Error::from(ErrorKind::UnexpectedEof))?;
    Ok(answer.split_off(end + 4))
}

/// The machine's ports, as soon as one of them listens there.
fn ports(daemon: &Daemon, vm: &str, port: u16) -> Value {
    let listening = wait_for(PATIENCE, || {
        let told = daemon.banger(["vm", "ports", vm, "--output", "json"]).json();
        let all = told["ports"].as_array().expect("a list");
        let found = all
            .iter()
            .find(|found| found["port"] == port && !found["address"].is_null());
        found.cloned()
    });
    listening.unwrap_or_else(|| panic!("nothing listens at {port} of {vm}"))
}

/// A web server in the guest, at port 80.
fn serve(daemon: &Daemon, guest: &Guest<'_>, word: &str) {
    guest.sh(&format!(
        "mkdir -p /srv && echo {word} > /srv/word && httpd -p 80 -h /srv"
    ));
    ports(daemon, &guest.name, 80);
}

/// The host's port that leads to that one of the guest.
fn host_port(published: &Value, guest_port: u16) -> u16 {
    let all = published.as_array().expect("a list");
    let found = all.iter().find(|found| found["guest_port"] == guest_port);
    let port = found.and_then(|found| found["host_port"].as_u64());
    port.and_then(|port| port.try_into().ok())
        .unwrap_or_else(|| panic!("{guest_port} is not in {published:#}"))
}

/// Nothing listens there, within a moment.
fn assert_closed(port: u16) {
    let closed = wait_for(Duration::from_secs(60), || {
        TcpStream::connect(at(port)).is_err().then_some(())
    });
    assert!(closed.is_some(), "port {port} is open still");
}

fn publish(daemon: &Daemon, vm: &str, ports: &[&str]) -> Value {
    daemon
        .banger(["vm", "publish", vm, "--output", "json"])
        .args(ports)
        .json()
}

#[test]
fn bytes_go_both_ways_and_stay_whole() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(
        &daemon,
        "web",
        "busybox",
        &["--memory", "256M", "--vcpus", "1", "--disk", "256M", "-p", "80"],
    );
    let port = host_port(&guest.show()["published"], 80);
    serve(&daemon, &guest, "hello");
    assert_eq!(get(port, "/word").expect("an answer"), b"hello\n");

    // What listens is told, with its process and where it is reached.
    let listener = ports(&daemon, "web", 80);
    let command = listener["command"].as_str().expect("a command");
    assert!(command.contains("httpd -p 80"), "{listener:#}");
    assert_eq!(listener["protocol"], "tcp");
    assert!(
        listener["pid"].as_u64().is_some_and(|pid| pid > 1),
        "{listener:#}"
    );
    assert!(
        listener["process"].is_string() && listener["since"].is_string(),
        "{listener:#}"
    );
    let url = format!("http://127.0.0.1:{port}");
    assert_eq!(listener["url"], json!(url));
    assert_eq!(listener["published"][0]["host_port"], json!(port));
    assert_eq!(daemon.banger(["vm", "ports", "web", "-q"]).ok(), url);
    let table = daemon.banger(["vm", "ports", "web"]).ok();
    assert!(table.contains("PUBLISHED AS") && table.contains(&url), "{table}");

    // 64 MiB in and out again, published while it runs. A port that is published before anything listens refuses late.
    let published = publish(&daemon, "web", &["9000"]);
    let inlet = host_port(&published, 9000);
    let mut none = connect(at(inlet));
    let refused = none.read(&mut [0]).expect_err("nothing listens in the guest");
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    let mut random = Random::seeded(9000);
    let bytes: Vec<u8> = (0..(64 << 20) / 8)
        .flat_map(|_| random.below(u64::MAX >> 11).to_le_bytes())
        .collect();
    let receiver = guest
        .exec(["sh", "-c", "nc -l -p 9000 < /dev/null > /srv/bytes"])
        .spawn();
    ports(&daemon, "web", 9000);
    let mut stream = connect(at(inlet));
    stream.write_all(&bytes).expect("sent");
    stream.shutdown(Shutdown::Write).expect("ended");
    receiver.finish().expect(0);
    let back = get(port, "/bytes").expect("an answer");
    assert_eq!(back.len(), bytes.len());
    assert!(back == bytes, "not the same bytes");

    // Taken back: nothing listens, and what is open is reset.
    let mut open = connect(at(port));
    write!(open, "GET /wo").expect("sent");
    assert_eq!(get(port, "/word").expect("an answer"), b"hello\n");
    daemon.banger(["vm", "unpublish", "web", &port.to_string()]).ok();
    assert_closed(port);
    let reset = open.read(&mut [0]).expect_err("reset");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    let missing = daemon
        .banger(["vm", "unpublish", "web", &port.to_string()])
        .fails(3);
    assert!(missing.contains("published port"), "{missing}");
    let gone = daemon.banger(["vm", "unpublish", "web", "--all", "-q"]).ok();
    assert_eq!(gone.lines().count(), 1, "{gone}");
    assert_closed(inlet);
    assert_eq!(guest.show()["published"], Value::Null);
    daemon.finish();
}

/// In Debian, whose perl can do what busybox's `nc` cannot.
#[test]
fn datagrams_stay_whole() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let options = ["--memory", "512M", "--vcpus", "1", "-p", "7/udp"];
    let guest = Guest::start_with(&daemon, "echo", "debian", &options);
    let port = host_port(&guest.show()["published"], 7);
    let script = "socket(S, PF_INET, SOCK_DGRAM, 17); bind(S, sockaddr_in(7, INADDR_LOOPBACK)); \
                  while ($from = recv(S, $bytes, 65536, 0)) { send(S, $bytes, 0, $from) }";
    let _server = guest.exec(["perl", "-MSocket", "-e", script]).spawn();
    assert_eq!(ports(&daemon, "echo", 7)["process"], "perl");
    // Two senders at once, each of whom gets what is theirs.
    let sockets = [0, 1].map(|_| {
        let socket = UdpSocket::bind(at(0)).expect("a socket");
        socket.connect(at(port)).expect("its peer");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    });
    for (socket, mark) in sockets.iter().zip([b'a', b'b']) {
        for size in [1, 0, 1400, 9000] {
            let datagram = vec![mark; size];
            socket.send(&datagram).expect("sent");
            let mut answer = [0; 10_000];
            let length = socket.recv(&mut answer).expect("an answer");
            assert_eq!(&answer[..length], datagram);
        }
    }
    daemon.finish();
}

#[test]
fn a_published_port_outlives_daemon_and_run() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let port = {
        let guest = Guest::start_with(
            &daemon,
            "lasting",
            "busybox",
            &["--memory", "256M", "--vcpus", "1", "--publish", "127.0.0.1::80"],
        );
        serve(&daemon, &guest, "first");
        let port = host_port(&guest.show()["published"], 80);
        assert_eq!(get(port, "/word").expect("an answer"), b"first\n");
        port
    };
    // Whoever is connected is told, by a reset, that this was not all.
    let mut open = connect(at(port));
    write!(open, "GET /wo").expect("sent");
    assert_eq!(get(port, "/word").expect("an answer"), b"first\n");
    daemon.kill();
    assert!(open.read(&mut [0]).map_or(true, |length| length == 0));
    assert_closed(port);
    daemon.launch();
    assert_eq!(get(port, "/word").expect("an answer"), b"first\n");

    // A port that somebody takes while no daemon looks: the machine goes on, the problem is told, and then mended.
    daemon.kill();
    let thief = TcpListener::bind(at(port)).expect("the port");
    daemon.launch();
    let shown = daemon
        .banger(["vm", "show", "lasting", "--output", "json"])
        .json();
    assert_eq!(shown["state"], "running");
    assert!(shown["published"][0]["problem"].is_string(), "{shown:#}");
    drop(thief);
    let mended = wait_for(PATIENCE, || {
        let shown = daemon
            .banger(["vm", "show", "lasting", "--output", "json"])
            .json();
        shown["published"][0]["problem"].is_null().then_some(())
    });
    mended.expect("another attempt");
    assert_eq!(get(port, "/word").expect("an answer"), b"first\n");

    // A stopped machine listens nowhere, a started one where it did.
    daemon.banger(["vm", "stop", "lasting"]).ok();
    assert_closed(port);
    daemon.banger(["vm", "ports", "lasting"]).fails(4);
    daemon.banger(["vm", "start", "lasting"]).ok();
    daemon
        .banger(["exec", "lasting", "--", "httpd", "-p", "80", "-h", "/srv"])
        .ok();
    ports(&daemon, "lasting", 80);
    assert_eq!(get(port, "/word").expect("an answer"), b"first\n");
    daemon.banger(["vm", "rm", "--force", "lasting"]).ok();
    assert_closed(port);
    daemon.finish();
}

#[test]
fn a_taken_port_names_its_holder() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let process = TcpListener::bind(at(0)).expect("a port");
    let taken = process.local_addr().expect("bound").port();
    let holder = format!("(process {})", std::process::id());
    let mapping = format!("{taken}:80");

    // By a process: when a machine is made, when a port is published, when a machine is started.
    let refused = daemon
        .banger(["vm", "create", "late", "--image", "busybox", "-p", &mapping])
        .fails(4);
    assert!(refused.contains(&holder), "{refused}");
    daemon.banger(["vm", "show", "late"]).fails(3);
    let guest = Guest::create_with(&daemon, "late", "busybox", &["--memory", "256M", "--vcpus", "1"]);
    let refused = daemon.banger(["vm", "publish", "late", &mapping]).fails(4);
    assert!(refused.contains(&holder), "{refused}");
    drop(process);
    publish(&daemon, "late", &[&mapping]);
    // So is what is published so already.
    publish(&daemon, "late", &[&mapping]);
    let process = TcpListener::bind(at(taken)).expect("nobody has it while the machine rests");
    let refused = guest.banger("start").fails(6);
    assert!(refused.contains(&holder), "{refused}");
    assert_eq!(guest.state(), "stopped");
    let checks = guest.banger("start").args(["--dry-run"]).run();
    assert!(format!("{checks}").contains(&holder), "{checks}");
    drop(process);

    // By a machine, whether or not it runs, and at all addresses too.
    let refused = daemon
        .banger(["run", "busybox", "--name", "other", "-p", &mapping])
        .fails(4);
    assert!(refused.contains("machine \"late\""), "{refused}");
    daemon.banger(["vm", "show", "other"]).fails(3);
    Guest::create_with(&daemon, "other", "busybox", &["-p", &format!("{taken}:80/udp")]);
    for port in [mapping.clone(), format!("0.0.0.0:{taken}:81")] {
        let refused = daemon.banger(["vm", "publish", "other", &port]).fails(4);
        assert!(refused.contains("machine \"late\""), "{refused}");
    }
    // All or none.
    daemon.banger(["vm", "publish", "other", "81", &mapping]).fails(4);
    let other = daemon.banger(["vm", "show", "other", "--output", "json"]).json();
    assert_eq!(other["published"].as_array().map(Vec::len), Some(1), "{other:#}");
    // With its machine a port is free.
    guest.banger("rm").ok();
    publish(&daemon, "other", &[&mapping]);

    for (port, word) in [
        ("0", "not a port"),
        ("8080:0", "not a port"),
        ("70000:80", "`70000` is not a port"),
        ("80:70000", "`70000` is not a port"),
        ("localhost:80:80", "not an IP address"),
        ("80:80/sctp", "no protocol"),
    ] {
        let refused = daemon.banger(["vm", "publish", "other", port]).fails(2);
        assert!(refused.contains(word), "{port}: {refused}");
    }
    let foreign = daemon
        .banger(["vm", "publish", "other", &format!("192.0.2.1:{PORT}:80")])
        .run();
    assert!(format!("{foreign}").contains("no address 192.0.2.1"), "{foreign}");
    assert_ne!(foreign.code(), 0);
    daemon.finish();
}
