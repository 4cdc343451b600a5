//! Commands through the real agent, over a Unix socket.

use crate::common::{Agent, DEADLINE, command, eventually, failure, is_root, run};
use banger_agent_api::proto::{Terminal, TerminalSize};
use banger_agent_api::{ExecEvent, ExecOutput, ExitStatus, FailureKind, InitMode};
use bytes::Bytes;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// Reads standard output until it holds `wanted`.
async fn read_until(output: &mut ExecOutput, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let event = tokio::time::timeout(DEADLINE, output.next()).await;
        match event {
            Ok(Ok(Some(ExecEvent::Stdout(bytes)))) => text.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} while waiting for {wanted:?} after {text:?}"),
        }
    }
    text
}

fn process_exists(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).expect("proc")
}

#[tokio::test]
async fn the_handshake() {
    let agent = Agent::start().await;
    let info = agent.client().hello(DEADLINE).await.expect("hello");
    assert_eq!((info.protocol_version, info.init_mode), (1, InitMode::None));
    assert_eq!(info.agent_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.boot_id.len(), 36);
    assert!(agent.client().ping(DEADLINE).await.expect("ping") > Duration::ZERO);
}

#[tokio::test]
async fn codes_signals_and_streams() {
    let agent = Agent::start().await;
    let client = agent.client();
    let outcome = run(&client, command(&["sh", "-c", "echo out; echo err >&2; exit 3"]))
        .await
        .expect("runs");
    assert_eq!(
        (outcome.stdout.as_slice(), outcome.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(outcome.status, Some(ExitStatus::Code(3)));
    let killed = run(&client, command(&["sh", "-c", "kill -TERM $$"]))
        .await
        .expect("runs");
    assert_eq!(
        killed.status,
        Some(ExitStatus::Signal {
            number: 15,
            core_dumped: false
        })
    );
    // Nothing is inherited: not the agent's ignored SIGPIPE, nor its descriptors.
    let outcome = run(
        &client,
        command(&[
            "sh",
            "-c",
            "ls /proc/self/fd | wc -l; grep Sig[BI] /proc/self/status",
        ]),
    )
    .await;
    let outcome = outcome.expect("runs");
    let words: Vec<_> = outcome.text().split_whitespace().collect();
    assert_eq!(
        words,
        ["4", "SigBlk:", "0000000000000000", "SigIgn:", "0000000000000000"]
    );
}

#[tokio::test]
async fn why_a_command_does_not_start() {
    let agent = Agent::start().await;
    let client = agent.client();
    let script = |name: &str, text: &str, mode: u32| {
        let path = agent.scratch().join(name);
        fs::write(&path, text).expect("script");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        path.to_str().expect("UTF-8").to_owned()
    };
    let plain = script("plain", "#!/bin/sh\n", 0o644);
    let lost = script("lost", "#!/no/such/interpreter\n", 0o755);
    let garbage = script("garbage", "\u{7f}nonsense", 0o755);
    for (argv0, expected) in [
        ("no-such-command-anywhere", FailureKind::CommandNotFound),
        ("/no/such/file", FailureKind::CommandNotFound),
        (&plain, FailureKind::NotExecutable),
        (&lost, FailureKind::NotExecutable),
        (&garbage, FailureKind::NotExecutable),
        ("/", FailureKind::NotExecutable),
    ] {
        assert_eq!(
            failure(run(&client, command(&[argv0])).await),
            expected,
            "{argv0}"
        );
    }
    for (user, workdir, expected) in [
        ("no-such-user", "", FailureKind::UnknownUser),
        ("root:no-such-group", "", FailureKind::UnknownGroup),
        ("root:", "", FailureKind::InvalidRequest),
        ("", "/no/such/directory", FailureKind::WorkdirUnusable),
        ("", plain.as_str(), FailureKind::WorkdirUnusable),
    ] {
        let mut start = command(&["true"]);
        start.user = user.to_owned();
        start.workdir = workdir.to_owned();
        assert_eq!(
            failure(run(&client, start).await),
            expected,
            "{user:?} {workdir:?}"
        );
    }
    assert!(agent.children().is_empty());
}

#[tokio::test]
async fn another_user() {
    if !is_root("another_user") {
        return;
    }
    let agent = Agent::start().await;
    let mut start = command(&["sh", "-c", "id -u; id -g; id -G; echo $HOME $USER; pwd"]);
    start.user = "12345:23456".to_owned();
    start.workdir = "/usr".to_owned();
    let outcome = run(&agent.client(), start).await.expect("runs");
    assert_eq!(outcome.text(), "12345\n23456\n23456\n/ 12345\n/usr\n");
}

#[tokio::test]
async fn sixty_four_mebibytes_there_and_back() {
    let agent = Agent::start().await;
    let mut start = command(&["cat"]);
    start.stdin = true;
    let (input, mut output) = agent.client().exec(start).await.expect("runs");
    // Not a multiple of any buffer, and no two chunks alike.
    let total = 64 * 1024 * 1024 + 12_345usize;
    let byte = |at: usize| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).expect("a byte");
    let feeder = tokio::spawn(async move {
        let mut sent = 0;
        while sent < total {
            let length = (total - sent).min(100_000);
            let chunk: Vec<u8> = (sent..sent + length).map(byte).collect();
            input.stdin(Bytes::from(chunk)).await.expect("takes input");
            sent += length;
        }
    });
    let mut received = 0;
    let mut status = None;
    while let Some(event) = output.next().await.expect("output") {
        match event {
            ExecEvent::Stdout(bytes) => {
                for (offset, got) in bytes.iter().enumerate() {
                    assert_eq!(*got, byte(received + offset), "at {}", received + offset);
                }
                received += bytes.len();
            }
            ExecEvent::Stderr(bytes) => panic!("{bytes:?}"),
            ExecEvent::Exited(exit) => status = Some(exit),
        }
    }
    feeder.await.expect("fed");
    assert_eq!((received, status), (total, Some(ExitStatus::Code(0))));
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer() {
    let agent = Agent::start().await;
    let total = 256 * 1024 * 1024u64;
    let before = agent.resident_kib();
    let start = command(&["dd", "if=/dev/zero", "bs=64k", "count=4096", "status=none"]);
    let (_input, mut output) = agent.client().exec(start).await.expect("runs");
    let written = || {
        let io = fs::read_to_string(format!("/proc/{}/io", output.pid())).expect("the writer lives");
        let line = io.lines().find(|line| line.starts_with("wchar:")).expect("wchar");
        line.split_whitespace()
            .nth(1)
            .and_then(|bytes| bytes.parse::<u64>().ok())
            .expect("a number")
    };
    // It has stopped when nothing moved for a while; it must have by then, or it would have finished.
    let mut last = (written(), Instant::now());
    while last.1.elapsed() < Duration::from_millis(500) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = written();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    assert!(
        last.0 < 4 * 1024 * 1024,
        "{} bytes were written with nobody reading",
        last.0
    );
    assert!(
        agent.resident_kib() < before + 8 * 1024,
        "the agent holds what nobody reads"
    );
    let mut received = 0;
    while let Some(event) = output.next().await.expect("output") {
        if let ExecEvent::Stdout(bytes) = event {
            received += bytes.len() as u64;
        }
    }
    assert_eq!(received, total);
}

#[tokio::test]
async fn a_terminal() {
    let agent = Agent::start().await;
    let mut start = command(&[
        "sh",
        "-c",
        "tty; echo $TERM; stty size; read line; stty size; echo got $line",
    ]);
    let size = TerminalSize { rows: 33, cols: 77 };
    start.terminal = Some(Terminal {
        term: "screen".to_owned(),
        size: Some(size),
    });
    let (input, mut output) = agent.client().exec(start).await.expect("runs");
    let text = read_until(&mut output, "33 77\r\n").await;
    assert!(
        text.starts_with("/dev/pts/") && text.contains("\r\nscreen\r\n"),
        "{text:?}"
    );
    input.resize(44, 88).await.expect("resizes");
    input.stdin(Bytes::from_static(b"hello\r")).await.expect("types");
    let text = read_until(&mut output, "got hello\r\n").await;
    assert!(text.contains("44 88\r\n"), "{text:?}");
    assert_eq!(
        output.next().await.expect("end"),
        Some(ExecEvent::Exited(ExitStatus::Code(0)))
    );
    assert_eq!(output.next().await.expect("nothing more"), None);
}

#[tokio::test]
async fn a_terminal_s_keyboard() {
    let agent = Agent::start().await;
    let mut start = command(&[
        "sh",
        "-c",
        "trap 'echo interrupted' INT; echo ready; cat; echo ended",
    ]);
    start.terminal = Some(Terminal::default());
    let (input, mut output) = agent.client().exec(start).await.expect("runs");
    read_until(&mut output, "ready").await;
    // Once as the terminal's echo, once from cat: now it runs.
    input.stdin(Bytes::from_static(b"x\r")).await.expect("types");
    read_until(&mut output, "x\r\nx\r\n").await;
    // ^C ends cat, and runs the shell's trap: it controls the terminal.
    input.stdin(Bytes::from_static(b"\x03")).await.expect("types");
    read_until(&mut output, "ended\r\n").await;

    let mut start = command(&["sh", "-c", "cat; echo ended"]);
    start.terminal = Some(Terminal::default());
    let (input, mut output) = agent.client().exec(start).await.expect("runs");
    input.close_stdin().await.expect("types ^D");
    read_until(&mut output, "ended\r\n").await;
}

#[tokio::test]
async fn signals_pass_a_full_standard_input() {
    let agent = Agent::start().await;
    let mut start = command(&[
        "sh",
        "-c",
        "trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done",
    ]);
    start.stdin = true;
    let (input, mut output) = agent.client().exec(start).await.expect("runs");
    read_until(&mut output, "ready\n").await;
    let signals = input.signals();
    // More than all that is on the way to a command that does not read; once it has ended, the agent may swallow any of it.
    let feeder = tokio::spawn(async move {
        let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
        while input.stdin(piece.clone()).await.is_ok() {}
    });
    signals.send(10, DEADLINE).await.expect("signals");
    // The shell may have something to say about its sleep, which got the signal too.
    let mut last = None;
    while let Some(event) = output.next().await.expect("output") {
        last = Some(event);
    }
    assert_eq!(last, Some(ExecEvent::Exited(ExitStatus::Code(7))));
    let fed = tokio::time::timeout(Duration::from_secs(30), feeder).await;
    fed.expect("no more input is taken").expect("fed");
    assert_eq!(
        failure(signals.send(10, DEADLINE).await),
        FailureKind::NoSuchCommand
    );
    assert_eq!(
        failure(signals.send(65, DEADLINE).await),
        FailureKind::InvalidRequest
    );
}

#[tokio::test]
async fn a_command_which_closes_its_input_still_speaks() {
    let agent = Agent::start().await;
    let mut start = command(&["sh", "-c", "exec <&-; sleep 0.2; echo done"]);
    start.stdin = true;
    let (input, mut output) = agent.client().exec(start).await.expect("runs");
    input
        .stdin(Bytes::from(vec![0; 300_000]))
        .await
        .expect("swallowed");
    read_until(&mut output, "done\n").await;
}

#[tokio::test]
async fn a_process_left_behind_does_not_hold_up_the_exit() {
    let agent = Agent::start().await;
    let client = agent.client();
    let began = Instant::now();
    let script = "head -c 100000 /dev/zero; sleep 600 & echo $! >&2";
    let outcome = run(&client, command(&["sh", "-c", script])).await.expect("runs");
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(
        (outcome.stdout.len(), outcome.status),
        (100_000, Some(ExitStatus::Code(0)))
    );
    let pid = String::from_utf8(outcome.stderr)
        .expect("UTF-8")
        .trim()
        .parse()
        .expect("a pid");
    // It is nobody's business to end it.
    assert!(process_exists(pid));
    run(&client, command(&["kill", &pid.to_string()]))
        .await
        .expect("runs");
    eventually("the sleeper's end", || !process_exists(pid)).await;

    // One that writes without end is cut off.
    let began = Instant::now();
    let outcome = run(&client, command(&["sh", "-c", "yes & echo $! >&2"]))
        .await
        .expect("runs");
    assert!(began.elapsed() < Duration::from_secs(30));
    let pid: u32 = String::from_utf8(outcome.stderr)
        .expect("UTF-8")
        .trim()
        .parse()
        .expect("a pid");
    eventually("the end of yes, by SIGPIPE", || !process_exists(pid)).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_process_group_along() {
    let agent = Agent::start().await;
    let script = "trap '' HUP; sleep 600 & echo $!; wait; sleep 600";
    let (_input, mut output) = agent
        .client()
        .exec(command(&["sh", "-c", script]))
        .await
        .expect("runs");
    let sleeper: u32 = read_until(&mut output, "\n").await.trim().parse().expect("a pid");
    let leader = output.pid();
    assert!(process_exists(leader) && process_exists(sleeper));
    drop(output);
    eventually("the leader's end", || !process_exists(leader)).await;
    eventually("the sleeper's end", || !process_exists(sleeper)).await;
    eventually("no children", || agent.children().is_empty()).await;
}

#[tokio::test]
async fn a_client_that_ends_only_its_input_stays() {
    let agent = Agent::start().await;
    let mut start = command(&["sh", "-c", "cat; sleep 0.2; echo done"]);
    start.stdin = true;
    let (input, mut output) = agent.client().exec(start).await.expect("runs");
    input.stdin(Bytes::from_static(b"bye\n")).await.expect("sends");
    drop(input);
    assert_eq!(read_until(&mut output, "done\n").await, "bye\ndone\n");
}

#[tokio::test]
async fn two_thousand_commands_leave_nothing() {
    let agent = Agent::start().await;
    let client = agent.client();
    let batch = |count: usize| {
        let client = client.clone();
        async move {
            let runs = (0..count).map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    let text = number.to_string();
                    let mut start = command(&["echo", &text]);
                    // Terminals, pipes and clients that leave at once take different ways.
                    match number % 4 {
                        0 => start.terminal = Some(Terminal::default()),
                        1 => start.stdin = true,
                        2 => {
                            drop(client.exec(start).await.expect("runs"));
                            return;
                        }
                        _ => {}
                    }
                    let outcome = run(&client, start).await.expect("runs");
                    assert_eq!(
                        (outcome.text().trim_end(), outcome.status),
                        (text.as_str(), Some(ExitStatus::Code(0)))
                    );
                })
            });
            for run in runs.collect::<Vec<_>>() {
                run.await.expect("a run");
            }
        }
    };
    batch(20).await;
    eventually("no children", || agent.children().is_empty()).await;
    let (descriptors, resident) = (agent.descriptors(), agent.resident_kib());
    for _ in 0..20 {
        batch(100).await;
    }
    eventually("no children", || agent.children().is_empty()).await;
    eventually("no more descriptors than before", || {
        agent.descriptors() <= descriptors
    })
    .await;
    assert!(agent.resident_kib() < resident + 16 * 1024, "the agent has grown");
}

#[tokio::test]
async fn too_many_commands_are_refused_by_name() {
    let agent = Agent::start().await;
    let client = agent.client();
    let mut all = Vec::new();
    for _ in 0..256 {
        all.push(client.exec(command(&["sleep", "600"])).await.expect("runs"));
    }
    let error = client.exec(command(&["true"])).await.expect_err("too many");
    assert!(error.is_retriable(), "{error:?}");
    assert_eq!(
        error.failure().map(|failure| failure.kind),
        Some(FailureKind::Busy)
    );
    // Other calls have room.
    client.ping(DEADLINE).await.expect("ping");
    drop(all);
    eventually("no children", || agent.children().is_empty()).await;
    run(&client, command(&["true"])).await.expect("room again");
}

#[tokio::test]
async fn arguments_up_to_the_limit() {
    let agent = Agent::start().await;
    let client = agent.client();
    let long = "x".repeat(100_000);
    let mut argv = vec!["sh", "-c", "echo $# ${#1}", "sh"];
    argv.extend(std::iter::repeat_n(long.as_str(), 10));
    let outcome = run(&client, command(&argv)).await.expect("runs");
    assert_eq!(outcome.text(), "10 100000\n");
    argv.push(&long);
    assert_eq!(
        failure(run(&client, command(&argv)).await),
        FailureKind::InvalidRequest
    );
}

#[tokio::test]
async fn a_client_finds_a_new_agent_by_itself() {
    let mut agent = Agent::start().await;
    let client = agent.client();
    client.ping(DEADLINE).await.expect("ping");
    let (_input, mut output) = client.exec(command(&["sleep", "600"])).await.expect("runs");
    let orphan = output.pid();
    agent.restart().await;
    let error = output.next().await.expect_err("the command's agent is gone");
    assert!(error.is_broken(), "{error:?}");
    client
        .hello(DEADLINE)
        .await
        .expect("the same client, the new agent");
    run(&client, command(&["kill", &orphan.to_string()]))
        .await
        .expect("runs");
}

#[tokio::test]
async fn an_agent_that_is_not_there() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let client = banger_agent_api::AgentClient::new(&dir.path().join("vsock.sock"));
    let error = client.ping(DEADLINE).await.expect_err("nobody");
    assert!(error.dial_error().is_some() && !error.is_retriable(), "{error:?}");
    let source = std::error::Error::source(&error).expect("a source");
    assert_eq!(error.to_string(), "connect to the guest's agent");
    assert!(source.to_string().starts_with("connect to /") && source.to_string().ends_with("vsock.sock"));
}
