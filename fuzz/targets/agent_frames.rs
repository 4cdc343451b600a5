//! What a guest's agent answers, by the host's client: the line that it greets with, and the messages and trailers of calls
//! over a connection of its own kind (HTTP/2), whose peer says what the input says.
//!
//! The first byte chooses the call, the second the status in the trailers (none, from 17 on); then the body.
#![no_main]

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use banger_agent_api::{AgentClient, HelloLine, proto};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use libfuzzer_sys::fuzz_target;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// Nothing waits for longer: the peer answers at once.
const DEADLINE: Duration = Duration::from_secs(20);
/// More messages cannot be in an input.
const MESSAGES: usize = 1 << 16;

struct Guest {
    runtime: Runtime,
    /// Where the peer's tasks are.
    tasks: LocalSet,
    client: AgentClient,
    answer: Rc<RefCell<(u8, Bytes)>>,
}

thread_local! {
    static GUEST: Guest = Guest::new(&banger_fuzz::scratch().join("socket"));
}

impl Guest {
    fn new(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let tasks = LocalSet::new();
        let answer = Rc::new(RefCell::new((0, Bytes::new())));
        let entered = runtime.enter();
        let listener = UnixListener::bind(socket).expect("a socket");
        let client = AgentClient::for_plain_socket(socket);
        drop(entered);
        tasks.spawn_local(serve(listener, Rc::clone(&answer)));
        Self {
            runtime,
            tasks,
            client,
            answer,
        }
    }
}

/// Answers every call of every connection with what is said now.
async fn serve(listener: UnixListener, answer: Rc<RefCell<(u8, Bytes)>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let answer = Rc::clone(&answer);
        tokio::task::spawn_local(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let (status, body) = answer.borrow().clone();
                let response = Response::builder().header("content-type", "application/grpc");
                let response = response.body(()).expect("a response");
                // The client may have gone away, which is an end like any other.
                let Ok(mut send) = respond.send_response(response, false) else {
                    continue;
                };
                let mut trailers = HeaderMap::new();
                if status <= 16 {
                    trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
                    if let Ok(text) = HeaderValue::from_bytes(&body) {
                        trailers.insert("grpc-message", text);
                    }
                }
                drop(send.send_data(body, false));
                drop(send.send_trailers(trailers));
            }
        });
    }
}

async fn call(client: &AgentClient, which: u8) {
    match which % 6 {
        0 => {
            let Ok((_input, mut output)) = client.exec(proto::ExecStart::default()).await else {
                return;
            };
            for _ in 0..MESSAGES {
                let Ok(Some(_)) = output.next().await else {
                    return;
                };
            }
        }
        1 => {
            let Ok(mut download) = client.download(proto::DownloadRequest::default()).await else {
                return;
            };
            assert!(
                !download.name().contains('/') && download.name() != "..",
                "{:?}",
                download.name()
            );
            for _ in 0..MESSAGES {
                let Ok(Some(data)) = download.next().await else {
                    return;
                };
                assert!(!data.is_empty() && data.len() <= 64 << 10);
            }
        }
        2 => {
            let Ok(mut session) = client.session_follow("id", 0).await else {
                return;
            };
            for _ in 0..MESSAGES {
                let Ok(Some(_)) = session.next().await else {
                    return;
                };
            }
        }
        3 => drop(client.listening(DEADLINE).await),
        4 => drop(client.stats(DEADLINE).await),
        _ => {
            let Ok((_input, mut output)) = client.ssh(proto::SshStart::default()).await else {
                return;
            };
            for _ in 0..MESSAGES {
                let Ok(Some(_)) = output.next().await else {
                    return;
                };
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some(([which, status], body)) = input.split_first_chunk() else {
        return;
    };
    if *which >= 0xf0 {
        if let Ok(line) = HelloLine::parse(body) {
            let shown = line.to_string();
            assert_eq!(HelloLine::parse(shown.as_bytes()).ok(), Some(line), "{shown:?}");
        }
        return;
    }
    GUEST.with(|guest| {
        *guest.answer.borrow_mut() = (*status, Bytes::copy_from_slice(body));
        guest.tasks.block_on(&guest.runtime, async {
            let done = tokio::time::timeout(DEADLINE, call(&guest.client, *which)).await;
            assert!(done.is_ok(), "a call whose answer has ended goes on");
        });
    });
});
