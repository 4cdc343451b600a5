//! The terminal that somebody sits at: raw in a session, given back on every way out, asked about Ctrl-C.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::support::{Daemon, eventually, pty, signal};

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
