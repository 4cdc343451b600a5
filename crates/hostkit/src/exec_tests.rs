//! Tests with real commands.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn sh(script: &str) -> Command<'static> {
    Tool::at("/bin/sh").unwrap().command().args(["-c", script])
}

/// Waits, bounded, until no process has `marker` in its arguments.
async fn gone(marker: &str) -> bool {
    for _ in 0..500 {
        let found = process::command_lines().unwrap();
        if !found
            .iter()
            .any(|line| line.args.iter().any(|argument| argument == marker))
        {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[test]
fn tools_are_found_or_the_places_named() {
    let tool = Tool::find("sh", ["/nonexistent", "/bin"]).unwrap();
    assert_eq!(tool.path(), Path::new("/bin/sh"));
    let error = Tool::find("no-such-tool", ["/nonexistent", "/bin"]).unwrap_err();
    assert_eq!(error.to_string(), "find no-such-tool: not in /nonexistent, /bin");
    let error = Tool::find_in_path("sh", Some(OsStr::new("bin:.:"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "find sh: not in any directory (no PATH)",
        "relative entries are not looked at"
    );
    let plain = tempfile::NamedTempFile::new().unwrap();
    assert!(
        matches!(Tool::at(plain.path()), Err(ExecError::NotFound { looked, .. }) if looked == [plain.path()])
    );
    assert!(Tool::at("/bin").is_err(), "a directory");
    assert!(Tool::find("/bin/sh", [""; 0]).is_ok(), "a path is taken as such");
}

#[test]
fn command_lines_can_be_pasted() {
    let args = ["-x", "a b", "it's", "", "k=v"].map(OsString::from).to_vec();
    let text = CommandText {
        program: "/bin/tool".into(),
        args,
    };
    assert_eq!(text.to_string(), r"`/bin/tool -x 'a b' 'it'\''s' '' k=v`");
}

#[tokio::test]
async fn output_input_and_environment() {
    let output = sh("cat; echo err >&2; echo $LC_ALL$MINE")
        .env("MINE", "+1")
        .input("in\n")
        .run()
        .await
        .unwrap();
    assert_eq!(output.stdout, b"in\nC+1\n");
    assert_eq!(output.text(), "in\nC+1");
    assert_eq!(output.stderr, ["err"]);
    let big = vec![b'x'; 300_000];
    let output = sh("cat").input(big.clone()).run().await.unwrap();
    assert_eq!(output.stdout, big, "both directions at once");
    sh("exit 0").input(big).run().await.unwrap();
    assert_eq!(sh("pwd").dir("/tmp").run().await.unwrap().text(), "/tmp");
    assert_eq!(sh("echo $HOME").clear_env().run().await.unwrap().text(), "");
}

#[tokio::test]
async fn files_as_input_and_output() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, "through").unwrap();
    let command = sh("cat")
        .input_file(File::open(&from).unwrap())
        .output_file(File::create(&to).unwrap());
    assert_eq!(command.run().await.unwrap().stdout, b"");
    assert_eq!(std::fs::read(&to).unwrap(), b"through");
}

#[tokio::test]
async fn failures_say_everything() {
    let error = sh("for i in $(seq 40); do echo line $i >&2; done; exit 3")
        .run()
        .await
        .unwrap_err();
    let ExecError::Failed {
        exit: Exit::Code(3),
        stderr,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(stderr.len(), TAIL_LINES);
    assert!(
        error.to_string().ends_with(
            "exit code 3: line 29 | line 30 | line 31 | line 32 | line 33 | line 34 | \
         line 35 | line 36 | line 37 | line 38 | line 39 | line 40"
        ),
        "{error}"
    );
    let error = sh("kill -KILL $$").run().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "run `/bin/sh -c 'kill -KILL $$'`: signal 9 (SIGKILL)"
    );
    let error = sh("true").dir("/nonexistent").run().await.unwrap_err();
    assert!(matches!(error, ExecError::Start { .. }), "{error}");
}

#[tokio::test]
async fn output_is_bounded() {
    let error = sh("yes").capture_limit(100_000).run().await.unwrap_err();
    assert!(
        matches!(error, ExecError::TooMuchOutput { limit: 100_000, .. }),
        "{error}"
    );
    let error = sh("yes >&2")
        .timeout(Duration::from_millis(200))
        .run()
        .await
        .unwrap_err();
    let ExecError::TimedOut { stderr, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(stderr, vec!["y"; TAIL_LINES]);
}

#[tokio::test]
async fn lines_come_as_they_are_written() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    let command = sh(r"printf 'one\ntwo\rthree'; echo four >&2")
        .on_line(move |stream, line| kept.lock().unwrap().push((stream, line.to_owned())));
    let output = command.run().await.unwrap();
    assert_eq!(output.stdout, b"one\ntwo\rthree");
    let of = |which| {
        let lines = lines.lock().unwrap();
        lines
            .iter()
            .filter(|(stream, _)| *stream == which)
            .map(|(_, line)| line.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(Stream::Stdout), ["one", "two", "three"]);
    assert_eq!(of(Stream::Stderr), ["four"]);
}

#[tokio::test]
async fn a_timeout_ends_the_whole_group() {
    let marker = format!("timeout-{}", std::process::id());
    // Deaf to SIGTERM, with a child.
    let script = format!("trap '' TERM; sh -c 'kill -STOP $$; exit' {marker} & wait");
    let started = Instant::now();
    let error = sh(&script)
        .timeout(Duration::from_millis(100))
        .run()
        .await
        .unwrap_err();
    assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(gone(&marker).await);
}

#[tokio::test]
async fn dropping_the_future_ends_the_whole_group() {
    let marker = format!("drop-{}", std::process::id());
    let started = Arc::new(tokio::sync::Notify::new());
    let notify = started.clone();
    let script = format!("sh -c 'echo here; kill -STOP $$; exit' {marker} & wait");
    let command = sh(&script).on_line(move |_, _| notify.notify_one());
    let task = tokio::spawn(command.run());
    started.notified().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(gone(&marker).await);
}

#[tokio::test]
async fn a_child_left_behind_ends_with_its_leader() {
    let marker = format!("left-{}", std::process::id());
    let script = format!("sh -c 'kill -STOP $$; exit' {marker} & echo done");
    let started = Instant::now();
    assert_eq!(sh(&script).run().await.unwrap().text(), "done");
    assert!(
        started.elapsed() < DRAIN,
        "did not wait for the pipe that the child held"
    );
    assert!(gone(&marker).await);
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_how_bytes_arrive(text in "[ab\n\r]{0,60}", cuts in proptest::collection::vec(1usize..7, 0..20)) {
        let mut whole = Vec::new();
        let mut lines = Lines::default();
        lines.push(text.as_bytes(), |line| whole.push(line.to_owned()));
        lines.push(b"", |line| whole.push(line.to_owned()));

        let mut pieces = Vec::new();
        let mut lines = Lines::default();
        let mut rest = text.as_bytes();
        for cut in cuts {
            let (piece, tail) = rest.split_at(cut.min(rest.len()));
            if !piece.is_empty() {
                lines.push(piece, |line| pieces.push(line.to_owned()));
            }
            rest = tail;
        }
        if !rest.is_empty() {
            lines.push(rest, |line| pieces.push(line.to_owned()));
        }
        lines.push(b"", |line| pieces.push(line.to_owned()));
        prop_assert_eq!(&whole, &pieces);
        prop_assert_eq!(whole, text.split(['\n', '\r']).filter(|line| !line.is_empty()).collect::<Vec<_>>());
    }
}
