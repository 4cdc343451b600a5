//! Many at once, and the bounds of what one client may take.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

use super::harness::{Raw, limits, op, running, start, within};
use crate::client::ClientError;
use crate::error::ErrorKind;
use crate::server::{Access, Limits};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once() {
    let server = running();
    let clients: Vec<_> = (0..100)
        .map(|n| {
            let client = server.client();
            tokio::spawn(async move {
                for m in 0..20 {
                    let id = format!("{n}-{m}");
                    assert_eq!(client.op_show(op(&id)).await.unwrap().id, id);
                }
            })
        })
        .collect();
    for client in clients {
        within(client).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn one_client_can_be_shared_by_overlapping_calls() {
    let server = running();
    let client = server.client();
    let slow = client.op_cancel(op("slow"));
    let fast = async {
        server.until(|toy| toy.begun.load(Ordering::SeqCst) == 1).await;
        let answer = client.op_show(op("fast")).await.unwrap();
        server.toy.gate.cancel();
        answer
    };
    let (slow, fast) = within(async { tokio::join!(slow, fast) }).await;
    assert_eq!((slow.unwrap().id.as_str(), fast.id.as_str()), ("slow", "fast"));
    server.stop().await;
}

#[tokio::test]
async fn an_oversized_line_is_refused_skipped_and_forgiven_once() {
    let server = start(
        Limits {
            line: 1000,
            skip: 1 << 20,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    raw.send(&"x".repeat(100_000)).await;
    let answer = raw.line().await;
    assert_eq!(
        (&answer["error"]["code"], &answer["id"]),
        (&json!(-32600), &json!(null))
    );
    raw.send("\n").await;
    raw.request("op.show", json!({"operation": "after"}), 1).await;
    assert_eq!(raw.line().await["result"]["id"], "after");
    // A line at the limit passes, one more byte does not.
    let mut line =
        json!({"jsonrpc": "2.0", "method": "op.show", "params": {"operation": "x"}, "id": 2}).to_string();
    line.push_str(&" ".repeat(1000 - line.len()));
    raw.send(&format!("{line}\n")).await;
    assert_eq!(raw.line().await["id"], 2);
    raw.send(&format!("{line} \n")).await;
    assert!(raw.line().await["error"].is_object());
    assert_eq!(raw.line().await, Value::Null);
    server.stop().await;
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let server = start(
        Limits {
            line: 1000,
            skip: 100_000,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let Raw { mut read, mut write } = server.raw().await;
    let flood = tokio::spawn(async move {
        let junk = vec![b'x'; 10_000];
        let mut sent = 0_usize;
        while write.write_all(&junk).await.is_ok() {
            sent += junk.len();
        }
        sent
    });
    let sent = within(flood).await.unwrap();
    // What the limit and the kernel's buffers hold, not more.
    assert!((100_000..2_000_000).contains(&sent), "{sent} bytes were taken");
    let mut answer = String::new();
    read.read_line(&mut answer).await.unwrap();
    assert!(answer.contains("longer than 1000 bytes"));
    server.stop().await;
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let server = start(
        Limits {
            in_flight: 3,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    for id in 0..4 {
        raw.request("op.cancel", json!({"operation": "x"}), id).await;
    }
    let refused = raw.line().await;
    assert_eq!(
        (&refused["id"], &refused["error"]["data"]["kind"]),
        (&json!(3), &json!("busy"))
    );
    // Others are not affected.
    assert_eq!(server.client().op_show(op("x")).await.unwrap().id, "x");
    server.toy.gate.cancel();
    let mut answered: Vec<u64> = Vec::new();
    for _ in 0..3 {
        answered.push(raw.line().await["id"].as_u64().unwrap());
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 1, 2]);
    // A place is free as soon as its answer is there.
    for id in 10..60 {
        raw.request("op.show", json!({"operation": "x"}), id).await;
        assert!(raw.line().await["result"].is_object());
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = start(
        Limits {
            connections: 2,
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut first = server.raw().await;
    let mut second = server.raw().await;
    for raw in [&mut first, &mut second] {
        raw.request("op.show", json!({"operation": "x"}), 1).await;
        raw.line().await;
    }
    let Err(ClientError::Rpc(error)) = server.client().op_show(op("x")).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::Busy);
    drop(first);
    within(async { while server.client().op_show(op("x")).await.is_err() {} }).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_harms_nobody() {
    let server = start(
        Limits {
            stall: Duration::from_millis(300),
            ..limits()
        },
        Access::of_this_process(None),
    );
    let mut raw = server.raw().await;
    // Far more answers than the socket and all queues hold.
    let flood = tokio::spawn(async move {
        for id in 0.. {
            let request = json!({"jsonrpc": "2.0", "method": "rpc.discover", "id": id});
            if raw
                .write
                .write_all(format!("{request}\n").as_bytes())
                .await
                .is_err()
            {
                break;
            }
        }
        raw
    });
    let other = server.client();
    while !flood.is_finished() {
        assert_eq!(within(other.op_show(op("x"))).await.unwrap().id, "x");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(flood.await.unwrap());
    server.stop().await;
}
