//! Root file systems from real archives and files, with the real e2fsprogs.

use std::future::Future;
use std::io::Write;

use super::*;

pub(super) fn tool_dirs() -> Option<Vec<PathBuf>> {
    let dirs: Vec<_> = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .map(PathBuf::from)
        .into();
    match E2fsTools::find(&dirs) {
        Ok(_) => Some(dirs),
        Err(error) => testkit::skip(&error.to_string()),
    }
}

fn archive(init: bool) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    };
    add(
        "usr/lib/os-release",
        "ID=test\nVERSION_ID=1.5\nPRETTY_NAME='A Test'\n",
    );
    if init {
        add("usr/sbin/init", "x");
    }
    let mut link = |path: &str, to: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_link(&mut header, path, to).unwrap();
    };
    link("etc/os-release", "../usr/lib/os-release");
    link("sbin", "usr/sbin");
    archive.into_inner().unwrap()
}

#[tokio::test]
async fn archives_and_files_become_images() {
    let Some(dirs) = tool_dirs() else { return };
    let top = tempfile::tempdir().unwrap();
    let images = top.path().join("images");
    let silent = Reporter::silent();
    let plain = top.path().join("plain.tar");
    fs::write(&plain, archive(true)).unwrap();
    let gzip = top.path().join("no-init.tgz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive(false)).unwrap();
    fs::write(&gzip, encoder.finish().unwrap()).unwrap();

    let first = from_tar(&images.join("a"), &plain, Limits::default(), &dirs, &silent)
        .await
        .unwrap();
    assert_eq!(first.init.as_deref(), Some("/sbin/init"));
    assert_eq!(
        (first.os.name.as_str(), first.suggested_name.as_str()),
        ("A Test", "test-1-5")
    );
    assert_eq!(first.sha256, Digest::of_file(&first.path).unwrap());
    let second = from_tar(&images.join("b"), &gzip, Limits::default(), &dirs, &silent)
        .await
        .unwrap();
    assert_eq!(second.init, None);

    let taken = from_ext4_file(&images.join("c"), &first.path, &dirs, &silent)
        .await
        .unwrap();
    assert_eq!(
        Rootfs {
            path: first.path.clone(),
            ..taken
        },
        first,
        "a copy in every respect"
    );
    let again = from_ext4_file(&images.join("c"), &first.path, &dirs, &silent)
        .await
        .unwrap_err();
    assert!(matches!(again, RootfsError::Exists { .. }));
    assert_eq!(
        fs::read_dir(&images).unwrap().count(),
        3,
        "nothing unfinished is left"
    );
}

#[tokio::test]
async fn bad_sources_are_told_apart_and_leave_nothing() {
    let Some(dirs) = tool_dirs() else { return };
    let top = tempfile::tempdir().unwrap();
    let images = top.path().join("images");
    fs::create_dir(&images).unwrap();
    let file = top.path().join("file");
    let try_both = async |contents: &[u8]| {
        fs::write(&file, contents).unwrap();
        let target = images.join("x");
        let tar = from_tar(&target, &file, Limits::default(), &dirs, &Reporter::silent())
            .await
            .unwrap_err();
        let ext4 = from_ext4_file(&target, &file, &dirs, &Reporter::silent())
            .await
            .unwrap_err();
        assert!(
            matches!(
                ext4,
                RootfsError::Ext4 {
                    source: superblock::Error::NotExt4 { .. },
                    ..
                }
            ),
            "{ext4}"
        );
        // Whoever says it has named the file.
        let said = [ext4.problem(), tar.problem()];
        assert!(
            said.iter().all(|said| !said.contains(file.to_str().unwrap())),
            "{said:?}"
        );
        assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
        tar
    };
    assert!(matches!(try_both(b"").await, RootfsError::Archive { .. }));
    assert!(matches!(try_both(b"hello").await, RootfsError::Archive { .. }));
    assert!(matches!(
        try_both(&archive(true)[..900]).await,
        RootfsError::Archive { .. }
    ));
    assert!(matches!(try_both(&[0; 1024]).await, RootfsError::NoRoot { .. }));
    assert!(matches!(
        try_both(b"BZh91AY&SY").await,
        RootfsError::Compression { .. }
    ));
    assert!(matches!(
        try_both(b"\x1f\x8b\x08\0\0\0\0\0\0\x03damaged").await,
        RootfsError::Archive { .. }
    ));
    let (target, silent) = (images.join("x"), Reporter::silent());
    let missing = from_tar(&target, Path::new("/none"), Limits::default(), &dirs, &silent).await;
    assert!(matches!(missing, Err(RootfsError::Read { .. })));
    assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
}

#[tokio::test]
async fn nothing_is_left_when_nobody_waits_any_more() {
    let Some(dirs) = tool_dirs() else { return };
    let top = tempfile::tempdir().unwrap();
    let images = top.path().join("images");
    let plain = top.path().join("plain.tar");
    fs::write(&plain, archive(true)).unwrap();
    // Dropped at its first, second, … pause; however many there are, one of them is the end.
    for pauses in 0.. {
        let target = images.join("x");
        let silent = Reporter::silent();
        let mut job = Box::pin(from_tar(&target, &plain, Limits::default(), &dirs, &silent));
        let mut left = pauses;
        let finished = std::future::poll_fn(|context| match job.as_mut().poll(context) {
            std::task::Poll::Ready(result) => std::task::Poll::Ready(Some(result)),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => {
                left -= 1;
                std::task::Poll::Pending
            }
        })
        .await;
        drop(job);
        if let Some(result) = finished {
            result.unwrap();
            assert!(pauses > 2, "there was something to interrupt");
            break;
        }
        // A thread that is still at work holds the directory; it notices soon.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while fs::read_dir(&images).is_ok_and(|mut left| left.next().is_some()) {
            assert!(
                std::time::Instant::now() < deadline,
                "something is left after {pauses} pauses"
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
