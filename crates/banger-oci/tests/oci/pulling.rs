//! Pulls from a real registry, also when it dies, lies and lacks.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_oci::{
    BlobError, Blobs, Compression, ConnectError, Error, Event, Platform, Reference, Registry, load, pull,
};
use hostkit::digest::Digest;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, watch};

use crate::raw::{Between, Image, Server, serve, sha256};
use crate::support::{Access, LONG, RealRegistry, Scene, chain, files, idle, noise, plain, pull_into, quiet};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn what_is_pulled_is_what_was_pushed_and_a_second_time_nothing_comes() {
    let Some(scene) = Scene::new(&[300_000, 10]) else {
        return;
    };
    let between = Between::start(scene.registry.address).await;
    let name = format!("{}/x:1", between.address).parse().unwrap();
    let registries = plain(&[&between.address.to_string()]);
    let image = pull_into(&registries, &name, &scene.blobs).await.unwrap();

    let from = format!("docker://{}/x:1", scene.registry.address);
    let inspected = scene.tools.skopeo(&[
        "inspect",
        "--tls-verify=false",
        "--format",
        "{{.Digest}} {{.Layers}}",
        &from,
    ]);
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| format!("sha256:{}", layer.digest))
        .collect();
    assert_eq!(
        inspected.trim(),
        format!("sha256:{} [{}]", image.manifest, layers.join(" "))
    );
    assert_eq!(image.index, None);
    assert_eq!(image.image.entrypoint, ["/init"]);
    assert_eq!(image.image.cmd, ["serve"]);
    assert_eq!(image.image.env, ["A=b"]);
    assert_eq!(image.image.user.as_deref(), Some("1000:1000"));
    assert_eq!(image.image.workdir.as_deref(), Some("/srv"));
    assert_eq!(image.image.exposed, ["80/tcp"]);
    assert_eq!(
        (image.image.os.as_str(), image.image.architecture.as_str()),
        ("linux", "amd64")
    );
    for layer in &image.layers {
        assert_eq!(layer.compression, Compression::Gzip);
        let unpacked = flate2_of(&fs::read(scene.blobs.path(&layer.digest)).unwrap());
        assert_eq!(Digest::of_bytes(&unpacked), layer.diff_id);
    }
    // Nothing but what it consists of, and all of that is right.
    let parts = image.blobs();
    assert_eq!(files(&scene.blobs).len(), parts.len());
    for (digest, size) in &parts {
        assert_eq!(scene.blobs.size(digest), Some(*size));
        scene.blobs.verify(digest, |_| Ok(())).unwrap();
    }
    assert_eq!(load(&scene.blobs, &image.manifest).unwrap(), image);

    let before = (between.down(), between.requests("GET /v2/x/blobs").len());
    assert_eq!(pull_into(&registries, &name, &scene.blobs).await.unwrap(), image);
    assert_eq!(between.requests("GET /v2/x/blobs").len(), before.1);
    assert!(
        between.down() - before.0 < 4096,
        "{} bytes came",
        between.down() - before.0
    );
    // By its digest nobody is asked at all.
    let asked = between.requests("GET").len();
    assert_eq!(
        pull_into(&registries, &name.at(image.manifest), &scene.blobs)
            .await
            .unwrap(),
        image
    );
    assert_eq!(between.requests("GET").len(), asked);
}

/// `gunzip`, by the decompressor of the product.
fn flate2_of(bytes: &[u8]) -> Vec<u8> {
    hostkit::decompress::to_vec(hostkit::decompress::Format::Gzip, bytes, 1 << 30).unwrap()
}

#[tokio::test]
async fn other_formats_and_platforms() {
    let Some(scene) = Scene::new(&[1000]) else { return };
    let from = format!("docker://{}/x:1", scene.registry.address);
    let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let to = format!("docker://{}/docker:1", scene.registry.address);
    scene
        .tools
        .skopeo(&["copy", "-q", tls[0], tls[1], "--format", "v2s2", &from, &to]);
    let registries = plain(&[&scene.registry.address.to_string()]);
    let docker = pull_into(&registries, &scene.registry.name("docker:1"), &scene.blobs)
        .await
        .unwrap();
    assert_eq!(
        docker.layers[0].media_type,
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    );

    // Without layers.
    scene.tools.layout(&scene.layout, "empty", &[]);
    scene
        .registry
        .push(&scene.tools, &scene.layout, "empty", "empty:1");
    let empty = pull_into(&registries, &scene.registry.name("empty:1"), &scene.blobs)
        .await
        .unwrap();
    assert_eq!(empty.layers, []);

    // For another platform.
    let from = format!("oci:{}:1", scene.layout.display());
    scene.tools.skopeo(&[
        "copy",
        "-q",
        &from,
        &format!("oci:{}:arm", scene.layout.display()),
    ]);
    scene
        .tools
        .configure(&scene.layout, "arm", &["--architecture", "arm64"]);
    scene.registry.push(&scene.tools, &scene.layout, "arm", "arm:1");
    let error = pull_into(&registries, &scene.registry.name("arm:1"), &scene.blobs)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("arm:1 is not made for linux/amd64, but for linux/arm64"),
        "{error}"
    );

    // Both behind one name, one index in another.
    let multi = scene.tools.index(
        &scene.layout,
        &[("1", "linux/amd64"), ("arm", "linux/arm64/v8")],
        "multi",
    );
    let to = format!("docker://{}/multi:1", scene.registry.address);
    let from = format!("oci:{}:multi", scene.layout.display());
    scene.tools.skopeo(&["copy", "-q", "--all", tls[1], &from, &to]);
    let name = scene.registry.name("multi:1");
    let image = pull_into(&registries, &name, &scene.blobs).await.unwrap();
    assert_eq!(image.index, Some(multi));
    assert_eq!(image.manifest, scene.pull().await.unwrap().manifest);
    let arm = pull(
        &registries,
        &name,
        &Platform::linux("arm64"),
        &scene.blobs,
        &quiet,
    )
    .await
    .unwrap();
    assert_eq!(arm.image.architecture, "arm64");
    let other = pull(
        &registries,
        &name,
        &Platform::linux("s390x"),
        &scene.blobs,
        &quiet,
    )
    .await
    .unwrap_err();
    assert!(
        other.to_string().contains("but for linux/amd64, linux/arm64/v8"),
        "{other}"
    );
}

#[tokio::test]
async fn without_tls_on_the_loopback_interface_as_docker_does() {
    let Some(scene) = Scene::new(&[1000]) else { return };
    let mut registries = plain(&[]);
    let name = scene.registry.name("x:1");
    pull_into(&registries, &name, &scene.blobs).await.unwrap();
    // Not where there are certificates for it.
    let registry = Registry {
        ca: Some(crate::support::tls().join("ca.pem")),
        ..Registry::default()
    };
    registries
        .each
        .insert(scene.registry.address.to_string(), registry);
    let error = pull_into(&registries, &name, &scene.blobs).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Connect {
                source: ConnectError::Tls { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

/// A pull through `between`, and how many bytes of layers it has.
fn watched(
    between: &Between,
    blobs: &Blobs,
) -> (
    tokio::task::JoinHandle<Result<banger_oci::Pulled, Error>>,
    watch::Receiver<u64>,
) {
    let name = format!("{}/x:1", between.address).parse().unwrap();
    let registries = plain(&[&between.address.to_string()]);
    let (tell, told) = watch::channel(0);
    let blobs = blobs.clone();
    let task = tokio::spawn(async move {
        let progress = move |event: Event<'_>| {
            if let Event::Bytes { done, .. } = event {
                tell.send_replace(done);
            }
            std::ops::ControlFlow::Continue(())
        };
        pull(&registries, &name, &Platform::linux("amd64"), &blobs, &progress).await
    });
    (task, told)
}

async fn reaches(told: &mut watch::Receiver<u64>, bytes: u64) {
    tokio::time::timeout(LONG, told.wait_for(|&done| done >= bytes))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_killed_in_the_middle_costs_nothing_that_has_come() {
    let Some(scene) = Scene::new(&[8 << 20]) else {
        return;
    };
    let Scene {
        tools,
        registry,
        blobs,
        dir,
        layout: _layout,
    } = scene;
    let between = Between::start(registry.address).await;
    between.allow(Some(3 * MIB));
    let (task, mut told) = watched(&between, &blobs);
    tokio::time::timeout(LONG, between.dry()).await.unwrap();
    reaches(&mut told, 2 * MIB).await;
    drop(registry);
    between.cut();
    let error = task.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Broken { .. }), "{error:?}");
    idle(&blobs).await;
    let partial: Vec<_> = blobs
        .list()
        .unwrap()
        .entries
        .into_iter()
        .filter(|entry| entry.partial)
        .collect();
    assert_eq!(partial.len(), 1);
    let kept = partial[0].size;
    assert!(kept >= 2 * MIB, "{kept} bytes were kept");

    let registry = RealRegistry::start(&tools, dir.path(), Access::Open);
    between.redirect(registry.address);
    between.allow(None);
    let before = between.down();
    let (task, _) = watched(&between, &blobs);
    let image = task.await.unwrap().unwrap();
    let came = between.down() - before;
    let rest = image.layers[0].size - kept;
    assert!(
        came >= rest && came < rest + (64 << 10),
        "{came} bytes came for {rest} that were missing"
    );
    blobs.verify(&image.layers[0].digest, |_| Ok(())).unwrap();
    assert!(blobs.list().unwrap().entries.iter().all(|entry| !entry.partial));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_goes_on_where_it_was() {
    let Some(scene) = Scene::new(&[8 << 20]) else {
        return;
    };
    let between = Between::start(scene.registry.address).await;
    between.allow(Some(3 * MIB));
    let (task, mut told) = watched(&between, &scene.blobs);
    tokio::time::timeout(LONG, between.dry()).await.unwrap();
    reaches(&mut told, 2 * MIB).await;
    between.allow(None);
    between.cut();
    let image = task.await.unwrap().unwrap();
    let size = image.layers[0].size;
    assert!(
        between.down() < size + MIB + (64 << 10),
        "{} bytes came for {size}",
        between.down()
    );
    let asked = between.requests(&format!("GET /v2/x/blobs/sha256:{}", image.layers[0].digest));
    assert_eq!(asked.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_dropped_stops_and_another_goes_on() {
    let Some(scene) = Scene::new(&[8 << 20]) else {
        return;
    };
    let between = Between::start(scene.registry.address).await;
    between.allow(Some(3 * MIB));
    let (first, mut told) = watched(&between, &scene.blobs);
    tokio::time::timeout(LONG, between.dry()).await.unwrap();
    reaches(&mut told, 2 * MIB).await;
    // It waits for the first, and is told of it.
    let (second, mut told) = watched(&between, &scene.blobs);
    between.allow(None);
    reaches(&mut told, 2 * MIB).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let image = second.await.unwrap().unwrap();
    let size = image.layers[0].size;
    assert!(
        between.down() < size + MIB + (64 << 10),
        "{} bytes came for {size}",
        between.down()
    );
    idle(&scene.blobs).await;
    assert!(
        scene
            .blobs
            .list()
            .unwrap()
            .entries
            .iter()
            .all(|entry| !entry.partial)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_once_share_what_comes() {
    let Some(scene) = Scene::new(&[2 << 20, 1 << 20, 1000]) else {
        return;
    };
    let between = Between::start(scene.registry.address).await;
    let (one, _) = watched(&between, &scene.blobs);
    let (other, _) = watched(&between, &scene.blobs);
    let image = one.await.unwrap().unwrap();
    assert_eq!(other.await.unwrap().unwrap(), image);
    for layer in &image.layers {
        let asked = between.requests(&format!("GET /v2/x/blobs/sha256:{}", layer.digest));
        assert_eq!(asked.len(), 1, "{asked:?}");
    }
}

#[tokio::test]
async fn what_is_left_of_a_crash_may_be_anything() {
    let Some(scene) = Scene::new(&[100_000]) else {
        return;
    };
    let image = scene.pull().await.unwrap();
    let layer = &image.layers[0];
    for (case, beginning) in [
        ("zeros after a crash of the host", vec![0; 50_000]),
        (
            "all of it, and wrong",
            vec![1; usize::try_from(layer.size).unwrap()],
        ),
        ("more than all", vec![1; usize::try_from(layer.size).unwrap() + 1]),
        ("nothing", Vec::new()),
        (
            "all of it, and right",
            fs::read(scene.blobs.path(&layer.digest)).unwrap(),
        ),
    ] {
        assert!(scene.blobs.remove(&layer.digest).unwrap());
        let partial = scene
            .blobs
            .directory()
            .join("partial")
            .join(layer.digest.to_string());
        fs::write(&partial, beginning).unwrap();
        assert_eq!(scene.pull().await.unwrap(), image, "{case}");
        scene.blobs.verify(&layer.digest, |_| Ok(())).unwrap();
        assert!(!partial.exists(), "{case}");
    }
}

#[tokio::test]
async fn a_wrong_blob_is_not_kept() {
    let Some(scene) = Scene::new(&[100_000, 1000]) else {
        return;
    };
    let image = scene.pull().await.unwrap();
    let layer = &image.layers[0];
    let file = scene.registry.blob(&layer.digest);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let blobs = scene.other_blobs("others");
    let registries = plain(&[&scene.registry.address.to_string()]);
    let error = pull_into(&registries, &scene.registry.name("x:1"), &blobs)
        .await
        .unwrap_err();
    let Error::Digest {
        what: "layer",
        expected,
        actual,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!((*expected, *actual), (layer.digest, Digest::of_bytes(&bytes)));
    idle(&blobs).await;
    let name = layer.digest.to_string();
    assert!(
        files(&blobs).iter().all(|file| !file.ends_with(&name)),
        "{:?}",
        files(&blobs)
    );
    // What is there already is as good as ever.
    assert_eq!(scene.pull().await.unwrap(), image);
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let Some(scene) = Scene::new(&[1000]) else { return };
    let address = scene.registry.address.to_string();
    let registries = plain(&[&address]);
    let image = scene.pull().await.unwrap();
    for name in ["x:2", "y:1"] {
        let error = pull_into(&registries, &scene.registry.name(name), &scene.blobs)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("registry {address} has no image {address}/{name}")
        );
    }
    let layer = image.layers[0].digest;
    fs::remove_file(scene.registry.blob(&layer)).unwrap();
    let blobs = scene.other_blobs("others");
    let error = pull_into(&registries, &scene.registry.name("x:1"), &blobs)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::NoBlob { digest, .. } if *digest == layer),
        "{error:?}"
    );
    // Nobody listens.
    drop(scene.registry);
    let name = format!("{address}/x:1").parse().unwrap();
    let error = pull_into(&registries, &name, &blobs).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Connect {
                source: ConnectError::Tcp { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        chain(&error).ends_with("Connection refused (os error 111)"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_at_last() {
    let Some(scene) = Scene::new(&[50_000, 1000]) else {
        return;
    };
    // One where nobody listens, one without the image, one with a wrong layer, then the registry.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let lacking = RealRegistry::start(&scene.tools, dirs[0].path(), Access::Open);
    let damaged = RealRegistry::start(&scene.tools, dirs[1].path(), Access::Open);
    damaged.push(&scene.tools, &scene.layout, "1", "x:1");
    let image = scene.pull().await.unwrap();
    fs::write(damaged.blob(&image.layers[0].digest), b"something else").unwrap();
    let to_lacking = Between::start(lacking.address).await;
    let to_damaged = Between::start(damaged.address).await;

    let address = scene.registry.address.to_string();
    let mut registries = plain(&[&address]);
    let mirrors = [nobody, to_lacking.address, to_damaged.address].map(|mirror| format!("http://{mirror}"));
    registries.each.get_mut(&address).unwrap().mirrors = mirrors.to_vec();
    let blobs = scene.other_blobs("others");
    let name = scene.registry.name("x:1");
    assert_eq!(pull_into(&registries, &name, &blobs).await.unwrap(), image);
    assert_eq!(to_lacking.requests("GET").len(), 1);
    assert!(!to_damaged.requests("GET /v2/x/manifests").is_empty());

    // Where a mirror has all of it, nobody else is needed.
    let registry = Registry {
        mirrors: vec![format!("http://{address}")],
        ..Registry::default()
    };
    let mut registries = plain(&[]);
    registries.each.insert("registry.invalid".to_owned(), registry);
    let blobs = scene.other_blobs("third");
    let name = "registry.invalid/x:1".parse().unwrap();
    assert_eq!(pull_into(&registries, &name, &blobs).await.unwrap(), image);
}

/// Work with a file system of its own, of so many mebibytes.
fn on_a_small_disk(size: &std::ffi::CStr, work: impl AsyncFnOnce(&Path) + Send) {
    testkit::in_network_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, Some(size)).unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.enable_all().worker_threads(2).build().unwrap();
        runtime.block_on(work(dir.path()));
        drop(runtime);
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    });
}

/// Takes all the space that there is.
fn fill(file: &Path) {
    let mut hog = fs::File::create(file).unwrap();
    loop {
        match hog.write_all(&[1; 4096]) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_disk_that_is_too_small_is_said_and_the_rest_goes_on() {
    on_a_small_disk(c"size=2m", async |disk| {
        let Some(scene) = Scene::new(&[1000, 4 << 20]) else {
            return;
        };
        scene.tools.layout(&scene.layout, "small", &[vec![1; 1000]]);
        scene
            .registry
            .push(&scene.tools, &scene.layout, "small", "x:small");
        let registries = plain(&[&scene.registry.address.to_string()]);
        let blobs = Blobs::open(disk.join("blobs")).unwrap();
        // It is known before anything comes.
        let error = pull_into(&registries, &scene.registry.name("x:1"), &blobs)
            .await
            .unwrap_err();
        let Error::Blob(BlobError::Full { path, needed, free }) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(path, blobs.directory());
        assert!(needed > free, "{error}");
        idle(&blobs).await;
        pull_into(&registries, &scene.registry.name("x:small"), &blobs)
            .await
            .unwrap();
        fill(&disk.join("hog"));
        let error = blobs.adopt_bytes(&[1; 100_000]).unwrap_err();
        assert!(matches!(error, BlobError::Full { .. }), "{error:?}");
        assert!(blobs.list().unwrap().strays.is_empty());
    });
}

#[test]
fn a_disk_that_fills_up_in_the_middle_is_said_and_what_has_come_stays() {
    on_a_small_disk(c"size=8m", async |disk| {
        let image = Image::new(vec![noise(4 << 20)]);
        let half = image.layers[0].len() / 2;
        let go_on = Arc::new(Notify::new());
        let (content, told) = (image.clone(), go_on.clone());
        let server = Server::start(move |request, stream| {
            let (image, go_on) = (content.clone(), told.clone());
            Box::pin(async move {
                let layer = &image.layers[0];
                if !request.path.ends_with(&sha256(layer)) || request.header("range").is_some() {
                    return serve(&image, &request, stream).await;
                }
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", layer.len());
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&layer[..half]).await?;
                go_on.notified().await;
                stream.write_all(&layer[half..]).await
            })
        })
        .await;
        let blobs = Blobs::open(disk.join("blobs")).unwrap();
        let name: Reference = format!("{}/x:1", server.address).parse().unwrap();
        let registries = plain(&[&server.address.to_string()]);
        let pulling = {
            let (registries, name, blobs) = (registries.clone(), name.clone(), blobs.clone());
            tokio::spawn(async move { pull_into(&registries, &name, &blobs).await })
        };
        let partial = disk.join("blobs/partial").join(&sha256(&image.layers[0])[7..]);
        let end = Instant::now() + LONG;
        while fs::metadata(&partial).map_or(0, |metadata| metadata.len()) < half as u64 {
            assert!(Instant::now() < end, "the first half does not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let hog = disk.join("hog");
        fill(&hog);
        go_on.notify_one();
        let error = pulling.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Blob(BlobError::Full { .. })), "{error:?}");
        idle(&blobs).await;
        let kept = fs::read(&partial).unwrap();
        assert!(
            kept.len() >= half && image.layers[0].starts_with(&kept),
            "{} bytes",
            kept.len()
        );
        fs::remove_file(&hog).unwrap();
        // The server ignores what is asked for, and the pull does not mind.
        let pulled = pull_into(&registries, &name, &blobs).await.unwrap();
        assert_eq!(
            fs::read(blobs.path(&pulled.layers[0].digest)).unwrap(),
            image.layers[0]
        );
    });
}

#[tokio::test]
async fn an_unknown_host_is_named() {
    let blobs = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Blobs::open(blobs.path()).unwrap());
    let name = "no-such-host.invalid/x:1".parse().unwrap();
    let error = pull_into(&plain(&[]), &name, &blobs).await.unwrap_err();
    let text = chain(&error);
    assert!(
        text.starts_with(
            "no connection to registry no-such-host.invalid: unknown host no-such-host.invalid: "
        ),
        "{text}"
    );
}
