//! The default image under QEMU: systemd is init, the agent a service beside it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed};

/// Systemd under emulation, on a machine where other tests run as well.
const BOOTED: Duration = Duration::from_secs(150);

fn wait_booted(guest: &Guest<'_>) {
    // The agent answers before it hands over to systemd, which then needs a moment until it can be asked.
    let asked = e2e::wait_for(BOOTED, || {
        (guest.exec(["test", "-S", "/run/systemd/private"]).run().code() == 0).then_some(())
    });
    assert!(asked.is_some(), "systemd never came up");
    let booted = guest
        .exec(["systemctl", "is-system-running", "--wait"])
        .deadline(BOOTED)
        .run();
    let failed = guest.sh("systemctl --failed --no-legend --plain");
    assert_eq!(
        (booted.out().as_str(), failed.as_str()),
        ("running", ""),
        "{booted}"
    );
}

#[test]
fn systemd_sshd_tools_and_network() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let server = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = server.local_addr().expect("a port").port();
    let guest = Guest::start(&daemon, "dev", "debian");
    wait_booted(&guest);

    assert_eq!(guest.sh("cat /proc/1/comm"), "systemd");
    assert_eq!(guest.sh(". /etc/os-release; echo $ID-$VERSION_ID"), "debian-12");
    assert_eq!(guest.sh("hostname"), "dev");
    assert_eq!(guest.sh("systemctl is-active ssh"), "active");
    for tool in ["git --version", "curl --version", "sshd -t"] {
        guest
            .exec(["sh", "-c", &format!("PATH=$PATH:/usr/sbin; {tool}")])
            .ok();
    }
    // A login's environment, not the agent's.
    assert_eq!(guest.sh("echo $HOME $USER $SHELL"), "/root root /bin/bash");

    let answer = std::thread::spawn(move || {
        let (mut client, _) = server.accept().expect("accept");
        let mut request = [0; 4];
        client.read_exact(&mut request).expect("read");
        client
            .write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nanswer")
            .expect("write");
        request
    });
    assert_eq!(
        guest.sh(&format!("curl -sS --max-time 60 http://10.0.2.2:{port}/")),
        "answer"
    );
    assert_eq!(&answer.join().expect("the server"), b"GET ");

    // A graceful stop goes through systemd, which stops its services; nobody forces anything.
    guest.sh(
        "printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=true\\n\
         ExecStop=sh -c \"echo in order > /root/witness\"\\n' > /etc/systemd/system/witness.service; \
         systemctl daemon-reload; systemctl start witness; echo kept > /root/kept",
    );
    guest.banger("stop").args(["--timeout", "120"]).ok();
    assert_eq!(guest.state(), "stopped");
    guest.banger("start").ok();
    assert_eq!(guest.sh("cat /root/kept /root/witness"), "kept\nin order");
    daemon.finish();
}

#[test]
fn each_machine_is_its_own_and_knows_nothing_of_the_build_host() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guests = [
        Guest::start(&daemon, "one", "debian"),
        Guest::start(&daemon, "two", "debian"),
    ];
    let [one, two] = guests.each_ref().map(|guest| {
        wait_booted(guest);
        let id = guest.sh("cat /etc/machine-id");
        assert!(
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "no machine id: {id:?}"
        );
        let key = guest.sh("cat /etc/ssh/ssh_host_ed25519_key.pub");
        assert!(key.starts_with("ssh-ed25519 "), "no host key: {key:?}");
        (id, key.split(' ').nth(1).unwrap_or_default().to_owned())
    });
    assert_ne!(one.0, two.0, "machine ids");
    assert_ne!(one.1, two.1, "host keys");

    // The host's name is in no file of the image's configuration, and its resolver not in resolv.conf.
    let guest = &guests[0];
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the host's name");
    let host = host.trim();
    // Too short a name ("vm") is part of ordinary words.
    let pattern = format!(r"(^|[^[:alnum:]_.-]){host}([^[:alnum:]_.-]|$)");
    if host != "localhost" {
        let files = guest
            .exec([
                "grep",
                "-rlEI",
                &pattern,
                "/etc/hostname",
                "/etc/hosts",
                "/etc/mailname",
                "/etc/ssh",
            ])
            .run();
        assert_eq!(files.out(), "", "{host} is in the image");
    }
    assert_eq!(
        guest.sh("grep -v '^#' /etc/resolv.conf | grep nameserver"),
        "nameserver 10.0.2.3"
    );
    // The machine id is the guest's alone.
    if let Ok(id) = std::fs::read_to_string("/etc/machine-id") {
        assert_ne!(one.0, id.trim());
    }
    for log in [
        "/var/log/bootstrap.log",
        "/var/log/apt/history.log",
        "/var/log/dpkg.log",
    ] {
        guest.exec(["test", "-s", log]).fails(1);
    }
    daemon.finish();
}
