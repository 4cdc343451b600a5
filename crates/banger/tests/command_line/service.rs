//! The way to the daemon: what is said where it is not there, somebody else's, or does not start, and once a day of its
//! host.

use std::process::Stdio;

use crate::support::{Daemon, Ended, ended};

#[test]
fn errors_have_codes_and_hints() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon.run(&["vm", "show", "dve"]),
        ended(3, "", "error: no machine is named dve\nhint: did you mean dev?\n")
    );
    let mut nobody = daemon.banger(&["ps"]);
    let nobody = Ended::from(
        nobody
            .env("BANGER_SOCKET", "/nonexistent/socket")
            .output()
            .unwrap(),
    );
    assert_eq!((nobody.code, nobody.stdout.as_str()), (Some(9), ""));
    assert!(
        nobody.stderr.starts_with("error: the daemon is not running"),
        "{}",
        nobody.stderr
    );
    assert!(
        nobody
            .stderr
            .ends_with("banger daemon run -- --socket /nonexistent/socket\n"),
        "a socket that was named is served by who named it: {}",
        nobody.stderr
    );
    let long = "/tmp/".to_owned() + &"x".repeat(120);
    let long = Ended::from(daemon.banger(&["--socket", &long, "ps"]).output().unwrap());
    assert_eq!(long.code, Some(9));
    assert!(long.stderr.contains("107 bytes"), "{}", long.stderr);
    let version = daemon.run(&["version", "--socket", "/nonexistent/socket"]);
    assert_eq!(version.code, Some(0));
    assert!(
        version.stdout.contains("the daemon is not running"),
        "{}",
        version.stdout
    );
}

#[test]
fn a_socket_of_somebody_else_is_a_matter_of_permission() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become somebody else");
        return;
    }
    let daemon = Daemon::start();
    // The program and the way to the socket are open to all; the socket itself is not.
    let directory = daemon.socket().parent().unwrap().to_owned();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.join("banger");
    std::fs::copy(env!("CARGO_BIN_EXE_banger"), &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command
            .args(arguments)
            .uid(65_534)
            .gid(65_534)
            .current_dir("/")
            .env_clear();
        command
            .env("HOME", "/nonexistent")
            .env("BANGER_SOCKET", daemon.socket());
        Ended::from(command.output().unwrap())
    };
    for arguments in [&["ls"][..], &["daemon", "status"], &["daemon", "stop"]] {
        let refused = as_nobody(arguments);
        assert_eq!(
            (refused.code, refused.stdout.as_str()),
            (Some(5), ""),
            "{}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("hint: it is another user's; `group`"),
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn what_is_so_of_the_host_is_said_once_a_day() {
    let daemon = Daemon::start();
    let runtime = daemon.socket().parent().unwrap().join("run");
    let note = "note: slow mode: no hardware virtualization\n";
    let create = |name: &str| daemon.run(&["run", "busybox", "--name", name]).stderr;
    assert_eq!(
        (create("a").as_str(), create("b").as_str()),
        (note, note),
        "nowhere to keep it"
    );
    std::fs::create_dir(&runtime).unwrap();
    let quiet = daemon.run(&["run", "busybox", "--name", "q", "-q"]).stderr;
    assert_eq!(
        (quiet.as_str(), create("c").as_str()),
        ("", note),
        "what was not said is news still"
    );
    assert_eq!((create("d").as_str(), create("e").as_str()), ("", ""));
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    // Copied, because the daemon is looked for beside the program.
    std::fs::copy(env!("CARGO_BIN_EXE_banger"), at("banger")).unwrap();
    std::fs::write(
        at("bangerd"),
        "#!/bin/sh\necho noise\necho 'bangerd: failed to x: no (hint: do y)' >&2\nexit 1\n",
    )
    .unwrap();
    std::fs::set_permissions(at("bangerd"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(at("banger"));
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
        command
            .env("BANGER_STATE_DIR", at("state"))
            .env("BANGER_RUNTIME_DIR", at("run"));
        Ended::from(command.stdin(Stdio::null()).output().unwrap())
    };
    assert_eq!(
        run(&["ps"]),
        ended(
            9,
            "",
            "error: the daemon does not start: failed to x: no\nhint: do y\n"
        )
    );
    let doctor = run(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(
        doctor
            .stdout
            .contains("✗ failure  daemon  the daemon does not start: failed to x: no"),
        "{}",
        doctor.stdout
    );
    assert!(doctor.stdout.contains("fix: do y"), "{}", doctor.stdout);
    assert_eq!(run(&["ps", "--no-start"]).code, Some(9));
    assert_eq!(run(&["daemon", "status"]).code, Some(9));
    assert_eq!(run(&["daemon", "stop"]).code, Some(0));
    assert_eq!(
        std::fs::read_to_string(at("state/bangerd.log"))
            .unwrap()
            .lines()
            .count(),
        4,
        "two starts"
    );
    std::fs::remove_file(at("bangerd")).unwrap();
    let missing = run(&["ps"]);
    assert_eq!(missing.code, Some(6));
    assert!(missing.stderr.contains("looked in "), "{}", missing.stderr);
}

#[test]
fn the_daemon_does_not_inherit_what_the_command_line_was_given() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    std::fs::copy(env!("CARGO_BIN_EXE_banger"), at("banger")).unwrap();
    let script = "#!/bin/sh\nls /proc/self/fd >&2\nps -o sid= -p $$ | tr -d ' ' >&2\necho $$ >&2\npwd >&2\n";
    std::fs::write(at("bangerd"), script).unwrap();
    std::fs::set_permissions(at("bangerd"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new("sh");
    // Descriptor 7 is open in the command line, as a test's pipe or a shell's redirection would be.
    command
        .arg("-c")
        .arg(format!("exec {} ps 7>&1", at("banger").display()))
        .env_clear();
    command
        .env("PATH", "/usr/bin:/bin")
        .env("BANGER_STATE_DIR", at("state"))
        .env("BANGER_RUNTIME_DIR", at("run"));
    assert_eq!(command.output().unwrap().status.code(), Some(9));
    let log = std::fs::read_to_string(at("state/bangerd.log")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    // 3 is the directory that `ls` reads.
    assert_eq!(lines[..4], ["0", "1", "2", "3"]);
    assert_eq!(lines[4], lines[5], "leads a session of its own");
    assert_eq!(lines[6], "/");
}
