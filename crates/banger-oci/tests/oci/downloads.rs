//! Single files by URL and digest, from servers that break off, change their mind, or have something else.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_oci::download::{DownloadError, Pinned, download};
use banger_oci::{Blobs, Event, Registries};
use hostkit::digest::Digest;
use tokio::io::AsyncWriteExt;

use crate::raw::{Request, Server, reply};
use crate::support::{files, idle, noise};

const LENGTH: usize = 3 << 20;

fn settings() -> Registries {
    let mut settings = Registries::default();
    settings.timing.pause = Duration::from_millis(1);
    settings
}

fn pinned(server: &Server, bytes: &[u8]) -> Pinned {
    Pinned {
        url: format!("http://{}/file", server.address).parse().unwrap(),
        sha256: Digest::of_bytes(bytes),
        limit: 1 << 30,
    }
}

async fn fetch(pinned: &Pinned, blobs: &Blobs) -> Result<u64, DownloadError> {
    let silent = |_: Event<'_>| ControlFlow::Continue(());
    let outcome = download(&settings(), pinned, blobs, &silent).await;
    idle(blobs).await;
    outcome
}

/// Where a request wants to begin.
fn begin(request: &Request) -> usize {
    let range = request.header("range");
    range
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or(0)
}

/// Serves a file, with ranges; of the first `cuts` answers only a third each.
async fn server(bytes: Vec<u8>, cuts: usize) -> Server {
    let served = Arc::new(AtomicUsize::new(0));
    Server::start(move |request, stream| {
        let (bytes, served) = (bytes.clone(), served.clone());
        Box::pin(async move {
            let from = begin(&request);
            let rest = &bytes[from..];
            let head = match from {
                0 => "HTTP/1.1 200 OK\r\n".to_owned(),
                from => format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
                    bytes.len() - 1,
                    bytes.len()
                ),
            };
            let head = format!(
                "{head}Connection: close\r\nContent-Length: {}\r\n\r\n",
                rest.len()
            );
            stream.write_all(head.as_bytes()).await?;
            let cut = served.fetch_add(1, Ordering::SeqCst) < cuts;
            stream
                .write_all(if cut { &rest[..rest.len() / 3] } else { rest })
                .await
        })
    })
    .await
}

#[tokio::test]
async fn a_file_comes_whole_and_is_asked_for_once() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), noise(LENGTH));
    let blobs = Blobs::open(dir.path()).unwrap();
    let server = server(bytes.clone(), 0).await;
    let pinned = pinned(&server, &bytes);
    assert_eq!(fetch(&pinned, &blobs).await.unwrap(), LENGTH as u64);
    assert_eq!(std::fs::read(blobs.path(&pinned.sha256)).unwrap(), bytes);
    assert_eq!(fetch(&pinned, &blobs).await.unwrap(), LENGTH as u64);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_off_is_gone_on_with() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), noise(LENGTH));
    let blobs = Blobs::open(dir.path()).unwrap();
    let server = server(bytes.clone(), 2).await;
    let pinned = pinned(&server, &bytes);
    assert_eq!(fetch(&pinned, &blobs).await.unwrap(), LENGTH as u64);
    let begins: Vec<_> = server.requests().iter().map(begin).collect();
    assert_eq!(begins.len(), 3);
    assert!(
        begins[0] == 0 && begins[1] > 0 && begins[2] > begins[1],
        "{begins:?}"
    );
    assert_eq!(std::fs::read(blobs.path(&pinned.sha256)).unwrap(), bytes);
}

#[tokio::test]
async fn a_wrong_file_leaves_nothing_and_both_digests_are_named() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), noise(LENGTH));
    let blobs = Blobs::open(dir.path()).unwrap();
    // Once whole, once with a beginning from before a broken connection.
    for cuts in [0, 1] {
        let server = server(bytes.clone(), cuts).await;
        let pinned = pinned(&server, b"something else");
        let error = fetch(&pinned, &blobs).await.unwrap_err().to_string();
        for digest in [Digest::of_bytes(&bytes), pinned.sha256] {
            assert!(error.contains(&digest.to_string()), "{error}");
        }
        assert_eq!(files(&blobs), [""; 0]);
    }
}

#[tokio::test]
async fn what_a_server_may_not_do() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let bytes = noise(100);
    let cases: [(&str, &str, &str); 4] = [
        ("404 Not Found", "", "status 404"),
        ("302 Found", "Location: ftp://x/\r\n", "redirects: to nowhere"),
        (
            "302 Found",
            "Location: http://files.invalid/x\r\n",
            "redirects: to another host by plain http",
        ),
        ("200 OK", "", "at most 10 are taken"),
    ];
    for (status, headers, expected) in cases {
        let body = bytes.clone();
        let server = Server::start(move |_, stream| {
            let body = body.clone();
            Box::pin(async move { reply(stream, status, headers, &body).await })
        })
        .await;
        let mut pinned = pinned(&server, &bytes);
        pinned.limit = 10;
        let error = fetch(&pinned, &blobs).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(files(&blobs), [""; 0]);
}

#[tokio::test]
async fn a_server_that_says_no_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let server = Server::start(|_, stream| {
        Box::pin(async move {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
                .await
        })
    })
    .await;
    let error = fetch(&pinned(&server, b"x"), &blobs).await.unwrap_err();
    assert!(matches!(error, DownloadError::NoLength { .. }), "{error}");
}

#[tokio::test]
async fn who_says_no_more_gets_no_more_and_the_beginning_stays() {
    let (dir, bytes) = (tempfile::tempdir().unwrap(), noise(LENGTH));
    let blobs = Blobs::open(dir.path()).unwrap();
    let server = server(bytes.clone(), 0).await;
    let pinned = pinned(&server, &bytes);
    let enough = |event: Event<'_>| match event {
        Event::Bytes { done, .. } if done > 1 << 20 => ControlFlow::Break(()),
        Event::Bytes { .. }
        | Event::Layers(_)
        | Event::Again { .. }
        | Event::NextSource { .. }
        | Event::Step { .. } => ControlFlow::Continue(()),
    };
    let error = download(&settings(), &pinned, &blobs, &enough).await.unwrap_err();
    assert!(matches!(error, DownloadError::Cancelled), "{error}");
    idle(&blobs).await;
    assert_eq!(fetch(&pinned, &blobs).await.unwrap(), LENGTH as u64);
    let begins: Vec<_> = server.requests().iter().map(begin).collect();
    assert!(
        matches!(begins.as_slice(), [0, rest] if *rest > 1 << 20),
        "{begins:?}"
    );
}
