//! `banger cp`, both ways, and what it says at a terminal.

use std::io::Read as _;

use crate::support::{Daemon, Ended, ended, pty};

#[test]
fn a_machine_alone_is_its_home() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let file = daemon.socket().with_file_name("notes");
    std::fs::write(&file, "text").unwrap();
    assert_eq!(
        daemon.run(&["cp", file.to_str().unwrap(), "dev:"]),
        ended(0, "", "")
    );
    assert_eq!(daemon.calls(), ["guest.upload . contents_only=false"]);
}

#[test]
fn copies_both_ways() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| {
        directory
            .path()
            .join(path)
            .into_os_string()
            .into_string()
            .unwrap()
    };
    std::fs::create_dir(at("tree")).unwrap();
    std::fs::write(at("tree/file"), vec![7; 3 << 20]).unwrap();
    assert_eq!(daemon.run(&["cp", &at("tree"), "dev:/srv"]), ended(0, "", ""));
    assert_eq!(daemon.calls(), ["guest.upload /srv contents_only=false"]);
    let archive = daemon.world.uploaded.lock().unwrap().clone();
    *daemon.world.download.lock().unwrap() = archive.clone();
    assert_eq!(
        daemon.run(&["cp", "dev:/srv/tree", &at("copy")]),
        ended(0, "", "")
    );
    assert_eq!(std::fs::read(at("copy/file")).unwrap(), vec![7; 3 << 20]);

    let stream = daemon.banger(&["cp", "dev:/srv/tree", "-"]).output().unwrap();
    assert!(stream.stdout == archive, "passed on as it is");
    std::fs::write(at("archive"), &stream.stdout).unwrap();
    let input = std::fs::File::open(at("archive")).unwrap();
    let output = daemon
        .banger(&["cp", "-", "dev:/srv"])
        .stdin(input)
        .output()
        .unwrap();
    assert_eq!(Ended::from(output), ended(0, "", ""));
    assert_eq!(
        daemon.calls().last().unwrap(),
        "guest.upload /srv contents_only=true"
    );

    assert_eq!(
        daemon.run(&["cp", &at("tree"), "dev:/full"]),
        ended(1, "", "error: the guest's disk is full\n"),
        "the guest's reason"
    );
    assert_eq!(daemon.run(&["cp", &at("missing"), "dev:/x"]).code, Some(3));
    assert_eq!(daemon.run(&["cp", "a", "b"]).code, Some(2));
    assert_eq!(daemon.run(&["cp", "dev:/a", "ci:/b"]).code, Some(2));
    daemon.world.download.lock().unwrap().truncate(1 << 20);
    let cut = daemon.run(&["cp", "dev:/srv/tree", &at("cut")]);
    assert_eq!(cut.code, Some(1), "{}", cut.stderr);
    assert_eq!(
        std::fs::read_dir(at("cut")).unwrap().count(),
        0,
        "no part of a file stays"
    );
}

/// What a copy prints on a terminal.
fn copy_at_a_terminal(daemon: &Daemon, arguments: &[&str]) -> String {
    let (master, name) = pty();
    let terminal = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&name)
        .unwrap();
    let output = daemon
        .banger(arguments)
        .env("TERM", "xterm")
        .stderr(terminal)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let mut said = Vec::new();
    // The other side is closed by now: what it wrote is read, then the read fails (EIO).
    std::fs::File::from(master).read_to_end(&mut said).unwrap_err();
    String::from_utf8(said).unwrap()
}

#[test]
fn who_sits_at_a_terminal_sees_what_a_copy_came_to() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let file = daemon.socket().with_file_name("notes");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    let file = file.to_str().unwrap();
    let said = copy_at_a_terminal(&daemon, &["cp", file, "dev:"]);
    assert!(
        said.starts_with("sent 1MiB") && said.ends_with(" s\r\n"),
        "{said:?}"
    );
    assert_eq!(copy_at_a_terminal(&daemon, &["cp", "-q", file, "dev:"]), "");
    *daemon.world.download.lock().unwrap() = daemon.world.uploaded.lock().unwrap().clone();
    let said = copy_at_a_terminal(&daemon, &["cp", "dev:notes", &format!("{file}.back")]);
    assert!(said.starts_with("received 1MiB"), "{said:?}");
}
