//! Images from layers, with the real e2fsprogs: the example of the OCI specification, damaged ones, ones with next to
//! nothing in them.

use std::fs;
use std::io::Write;

use hostkit::ext4::E2fsTools;

use super::super::tests::tool_dirs;
use super::*;

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Layers in files, each compressed in another way.
fn layers(dir: &Path, archives: &[Vec<u8>]) -> Vec<LayerFile> {
    (0..)
        .zip(archives)
        .map(|(number, archive)| {
            let packed = if number % 2 == 0 {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(archive).unwrap();
                encoder.finish().unwrap()
            } else {
                archive.clone()
            };
            let path = dir.join(format!("layer-{number}"));
            fs::write(&path, &packed).unwrap();
            LayerFile {
                path,
                packed: packed.len() as u64,
                diff_id: Digest::of_bytes(archive),
            }
        })
        .collect()
}

#[tokio::test]
async fn layers_become_an_image() {
    let Some(dirs) = tool_dirs() else { return };
    let top = tempfile::tempdir().unwrap();
    let target = top.path().join("images/a");
    let layers = layers(
        top.path(),
        &[
            archive(&[("etc/os-release", "ID=old"), ("bin/tool", "1"), ("bin/gone", "1")]),
            archive(&[("bin/.wh.gone", ""), ("sbin/init", "x")]),
            archive(&[("etc/os-release", "ID=new\nVERSION_ID=2\nPRETTY_NAME='New 2'\n")]),
        ],
    );
    let (told, hear) = std::sync::mpsc::channel();
    let progress = Reporter::new(move |progress| told.send(progress).unwrap());
    let rootfs = from_layers(&target, &layers, Limits::default(), &dirs, &progress)
        .await
        .unwrap();
    assert_eq!(rootfs.os.name, "New 2");
    assert_eq!(rootfs.suggested_name, "new-2");
    assert_eq!(rootfs.init.as_deref(), Some("/sbin/init"));
    assert_eq!(rootfs.sha256, Digest::of_file(&rootfs.path).unwrap());
    let tools = E2fsTools::find(&dirs).unwrap();
    let has = async |path| tools.exists(&rootfs.path, path).await.unwrap();
    assert!(has("/bin/tool").await && has("/proc").await && has("/tmp").await);
    assert!(!has("/bin/gone").await && !has("/bin/.wh.gone").await);
    drop(progress);
    let mut stages: Vec<_> = hear.iter().map(|progress| progress.stage).collect();
    stages.dedup();
    assert_eq!(stages, ["unpack", "make", "digest", "store"]);
    // A second of that name is none.
    let again = from_layers(&target, &layers, Limits::default(), &dirs, &Reporter::silent()).await;
    assert!(matches!(again, Err(RootfsError::Exists { .. })));
}

#[tokio::test]
async fn an_image_need_not_be_a_system() {
    let Some(dirs) = tool_dirs() else { return };
    let top = tempfile::tempdir().unwrap();
    for (name, archives) in [
        ("scratch", vec![archive(&[("app", "static")])]),
        ("empty", vec![]),
    ] {
        let layers = layers(top.path(), &archives);
        let target = top.path().join("images").join(name);
        let rootfs = from_layers(&target, &layers, Limits::default(), &dirs, &Reporter::silent())
            .await
            .unwrap();
        assert_eq!(
            (rootfs.init, rootfs.os),
            (None, crate::image::os_release::OsRelease::default())
        );
        assert_eq!(rootfs.suggested_name, "image");
    }
}

#[tokio::test]
async fn a_bad_layer_is_named_and_leaves_nothing() {
    let Some(dirs) = tool_dirs() else { return };
    let top = tempfile::tempdir().unwrap();
    let images = top.path().join("images");
    fs::create_dir(&images).unwrap();
    let good = layers(
        top.path(),
        &[
            archive(&[("a", "1")]),
            archive(&[("b", "2")]),
            archive(&[("c", "3")]),
        ],
    );
    let attempt = async |layers: &[LayerFile]| {
        let target = images.join("x");
        let error = from_layers(&target, layers, Limits::default(), &dirs, &Reporter::silent())
            .await
            .unwrap_err();
        assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
        let text = crate::error::chain(&error);
        assert!(text.contains("layer 2 of 3"), "{text}");
        (error.is_unusable_input(), text)
    };

    let mut other = good.clone();
    other[1].diff_id = Digest::of_bytes(b"another");
    let (unusable, text) = attempt(&other).await;
    assert!(unusable && text.contains(&good[1].diff_id.to_string()), "{text}");
    assert!(text.contains(&other[1].diff_id.to_string()), "{text}");

    let mut missing = good.clone();
    missing[1].path = top.path().join("none");
    let (unusable, text) = attempt(&missing).await;
    assert!(!unusable && text.contains("none"), "{text}");

    let damage = async |bytes: &[u8]| {
        fs::write(&good[1].path, bytes).unwrap();
        attempt(&good).await
    };
    let hostile = archive(&[("x/.wh...", "")]);
    let (unusable, text) = damage(&hostile).await;
    assert!(
        unusable && text.contains(r#"refused archive entry "x/.wh...""#),
        "{text}"
    );
    let (unusable, text) = damage(b"BZh91AY&SY").await;
    assert!(
        unusable && text.contains("bzip2 compression is not supported"),
        "{text}"
    );
    let (unusable, text) = damage(b"\x1f\x8b\x08\0\0\0\0\0\0\x03damaged").await;
    assert!(unusable && text.contains("failed to read the archive"), "{text}");
    let (unusable, text) = damage(b"").await;
    assert!(
        unusable && text.contains("have the digest sha256:e3b0c442"),
        "{text}"
    );
}
