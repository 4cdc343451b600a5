//! The small image under QEMU: the agent stays init.

use std::io::{Read, Write};
use std::net::TcpListener;

use e2e::{Daemon, Guest, Settings, Testbed};

/// What the issue promises a new user, to the letter.
#[test]
fn run_with_rm_passes_output_and_code_and_leaves_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let run = daemon
        .banger(["run", "busybox", "--rm", "--", "sh", "-c", "echo hi; exit 3"])
        .run()
        .expect(3);
    assert_eq!(run.stdout, b"hi\n");
    before.assert_nothing_left(&daemon);
}

#[test]
fn the_guest_is_set_up() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start_with(
        &daemon,
        "small",
        "busybox",
        &["--memory", "256M", "--vcpus", "2", "--disk", "1G"],
    );

    assert_eq!(guest.sh("hostname"), "small");
    assert_eq!(guest.sh("id -u"), "0");
    assert_eq!(guest.sh("nproc"), "2");
    // The agent stays init, under the name it has in the initramfs; the image has no such file.
    assert_eq!(
        guest.sh("cat /proc/1/comm; ls /init 2>/dev/null || echo none"),
        "init\nnone"
    );
    let memory: u64 = guest
        .sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .expect("a number");
    assert!(
        (180_000..=262_144).contains(&memory),
        "256 MiB were asked for, {memory} KiB are there"
    );
    // The root is an overlay over the image, which nothing in the guest can write to.
    assert_eq!(guest.sh("awk '$2 == \"/\" {print $3}' /proc/mounts"), "overlay");
    let size: u64 = guest
        .sh("df -k / | awk 'END {print $2}'")
        .parse()
        .expect("a number");
    assert!(
        (900_000..=1_048_576).contains(&size),
        "1 GiB was asked for, {size} KiB are there"
    );
    assert_eq!(guest.sh("touch /x && echo yes"), "yes");
    assert!(guest.sh("ip -o link show lo").contains("UP"), "loopback is up");
    assert_eq!(
        guest.sh("dd if=/dev/urandom bs=1k count=1 2>/dev/null | wc -c"),
        "1024"
    );

    // Orphans become init's, which collects them.
    guest.sh("for i in 1 2 3 4 5; do (sleep 0 &); done; true");
    let zombies = e2e::wait_for(std::time::Duration::from_secs(60), || {
        (guest.sh("cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true") == "0").then_some(())
    });
    assert!(zombies.is_some(), "init leaves zombies: {}", guest.sh("ps"));
    daemon.finish();
}

/// The user-mode network: the host's loopback is 10.0.2.2. There is no internet in a test.
#[test]
fn the_guest_reaches_out() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let server = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = server.local_addr().expect("a port").port();
    let answer = std::thread::spawn(move || {
        let (mut client, from) = server.accept().expect("accept");
        let mut request = [0; 4];
        client.read_exact(&mut request).expect("read");
        client.write_all(b"answer\n").expect("write");
        (request, from.ip())
    });
    let guest = Guest::start(&daemon, "out", "busybox");
    assert!(guest.sh("ip -o addr show eth0").contains("10.0.2.15/24"));
    assert!(guest.sh("ip route").contains("default via 10.0.2.2"));
    assert!(guest.sh("cat /etc/resolv.conf").contains("nameserver 10.0.2.3"));
    assert_eq!(guest.sh(&format!("echo ping | nc 10.0.2.2 {port}")), "answer");
    let (request, from) = answer.join().expect("the server");
    assert_eq!(&request, b"ping");
    assert!(from.is_loopback());
    daemon.finish();
}

#[test]
fn machines_share_an_image_and_nothing_else() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let one = Guest::start(&daemon, "one", "busybox");
    let two = Guest::start(&daemon, "two", "busybox");
    one.sh("echo mine > /etc/mine; sync");
    assert_eq!(one.sh("cat /etc/mine"), "mine");
    two.exec(["test", "-e", "/etc/mine"]).fails(1);

    // What is written stays with its machine over a stop, and over a kill as far as it was synchronised.
    one.banger("stop").ok();
    one.banger("start").ok();
    assert_eq!(one.sh("cat /etc/mine"), "mine");
    one.banger("kill").ok();
    one.banger("start").ok();
    assert_eq!(one.sh("cat /etc/mine"), "mine");

    let image = daemon
        .banger(["image", "show", "busybox", "--output", "json"])
        .json();
    let mut users: Vec<_> = image["used_by"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|v| v.as_str())
        .collect();
    users.sort_unstable();
    assert_eq!(users, ["one", "two"]);
    daemon.finish();
}
