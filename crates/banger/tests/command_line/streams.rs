//! A command in a guest: streams byte for byte, exit codes, signals; and `run`, which makes the guest first.

use std::io::{BufRead as _, BufReader, Read as _};

use rustix::process::Signal;

use crate::support::{Daemon, ended, signal};

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
fn an_image_may_have_a_program_of_its_own() {
    let daemon = Daemon::start();
    let run = |more: &[&str]| daemon.run(&[&["run", "-q", "--rm"], more].concat());
    assert_eq!(run(&["greeter"]), ended(0, "hello world\n", ""));
    assert_eq!(run(&["greeter", "you"]), ended(0, "hello you\n", ""));
    assert_eq!(
        run(&["--entrypoint", "printf", "greeter", "%s-", "a", "b"]),
        ended(0, "a-b-", "")
    );
    assert_eq!(
        run(&["--entrypoint", "", "greeter", "printf", "x"]),
        ended(0, "x", "")
    );
    let bare = daemon.run(&["run", "-q", "--name", "bare", "--entrypoint", "", "greeter"]);
    assert_eq!(bare, ended(0, "bare\n", ""));
}

#[test]
fn a_detached_program_is_the_machines_main_session() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon.run(&["run", "-q", "--name", "web", "-d", "greeter"]),
        ended(0, "web\n", "")
    );
    assert_eq!(
        daemon.run(&[
            "run", "-q", "--name", "job", "-d", "--rm", "busybox", "make", "all"
        ]),
        ended(0, "job\n", "")
    );
    assert_eq!(
        daemon.calls(),
        [
            "vm.create web ephemeral=false start=true",
            "session.start web main echo hello world ends_machine=false",
            "vm.create job ephemeral=true start=true",
            "session.start job main make all ends_machine=true",
        ]
    );
    let failed = daemon.run(&[
        "run",
        "-q",
        "--name",
        "x",
        "-d",
        "--rm",
        "busybox",
        "nosuch-command",
    ]);
    assert_eq!(failed.code, Some(127), "{}", failed.stderr);
    assert_eq!(
        daemon.calls().last().unwrap(),
        "vm.remove x force=true",
        "a machine made for it alone does not stay"
    );
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
