//! The client against a server that follows a script, friendly or hostile.

use tokio::net::UnixListener;

use super::*;

const GREETING: &str = "{\"QMP\": {}}\n";

/// Serves one connection after the other: for each, writes the greeting, then answers each line read with what
/// `answer` makes of it and of the connection's number; `None` closes the connection.
fn serve(
    dir: &Path,
    greeting: &'static str,
    mut answer: impl FnMut(usize, &str) -> Option<String> + Send + 'static,
) -> Qmp {
    let socket = dir.join("qmp.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    drop(tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            writer.write_all(greeting.as_bytes()).await.ok();
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match answer(number, &line) {
                    Some(text) => writer.write_all(text.as_bytes()).await.ok(),
                    None => break,
                };
            }
        }
    }));
    Qmp::new(socket)
}

fn id(line: &str) -> u64 {
    serde_json::from_str::<Value>(line).unwrap()["id"]
        .as_u64()
        .unwrap()
}

fn status(line: &str) -> String {
    let id = id(line);
    if line.contains("query-status") {
        format!("{{\"return\": {{\"status\": \"running\"}}, \"id\": {id}}}\n")
    } else {
        format!("{{\"return\": {{}}, \"id\": {id}}}\n")
    }
}

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn asks_on_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let qmp = serve(dir.path(), GREETING, |number, line| {
        assert_eq!(number, 0);
        Some(format!(
            "{{\"event\": \"STOP\", \"timestamp\": {{}}}}\n{}",
            status(line)
        ))
    });
    assert_eq!(qmp.status(PATIENCE).await.unwrap(), RunState::Running);
    qmp.stop().await.unwrap();
    qmp.resume().await.unwrap();
}

#[tokio::test]
async fn connects_anew_when_the_connection_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let qmp = serve(dir.path(), GREETING, |number, line| {
        match (number, line.contains("\"stop\"")) {
            (0, true) => None,
            _ => Some(status(line)),
        }
    });
    qmp.status(PATIENCE).await.unwrap();
    assert!(matches!(qmp.stop().await, Err(ControlError::Broken { .. })));
    assert_eq!(qmp.status(PATIENCE).await.unwrap(), RunState::Running);
}

#[tokio::test]
async fn an_answer_that_comes_late_is_not_taken_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut held = String::new();
    let qmp = serve(dir.path(), GREETING, move |number, line| {
        match (number, line.contains("\"stop\"")) {
            (0, true) => {
                held = status(line);
                Some(String::new())
            }
            (0, false) => Some(std::mem::take(&mut held) + &status(line)),
            _ => Some(status(line)),
        }
    });
    qmp.status(PATIENCE).await.unwrap();
    // Dropped in the middle.
    assert!(timeout(SHORT, qmp.stop()).await.is_err());
    assert_eq!(qmp.status(PATIENCE).await.unwrap(), RunState::Running);
}

#[tokio::test]
async fn refusals_carry_qemus_words() {
    let dir = tempfile::tempdir().unwrap();
    let qmp = serve(dir.path(), GREETING, |_, line| {
        Some(if line.contains("\"cont\"") {
            format!(
                "{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no medium\"}}, \"id\": {}}}\n",
                id(line)
            )
        } else {
            status(line)
        })
    });
    let error = qmp.resume().await.unwrap_err();
    assert_eq!(error.to_string(), "run `cont`: the VMM says: no medium");
    assert_eq!(
        qmp.status(PATIENCE).await.unwrap(),
        RunState::Running,
        "the connection is still good"
    );
}

#[tokio::test]
async fn hostile_servers_end_in_errors() {
    let long = Box::leak(format!("{}\n", "x".repeat(10 * LINE_LIMIT)).into_boxed_str());
    for greeting in [
        "garbage\n",
        "{\"return\": {}, \"id\": 1}\n",
        long,
        "{}\n{}\n{}\n{}\n{}\n{}\n",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let qmp = serve(dir.path(), greeting, |_, line| Some(status(line)));
        let error = qmp.status(PATIENCE).await.unwrap_err();
        assert!(matches!(error, ControlError::Protocol { .. }), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let qmp = serve(dir.path(), "", |_, line| Some(status(line)));
    assert!(matches!(
        qmp.status(SHORT).await,
        Err(ControlError::Silent { .. })
    ));
    let qmp = Qmp::new(dir.path().join("absent"));
    assert!(matches!(
        qmp.status(SHORT).await,
        Err(ControlError::Connect { .. })
    ));
}

#[tokio::test]
async fn the_first_reason_given_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let qmp = serve(dir.path(), GREETING, |_, line| {
        if line.contains("query-status") {
            let event =
                |reason| format!("{{\"event\": \"SHUTDOWN\", \"data\": {{\"reason\": \"{reason}\"}}}}\n");
            Some(status(line) + &event("guest-reset") + &event("host-signal"))
        } else if line.contains("\"stop\"") {
            None
        } else {
            Some(status(line))
        }
    });
    assert_eq!(qmp.last_words().await, None, "never connected");
    qmp.status(PATIENCE).await.unwrap();
    qmp.stop().await.unwrap_err();
    assert_eq!(qmp.last_words().await.as_deref(), Some("guest-reset"));
}
