//! Requests and answers as documents: well-formed, broken, in batches, without an id.

use std::sync::atomic::Ordering;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::harness::{op, running, vm, within};
use super::toy::Toy;
use crate::client::ClientError;
use crate::contract::Caller;
use crate::error::{ErrorKind, RpcError};
use crate::types::{Empty, UploadOpen};

#[tokio::test]
async fn calls_answers_and_errors_pass_through() {
    let server = running();
    let client = server.client();
    let ping = client.vm_ping(vm("a")).await.unwrap();
    assert_eq!(ping.vm, "a");
    assert_eq!(
        ping.latency_microseconds,
        u64::from(rustix::process::geteuid().as_raw())
    );
    assert_eq!(ping.guest_uptime_seconds, u64::from(std::process::id()));
    let Err(ClientError::Rpc(error)) = client.vm_show(vm("a")).await else {
        panic!("no error")
    };
    assert_eq!(
        error,
        RpcError::new(ErrorKind::NotFound, "no vm_show").hint("none")
    );
    // The connection is good for more.
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    server.stop().await;
}

#[tokio::test]
async fn answers_come_as_they_are_ready_and_partial_writes_are_put_together() {
    let server = running();
    let mut raw = server.raw().await;
    raw.request("op.cancel", json!({"operation": "slow"}), 1).await;
    let text = "\r\n  \n{\"jsonrpc\":\"2.0\",\"method\":\"op.show\",\"params\":{\"operation\":\"é\"},\"id\":\"b\"}\r\n";
    for byte in text.as_bytes() {
        raw.write.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let fast = raw.line().await;
    assert_eq!((&fast["id"], &fast["result"]["id"]), (&json!("b"), &json!("é")));
    server.toy.gate.cancel();
    assert_eq!(raw.line().await["id"], 1);
    server.stop().await;
}

#[tokio::test]
async fn bad_documents_are_answered_and_the_connection_goes_on() {
    let server = running();
    let mut raw = server.raw().await;
    for (text, code, id) in [
        ("{\n", -32700, json!(null)),
        ("\u{0}\n", -32700, json!(null)),
        ("[]\n", -32600, json!(null)),
        ("{\"jsonrpc\":\"2.0\",\"id\":4}\n", -32600, json!(4)),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"vm.lst\",\"id\":5}\n",
            -32601,
            json!(5),
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"op.show\",\"id\":6}\n",
            -32602,
            json!(6),
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"op.show\",\"params\":[\"a\"],\"id\":7}\n",
            -32602,
            json!(7),
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"vm.show\",\"params\":{\"vm\":\"a\"},\"id\":8}\n",
            -32000,
            json!(8),
        ),
    ] {
        raw.send(text).await;
        let answer = raw.line().await;
        assert_eq!(
            (&answer["error"]["code"], &answer["id"]),
            (&json!(code), &id),
            "{text}: {answer}"
        );
        assert!(answer["error"]["data"]["kind"].is_string());
    }
    raw.request("op.show", json!({"operation": "after"}), 9).await;
    assert_eq!(raw.line().await["result"]["id"], "after");
    server.stop().await;
}

#[tokio::test]
async fn notifications_run_and_get_no_answer() {
    let server = running();
    server.toy.gate.cancel();
    let mut raw = server.raw().await;
    for method in ["op.cancel", "no.such", "op.watch", "guest.exec"] {
        raw.send(&format!(
            "{}\n",
            json!({"jsonrpc": "2.0", "method": method, "params": {"operation": "x"}})
        ))
        .await;
    }
    raw.send("{\"jsonrpc\":\"2.0\",\"method\":1}\n").await;
    raw.request("op.show", json!({"operation": "after"}), 1).await;
    // Invalid, so it cannot be told from a request: the specification wants an answer with the id null.
    assert_eq!(raw.line().await["error"]["code"], -32600);
    assert_eq!(raw.line().await["id"], 1);
    server.until(|toy| toy.ended.load(Ordering::SeqCst) == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn batches() {
    let server = running();
    let mut raw = server.raw().await;
    let show =
        |id: u64| json!({"jsonrpc": "2.0", "method": "op.show", "params": {"operation": "x"}, "id": id});
    let mut notification = show(0);
    notification.as_object_mut().unwrap().remove("id");
    let watch = json!({"jsonrpc": "2.0", "method": "op.watch", "params": {"operation": "1"}, "id": 3});
    raw.send(&format!(
        "{}\n",
        json!([show(1), 5, notification, watch, show(2)])
    ))
    .await;
    let answers = raw.line().await;
    let answers = answers.as_array().unwrap();
    assert_eq!(
        answers.iter().map(|a| a["id"].clone()).collect::<Vec<_>>(),
        [json!(1), json!(null), json!(3), json!(2)]
    );
    assert_eq!(answers[0]["result"]["id"], "x");
    assert_eq!(
        (&answers[1]["error"]["code"], &answers[2]["error"]["code"]),
        (&json!(-32600), &json!(-32600))
    );

    raw.send(&format!("{}\n", json!((0..65).map(show).collect::<Vec<_>>())))
        .await;
    assert!(
        raw.line().await["error"]["message"]
            .as_str()
            .unwrap()
            .contains("65")
    );
    raw.send(&format!("{}\n", json!([notification, notification])))
        .await;
    raw.send(&format!("{}\n", json!((0..64).map(show).collect::<Vec<_>>())))
        .await;
    assert_eq!(raw.line().await.as_array().unwrap().len(), 64);
    server.stop().await;
}

#[tokio::test]
async fn a_panic_fails_its_own_request_only() {
    let server = running();
    let client = server.client();
    let Err(ClientError::Rpc(error)) = client.image_list(Empty {}).await else {
        panic!("no error")
    };
    assert_eq!(error.kind, ErrorKind::Internal);
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    let upload = UploadOpen {
        vm: "a".into(),
        path: "/".into(),
        contents_only: false,
        keep_owner: false,
    };
    let mut stream = client.guest_upload(upload).await.unwrap();
    assert!(within(stream.next()).await.unwrap().is_none());
    assert_eq!(client.op_show(op("x")).await.unwrap().id, "x");
    server.stop().await;
}

/// Requests' tasks are small, whatever the methods' futures are: hundreds of them wait at a time, and each is built on
/// a worker's stack.
#[test]
fn a_request_is_small() {
    let toy = Toy::default();
    let caller = Caller {
        uid: 0,
        gid: 0,
        pid: 0,
    };
    let size = size_of_val(&crate::contract::dispatch(&toy, caller, "op.show", None));
    assert!(size < 2048, "{size} bytes");
}
