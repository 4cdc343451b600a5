//! What `exec` passes on: codes, signals, streams, environment, a terminal.

use std::time::Duration;

use e2e::{Daemon, Guest, Pty, Settings, Testbed};

#[test]
fn codes_signals_and_refusals() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "codes", "busybox");
    for code in [0, 1, 42, 255] {
        guest
            .exec(["sh", "-c", &format!("exit {code}")])
            .run()
            .expect(code);
    }
    // A command that dies of a signal: 128 and its number.
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("USR1", 138)] {
        guest
            .exec(["sh", "-c", &format!("kill -{signal} $$")])
            .run()
            .expect(code);
    }
    let missing = guest.exec(["no-such-command"]).fails(127);
    assert!(missing.contains("no-such-command"), "{missing}");
    let refused = guest.exec(["/etc/passwd"]).fails(126);
    assert!(refused.contains("/etc/passwd"), "{refused}");
    guest.exec(["/"]).fails(126);
    let user = guest
        .exec_with(&["-u", "nobody-here"])
        .args(["--", "true"])
        .fails(125);
    assert!(user.contains("nobody-here"), "{user}");
    let directory = guest
        .exec_with(&["-w", "/no/such"])
        .args(["--", "true"])
        .fails(125);
    assert!(directory.contains("/no/such"), "{directory}");
    daemon.finish();
}

#[test]
fn streams_are_kept_apart_and_stdin_is_streamed() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "streams", "busybox");
    let both = guest
        .exec(["sh", "-c", "echo out; echo err >&2; printf 'no newline'"])
        .run()
        .expect(0);
    assert_eq!(
        (both.stdout.as_slice(), both.stderr.as_slice()),
        (&b"out\nno newline"[..], &b"err\n"[..])
    );
    // Without -i the command reads end of file at once, whatever the caller's stdin is.
    guest.exec(["cat"]).input("not sent").run().expect(0);
    assert_eq!(guest.exec(["cat"]).input("not sent").ok(), "");
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let echo = guest
        .exec_with(&["-i"])
        .args(["--", "cat"])
        .input(every_byte.clone())
        .run()
        .expect(0);
    assert!(echo.stdout == every_byte, "{} bytes came back", echo.stdout.len());
    // A command that does not read its input to the end is no failure.
    let head = guest
        .exec_with(&["-i"])
        .args(["--", "head", "-c", "3"])
        .input(vec![b'x'; 5_000_000])
        .run()
        .expect(0);
    assert_eq!(head.stdout, b"xxx");
    // Nor is a command whose grandchild keeps the output open.
    let orphan = guest
        .exec(["sh", "-c", "sleep 300 & echo started"])
        .deadline(Duration::from_secs(60))
        .run()
        .expect(0);
    assert_eq!(orphan.out(), "started");
    daemon.finish();
}

#[test]
fn environment_directory_and_user() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "env", "busybox");
    let set = guest
        .exec_with(&["-e", "A=1", "-e", "B=two words", "-e", "C="])
        .args(["--", "sh", "-c"]);
    assert_eq!(
        set.args(["echo \"$A|$B|${C-unset}|$HOME\""]).ok(),
        "1|two words||/root"
    );
    assert_eq!(guest.exec_with(&["-w", "/etc"]).args(["--", "pwd"]).ok(), "/etc");
    assert_eq!(guest.exec(["pwd"]).ok(), "/root");
    guest.sh(
        "mkdir -p /home/joe; echo joe:x:1234:1234::/home/joe:/bin/sh >> /etc/passwd; \
         echo joe:x:1234: >> /etc/group; chown 1234:1234 /home/joe",
    );
    let joe = guest
        .exec_with(&["-u", "joe"])
        .args(["--", "sh", "-c", "id -u; id -g; id -un; pwd; echo $HOME"])
        .ok();
    assert_eq!(joe, "1234\n1234\njoe\n/home/joe\n/home/joe");
    assert_eq!(
        guest
            .exec_with(&["-u", "4321:99"])
            .args(["--", "sh", "-c", "id -u; id -g"])
            .ok(),
        "4321\n99"
    );
    guest
        .exec_with(&["-u", "joe"])
        .args(["--", "cat", "/root/../etc/shadow"])
        .run()
        .expect(1);
    // Arguments arrive as they are.
    let odd = ["", " ", "a\nb", "$HOME", "*", "'\"\\", "ü", "-n"];
    let shown = guest
        .exec(["sh", "-c", "for a; do printf '[%s]' \"$a\"; done", "sh"])
        .args(odd)
        .ok();
    assert_eq!(shown, "[][ ][a\nb][$HOME][*]['\"\\][ü][-n]");
    daemon.finish();
}

#[test]
fn a_terminal_with_a_size_that_changes() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "tty", "busybox");
    let shell = guest
        .exec_with(&["-i", "-t"])
        .env("TERM", "vt220")
        .args(["--", "sh"]);
    let mut pty = Pty::spawn(shell, 33, 101);
    pty.wait("# ");
    pty.send("test -t 0 && test -t 1 && test -t 2 && echo is-a-$(echo terminal); echo $TERM; stty size\n");
    pty.wait("is-a-terminal");
    pty.wait("vt220");
    pty.wait("33 101");
    pty.resize(50, 132);
    // The change is on its way through daemon and agent: asked until it has arrived.
    pty.send("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo re${x}sized\n");
    pty.wait("resized");
    // Ctrl-C belongs to the guest's foreground process, not to banger.
    pty.send("sh -c 'echo slee${x}ping; exec sleep 1000'\n");
    pty.wait("sleeping");
    pty.send("\u{3}");
    pty.wait("^C");
    pty.send("echo code${x} $?\n");
    pty.wait("code 130");
    pty.send("echo back${x}again\n");
    pty.wait("backagain");
    pty.send("exit 7\n");
    let (code, screen) = pty.finish();
    assert_eq!(code, Some(7), "{screen}");
    daemon.finish();
}

#[test]
fn the_terminal_is_restored() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    Guest::start(&daemon, "raw", "busybox");
    // A shell at the terminal outlives the command and can look at what it left.
    let script = "\"$0\" exec -i -t raw -- sh -c 'exit 5'; echo code $?; \
                  stty -a | grep -o ' -*icanon'; stty -a | grep -o ' -*echo '; echo end";
    let mut shell = e2e::Banger::new("sh")
        .args(["-c", script])
        .args([bed.program("banger")]);
    for (name, value) in daemon.environment() {
        shell = shell.env(name, value);
    }
    let pty = Pty::spawn(shell.env("BANGER_NO_AUTOSTART", "1"), 24, 80);
    let seen = pty.wait("end");
    assert!(
        seen.contains("code 5") && seen.contains(" icanon") && seen.contains(" echo "),
        "{seen}"
    );
    let (code, _) = pty.finish();
    assert_eq!(code, Some(0));
    daemon.finish();
}

/// `-t` where there is no terminal is a clear error; a terminal without `-t` changes nothing.
#[test]
fn a_terminal_that_is_none() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "plain", "busybox");
    let refused = guest.exec_with(&["-i", "-t"]).args(["--", "true"]).run();
    assert!(refused.code() == 2 || refused.code() == 125, "{refused}");
    assert!(
        refused.err().contains("terminal") || refused.err().contains("TTY"),
        "{refused}"
    );
    daemon.finish();
}
