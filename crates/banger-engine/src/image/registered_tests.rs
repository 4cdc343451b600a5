//! Registered files over a state directory and files of the tests'.

use std::fs::{self, FileTimes};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hostkit::digest::Digest;

use super::super::make::enter;
use super::super::places::image_dir;
use super::super::{promote, registry, verify};
use super::*;
use crate::error::Kind;
use crate::operation::Operation;

const SIZE: u64 = 64 << 10;

struct Bench {
    directory: tempfile::TempDir,
    host: Arc<Host>,
}

impl Bench {
    /// With the image `mine`, which is the file.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        fs::create_dir_all(state.join("images")).unwrap();
        let host = Arc::new(crate::host::tests::host(&state).await);
        let bench = Self { directory, host };
        let file = bench.file();
        fs::write(&file, vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
        fs::create_dir(image_dir(&state, "i1")).unwrap();
        symlink(&file, bench.ours()).unwrap();
        let row = ImageRow {
            id: "i1".to_owned(),
            names: Vec::new(),
            kernel: "debian".to_owned(),
            sha256: Digest::of_file(&file).unwrap().to_string(),
            size: SIZE,
            used: 0,
            source: format!("path:{}", file.display()),
            created: jiff::Timestamp::UNIX_EPOCH,
            digest: None,
            index_digest: None,
            config: None,
            registered: Some(identity(&file, &file.symlink_metadata().unwrap()).unwrap()),
        };
        enter(&bench.host, row, Vec::new(), Some(("mine", false)))
            .await
            .unwrap();
        bench
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("mine.ext4")
    }

    fn ours(&self) -> PathBuf {
        rootfs_path(&self.host.settings.state_dir, "i1")
    }

    async fn row(&self) -> ImageRow {
        registry::find(&self.host, "mine").await.unwrap().row
    }

    /// Why it cannot be used.
    async fn refused(&self) -> Option<String> {
        match usable(&self.host, &self.row().await).await {
            Ok(path) => {
                assert_eq!(path, self.ours());
                None
            }
            Err(e) => {
                assert_eq!(e.kind(), Kind::MissingPrerequisite, "{e:?}");
                let report = e.report();
                assert!(
                    report.message.contains(self.file().to_str().unwrap()),
                    "{report:?}"
                );
                assert!(report.hint.is_some_and(|hint| hint.contains("put it back")));
                Some(report.message)
            }
        }
    }

    async fn ended(&self, begun: Result<Operation, Error>) -> Operation {
        let mut watched = self.host.operations.watch(&begun.unwrap().id).await.unwrap();
        watched.wait_for(|now| now.state.ended()).await.unwrap().clone()
    }
}

#[tokio::test]
async fn only_what_was_registered_is_used() {
    let bench = Bench::new().await;
    let (file, away) = (bench.file(), bench.directory.path().join("away"));
    assert_eq!(bench.refused().await, None);
    let modified = file.metadata().unwrap().modified().unwrap();
    let set = |time| {
        let times = FileTimes::new().set_modified(time);
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_times(times)
            .unwrap();
    };
    let harms: [(&str, &dyn Fn()); 6] = [
        ("is missing", &|| {}),
        ("no regular file", &|| fs::create_dir(&file).unwrap()),
        ("no regular file", &|| symlink(&away, &file).unwrap()),
        ("65537 bytes, not 65536", &|| {
            fs::write(&file, [7; 65537]).unwrap();
        }),
        ("32KiB, not 64KiB", &|| fs::write(&file, [7; 32768]).unwrap()),
        ("another file", &|| {
            fs::copy(&away, &file).unwrap();
            set(modified);
        }),
    ];
    for (told, harm) in harms {
        fs::rename(&file, &away).unwrap();
        harm();
        let refused = bench.refused().await.unwrap();
        assert!(refused.contains(told), "{refused}");
        if file.is_dir() {
            fs::remove_dir(&file).unwrap();
        }
        fs::rename(&away, &file).unwrap();
        assert_eq!(bench.refused().await, None, "after {told}");
    }
    for other in [
        modified + Duration::from_nanos(1),
        modified - Duration::from_secs(1),
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH - Duration::from_secs(1),
    ] {
        set(other);
        let refused = bench.refused().await.unwrap();
        assert!(refused.contains("was written to"), "{refused}");
    }
    set(modified);
    assert_eq!(bench.refused().await, None);
}

#[tokio::test]
async fn a_copy_is_taken_up_once_it_was_read() {
    let bench = Bench::new().await;
    let (file, away) = (bench.file(), bench.directory.path().join("away"));
    fs::rename(&file, &away).unwrap();
    fs::copy(&away, &file).unwrap();
    assert!(bench.refused().await.is_some());
    // Not where it is of other contents.
    let other = File::options().write(true).open(&file).unwrap();
    other.write_all_at(&[8], 1).unwrap();
    let verified = bench
        .ended(verify::begin(&bench.host, &["mine".to_owned()]).await)
        .await;
    assert!(verified.error.is_some(), "{verified:?}");
    assert!(bench.refused().await.is_some());
    other.write_all_at(&[7], 1).unwrap();
    let verified = bench
        .ended(verify::begin(&bench.host, &["mine".to_owned()]).await)
        .await;
    assert_eq!(verified.error, None);
    assert_eq!(bench.refused().await, None);
    // Nor where it was changed after it was read.
    let before = identity_now(&bench.host.settings.state_dir, &bench.row().await).unwrap();
    other
        .set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH))
        .unwrap();
    assert!(!recognised(&bench.host, &bench.row().await, before).await.unwrap());
}

#[tokio::test]
async fn a_promoted_image_needs_the_file_no_more() {
    let bench = Bench::new().await;
    let file = bench.file();
    let promoted = bench.ended(promote::begin(&bench.host, "mine").await).await;
    assert_eq!(promoted.error, None);
    assert!(bench.ours().symlink_metadata().unwrap().is_file());
    let row = bench.row().await;
    assert_eq!((row.registered, row.used), (None, SIZE));
    assert_eq!(fs::read(&file).unwrap(), fs::read(bench.ours()).unwrap());
    fs::remove_file(&file).unwrap();
    assert_eq!(bench.refused().await, None);
    // Once more is a success.
    let again = bench.ended(promote::begin(&bench.host, "mine").await).await;
    assert_eq!(again.error, None);
}

#[tokio::test]
async fn what_was_changed_is_not_promoted() {
    let bench = Bench::new().await;
    let file = bench.file();
    let modified = file.metadata().unwrap().modified().unwrap();
    let opened = File::options().write(true).open(&file).unwrap();
    opened.write_all_at(&[8], 1).unwrap();
    // Seen before anything is copied.
    let refused = promote::begin(&bench.host, "mine").await.unwrap_err();
    assert_eq!(refused.kind(), Kind::MissingPrerequisite);
    // And by what was copied.
    opened.set_times(FileTimes::new().set_modified(modified)).unwrap();
    let promoted = bench.ended(promote::begin(&bench.host, "mine").await).await;
    assert!(promoted.error.unwrap().details[0].contains("its digest is"));
    assert!(bench.ours().symlink_metadata().unwrap().is_symlink());
    assert!(bench.row().await.registered.is_some());
    let images = bench.host.settings.state_dir.join("images");
    assert_eq!(fs::read_dir(images).unwrap().count(), 1, "no copy is left");
}

#[tokio::test]
async fn a_promotion_that_was_broken_off_is_finished() {
    let bench = Bench::new().await;
    let copy = bench.directory.path().join("copy");
    fs::copy(bench.file(), &copy).unwrap();
    fs::rename(&copy, bench.ours()).unwrap();
    fs::remove_file(bench.file()).unwrap();
    assert_eq!(bench.refused().await, None, "the copy is what counts");
    settle(&bench.host).await.unwrap();
    assert_eq!(bench.row().await.registered, None);
}

#[tokio::test]
async fn removing_the_image_removes_the_link() {
    let bench = Bench::new().await;
    let before = fs::read(bench.file()).unwrap();
    registry::remove(&bench.host, "mine").await.unwrap();
    assert!(bench.ours().symlink_metadata().is_err());
    assert_eq!(fs::read(bench.file()).unwrap(), before);
}
