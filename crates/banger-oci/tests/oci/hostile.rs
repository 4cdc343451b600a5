//! Servers that no registry should be like. Each pull ends, with an error that says what was wrong, and leaves nothing.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_oci::{Blobs, Error, Event, Platform, Registries, pull};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::raw::{Image, Request, Server, reply, serve, sha256};
use crate::support::{files, idle, noise, plain, pull_into};

/// Pulls `x:1` from a server. The error, and what is left.
async fn refused(server: &Server, change: impl Fn(&mut Registries)) -> (Error, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let mut registries = plain(&[&server.address.to_string()]);
    change(&mut registries);
    let name = format!("{}/x:1", server.address).parse().unwrap();
    let error = pull_into(&registries, &name, &blobs).await.unwrap_err();
    idle(&blobs).await;
    (error, files(&blobs))
}

/// A registry whose manifest is something else.
async fn with_manifest(image: &Image, manifest: Vec<u8>) -> Server {
    let mut image = image.clone();
    image.manifest = manifest;
    Server::start(move |request, stream| {
        let image = image.clone();
        Box::pin(async move { serve(&image, &request, stream).await })
    })
    .await
}

#[tokio::test]
async fn manifests_that_are_none_of_ours() {
    let image = Image::new(vec![noise(100)]);
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = image.description();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    };
    let layer_type =
        |text: &'static str| changed(&|manifest| manifest["layers"][0]["mediaType"] = text.into());
    let cases: [(&str, Vec<u8>); 14] = [
        (
            "malformed manifest: expected value at line 1 column 1",
            b"<html>".to_vec(),
        ),
        (
            "malformed manifest: missing field `schemaVersion` at line 1 column 2",
            b"{}".to_vec(),
        ),
        (
            "is in the obsolete format \"schema 1\", which is not supported: push it again with a newer tool",
            br#"{"schemaVersion": 1, "fsLayers": []}"#.to_vec(),
        ),
        (
            "malformed manifest: its schemaVersion is 3, not 2",
            changed(&|m| m["schemaVersion"] = 3.into()),
        ),
        (
            "malformed manifest: it has an index's fields as well",
            changed(&|m| m["manifests"] = serde_json::json!([])),
        ),
        (
            "malformed manifest: it has no configuration",
            changed(&|m| m["config"] = serde_json::Value::Null),
        ),
        (
            "is no image of a file system, but \"application/vnd.cncf.helm.config.v1+json\"",
            changed(&|m| m["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into()),
        ),
        (
            "is not distributed by registries (application/vnd.docker.image.rootfs.foreign.diff.tar.gzip): such layers \
             are not supported",
            layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        ),
        (
            "is of the unsupported type \"application/vnd.oci.image.layer.v1.tar+bzip2 [31m\"",
            layer_type("application/vnd.oci.image.layer.v1.tar+bzip2\u{1b}[31m"),
        ),
        (
            "digests other than sha256 are not supported",
            changed(&|m| m["layers"][0]["digest"] = "sha512:00".into()),
        ),
        (
            "has a negative size",
            changed(&|m| m["layers"][0]["size"] = (-1).into()),
        ),
        (
            "its layers' sizes are absurd",
            changed(&|m| {
                let mut layer = m["layers"][0].clone();
                layer["size"] = i64::MAX.into();
                m["layers"] = serde_json::json!([layer, layer, layer]);
            }),
        ),
        (
            "the image has 128 layers; at most 127 are supported",
            changed(&|m| m["layers"] = vec![m["layers"][0].clone(); 128].into()),
        ),
        (
            "malformed image configuration: it has 1 layers and the manifest 2",
            changed(&|m| m["layers"] = vec![m["layers"][0].clone(); 2].into()),
        ),
    ];
    for (reason, manifest) in cases {
        let server = with_manifest(&image, manifest).await;
        let (error, left) = refused(&server, |_| {}).await;
        assert!(error.to_string().ends_with(reason), "{error} where {reason}");
        assert!(left.iter().all(|file| !file.starts_with("partial")), "{left:?}");
    }
}

#[tokio::test]
async fn indexes_without_end() {
    // Each has the one before in it.
    let mut all = vec![Image::new(Vec::new()).manifest];
    for _ in 0..5 {
        let last = all.last().unwrap();
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.index.v1+json", "digest": sha256(last), "size": last.len(),
                "platform": {"os": "linux", "architecture": "amd64"},
            }],
        });
        all.push(index.to_string().into_bytes());
    }
    let server = Server::start(move |request, stream| {
        let found = all.iter().find(|bytes| request.path.ends_with(&sha256(bytes)));
        let bytes = found.or(all.last()).unwrap().clone();
        Box::pin(async move { reply(stream, "200 OK", "", &bytes).await })
    })
    .await;
    let (error, _) = refused(&server, |_| {}).await;
    assert_eq!(
        error.to_string(),
        "malformed index: it is nested more than 3 deep"
    );
}

#[tokio::test]
async fn documents_that_do_not_end_or_are_other_ones() {
    let endless = Server::start(|_, stream| {
        Box::pin(async move {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await?;
            loop {
                stream.write_all(b"4000\r\n").await?;
                stream.write_all(&[b' '; 0x4000]).await?;
                stream.write_all(b"\r\n").await?;
            }
        })
    })
    .await;
    let (error, left) = refused(&endless, |_| {}).await;
    assert!(
        matches!(
            error,
            Error::TooLong {
                what: "manifest",
                limit: 4_194_304,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(left, [""; 0]);

    let long = Server::start(|_, stream| {
        Box::pin(async move {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")
                .await
        })
    })
    .await;
    let (error, _) = refused(&long, |_| {}).await;
    assert!(matches!(error, Error::TooLong { .. }), "{error:?}");

    // Not the digest that the registry says itself.
    let other = Server::start(|_, stream| {
        let header = format!("Docker-Content-Digest: {}\r\n", sha256(b"other"));
        Box::pin(async move { reply(stream, "200 OK", &header, b"{}").await })
    })
    .await;
    let (error, _) = refused(&other, |_| {}).await;
    assert!(
        matches!(error, Error::Digest { what: "manifest", .. }),
        "{error:?}"
    );

    // A configuration that is longer than the manifest says.
    let image = Image::new(Vec::new());
    let server = Server::start(move |request, stream| {
        let image = image.clone();
        Box::pin(async move {
            if request.path.contains("blobs") {
                return reply(stream, "200 OK", "", &vec![b' '; image.config.len() + 1]).await;
            }
            serve(&image, &request, stream).await
        })
    })
    .await;
    let (error, _) = refused(&server, |_| {}).await;
    assert!(
        matches!(
            error,
            Error::TooLong {
                what: "image configuration",
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn redirects_without_end_and_aim() {
    for (location, reason) in [
        ("Location: /v2/again\r\n", "more than five times"),
        ("", "to nowhere"),
        ("Location: gopher://x/\r\n", "to nowhere"),
    ] {
        let server = Server::start(move |_, stream| {
            Box::pin(async move { reply(stream, "302 Found", location, b"").await })
        })
        .await;
        let (error, _) = refused(&server, |_| {}).await;
        assert_eq!(
            error.to_string(),
            format!("registry {} redirects: {reason}", server.address)
        );
        assert!(server.requests().len() <= 6, "{}", server.requests().len());
    }
}

/// A registry whose layers come as a test has it.
async fn with_layers<F>(image: &Image, answer: F) -> Server
where
    F: for<'a> Fn(
            Vec<u8>,
            Request,
            &'a mut TcpStream,
        ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<()>> + Send + 'a>>
        + Send
        + Sync
        + 'static,
{
    let image = image.clone();
    let answer = Arc::new(answer);
    Server::start(move |request, stream| {
        let (image, answer) = (image.clone(), answer.clone());
        Box::pin(async move {
            let layer = image
                .layers
                .iter()
                .find(|layer| request.path.ends_with(&sha256(layer)));
            match layer {
                Some(layer) => answer(layer.clone(), request, stream).await,
                None => serve(&image, &request, stream).await,
            }
        })
    })
    .await
}

#[tokio::test]
async fn layers_that_are_longer_shorter_and_slower() {
    let image = Image::new(vec![noise(100_000)]);
    let size = image.layers[0].len();

    // Longer, without saying so.
    let longer = with_layers(&image, |layer, _, stream| {
        Box::pin(async move {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                .await?;
            stream.write_all(&layer).await?;
            stream.write_all(b"more").await
        })
    })
    .await;
    let (error, left) = refused(&longer, |_| {}).await;
    assert!(
        matches!(
            error,
            Error::Size {
                what: "layer",
                more: true,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        left.iter()
            .all(|file| !file.contains(&sha256(&image.layers[0])[7..])),
        "{left:?}"
    );

    // Another length than the manifest's.
    let other = with_layers(&image, |layer, _, stream| {
        Box::pin(async move { reply(stream, "200 OK", "", &layer[1..]).await })
    })
    .await;
    let (error, _) = refused(&other, |_| {}).await;
    assert!(
        matches!(error, Error::Size { expected, actual, more: false, .. } if expected == size as u64 && actual == size as u64 - 1),
        "{error:?}"
    );

    // Always cut, at once: as often as it is configured, and then no more.
    let cut = with_layers(&image, |layer, _, stream| {
        Box::pin(async move {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", layer.len());
            stream.write_all(head.as_bytes()).await
        })
    })
    .await;
    let (error, _) = refused(&cut, |_| {}).await;
    assert!(matches!(error, Error::Broken { .. }), "{error:?}");
    let asked = cut
        .requests()
        .iter()
        .filter(|request| request.path.contains(&sha256(&image.layers[0])))
        .count();
    assert_eq!(asked, 3);

    // Byte by byte.
    let trickle = with_layers(&image, |layer, _, stream| {
        Box::pin(async move {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", layer.len());
            stream.write_all(head.as_bytes()).await?;
            for byte in layer {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        })
    })
    .await;
    let hasty = |registries: &mut Registries| {
        registries.timing.silence = Duration::from_millis(500);
        registries.timing.attempts = 1;
    };
    let (error, left) = refused(&trickle, hasty).await;
    assert!(matches!(error, Error::Silent { .. }), "{error:?}");
    assert!(left.iter().any(|file| file.starts_with("partial")), "{left:?}");

    // Nothing at all.
    let mute = Server::start(|_, _| Box::pin(std::future::pending())).await;
    let mute_too = |registries: &mut Registries| {
        hasty(registries);
        registries.timing.connect = Duration::from_millis(500);
    };
    let (error, _) = refused(&mute, mute_too).await;
    assert!(matches!(error, Error::Silent { .. }), "{error:?}");
}

#[tokio::test]
async fn headers_without_end() {
    let server = Server::start(|_, stream| {
        Box::pin(async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                stream
                    .write_all(b"X-Y: zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\r\n")
                    .await?;
            }
        })
    })
    .await;
    let (error, _) = refused(&server, |_| {}).await;
    assert!(matches!(error, Error::Broken { .. }), "{error:?}");
}

#[tokio::test]
async fn ranges_that_are_not_those_asked_for() {
    let image = Image::new(vec![noise(100_000)]);
    for status in ["200 OK", "206 Partial Content", "416 Range Not Satisfiable"] {
        let server = with_layers(&image, move |layer, request, stream| {
            Box::pin(async move {
                if request.header("range").is_none() {
                    return reply(stream, "200 OK", "", &layer).await;
                }
                let all = format!("Content-Range: bytes 0-{}/{}\r\n", layer.len() - 1, layer.len());
                match status {
                    "200 OK" => reply(stream, status, "", &layer).await,
                    "206 Partial Content" => reply(stream, status, &all, &layer).await,
                    _ => reply(stream, status, "", b"").await,
                }
            })
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let partial = dir.path().join("partial").join(&sha256(&image.layers[0])[7..]);
        fs::write(partial, &image.layers[0][..50_000]).unwrap();
        let name = format!("{}/x:1", server.address).parse().unwrap();
        let pulled = pull_into(&plain(&[&server.address.to_string()]), &name, &blobs)
            .await
            .unwrap();
        assert_eq!(
            fs::read(blobs.path(&pulled.layers[0].digest)).unwrap(),
            image.layers[0],
            "{status}"
        );
        let range = server
            .requests()
            .iter()
            .find_map(|request| request.header("range"));
        assert_eq!(range.as_deref(), Some("bytes=50000-"));
    }
}

#[tokio::test]
async fn servers_in_trouble() {
    let image = Image::new(vec![noise(100)]);
    for (status, headers, passes) in [
        ("503 Service Unavailable", "", true),
        ("429 Too Many Requests", "Retry-After: 0\r\n", true),
        ("429 Too Many Requests", "", true),
        ("429 Too Many Requests", "Retry-After: 3600\r\n", false),
        (
            "429 Too Many Requests",
            "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
            true,
        ),
        (
            "429 Too Many Requests",
            "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n",
            false,
        ),
        ("418 I'm a teapot", "", false),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let content = image.clone();
        let server = Server::start(move |request, stream| {
            let (count, image) = (count.clone(), content.clone());
            Box::pin(async move {
                // Each second time.
                if count.fetch_add(1, Ordering::SeqCst) % 2 == 0 {
                    let body = b"{\"errors\":[{\"code\":\"X\",\"message\":\"tired\\u001b[31m\\nof you\"}]}";
                    return reply(stream, status, headers, body).await;
                }
                serve(&image, &request, stream).await
            })
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let name = format!("{}/x:1", server.address).parse().unwrap();
        let registries = plain(&[&server.address.to_string()]);
        let again = AtomicUsize::new(0);
        let progress = |event: Event<'_>| {
            if matches!(event, Event::Again { .. }) {
                again.fetch_add(1, Ordering::SeqCst);
            }
            std::ops::ControlFlow::Continue(())
        };
        let outcome = pull(&registries, &name, &Platform::linux("amd64"), &blobs, &progress).await;
        if passes {
            outcome.unwrap();
            assert_eq!(again.load(Ordering::SeqCst), 3, "{status} {headers}");
            continue;
        }
        let text = outcome.unwrap_err().to_string();
        let expected = match status {
            "418 I'm a teapot" => "answered with status 418 (tired [31m of you)",
            _ if headers.contains("3600") => "takes no more requests for now: again in 3600 s",
            // How long until a date depends on when this runs.
            _ => "takes no more requests for now: again in ",
        };
        let expected = format!("registry {} {expected}", server.address);
        assert!(text.starts_with(&expected), "{text}");
        assert_eq!(again.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn whoever_is_told_can_stop_it() {
    let image = Image::new(vec![noise(100_000)]);
    let server = with_manifest(&image, image.manifest.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let name = format!("{}/x:1", server.address).parse().unwrap();
    let progress = |event: Event<'_>| {
        if matches!(event, Event::Bytes { done: 1.., .. }) {
            return std::ops::ControlFlow::Break(());
        }
        std::ops::ControlFlow::Continue(())
    };
    let registries = plain(&[&server.address.to_string()]);
    let error = pull(&registries, &name, &Platform::linux("amd64"), &blobs, &progress)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
}

#[tokio::test]
async fn bytes_that_come_again_and_again_are_no_progress() {
    let image = Image::new(vec![noise(4 << 20)]);
    // More than what makes good a failure, always the same.
    let server = with_layers(&image, |layer, _, stream| {
        Box::pin(async move {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", layer.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&layer[..3 << 19]).await
        })
    })
    .await;
    let (error, _) = refused(&server, |_| {}).await;
    assert!(matches!(error, Error::Broken { .. }), "{error:?}");
    let asked = server
        .requests()
        .iter()
        .filter(|request| request.path.contains(&sha256(&image.layers[0])))
        .count();
    assert!((3..=4).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_configuration_of_another_size_is_refused() {
    let image = Image::new(Vec::new());
    let mut manifest = image.description();
    manifest["config"]["size"] = (image.config.len() + 1).into();
    let server = with_manifest(&image, manifest.to_string().into_bytes()).await;
    let (error, _) = refused(&server, |_| {}).await;
    assert!(
        matches!(
            error,
            Error::Size {
                what: "image configuration",
                ..
            }
        ),
        "{error:?}"
    );
}
