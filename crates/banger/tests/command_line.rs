//! The command line as a process, joined to the server of `banger-api` with a local service behind it: exit codes,
//! streams, signals, terminals. What a guest adds is the end-to-end suite's matter.

#![expect(clippy::unwrap_used, reason = "in tests a panic is the report")]
#![expect(
    clippy::disallowed_methods,
    reason = "what the process prints is what these tests look at"
)]

#[path = "command_line/ssh.rs"]
mod ssh;
mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::{Daemon, Ended, eventually};

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn ended(code: i32, stdout: &str, stderr: &str) -> Ended {
    Ended {
        code: Some(code),
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

#[test]
fn listings() {
    let daemon = Daemon::start();
    let header = "NAME   STATE   IMAGE   VCPUS   MEMORY   DISK   VMM   AGE\n";
    assert_eq!(
        daemon.run(&["ps"]),
        ended(0, header, ""),
        "an empty table is its headers"
    );
    assert_eq!(daemon.run(&["vm", "ls", "-o", "json"]), ended(0, "[]\n", ""));
    assert_eq!(daemon.run(&["ls", "-q"]), ended(0, "", ""));
    daemon.add_vm("dev");
    daemon.add_vm("ci");
    assert_eq!(daemon.run(&["vm", "ls", "-q"]), ended(0, "ci\ndev\n", ""));
    let json = daemon.run(&["ps", "-o", "json"]);
    let vms: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(vms[1]["memory"], 128 << 20);
    assert!(daemon.run(&["ps", "-o", "yaml"]).stdout.starts_with("- id: "));
    assert_eq!(daemon.run(&["ps", "-q", "-o", "json"]).code, Some(2));
}

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
fn one_that_fails_keeps_no_other_from_its_turn() {
    let daemon = Daemon::start();
    for what in ["image", "kernel"] {
        let ended = daemon.run(&[what, "rm", "a", "nosuch", "used", "b"]);
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(3), "a\nb\n"),
            "the first failure's code"
        );
        assert_eq!(
            ended.stderr,
            format!("error: no {what} \"nosuch\"\nerror: used: something uses it\n")
        );
    }
    assert_eq!(
        daemon.run(&["image", "rm", "used"]).stderr,
        "error: something uses it\n"
    );
    *daemon.world.slow.lock().unwrap() = true;
    daemon.run(&["vm", "create", "x", "--image", "busybox", "-d"]);
    daemon.run(&["vm", "create", "y", "--image", "busybox", "-d"]);
    let cancelled = daemon.run(&["op", "cancel", "op0", "nosuch", "op1"]);
    assert_eq!(
        (cancelled.code, cancelled.stdout.as_str()),
        (Some(3), "op0\nop1\n")
    );
}

#[test]
fn an_empty_console_is_told() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    daemon.add_vm("mute");
    assert_eq!(daemon.run(&["vm", "logs", "dev"]), ended(0, "console\n", ""));
    let empty = "the console is empty so far\n";
    assert_eq!(daemon.run(&["vm", "logs", "mute"]), ended(0, "", empty));
    assert_eq!(daemon.run(&["vm", "logs", "-n", "0", "mute"]), ended(0, "", ""));
}

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

#[test]
fn what_only_a_command_can_have_needs_one() {
    let daemon = Daemon::start();
    for option in [&["-e", "A=1"][..], &["-w", "/tmp"], &["-u", "nobody"]] {
        let refused = daemon.run(&[&["run", "busybox"], option].concat());
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("is for a command, and none is given"),
            "{}",
            refused.stderr
        );
    }
    let refused = daemon.run(&["run", "busybox", "-t"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert_eq!(daemon.calls(), [""; 0], "refused before anything was made");
}

#[test]
fn a_signal_ends_a_session_whose_terminal_is_the_guests_alone() {
    for (number, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let daemon = Daemon::start();
        daemon.add_vm("dev");
        let script = "echo ready; trap '' INT TERM; sleep 60";
        let mut child = daemon
            .banger(&["exec", "-t", "dev", "--", "sh", "-c", script])
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        signal(&child, number);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn a_closed_standard_output_is_no_error() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    for arguments in [
        &["ps"][..],
        &["--help"],
        &["vm", "logs", "dev"],
        &["exec", "dev", "--", "yes"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = daemon.banger(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{arguments:?}");
    }
}

#[test]
fn exec_passes_streams_and_codes() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let exec = |words: &[&str]| {
        let mut arguments = vec!["exec", "dev", "--"];
        arguments.extend(words);
        daemon.run(&arguments)
    };
    assert_eq!(
        exec(&["sh", "-c", "echo out; echo err >&2; exit 3"]),
        ended(3, "out\n", "err\n")
    );
    assert_eq!(exec(&["sh", "-c", "kill -9 $$"]), ended(137, "", ""));
    assert_eq!(exec(&["cat"]), ended(0, "", ""), "without -i input is empty");
    assert_eq!(exec(&["no-such-command"]).code, Some(127));
    assert_eq!(daemon.run(&["exec", "dve", "--", "true"]).code, Some(125));
    let variable = daemon.run(&["exec", "-e", "A=b c", "dev", "--", "sh", "-c", "echo $A"]);
    assert_eq!(variable, ended(0, "b c\n", ""));
    let terminal = daemon.run(&["exec", "-it", "dev", "--", "sh"]);
    assert_eq!(terminal.code, Some(2), "standard input is no terminal");
}

#[test]
fn a_large_stream_passes_byte_for_byte() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let directory = tempfile::tempdir().unwrap();
    // Neither periodic in a chunk's length nor compressible to nothing.
    let mut state: u32 = 1;
    let sent: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    })
    .take((24 << 20) + 17)
    .collect();
    std::fs::write(directory.path().join("in"), &sent).unwrap();
    let input = std::fs::File::open(directory.path().join("in")).unwrap();
    let output = std::fs::File::create(directory.path().join("out")).unwrap();
    let mut command = daemon.banger(&["exec", "-i", "dev", "--", "cat"]);
    let status = command.stdin(input).stdout(output).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(std::fs::read(directory.path().join("out")).unwrap() == sent);
    // A command that stops reading is not waited for.
    let input = std::fs::File::open(directory.path().join("in")).unwrap();
    let mut command = daemon.banger(&["exec", "-i", "dev", "--", "head", "-c1"]);
    let output = command.stdin(input).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 1));
}

#[test]
fn signals_reach_the_command() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    for (name, number, code) in [
        ("INT", Signal::INT, 11),
        ("TERM", Signal::TERM, 12),
        ("HUP", Signal::HUP, 13),
    ] {
        let script = format!("trap 'exit {code}' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child = daemon
            .banger(&["exec", "dev", "--", "sh", "-c", &script])
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        signal(&child, number);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
    }
}

#[test]
fn three_times_ctrl_c_leaves_a_command_that_ignores_it() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let script = "trap 'echo ignored' INT; echo ready; while :; do sleep 0.05; done";
    let mut child = daemon
        .banger(&["exec", "dev", "--", "sh", "-c", script])
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for expected in ["ready\n", "ignored\n", "ignored\n"] {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
        signal(&child, Signal::INT);
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn run_creates_runs_and_removes() {
    let daemon = Daemon::start();
    let ran = daemon.run(&[
        "run",
        "busybox",
        "--rm",
        "-q",
        "--",
        "sh",
        "-c",
        "echo hi; exit 3",
    ]);
    assert_eq!(ran, ended(3, "hi\n", ""));
    assert_eq!(
        daemon.calls(),
        [
            "vm.create made-up ephemeral=true start=true",
            "vm.remove made-upxxx force=true"
        ]
    );
    let noted = daemon.run(&["run", "busybox", "--name", "dev"]);
    assert_eq!(
        noted,
        ended(0, "dev\n", "note: slow mode: no hardware virtualization\n")
    );
    assert_eq!(daemon.run(&["ps", "-q"]).stdout, "dev\n", "left running");
    assert_eq!(daemon.run(&["run", "nosuch", "--", "true"]).code, Some(125));
    assert_eq!(daemon.run(&["run", "nosuch"]).code, Some(3));
    let failed = daemon.run(&["run", "busybox", "--rm", "-q", "--name", "x", "nosuch-command"]);
    assert_eq!(failed.code, Some(127));
    assert_eq!(
        daemon.calls().last().unwrap(),
        "vm.remove xxxxxxxxxx force=true",
        "removed after a failure too"
    );
}

#[test]
fn ctrl_c_cancels_an_operation_and_waits() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    let child = daemon
        .banger(&["vm", "create", "dev", "--image", "busybox"])
        .spawn()
        .unwrap();
    eventually("the operation", || {
        daemon
            .world
            .operations
            .lock()
            .unwrap()
            .values()
            .any(|operation| operation.receiver_count() > 0)
    });
    signal(&child, Signal::INT);
    let ended = Ended::from(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(130));
    assert_eq!(
        ended.stderr,
        "note: slow mode: no hardware virtualization\n\
         cancelling; press Ctrl-C again to leave the clean-up to the daemon\n\
         error: cancelled: vm.create of dev\n"
    );
    assert_eq!(
        daemon.calls(),
        ["vm.create dev ephemeral=false start=false", "op.cancel op0"]
    );
}

#[test]
fn watching_does_not_cancel() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    let create = daemon
        .banger(&["vm", "create", "dev", "--image", "busybox"])
        .spawn()
        .unwrap();
    eventually("the operation", || {
        daemon.world.operations.lock().unwrap().contains_key("op0")
    });
    let watch = daemon.banger(&["op", "watch", "op0"]).spawn().unwrap();
    eventually("two watchers", || {
        daemon.world.operations.lock().unwrap()["op0"].receiver_count() == 2
    });
    signal(&watch, Signal::INT);
    let watch = Ended::from(watch.wait_with_output().unwrap());
    assert_eq!(watch.code, Some(130));
    assert!(watch.stderr.contains("goes on in the daemon"), "{}", watch.stderr);
    assert!(!daemon.calls().iter().any(|call| call.starts_with("op.cancel")));
    assert_eq!(daemon.run(&["op", "cancel", "op0"]), ended(0, "op0\n", ""));
    assert_eq!(
        create.wait_with_output().unwrap().status.code(),
        Some(130),
        "cancelled by somebody else"
    );
}

#[test]
fn several_machines_are_stopped_and_the_first_failure_counts() {
    let daemon = Daemon::start();
    daemon.add_vm("a");
    daemon.add_vm("b");
    let stopped = daemon.run(&["vm", "stop", "-q", "--timeout", "0", "a", "missing", "b"]);
    assert_eq!((stopped.code, stopped.stdout.as_str()), (Some(3), "a\nb\n"));
    let mut calls = daemon.calls();
    calls.sort();
    assert_eq!(
        calls,
        ["vm.stop a Some(0)", "vm.stop b Some(0)"],
        "at once, in any order"
    );
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

/// A pseudo-terminal: our side, and the name of the other.
fn pty() -> (OwnedFd, std::path::PathBuf) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    (master, name.into())
}

#[test]
fn the_terminal_is_raw_in_a_session_and_restored_on_every_way_out() {
    use rustix::termios::{LocalModes, tcgetattr};
    // Asked for or implied: a terminal that one sits at is typed at.
    for (flags, way_out) in [
        ("-it", "exit"),
        ("-t", "exit"),
        ("-it", "signal"),
        ("-it", "daemon"),
    ] {
        let daemon = Daemon::start();
        daemon.add_vm("dev");
        let (master, name) = pty();
        let open = || {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(&name)
                .unwrap()
        };
        let (input, output) = (open(), open());
        let is_cooked = || {
            tcgetattr(&input)
                .unwrap()
                .local_modes
                .contains(LocalModes::ICANON | LocalModes::ECHO)
        };
        assert!(is_cooked());
        let script = "echo ready; read line; echo got $line";
        let mut child = daemon
            .banger(&["exec", flags, "dev", "--", "sh", "-c", script])
            .stdin(open())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("raw mode", || !is_cooked());
        let mut terminal = std::fs::File::from(master);
        let mut seen = [0; 6];
        terminal.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"ready\n", "raw: no carriage return is added");
        let code = match way_out {
            "exit" => {
                terminal.write_all(b"x\n").unwrap();
                0
            }
            "signal" => {
                signal(&child, Signal::TERM);
                143
            }
            _ => {
                drop(daemon);
                125
            }
        };
        assert_eq!(child.wait().unwrap().code(), Some(code), "{way_out}");
        assert!(is_cooked(), "{way_out}");
    }
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

#[test]
fn many_at_once_by_name_label_and_all() {
    let daemon = Daemon::start();
    daemon.add_vm("a");
    daemon.add_labelled("b", "team", "red");
    daemon.add_labelled("c", "team", "blue");
    assert_eq!(
        daemon.run(&["vm", "restart", "-q", "c", "a", "c"]),
        ended(0, "c\na\n", ""),
        "in the order named, each once"
    );
    assert_eq!(
        daemon.run(&["vm", "kill", "-q", "--label", "team"]),
        ended(0, "b\nc\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "stop", "-q", "--label", "team=red"]),
        ended(0, "b\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "start", "-q", "--all"]),
        ended(0, "a\nb\nc\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "stop", "--label", "team=green", "--label", "x"]),
        ended(0, "", "no machine is labelled team=green and x\n")
    );
    assert_eq!(
        daemon.run(&["vm", "stop", "missing"]),
        ended(
            3,
            "",
            "error: no machine is named missing\nhint: did you mean dev?\n"
        )
    );
    for words in [
        &["vm", "stop"][..],
        &["vm", "stop", "a", "--all"],
        &["vm", "stop", "a", "--label", "x"],
        &["vm", "stop", "--all", "--label", "x"],
    ] {
        assert_eq!(daemon.run(words).code, Some(2), "{words:?}");
    }
}

#[test]
fn a_failure_among_many_is_told_with_its_machine() {
    let daemon = Daemon::start();
    for name in ["a", "b", "c"] {
        daemon.add_vm(name);
    }
    let reset = daemon.run(&["vm", "reset", "-q", "missing", "b", "c"]);
    assert_eq!((reset.code, reset.stdout.as_str()), (Some(3), ""));
    assert_eq!(
        reset.stderr,
        "error: no machine is named missing\nhint: did you mean dev?\n\
         error: b is running\nerror: c is running\n"
    );
    let reset = daemon.run(&["vm", "reset", "-q", "b", "missing"]);
    assert_eq!(reset.code, Some(4), "the first failure in the order named");
}

#[test]
fn what_cannot_be_undone_is_asked_for() {
    let daemon = Daemon::start();
    daemon.add_vm("a");
    daemon.add_vm("b");
    for verb in ["rm", "reset"] {
        let refused = daemon.run(&["vm", verb, "--all", "--force"]);
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains("2 machines (a, b)"), "{}", refused.stderr);
        assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    }
    assert_eq!(daemon.calls(), Vec::<String>::new());
    assert_eq!(
        daemon.run(&["vm", "rm", "-q", "--all", "--yes"]),
        ended(0, "a\nb\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "rm", "--all"]),
        ended(0, "", "there are no machines\n"),
        "nothing to ask"
    );
}

#[test]
fn detached_operations_are_named_by_their_ids() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    assert_eq!(
        daemon.run(&["vm", "create", "dev", "--image", "busybox", "-d"]),
        ended(0, "op0\n", "")
    );
    assert_eq!(daemon.run(&["vm", "start", "-d", "dev"]), ended(0, "op1\n", ""));
    assert_eq!(daemon.run(&["run", "busybox", "-d"]), ended(0, "op2\n", ""));
    assert_eq!(daemon.run(&["run", "-d", "busybox", "ls"]).code, Some(2));
    assert_eq!(
        daemon.run(&["image", "register", "x", "/x", "-d"]),
        ended(0, "op3\n", "")
    );
    let cancelled = daemon.run(&["op", "cancel", "op0"]);
    assert_eq!(cancelled, ended(0, "op0\n", ""));
}

#[test]
fn settings() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    assert_eq!(
        daemon.run(&["vm", "set", "dev", "--memory", "256M"]),
        ended(
            0,
            "SETTING   FROM        TO          APPLIES\n\
             memory    134217728   268435456   at next start (fixed while it runs)\n",
            ""
        )
    );
    assert_eq!(
        daemon.run(&["vm", "set", "dev", "--memory", "128M"]),
        ended(0, "", "nothing changed: dev is so already\n")
    );
    assert_eq!(daemon.run(&["vm", "set", "dev"]).code, Some(2));
    let json = daemon.run(&["vm", "set", "dev", "--memory", "128M", "-o", "json"]);
    let reply: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(reply["changes"], serde_json::json!([]));
    // Another image is a reset; what was set before it was refused is told.
    let refused = daemon.run(&["vm", "set", "dev", "--memory", "256M", "--image", "next"]);
    assert_eq!(refused.code, Some(4));
    assert!(refused.stdout.contains("268435456"), "{}", refused.stdout);
    let moved = daemon.run(&["vm", "set", "dev", "--image", "next", "--force"]);
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    assert_eq!(
        moved.stdout,
        "SETTING   FROM      TO     APPLIES\nimage     busybox   next   now\n"
    );
    assert_eq!(daemon.run(&["vm", "rename", "dev", "old"]), ended(0, "old\n", ""));
    assert_eq!(daemon.run(&["ps", "-q"]).stdout, "old\n");
}

#[test]
fn a_dry_start_says_what_it_would_check() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    daemon.add_vm("sick");
    assert_eq!(
        daemon.run(&["vm", "start", "--dry-run", "dev"]),
        ended(0, "dev: ready\n  ✓ ok       image  as told\n", "")
    );
    let both = daemon.run(&["vm", "start", "--dry-run", "--all", "-o", "json"]);
    assert_eq!(both.code, Some(6));
    let both: serde_json::Value = serde_json::from_str(&both.stdout).unwrap();
    assert_eq!(
        (&both[0]["ready"], &both[1]["ready"]),
        (&true.into(), &false.into())
    );
    assert_eq!(daemon.calls(), Vec::<String>::new());
}

#[test]
fn figures_and_health() {
    let daemon = Daemon::start();
    daemon.add_vm("dev");
    let stats = daemon.run(&["vm", "stats"]);
    assert_eq!(stats.code, Some(0));
    assert!(stats.stdout.contains("dev    50.0 %"), "{}", stats.stdout);
    assert_eq!(
        stats.stderr,
        "note: no figures of dev's guest: the agent does not answer\n"
    );
    let raw = daemon.run(&["vm", "stats", "dev", "-o", "json"]);
    let raw: serde_json::Value = serde_json::from_str(&raw.stdout).unwrap();
    assert_eq!(raw[0]["host"]["vcpus"], 1);
    assert_eq!(daemon.run(&["vm", "stats", "dve"]).code, Some(3));
    assert_eq!(daemon.run(&["vm", "stats", "--interval", "1s"]).code, Some(2));
    // A line for each machine and sample, until somebody has seen enough.
    let mut watched = daemon
        .banger(&["vm", "stats", "--watch", "--interval", "100ms", "-o", "json"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watched.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let sample: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(sample["vm"], "dev");
    }
    signal(&watched, Signal::INT);
    watched.wait().unwrap();

    assert_eq!(
        daemon.run(&["vm", "health"]),
        ended(0, "dev: running, healthy\n  ✓ ok       process  as told\n", "")
    );
    daemon.add_vm("asleep");
    assert_eq!(
        daemon.run(&["vm", "health"]).code,
        Some(0),
        "nobody asked for the one that is stopped"
    );
    assert_eq!(daemon.run(&["vm", "health", "asleep"]).code, Some(1));
    daemon.add_vm("sick");
    assert_eq!(daemon.run(&["vm", "health"]).code, Some(1));
    assert_eq!(daemon.run(&["vm", "health", "dev", "dve"]).code, Some(3));

    assert_eq!(
        daemon.run(&["vm", "wait", "dev", "sick"]),
        ended(1, "NAME   BOOT\ndev    running\nsick   degraded\n", "")
    );
    assert_eq!(
        daemon.run(&["vm", "ping", "-c", "2", "--interval", "1ms", "dev"]),
        ended(
            0,
            "dev: 1.50 ms, up 5s, agent 0.1.0\ndev: 1.50 ms, up 5s, agent 0.1.0\n\
             2 answers: min 1.50 ms, avg 1.50 ms, max 1.50 ms\n",
            ""
        )
    );
}

#[test]
fn garbage() {
    let daemon = Daemon::start();
    let dry = daemon.run(&["gc", "--dry-run"]);
    assert_eq!((dry.code, dry.stderr.as_str()), (Some(0), "2 to collect, 6MiB\n"));
    assert_eq!(daemon.run(&["gc", "-n", "-q"]).stdout, "/a\n/b\n");
    let wet = daemon.run(&["gc"]);
    assert_eq!(
        (wet.code, wet.stderr.as_str()),
        (Some(1), "1 collected, 3MiB; 1 could not be\n")
    );
    assert!(wet.stdout.contains("failed: it is in use"), "{}", wet.stdout);
}

#[test]
fn an_operation_that_has_ended_cannot_be_cancelled() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon
            .run(&["vm", "create", "dev", "--image", "busybox", "-q"])
            .code,
        Some(0)
    );
    assert_eq!(
        daemon.run(&["op", "cancel", "op0"]),
        ended(
            4,
            "",
            "error: vm.create of dev has ended already: it succeeded\n\
             hint: `banger vm rm dev` removes what it made\n"
        )
    );
}

#[test]
fn the_states_of_an_operation_as_lines() {
    let daemon = Daemon::start();
    *daemon.world.slow.lock().unwrap() = true;
    daemon.run(&["vm", "create", "dev", "--image", "busybox", "-d"]);
    let mut watch = daemon
        .banger(&["op", "watch", "op0", "-o", "json"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut state =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(state()["state"], "running");
    daemon.run(&["op", "cancel", "op0"]);
    assert_eq!(state()["state"], "cancelled");
    assert_eq!(watch.wait().unwrap().code(), Some(130), "as the operation ended");
}

/// Begins a create with a terminal, waits until it is followed, presses Ctrl-C and waits for the question.
fn asked(daemon: &Daemon) -> (Child, std::fs::File) {
    *daemon.world.slow.lock().unwrap() = true;
    let (master, name) = pty();
    let size = rustix::termios::Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let open = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(&name)
            .unwrap()
    };
    let child = daemon
        .banger(&["vm", "create", "dev", "--image", "busybox"])
        .env("TERM", "xterm")
        .stdin(open())
        .stderr(open())
        .spawn()
        .unwrap();
    eventually("the operation", || {
        let operations = daemon.world.operations.lock().unwrap();
        operations
            .values()
            .any(|operation| operation.receiver_count() > 0)
    });
    signal(&child, Signal::INT);
    let mut terminal = std::fs::File::from(master);
    wait_for_text(&mut terminal, "[Y/n/d] ");
    (child, terminal)
}

/// Reads a terminal up to a text.
fn wait_for_text(terminal: &mut std::fs::File, text: &str) {
    let mut seen = String::new();
    while !seen.ends_with(text) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let patience = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ready, 1, "no {text:?} in 20 s: {seen:?}");
        let mut byte = [0];
        terminal.read_exact(&mut byte).unwrap();
        seen.push(char::from(byte[0]));
    }
}

#[test]
fn ctrl_c_on_a_terminal_asks() {
    let cancels = |daemon: &Daemon| daemon.calls().iter().any(|call| call == "op.cancel op0");
    for (answer, code, stdout, cancelled) in [
        ("y\n", 130, "", true),
        ("\n", 130, "", true),
        ("cancel\n", 130, "", true),
        ("d\n", 0, "op0\n", false),
    ] {
        let daemon = Daemon::start();
        let (child, mut terminal) = asked(&daemon);
        terminal.write_all(answer.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{answer:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), stdout, "{answer:?}");
        assert_eq!(cancels(&daemon), cancelled, "{answer:?}");
    }
    // Whoever goes on is asked again the next time; nonsense is asked about at once; Ctrl-C is an answer too.
    let daemon = Daemon::start();
    let (child, mut terminal) = asked(&daemon);
    terminal.write_all(b"what?\n").unwrap();
    wait_for_text(&mut terminal, "[Y/n/d] ");
    terminal.write_all(b"n\n").unwrap();
    // The echo of the answer, then the bar again: the answer has been taken.
    wait_for_text(&mut terminal, "booting");
    signal(&child, Signal::INT);
    wait_for_text(&mut terminal, "[Y/n/d] ");
    assert!(!cancels(&daemon));
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        cancels(&daemon),
        "leaving at once asks for the clean-up all the same"
    );
}
