//! Ends: of a client in the middle of a call, and of the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::harness::{Running, exec, limits, op, running, start, within};
use super::toy::Toy;
use crate::client::{ClientError, Unreachable};
use crate::error::ErrorKind;
use crate::server::{Access, Limits, Server, bind};

#[tokio::test]
async fn a_call_goes_on_when_its_client_has_gone() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
    drop(raw);
    server.toy.gate.cancel();
    server.until(|toy| toy.ended.load(Ordering::SeqCst) == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_closes_only_its_writing_half_gets_its_answers() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    raw.send("{\"unfinished\":").await;
    raw.write.shutdown().await.unwrap();
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 1);
    assert_eq!(raw.line().await, Value::Null);
    server.stop().await;
}

#[tokio::test]
async fn stopping_lets_calls_finish_and_begins_nothing_new() {
    let mut server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    let mut events = server.client().op_watch(op("forever")).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;

    server.tell_to_stop();
    let Some(Err(ClientError::Rpc(error))) = within(events.next()).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::Busy);
    let Err(ClientError::Unreachable { reason, .. }) = server.client().op_show(op("x")).await else {
        panic!("still served")
    };
    assert_eq!(reason, Unreachable::Refused);
    assert!(!server.task.is_finished());
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 1);
    assert_eq!(raw.line().await, Value::Null);
    server.stop().await;
}

#[tokio::test]
async fn stopping_waits_no_longer_than_it_may() {
    let server = start(
        Limits {
            drain: Duration::from_millis(100),
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "x"}), 1).await;
    let stream = server.client().guest_exec(exec("a")).await.unwrap();
    server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
    let toy = Arc::clone(&server.toy);
    within(server.stop()).await;
    assert_eq!(toy.ended.load(Ordering::SeqCst), 0);
    drop(stream);
}

#[tokio::test]
async fn a_daemon_that_was_restarted_is_found_again() {
    let server = running();
    let client = server.client();
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    let Running {
        path,
        mut stop,
        task,
        bound,
        dir,
        ..
    } = server;
    drop(stop.take());
    task.await.unwrap();
    drop(bound);
    let Err(ClientError::Unreachable {
        reason: Unreachable::NoSocket,
        ..
    }) = client.op_show(op("x")).await
    else {
        panic!("reached a daemon that is not there")
    };
    let (listener, _bound) = bind(&path, None).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::new(Access::of_this_process(None));
    let task = tokio::spawn(server.serve(listener, Arc::new(Toy::default()), async { drop(stopped.await) }));
    assert_eq!(client.op_show(op("y")).await.unwrap().id, "y");
    drop(stop);
    task.await.unwrap();
    drop(dir);
}
