//! Who may: passwords, tokens, helpers, certificates, and what is shown to whom.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use banger_oci::{Blobs, ConnectError, Error, Proxies, Reference, Registries, Registry};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt as _;

use crate::raw::{Image, Request, Server, reply, serve};
use crate::support::{Access, RealRegistry, Tools, chain, noise, plain, pull_into, quick, tls};

struct Place {
    dir: tempfile::TempDir,
    blobs: Blobs,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        Self { dir, blobs }
    }

    /// Docker's configuration.
    fn config(&self, value: &serde_json::Value) -> PathBuf {
        let path = self.dir.path().join("config.json");
        fs::write(&path, value.to_string()).unwrap();
        path
    }
}

fn login(user: &str, password: &str) -> serde_json::Value {
    serde_json::json!({"auth": STANDARD.encode(format!("{user}:{password}"))})
}

#[tokio::test]
async fn passwords() {
    let Some(tools) = Tools::find() else { return };
    let place = Place::new();
    let layout = place.dir.path().join("layout");
    tools.layout(&layout, "1", &[noise(1000)]);
    let registry = RealRegistry::start(&tools, place.dir.path(), Access::Password);
    let address = registry.address.to_string();
    let from = format!("oci:{}:1", layout.display());
    let to = format!("docker://{address}/x:1");
    tools.skopeo(&[
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--dest-creds",
        "anna:geheim",
        &from,
        &to,
    ]);

    let name = registry.name("x:1");
    let mut registries = plain(&[&address]);
    let error = pull_into(&registries, &name, &place.blobs).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Denied {
                refused: false,
                config: None,
                ..
            }
        ),
        "{error:?}"
    );

    let path = place.config(&serde_json::json!({"auths": {(address.as_str()): login("anna", "falsch")}}));
    registries.docker_config = Some(path.clone());
    let error = pull_into(&registries, &name, &place.blobs).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "registry {address} does not give x for the credentials that there are (authentication required); log in \
             with `docker login {address}` (credentials are read from {})",
            path.display()
        )
    );

    // As it is logged in, so it is pulled: the file is read anew.
    place.config(&serde_json::json!({"auths": {(format!("http://{address}/v2/")): login("anna", "geheim")}}));
    pull_into(&registries, &name, &place.blobs).await.unwrap();

    // By a helper; what it does not know, the file may.
    let blobs = Blobs::open(place.dir.path().join("others")).unwrap();
    let helper = place.dir.path().join("docker-credential-test");
    place.config(&serde_json::json!({"credHelpers": {(address.as_str()): "test"}, "credsStore": "none"}));
    let error = pull_into(&registries, &name, &blobs).await.unwrap_err();
    assert!(matches!(&error, Error::Helper { .. }), "{error:?}");
    assert!(
        chain(&error).contains("find docker-credential-test"),
        "{}",
        chain(&error)
    );
    registries.helper_path = Some(place.dir.path().into());
    script(&helper, "echo 'it is locked'; exit 1");
    let error = pull_into(&registries, &name, &blobs).await.unwrap_err();
    assert!(error.to_string().ends_with("(it is locked)"), "{error}");
    script(&helper, "echo 'credentials not found in native keychain'; exit 1");
    let error = pull_into(&registries, &name, &blobs).await.unwrap_err();
    assert!(matches!(error, Error::Denied { refused: false, .. }), "{error:?}");
    script(
        &helper,
        &format!(
            "read -r for; test \"$1 $for\" = 'get {address}' && echo '{{\"Username\":\"anna\",\"Secret\":\"geheim\"}}'"
        ),
    );
    pull_into(&registries, &name, &blobs).await.unwrap();

    fs::write(&path, "{\"auths\": {\n  secret").unwrap();
    let error = pull_into(&registries, &name, &blobs).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot read credentials from {}: line 2, column 3",
            path.display()
        )
    );
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A registry that wants tokens, which are good for so many requests, and gives them out below `/token`.
async fn token_registry(image: Image, uses: usize) -> (Server, Reference) {
    let given = Arc::new(AtomicUsize::new(0));
    let used = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |request, stream| {
        let (given, used, image) = (given.clone(), used.clone(), image.clone());
        Box::pin(async move {
            let host = request.header("host").unwrap();
            if request.path.starts_with("/token") {
                let number = given.fetch_add(1, Ordering::SeqCst) + 1;
                used.store(0, Ordering::SeqCst);
                let body = format!("{{\"token\":\"token-{number}\",\"expires_in\":60}}");
                return reply(stream, "200 OK", "", body.as_bytes()).await;
            }
            let right = format!("Bearer token-{}", given.load(Ordering::SeqCst));
            if request.header("authorization") == Some(right) && used.fetch_add(1, Ordering::SeqCst) < uses {
                return serve(&image, &request, stream).await;
            }
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{host}/token?a=b\",service=\"a registry\",scope=\"repository:x:pull\"\r\n"
            );
            reply(stream, "401 Unauthorized", &challenge, b"{\"errors\":[{\"message\":\"no\"}]}").await
        })
    })
    .await;
    let name = format!("{}/x:1", server.address).parse().unwrap();
    (server, name)
}

fn tokens(server: &Server) -> Vec<Request> {
    let all = server.requests().into_iter();
    all.filter(|request| request.path.starts_with("/token")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_got_and_got_again() {
    let place = Place::new();
    let image = Image::new(vec![noise(1000), noise(2000), noise(3000)]);
    let (server, name) = token_registry(image.clone(), usize::MAX).await;
    let address = server.address.to_string();
    let mut registries = plain(&[&address]);
    let pulled = pull_into(&registries, &name, &place.blobs).await.unwrap();
    assert_eq!(pulled.layers.len(), 3);
    let asked = tokens(&server);
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].path,
        "/token?a=b&service=a%20registry&scope=repository%3Ax%3Apull"
    );
    assert_eq!(asked[0].header("authorization"), None);

    // A token that is good for four requests is not for the last layer, whichever that is.
    let (server, name) = token_registry(image.clone(), 4).await;
    registries.each = plain(&[&server.address.to_string()]).each;
    let blobs = Blobs::open(place.dir.path().join("second")).unwrap();
    assert_eq!(pull_into(&registries, &name, &blobs).await.unwrap(), pulled);
    assert_eq!(tokens(&server).len(), 2);

    // With a password.
    let (server, name) = token_registry(image.clone(), 100).await;
    let address = server.address.to_string();
    registries.each = plain(&[&address]).each;
    registries.docker_config =
        Some(place.config(&serde_json::json!({"auths": {(address.as_str()): login("anna", "geheim")}})));
    let blobs = Blobs::open(place.dir.path().join("third")).unwrap();
    pull_into(&registries, &name, &blobs).await.unwrap();
    let asked = tokens(&server);
    assert!(asked[0].path.ends_with("&account=anna"), "{asked:?}");
    let basic = format!("Basic {}", STANDARD.encode("anna:geheim"));
    assert_eq!(asked[0].header("authorization"), Some(basic));
    let others: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|request| !request.path.starts_with("/token"))
        .collect();
    assert!(others.iter().all(|request| {
        request
            .header("authorization")
            .is_none_or(|value| value.starts_with("Bearer "))
    }));

    // With an identity token.
    let (server, name) = token_registry(image, 100).await;
    let address = server.address.to_string();
    registries.each = plain(&[&address]).each;
    place.config(&serde_json::json!({"auths": {(address.as_str()): {"identitytoken": "i am"}}}));
    let blobs = Blobs::open(place.dir.path().join("fourth")).unwrap();
    pull_into(&registries, &name, &blobs).await.unwrap();
    let asked = tokens(&server);
    assert!(
        asked[0].is_post() && asked[0].header("authorization").is_none(),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_replaced() {
    let place = Place::new();
    let (server, name) = token_registry(Image::new(vec![noise(1000)]), 1).await;
    let registries = plain(&[&server.address.to_string()]);
    pull_into(&registries, &name, &place.blobs).await.unwrap();
    // Manifest, configuration, layer: one each.
    assert_eq!(tokens(&server).len(), 3);
}

#[tokio::test]
async fn what_cannot_be_a_login_is_said() {
    let place = Place::new();
    for (challenge, reason) in [
        ("Negotiate", "it wants negotiate"),
        (
            "Bearer realm=\"ftp://x/\"",
            "the place for tokens (realm) is not https",
        ),
        ("Bearer realm=\"::\"", "the place for tokens (realm) is no URL"),
    ] {
        let server = Server::start(move |_, stream| {
            Box::pin(async move {
                let header = format!("WWW-Authenticate: {challenge}\r\n");
                reply(stream, "401 Unauthorized", &header, b"").await
            })
        })
        .await;
        let name = format!("{}/x:1", server.address).parse().unwrap();
        let error = pull_into(&plain(&[&server.address.to_string()]), &name, &place.blobs)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot log in to registry {}: {reason}", server.address)
        );
    }
}

#[tokio::test]
async fn credentials_stay_with_the_host_that_was_asked() {
    let place = Place::new();
    let image = Image::new(vec![noise(5000)]);
    let storage = {
        let image = image.clone();
        Server::start(move |request, stream| {
            let image = image.clone();
            Box::pin(async move { serve(&image, &request, stream).await })
        })
        .await
    };
    let elsewhere = storage.address;
    let front = Server::start(move |request, stream| {
        let image = image.clone();
        Box::pin(async move {
            if request.header("authorization").is_none() {
                return reply(
                    stream,
                    "401 Unauthorized",
                    "WWW-Authenticate: Basic realm=x\r\n",
                    b"",
                )
                .await;
            }
            if request.path.contains("/blobs/") {
                let header = format!("Location: http://{elsewhere}{}?signature=a\r\n", request.path);
                return reply(stream, "307 Temporary Redirect", &header, b"").await;
            }
            serve(&image, &request, stream).await
        })
    })
    .await;
    let address = front.address.to_string();
    let mut registries = plain(&[&address]);
    registries.docker_config =
        Some(place.config(&serde_json::json!({"auths": {(address.as_str()): login("anna", "geheim")}})));
    let name = format!("{address}/x:1").parse().unwrap();
    pull_into(&registries, &name, &place.blobs).await.unwrap();
    let seen = storage.requests();
    assert!(
        !seen.is_empty()
            && seen
                .iter()
                .all(|request| request.header("authorization").is_none()),
        "{seen:?}"
    );
}

#[tokio::test]
async fn certificates() {
    let Some(tools) = Tools::find() else { return };
    let place = Place::new();
    let layout = place.dir.path().join("layout");
    tools.layout(&layout, "1", &[noise(1000)]);
    let registry = RealRegistry::start(&tools, place.dir.path(), Access::Tls);
    registry.push(&tools, &layout, "1", "x:1");
    let port = registry.address.port();
    let name = |host: &str| -> Reference { format!("{host}:{port}/x:1").parse().unwrap() };
    let with = |host: &str, registry: Registry| Registries {
        each: [(format!("{host}:{port}"), registry)].into(),
        timing: quick(),
        ..Registries::default()
    };
    let trusting = |host: &str, ca: PathBuf| {
        let registry = Registry {
            ca: Some(ca),
            ..Registry::default()
        };
        with(host, registry)
    };
    for host in ["localhost", "127.0.0.1"] {
        let blobs = Blobs::open(place.dir.path().join(host)).unwrap();
        pull_into(&trusting(host, tls().join("ca.pem")), &name(host), &blobs)
            .await
            .unwrap();
    }
    for (registries, host, reason) in [
        (
            with("localhost", Registry::default()),
            "localhost",
            "invalid peer certificate: UnknownIssuer",
        ),
        (
            trusting("localhost", tls().join("server.key")),
            "localhost",
            "it has no certificates",
        ),
        (
            trusting("localhost", tls().join("none.pem")),
            "localhost",
            "no certificates to trust from",
        ),
    ] {
        let error = pull_into(&registries, &name(host), &place.blobs)
            .await
            .unwrap_err();
        assert!(
            matches!(
                &error,
                Error::Connect {
                    source: ConnectError::Tls { .. } | ConnectError::Trust { .. },
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(chain(&error).contains(reason), "{}", chain(&error));
    }
    // Plain http where there is TLS.
    let registry = Registry {
        plain_http: true,
        ..Registry::default()
    };
    let error = pull_into(&with("localhost", registry), &name("localhost"), &place.blobs)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "registry localhost:{port} answered with status 400 (Client sent an HTTP request to an HTTPS server.)"
        )
    );
}

/// A proxy that takes the registry to be wherever `to` is.
async fn proxy(to: std::net::SocketAddr) -> Server {
    Server::start(move |request, stream| {
        Box::pin(async move {
            if request.header("proxy-authorization").is_none() {
                return reply(stream, "407 Proxy Authentication Required", "", b"").await;
            }
            let mut server = tokio::net::TcpStream::connect(to).await?;
            if request.path.starts_with("http://") {
                let head = request.forwarded("http://registry.test");
                server.write_all(head.as_bytes()).await?;
            } else {
                stream
                    .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    .await?;
            }
            tokio::io::copy_bidirectional(stream, &mut server)
                .await
                .map(|_| ())
        })
    })
    .await
}

#[tokio::test]
async fn proxies() {
    let Some(tools) = Tools::find() else { return };
    let place = Place::new();
    let layout = place.dir.path().join("layout");
    tools.layout(&layout, "1", &[noise(1000)]);
    let open = RealRegistry::start(&tools, place.dir.path(), Access::Open);
    open.push(&tools, &layout, "1", "x:1");
    let with = |server: &Server, login: &str| Proxies {
        http: Some(format!("http://{login}{}", server.address)),
        https: Some(format!("http://{login}{}", server.address)),
        no_proxy: "elsewhere.test".to_owned(),
    };
    // In plain http the proxy reads along.
    let server = proxy(open.address).await;
    let mut registries = plain(&["registry.test"]);
    registries.proxies = with(&server, "anna:geheim@");
    let name: Reference = "registry.test/x:1".parse().unwrap();
    let image = pull_into(&registries, &name, &place.blobs).await.unwrap();
    let first = &server.requests()[0];
    assert_eq!(first.path, "http://registry.test/v2/x/manifests/1");
    let expected = format!("Basic {}", STANDARD.encode("anna:geheim"));
    assert_eq!(first.header("proxy-authorization"), Some(expected));

    // With TLS it only carries, to a host of that name.
    let other = tempfile::tempdir().unwrap();
    let secret = RealRegistry::start(&tools, other.path(), Access::Tls);
    secret.push(&tools, &layout, "1", "x:1");
    let server = proxy(secret.address).await;
    let trusting = Registry {
        ca: Some(tls().join("ca.pem")),
        ..Registry::default()
    };
    registries.each = ["registry.test", "impostor.test", "elsewhere.test"]
        .map(|host| (host.to_owned(), trusting.clone()))
        .into();
    registries.proxies = with(&server, "anna:geheim@");
    let blobs = Blobs::open(place.dir.path().join("others")).unwrap();
    assert_eq!(pull_into(&registries, &name, &blobs).await.unwrap(), image);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.path == "registry.test:443")
    );
    for (host, reason) in [
        ("impostor.test", "certificate not valid for name"),
        // It is not the proxy's to know, so it is nobody's.
        ("elsewhere.test", "unknown host elsewhere.test"),
    ] {
        let name = format!("{host}/x:1").parse().unwrap();
        let error = pull_into(&registries, &name, &blobs).await.unwrap_err();
        assert!(chain(&error).contains(reason), "{}", chain(&error));
    }
    registries.proxies = with(&server, "");
    let other = Blobs::open(place.dir.path().join("third")).unwrap();
    let error = pull_into(&registries, &name, &other).await.unwrap_err();
    assert!(
        chain(&error).ends_with(
            "proxy 127.0.0.1 does not connect to registry.test: HTTP/1.1 407 Proxy Authentication Required"
        ),
        "{}",
        chain(&error)
    );
}
