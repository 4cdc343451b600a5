//! Subscriptions and streams: from their opening to their end on either side.

use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::harness::{exec, op, running, within};
use crate::client::ClientError;
use crate::error::ErrorKind;
use crate::frame::{ExitStatus, Frame};

#[tokio::test]
async fn subscriptions_end_or_fail() {
    let server = running();
    let client = server.client();
    let mut events = client.op_watch(op("50")).await.unwrap();
    for generation in 0..50 {
        assert_eq!(events.next().await.unwrap().unwrap().generation, generation);
    }
    assert!(events.next().await.is_none());
    assert!(events.next().await.is_none());

    let mut events = client.op_watch(op("fail")).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    let Some(Err(ClientError::Rpc(error))) = events.next().await else {
        panic!("no error")
    };
    assert_eq!(error.message, "it broke");
    assert!(events.next().await.is_none());

    let Err(ClientError::Rpc(error)) = client.op_watch(op("none")).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn a_subscription_ends_with_its_client() {
    let server = running();
    let mut events = server.client().op_watch(op("forever")).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    drop(events);
    within(server.toy.watch_gone.cancelled()).await;
    server.stop().await;
}

#[tokio::test]
async fn streams_carry_bytes_both_ways() {
    let server = running();
    let (mut reader, mut writer) = server.client().guest_exec(exec("a")).await.unwrap().split();
    let data = Bytes::from(
        (0..5_000_000_u32)
            .map(|n| n.to_le_bytes()[1])
            .collect::<Vec<u8>>(),
    );
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        writer.send(Frame::Stdin(sent)).await.unwrap();
        writer.send(Frame::StdinEof).await.unwrap();
        writer
    });
    let mut received = Vec::new();
    let mut status = within(reader.next()).await.unwrap().unwrap();
    while let Frame::Stdout(bytes) = &status {
        received.extend_from_slice(bytes);
        status = within(reader.next()).await.unwrap().unwrap();
    }
    assert_eq!(status, Frame::Exit(ExitStatus::Code(3)));
    assert!(status.is_final());
    assert!(received == data);
    drop(sending.await.unwrap());
    assert!(within(reader.next()).await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_stream_begins_with_the_bytes_after_its_request() {
    let server = running();
    let mut raw = server.raw().await;
    let open =
        json!({"jsonrpc": "2.0", "method": "guest.exec", "params": {"vm": "a", "command": ["cat"]}, "id": 1});
    raw.send(&format!("{open}\n\u{1}\0\0\0\u{2}hi\u{4}\0\0\0\0"))
        .await;
    assert_eq!(
        raw.line().await,
        json!({"jsonrpc": "2.0", "result": {"stream": true}, "id": 1})
    );
    let mut rest = Vec::new();
    within(raw.read.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"\x02\0\0\0\x02hi\x09\0\0\0\x05\0\0\0\0\x03");
    server.stop().await;
}

#[tokio::test]
async fn a_refused_stream_leaves_the_connection_as_it_was() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("guest.exec", json!({"vm": "missing", "command": ["x"]}), 1)
        .await;
    assert_eq!(raw.line().await["error"]["data"]["kind"], "not_found");
    raw.request("op.cancel", json!({"operation": "x"}), 2).await;
    raw.request("guest.exec", json!({"vm": "a", "command": ["x"]}), 3)
        .await;
    let refused = raw.line().await;
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!(3), &json!(-32600))
    );
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 2);
    raw.request("guest.exec", json!({"vm": "a", "command": ["x"]}), 4)
        .await;
    assert_eq!(raw.line().await["result"]["stream"], true);
    drop(raw);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_sees_its_client_go() {
    let server = running();
    let mut stream = server.client().guest_exec(exec("a")).await.unwrap();
    stream.send(Frame::Stdin(Bytes::from_static(b"x"))).await.unwrap();
    assert!(matches!(stream.next().await.unwrap(), Some(Frame::Stdout(_))));
    drop(stream);
    within(server.toy.stream_gone.cancelled()).await;
    server.stop().await;
}
