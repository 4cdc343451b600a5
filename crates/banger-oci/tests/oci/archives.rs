//! Archives that other tools made, and tools that read ours.

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use banger_oci::{
    Blobs, Compression, Error, Event, Export, Imported, Layer, Platform, compose, load, read_archive,
    write_archive,
};
use hostkit::digest::Digest;

use crate::support::{Tools, chain, files, noise, quiet};

struct Scene {
    tools: Tools,
    dir: tempfile::TempDir,
    layout: std::path::PathBuf,
}

impl Scene {
    fn new() -> Option<Self> {
        let tools = Tools::find()?;
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        tools.layout(&layout, "1", &[noise(100_000), b"hello".to_vec()]);
        Some(Self { tools, dir, layout })
    }

    fn blobs(&self, name: &str) -> Blobs {
        Blobs::open(self.dir.path().join(name)).unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

fn read(path: &Path, blobs: &Blobs, select: Option<&str>) -> Result<Vec<Imported>, Error> {
    read_archive(path, blobs, &Platform::linux("amd64"), select, &quiet)
}

/// The digest that skopeo sees.
fn digest_of(tools: &Tools, image: &str) -> String {
    tools
        .skopeo(&["inspect", "--format", "{{.Digest}}", image])
        .trim()
        .to_owned()
}

#[test]
fn layouts_and_back() {
    let Some(scene) = Scene::new() else { return };
    let blobs = scene.blobs("a");
    let images = read(&scene.layout, &blobs, None).unwrap();
    let [Imported { image, names, tags }] = images.as_slice() else {
        panic!("{images:?}");
    };
    assert_eq!(
        (names.as_slice(), tags.as_slice()),
        ([].as_slice(), ["1".to_owned()].as_slice())
    );
    let from = format!("oci:{}:1", scene.layout.display());
    assert_eq!(
        format!("sha256:{}", image.manifest),
        digest_of(&scene.tools, &from)
    );
    for (digest, _) in image.blobs() {
        blobs.verify(&digest, |_| Ok(())).unwrap();
    }
    assert_eq!(files(&blobs).len(), 4);

    // What we write, others read, and it is the same.
    let archive = scene.path("ours.tar");
    let export = [Export {
        manifest: image.manifest,
        names: vec!["ghcr.io/owner/x:2".parse().unwrap(), "debian:12".parse().unwrap()],
    }];
    let write = |path: &Path| {
        let mut file = fs::File::create(path).unwrap();
        write_archive(&mut file, &export, &blobs, &quiet).unwrap();
    };
    write(&archive);
    for tag in ["2", "12"] {
        let seen = digest_of(&scene.tools, &format!("oci-archive:{}:{tag}", archive.display()));
        assert_eq!(seen, format!("sha256:{}", image.manifest));
    }
    let copy = scene.path("copy");
    let from = format!("oci-archive:{}:2", archive.display());
    scene
        .tools
        .skopeo(&["copy", "-q", &from, &format!("oci:{}:z", copy.display())]);
    assert_eq!(
        read(&copy, &scene.blobs("b"), Some("z")).unwrap()[0].image,
        *image
    );
    // Docker's older format is in it as well.
    let docker = format!("docker-archive:{}:debian:12", archive.display());
    let seen = scene
        .tools
        .skopeo(&["inspect", "--config", "--format", "{{.Config.Env}}", &docker]);
    assert_eq!(seen.trim(), "[A=b]");
    // And back to us, with names; the same bytes again.
    let blobs = scene.blobs("c");
    let back = read(&archive, &blobs, None).unwrap();
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].image, *image);
    let names: Vec<_> = back[0]
        .names
        .iter()
        .map(banger_oci::Reference::familiar)
        .collect();
    assert_eq!(names, ["ghcr.io/owner/x:2", "debian:12"]);
    write(&scene.path("again.tar"));
    assert_eq!(
        fs::read(&archive).unwrap(),
        fs::read(scene.path("again.tar")).unwrap()
    );

    // By name and by digest, or not at all.
    for wanted in [
        "debian:12",
        "ghcr.io/owner/x:2",
        &format!("sha256:{}", image.manifest),
    ] {
        assert_eq!(
            read(&archive, &scene.blobs("d"), Some(wanted)).unwrap().len(),
            1,
            "{wanted}"
        );
    }
    let error = read(&archive, &scene.blobs("e"), Some("debian:13")).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} holds no image \"debian:13\", but ghcr.io/owner/x:2, debian:12",
            archive.display()
        )
    );
    assert_eq!(files(&scene.blobs("e")), [""; 0]);
}

#[test]
fn archives_of_other_tools() {
    let Some(scene) = Scene::new() else { return };
    let from = format!("oci:{}:1", scene.layout.display());
    let image = read(&scene.layout, &scene.blobs("a"), None)
        .unwrap()
        .remove(0)
        .image;

    let oci = scene.path("oci.tar");
    scene.tools.skopeo(&[
        "copy",
        "-q",
        &from,
        &format!("oci-archive:{}:some/name:3", oci.display()),
    ]);
    let there = read(&oci, &scene.blobs("b"), None).unwrap().remove(0);
    assert_eq!(there.image, image);
    assert_eq!(there.names, ["some/name:3".parse().unwrap()]);

    let docker = scene.path("docker.tar");
    scene.tools.skopeo(&[
        "copy",
        "-q",
        &from,
        &format!("docker-archive:{}:some/name:3", docker.display()),
    ]);
    let blobs = scene.blobs("c");
    let there = read(&docker, &blobs, None).unwrap().remove(0);
    assert_eq!(there.names, ["some/name:3".parse().unwrap()]);
    let ids = |image: &banger_oci::Pulled| image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
    assert_eq!(ids(&there.image), ids(&image));
    assert_eq!(there.image.image, image.image);
    for layer in &there.image.layers {
        assert_eq!(
            (layer.digest, layer.compression),
            (layer.diff_id, Compression::None)
        );
        blobs.verify(&layer.digest, |_| Ok(())).unwrap();
    }
    // The same again, and it can be written and read.
    let before = files(&blobs);
    assert_eq!(
        read(&docker, &blobs, Some("some/name:3")).unwrap().remove(0),
        there
    );
    assert_eq!(files(&blobs), before);
    assert_eq!(load(&blobs, &there.image.manifest).unwrap(), there.image);

    // Packed as a whole.
    for (program, ending) in [("gzip", "gz"), ("zstd", "zst"), ("xz", "xz")] {
        let Some(program) = testkit::program(&format!("BANGER_TEST_{}", program.to_uppercase()), program)
        else {
            continue;
        };
        let packed = scene.path(&format!("packed.tar.{ending}"));
        let mut file = fs::File::create(&packed).unwrap();
        let mut child = std::process::Command::new(program)
            .arg("-c")
            .arg(&docker)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::copy(child.stdout.as_mut().unwrap(), &mut file).unwrap();
        assert!(child.wait().unwrap().success());
        let blobs = scene.blobs(ending);
        assert_eq!(read(&packed, &blobs, None).unwrap().remove(0), there, "{ending}");
        assert_eq!(files(&blobs), before, "{ending}");
        // Cut in the middle.
        let whole = fs::read(&packed).unwrap();
        fs::write(&packed, &whole[..whole.len() / 2]).unwrap();
        let blobs = scene.blobs(&format!("{ending}-cut"));
        let error = read(&packed, &blobs, None).unwrap_err();
        assert!(matches!(error, Error::File { action: "read", .. }), "{error:?}");
        assert_eq!(files(&blobs), [""; 0], "{ending}");
    }
}

#[test]
fn several_images_and_platforms() {
    let Some(scene) = Scene::new() else { return };
    scene.tools.layout(&scene.layout, "2", &[b"two".to_vec()]);
    scene.tools.layout(&scene.layout, "arm", &[b"arm".to_vec()]);
    scene
        .tools
        .configure(&scene.layout, "arm", &["--architecture", "arm64"]);
    let multi = scene.tools.index(
        &scene.layout,
        &[("2", "linux/amd64"), ("arm", "linux/arm64")],
        "multi",
    );
    let images = read(&scene.layout, &scene.blobs("a"), None).unwrap();
    let tags: Vec<_> = images.iter().map(|image| image.tags.join("=")).collect();
    assert_eq!(tags, ["1", "2=multi"]);
    let images = read(&scene.layout, &scene.blobs("b"), Some("multi")).unwrap();
    assert_eq!((images.len(), images[0].image.index), (1, Some(multi)));
    let error = read(&scene.layout, &scene.blobs("c"), Some("arm")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "arm is not made for linux/amd64, but for linux/arm64"
    );
}

#[test]
fn what_is_wrong_with_an_archive_is_said() {
    let Some(scene) = Scene::new() else { return };
    let good = read(&scene.layout, &scene.blobs("good"), None)
        .unwrap()
        .remove(0)
        .image;
    let blob = |digest: &Digest| scene.layout.join(format!("blobs/sha256/{digest}"));
    let fails = |name: &str, path: &Path| {
        let blobs = scene.blobs(name);
        let error = read(path, &blobs, None).unwrap_err();
        assert!(
            files(&blobs).iter().all(|file| file.starts_with("sha256/")),
            "{name}: {:?}",
            files(&blobs)
        );
        chain(&error)
    };
    let layer = blob(&good.layers[0].digest);
    let bytes = fs::read(&layer).unwrap();
    fs::write(&layer, vec![0; bytes.len()]).unwrap();
    assert!(fails("wrong", &scene.layout).contains("has digest sha256:"));
    fs::write(&layer, &bytes[1..]).unwrap();
    assert!(fails("short", &scene.layout).contains(&format!(
        "{} bytes, not {}",
        bytes.len() - 1,
        bytes.len()
    )));
    fs::remove_file(&layer).unwrap();
    assert!(fails("none", &scene.layout).ends_with("which it refers to"));
    fs::write(&layer, &bytes).unwrap();
    fs::write(blob(&good.manifest), b"{}").unwrap();
    assert!(fails("manifest", &scene.layout).contains("has digest sha256:"));

    let file = scene.path("some.tar");
    for (bytes, reason) in [
        (b"".as_slice(), "it is no tar file, or cut short"),
        (b"hello", "it is no tar file, or cut short"),
        (&[1; 2048], "it is no tar file"),
        (
            &[0; 1024],
            "it has neither index.json (OCI) nor manifest.json (Docker)",
        ),
    ] {
        fs::write(&file, bytes).unwrap();
        assert_eq!(
            fails("file", &file),
            format!("{} is no image archive: {reason}", file.display())
        );
    }
    assert!(
        fails("nothing", &scene.path("no-such-file")).ends_with("No such file or directory (os error 2)")
    );
    assert!(fails("device", Path::new("/dev/null")).ends_with("it is no regular file"));
    assert!(fails("empty", &scene.path("good")).contains("neither index.json"));
}

/// Something more in an archive.
type Extra<'a> = dyn Fn(&mut tar::Builder<fs::File>) + 'a;

#[test]
fn hostile_docker_archives() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, b"secret").unwrap();
    let layer = b"layer".to_vec();
    let diff_id = format!("sha256:{}", Digest::of_bytes(&layer));
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let archive = |layers: &[&str], extra: &Extra<'_>| {
        let path = dir.path().join("archive.tar");
        let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        let manifest =
            serde_json::json!([{"Config": "c.json", "RepoTags": ["x:1", "///"], "Layers": layers}]);
        add("manifest.json", manifest.to_string().as_bytes());
        add("c.json", config.to_string().as_bytes());
        add("a/layer.tar", &layer);
        add("other.tar", b"other");
        extra(&mut tar);
        tar.into_inner().unwrap().flush().unwrap();
        path
    };
    let link = |name: &str, target: &str| {
        let (name, target) = (name.to_owned(), target.to_owned());
        move |tar: &mut tar::Builder<fs::File>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, &name, &target).unwrap();
        }
    };
    // Docker links layers that are there twice.
    let path = archive(&["b/layer.tar"], &link("b/layer.tar", "../a/layer.tar"));
    let images = read(&path, &blobs, None).unwrap();
    assert_eq!(images[0].names.len(), 1);
    let outside = format!("..{}", secret.display());
    let secret_link = link("b/layer.tar", secret.to_str().unwrap());
    let up_link = link("b/layer.tar", "../../a/layer.tar");
    let loop_link = link("b/layer.tar", "layer.tar");
    let nothing = |_: &mut tar::Builder<fs::File>| {};
    let cases: [(&str, &Extra<'_>); 7] = [
        (secret.to_str().unwrap(), &nothing),
        (&outside, &nothing),
        ("b/layer.tar", &secret_link),
        ("b/layer.tar", &up_link),
        ("b/layer.tar", &loop_link),
        ("a", &nothing),
        ("", &nothing),
    ];
    for (name, extra) in cases {
        let error = read(&archive(&[name], extra), &blobs, None).unwrap_err();
        assert!(matches!(error, Error::Lacking { .. }), "{name}: {error:?}");
    }
    let fresh = Blobs::open(dir.path().join("fresh")).unwrap();
    let error = read(&archive(&["other.tar"], &nothing), &fresh, None).unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error:?}");
    assert_eq!(files(&fresh), [""; 0]);
    let error = read(&archive(&["a/layer.tar", "a/layer.tar"], &nothing), &fresh, None).unwrap_err();
    assert!(
        error.to_string().contains("it has 1 layers and manifest.json 2"),
        "{error}"
    );
}

#[test]
fn images_can_be_composed_and_writing_can_be_stopped() {
    let Some(tools) = Tools::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "etc/hello", b"hello".as_slice())
        .unwrap();
    let bytes = tar.into_inner().unwrap();
    let (digest, size) = blobs.adopt(bytes.as_slice(), None, u64::MAX, |_| Ok(())).unwrap();
    let layer = Layer {
        digest,
        size,
        media_type: String::new(),
        compression: Compression::None,
        diff_id: digest,
    };
    let config = banger_oci::ImageConfig {
        env: vec!["A=b".to_owned()],
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..banger_oci::ImageConfig::default()
    };
    let image = compose(&blobs, &config, std::slice::from_ref(&layer)).unwrap();
    assert_eq!(compose(&blobs, &config, &[layer]).unwrap(), image);
    assert_eq!(image.image, config);
    let export = [Export {
        manifest: image.manifest,
        names: Vec::new(),
    }];
    let path = dir.path().join("out.tar");
    write_archive(&mut fs::File::create(&path).unwrap(), &export, &blobs, &quiet).unwrap();
    let seen = digest_of(&tools, &format!("oci-archive:{}", path.display()));
    assert_eq!(seen, format!("sha256:{}", image.manifest));

    let stop = |event: Event<'_>| {
        if matches!(event, Event::Bytes { .. }) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let error = write_archive(&mut Vec::new(), &export, &blobs, &stop).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    let fresh = Blobs::open(dir.path().join("fresh")).unwrap();
    let error = read_archive(&path, &fresh, &Platform::linux("amd64"), None, &stop).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert_eq!(files(&fresh), [""; 0]);
    let full = &mut fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = write_archive(full, &export, &blobs, &quiet).unwrap_err();
    assert!(matches!(error, Error::Output { .. }), "{error:?}");
}
