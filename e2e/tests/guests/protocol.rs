//! The socket itself: what no client of ours ever sends, and clients that do not behave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use e2e::{Daemon, Guest, Settings, Testbed, Wire, processes, wait_for};
use serde_json::{Value, json};

/// The daemon answers, whatever happened before.
fn works(daemon: &Daemon) {
    assert!(Wire::connect(daemon).call("daemon.status", &json!({})).is_ok());
}

fn code(answer: &Value) -> i64 {
    answer["error"]["code"]
        .as_i64()
        .unwrap_or_else(|| panic!("no error: {answer}"))
}

#[test]
fn malformed_requests_are_answered_and_harm_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let mut wire = Wire::connect(&daemon);
    // JSON-RPC 2.0, section 5.1: -32700 parse error, -32600 invalid request.
    for (line, codes) in [
        (&b"nonsense"[..], &[-32700, -32600][..]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":", &[-32700, -32600]),
        (b"\xff\xfe\x00", &[-32700, -32600]),
        (b"1", &[-32600]),
        (b"null", &[-32600]),
        (b"[]", &[-32600]),
        (b"{}", &[-32600]),
        (b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"vm.list\"}", &[-32600]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"vm.list\"}", &[-32600]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}", &[-32600]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.lst\"}", &[-32601]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.list\",\"params\":[1]}", &[-32602]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.show\"}", &[-32602]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.show\",\"params\":{\"vm\":7}}", &[-32602]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.create\",\"params\":{\"image\":\"busybox\",\"memroy\":1}}", &[-32602]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.create\",\"params\":{\"image\":\"busybox\",\"vcpus\":-1}}", &[-32602]),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.create\",\"params\":{\"image\":\"busybox\",\"vcpus\":1e99}}", &[-32602, -32700]),
    ] {
        wire.send(line);
        let answer = wire.receive().unwrap_or_else(|| panic!("hung up on {}", line.escape_ascii()));
        assert!(codes.contains(&code(&answer)), "{} was answered {answer}", line.escape_ascii());
        assert!(!answer["error"]["message"].as_str().unwrap_or_default().is_empty());
    }
    // A near match is named.
    let error = wire.call("vm.lst", &json!({})).expect_err("no such method");
    assert!(error.to_string().contains("vm.list"), "{error}");
    let error = wire
        .call("vm.create", &json!({"image": "busybox", "memroy": 1}))
        .expect_err("no such field");
    assert!(error.to_string().contains("memory"), "{error}");
    // Deeper than any parser's stack should follow.
    wire.send("[".repeat(200_000).as_bytes());
    assert!(code(&wire.receive().expect("an answer")) < 0);
    assert!(wire.call("vm.list", &json!({})).is_ok(), "the connection goes on");
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn an_oversized_request_is_refused_and_costs_no_memory() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let resident = || {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", daemon.pid())).expect("its statm");
        statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok())
            .expect("a number")
            * 4096
    };
    let before = resident();
    // A line that is too long is answered, and the connection goes on after it …
    let mut wire = Wire::connect(&daemon);
    let mut long = br#"{"jsonrpc":"2.0","id":1,"method":"vm.show","params":{"vm":""#.to_vec();
    long.resize(4 << 20, b'x');
    long.extend_from_slice(br#""}}"#);
    wire.send(&long);
    let answer = wire.receive().expect("an answer");
    assert_eq!(code(&answer), -32600, "{answer}");
    // … and one without an end is cut off.
    let mut stream = UnixStream::connect(daemon.socket()).expect("connect");
    stream
        .set_write_timeout(Some(Duration::from_secs(60)))
        .expect("set a timeout");
    let block = vec![b'x'; 1 << 20];
    let cut = (0..256).any(|_| stream.write_all(&block).is_err());
    assert!(cut, "256 MiB of one line were taken");
    let grown = resident().saturating_sub(before);
    assert!(grown < 16 << 20, "the daemon grew by {} KiB", grown >> 10);
    works(&daemon);
    daemon.finish();
}

#[test]
fn requests_may_come_in_pieces_and_many_at_once() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    // Two connections, byte by byte in turn.
    let request = |id: u32| {
        format!(
            "{}\n",
            json!({"jsonrpc": "2.0", "id": id, "method": "vm.list", "params": {}})
        )
    };
    let mut streams = [1, 2].map(|id| {
        (
            request(id),
            UnixStream::connect(daemon.socket()).expect("connect"),
        )
    });
    for index in 0..streams[0].0.len() {
        for (request, stream) in &mut streams {
            stream
                .write_all(&request.as_bytes()[index..=index])
                .expect("write");
        }
    }
    for (id, (_, stream)) in (1..).zip(&mut streams) {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("set a timeout");
        let mut answer = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!((&answer["id"], &answer["result"]), (&json!(id), &json!([])));
    }
    // Fifty in one write; each is answered once, in whatever order.
    let mut wire = Wire::connect(&daemon);
    let all: String = (1..=50).map(request).collect();
    wire.send(all.trim_end().as_bytes());
    let mut ids: Vec<_> = (0..50)
        .map(|_| wire.receive().expect("an answer")["id"].as_u64().expect("an id"))
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=50).collect::<Vec<_>>());
    // A batch is answered as one.
    wire.send(
        format!(
            "[{},{}]",
            request(1).trim(),
            json!({"jsonrpc": "2.0", "method": "vm.list", "id": 2})
        )
        .as_bytes(),
    );
    assert_eq!(
        wire.receive().expect("an answer").as_array().map(Vec::len),
        Some(2)
    );
    daemon.finish();
}

#[test]
fn a_client_that_does_not_read_harms_nobody() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "flood", "busybox");
    let files = processes::open_files(daemon.pid());
    // Asks and asks and never reads.
    let mut deaf = UnixStream::connect(daemon.socket()).expect("connect");
    deaf.set_write_timeout(Some(Duration::from_millis(500)))
        .expect("set a timeout");
    let request = format!(
        "{}\n",
        json!({"jsonrpc": "2.0", "id": 1, "method": "rpc.discover"})
    );
    while deaf.write_all(request.as_bytes()).is_ok() {}
    // Opens a stream of output and never reads it.
    let mut stuck = UnixStream::connect(daemon.socket()).expect("connect");
    let open = json!({"jsonrpc": "2.0", "id": 1, "method": "guest.exec", "params": {"vm": "flood", "command": ["yes"]}});
    stuck.write_all(format!("{open}\n").as_bytes()).expect("write");
    // Half a request, then silence.
    let mut half = UnixStream::connect(daemon.socket()).expect("connect");
    half.write_all(b"{\"jsonrpc\"").expect("write");

    let began = Instant::now();
    works(&daemon);
    assert_eq!(guest.sh("echo fine"), "fine");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "others wait: {:?}",
        began.elapsed()
    );
    drop((deaf, stuck, half));
    let closed = wait_for(Duration::from_secs(60), || {
        (processes::open_files(daemon.pid()) <= files).then_some(())
    });
    assert!(
        closed.is_some(),
        "{files} files before, {} after",
        processes::open_files(daemon.pid())
    );
    let gone = wait_for(Duration::from_secs(60), || {
        (guest.sh("ps | grep -c '[y]es' || true") == "0").then_some(())
    });
    assert!(
        gone.is_some(),
        "the command outlives its client: {}",
        guest.sh("ps")
    );
    daemon.finish();
}

#[test]
fn the_contract_can_be_printed() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::empty());
    let contract = Wire::connect(&daemon)
        .call("rpc.discover", &json!({}))
        .expect("the contract");
    assert!(
        contract["openrpc"]
            .as_str()
            .is_some_and(|version| version.starts_with("1."))
    );
    let methods: Vec<_> = contract["methods"]
        .as_array()
        .expect("methods")
        .iter()
        .filter_map(|m| m["name"].as_str())
        .collect();
    for method in ["vm.create", "guest.exec", "op.watch", "rpc.discover"] {
        assert!(methods.contains(&method), "{methods:?}");
    }
    daemon.finish();
}
