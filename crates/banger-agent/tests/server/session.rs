//! Sessions through the real agent: they outlast every connection, and what they write waits for who comes back.

use crate::common::{Agent, DEADLINE, command, eventually, failure};
use banger_agent_api::{
    AgentClient, ExitStatus, FailureKind, MAX_SESSIONS, SessionEvent, SessionOutput, proto,
};
use std::fs;
use std::time::Duration;

fn shell(script: &str) -> proto::ExecStart {
    command(&["sh", "-c", script])
}

async fn next(output: &mut SessionOutput) -> SessionEvent {
    tokio::time::timeout(DEADLINE, output.next())
        .await
        .expect("an event in time")
        .expect("an event")
        .expect("no end before the exit")
}

/// All of it: standard output, standard error, where the last byte was, how it ended.
async fn whole(client: &AgentClient, id: &str, from: u64) -> (String, String, u64, ExitStatus) {
    let mut output = client.session_follow(id, from).await.expect("follow");
    let (mut out, mut err, mut end) = (Vec::new(), Vec::new(), from);
    loop {
        match next(&mut output).await {
            SessionEvent::Wrote {
                offset,
                time_ms,
                error,
                data,
            } => {
                assert!(offset >= end && time_ms > 1_700_000_000_000, "{offset} {time_ms}");
                end = offset + data.len() as u64;
                if error { &mut err } else { &mut out }.extend_from_slice(&data);
            }
            SessionEvent::Exited(status) => {
                assert_eq!(output.next().await.expect("the end"), None);
                let text = |bytes| String::from_utf8(bytes).expect("text");
                return (text(out), text(err), end, status);
            }
        }
    }
}

#[tokio::test]
async fn a_session_is_there_for_whoever_comes() {
    let agent = Agent::start().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let gate = dir.path().join("gate");
    let script = format!(
        "echo one; echo two >&2; while ! [ -e {} ]; do sleep 0.02; done; echo three; exit 7",
        gate.display()
    );
    let pid = agent
        .client()
        .session_start("s-1", shell(&script), DEADLINE)
        .await
        .expect("start");
    // The connection that started it is gone; another one reads what there is, and leaves as well.
    let client = agent.client();
    let mut early = client.session_follow("s-1", 0).await.expect("follow");
    let mut seen = 0;
    while seen < "one\ntwo\n".len() {
        match next(&mut early).await {
            SessionEvent::Wrote { data, .. } => seen += data.len(),
            SessionEvent::Exited(status) => panic!("{status:?}"),
        }
    }
    drop((early, client));
    let client = agent.client();
    assert!(fs::exists(format!("/proc/{pid}")).expect("proc"));
    let refused = client.session_start("s-1", shell("true"), DEADLINE).await;
    assert_eq!(failure(refused), FailureKind::SessionExists);
    let refused = client.session_remove("s-1", DEADLINE).await;
    assert_eq!(failure(refused), FailureKind::SessionRuns);
    fs::write(&gate, "").expect("open the gate");
    let all = (
        "one\nthree\n".to_owned(),
        "two\n".to_owned(),
        14,
        ExitStatus::Code(7),
    );
    assert_eq!(whole(&client, "s-1", 0).await, all);
    // As often as one likes, and from anywhere.
    assert_eq!(whole(&client, "s-1", 0).await, all);
    assert_eq!(whole(&client, "s-1", 8).await.0, "three\n");
    assert_eq!(whole(&client, "s-1", 10).await.0, "ree\n");
    assert_eq!(whole(&client, "s-1", 14).await.2, 14);
    let refused = client.session_signal("s-1", 15, DEADLINE).await;
    assert_eq!(failure(refused), FailureKind::NoSuchCommand);
    client.session_remove("s-1", DEADLINE).await.expect("remove");
    let refused = client.session_follow("s-1", 0).await;
    assert_eq!(failure(refused), FailureKind::NoSuchSession);
    client
        .session_start("s-1", shell("true"), DEADLINE)
        .await
        .expect("the id is free again");
}

#[tokio::test]
async fn one_that_nobody_follows_does_not_wait_and_loses_its_oldest() {
    let agent = Agent::start().await;
    let client = agent.client();
    let length: u64 = 8 << 20;
    let script = format!("head -c {length} /dev/zero | tr '\\0' x; echo end");
    client
        .session_start("talks", shell(&script), DEADLINE)
        .await
        .expect("start");
    let mut output = client.session_follow("talks", length).await.expect("follow");
    // It is through with all of it though nobody has read any.
    loop {
        if let SessionEvent::Exited(status) = next(&mut output).await {
            assert_eq!(status, ExitStatus::Code(0));
            break;
        }
    }
    let (out, err, end, _) = whole(&client, "talks", 0).await;
    assert!(err.is_empty() && out.ends_with("xend\n"));
    assert_eq!(end, length + 4);
    assert!(out.len() < 1 << 20 && out.len() > 1 << 19, "{}", out.len());
}

#[tokio::test]
async fn signals_reach_the_whole_session() {
    let agent = Agent::start().await;
    let client = agent.client();
    client
        .session_start("sleeps", shell("sleep 1000 & echo $!; wait"), DEADLINE)
        .await
        .expect("start");
    let mut output = client.session_follow("sleeps", 0).await.expect("follow");
    let SessionEvent::Wrote { data, .. } = next(&mut output).await else {
        panic!("no number");
    };
    let child = String::from_utf8(data.to_vec()).expect("text").trim().to_owned();
    client
        .session_signal("sleeps", 15, DEADLINE)
        .await
        .expect("signal");
    let SessionEvent::Exited(ExitStatus::Signal { number: 15, .. }) = next(&mut output).await else {
        panic!("not ended by the signal");
    };
    eventually("the child is gone", || {
        !fs::exists(format!("/proc/{child}")).expect("proc")
    })
    .await;
    let refused = client.session_signal("sleeps", 99, DEADLINE).await;
    assert_eq!(failure(refused), FailureKind::InvalidRequest);
}

#[tokio::test]
async fn what_cannot_start_leaves_no_session() {
    let agent = Agent::start().await;
    let client = agent.client();
    let none = client
        .session_start("none", command(&["/no/such"]), DEADLINE)
        .await;
    assert_eq!(failure(none), FailureKind::CommandNotFound);
    for id in ["", "A", "a b", "a/../b", &"x".repeat(65)] {
        let refused = client.session_start(id, shell("true"), DEADLINE).await;
        assert_eq!(failure(refused), FailureKind::InvalidRequest, "{id}");
    }
    for at in 0..MAX_SESSIONS {
        client
            .session_start(&format!("none-{at}"), shell("true"), DEADLINE)
            .await
            .expect("start");
    }
    let busy = client.session_start("none", shell("true"), DEADLINE).await;
    assert_eq!(failure(busy), FailureKind::Busy);
    whole(&client, "none-0", 0).await;
    client
        .session_remove("none-0", Duration::from_secs(30))
        .await
        .expect("remove");
    client
        .session_start("none", shell("true"), DEADLINE)
        .await
        .expect("start");
}
