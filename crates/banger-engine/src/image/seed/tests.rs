use super::*;
use crate::host::tests::host;

const IMAGE: &str = "image";

/// A host with a template, or a word about what is missing.
async fn bench(directory: &Path) -> Option<Host> {
    let mut host = host(directory).await;
    if let Err(e) = E2fsTools::find(&host.settings.tool_dirs()) {
        return testkit::missing(&chain(&e));
    }
    let template = directory.join("template");
    std::fs::create_dir(&template).unwrap();
    std::fs::write(template.join("greeting"), "hello").unwrap();
    host.settings.seed_template = Some(template);
    Some(host)
}

fn files(host: &Host) -> Vec<String> {
    let top = seeds_dir(&host.settings.state_dir);
    let mut files: Vec<_> = std::fs::read_dir(top.join(IMAGE))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    // Nothing is left of the work.
    let beside = std::fs::read_dir(top).into_iter().flatten().count();
    assert_eq!(beside, usize::from(!files.is_empty()));
    files
}

async fn read(host: &Host, disk: &Path, path: &str) -> Option<String> {
    let tools = E2fsTools::find(&host.settings.tool_dirs()).unwrap();
    let found = tools.read(disk, path, 1 << 16).await.unwrap();
    found.map(|bytes| String::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn disks_of_all_sizes_have_the_templates_files_and_one_seed_is_made_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some(host) = bench(directory.path()).await else {
        return;
    };
    let at = |name: &str| directory.path().join(name);
    let (a, b, c) = (at("a"), at("b"), at("c"));
    let laid = tokio::join!(
        lay(&host, IMAGE, &a, 2 << 30),
        lay(&host, IMAGE, &b, SIZE),
        lay(&host, IMAGE, &c, 16 << 20)
    );
    laid.0.unwrap();
    laid.1.unwrap();
    laid.2.unwrap();
    for (path, size) in [(&a, 2 << 30), (&b, SIZE), (&c, 16 << 20)] {
        let metadata = std::fs::metadata(path).unwrap();
        assert_eq!(metadata.len(), size);
        assert!(metadata.blocks() * 512 < 8 << 20, "{} blocks", metadata.blocks());
        assert_eq!(
            read(&host, path, "/seed/template/greeting").await.unwrap(),
            "hello"
        );
        assert!(read(&host, path, "/seed/setup/.profile").await.is_some());
    }
    assert_eq!(files(&host).len(), 1);
}

#[tokio::test]
async fn a_changed_template_is_another_seed_and_the_one_before_goes() {
    let directory = tempfile::tempdir().unwrap();
    let Some(host) = bench(directory.path()).await else {
        return;
    };
    let look = async || show(&host, &[]).await.unwrap().pop().unwrap();
    let before = look().await;
    assert_eq!((before.made, before.stale.len()), (None, 0));

    let disk = directory.path().join("disk");
    lay(&host, IMAGE, &disk, SIZE).await.unwrap();
    let first = look().await;
    assert!(first.stale.is_empty());
    assert_eq!(
        first.made.as_ref().map(|made| &made.fingerprint),
        first.wanted.as_ref()
    );
    assert_eq!(first.names, ["debian"]);

    let greeting = directory.path().join("template/greeting");
    std::fs::write(&greeting, "good day").unwrap();
    assert_eq!(look().await.stale, ["the template has changed"]);
    let next = directory.path().join("next");
    lay(&host, IMAGE, &next, SIZE).await.unwrap();
    assert!(look().await.stale.is_empty());
    assert_eq!(files(&host).len(), 1);
    assert_eq!(
        read(&host, &disk, "/seed/template/greeting").await.unwrap(),
        "hello"
    );
    assert_eq!(
        read(&host, &next, "/seed/template/greeting").await.unwrap(),
        "good day"
    );

    let made = look().await.made.unwrap();
    let refreshed = refresh(&host, &[IMAGE.to_owned(), "debian".to_owned()])
        .await
        .unwrap();
    let [refreshed] = refreshed.as_slice() else {
        panic!("one image, named twice: {refreshed:?}")
    };
    let again = refreshed.made.clone().unwrap();
    assert_eq!((&again.path, again.created > made.created), (&made.path, true));

    forget(&host, IMAGE).await;
    assert_eq!(files(&host), [""; 0]);
}

#[tokio::test]
async fn a_template_that_is_gone_is_said_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(host) = bench(directory.path()).await else {
        return;
    };
    std::fs::remove_dir_all(directory.path().join("template")).unwrap();
    let disk = directory.path().join("disk");
    let error = lay(&host, IMAGE, &disk, SIZE).await.unwrap_err();
    assert!(matches!(error, Error::BadFile { .. }), "{error}");
    assert!(!disk.exists() && files(&host).is_empty());
    let seed = show(&host, &[]).await.unwrap().pop().unwrap();
    assert!(seed.problem.unwrap().contains("No such file"));
}

#[tokio::test]
async fn a_small_disk_that_does_not_hold_its_template_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let Some(host) = bench(directory.path()).await else {
        return;
    };
    std::fs::write(directory.path().join("template/large"), vec![1; 20 << 20]).unwrap();
    let disk = directory.path().join("disk");
    let error = lay(&host, IMAGE, &disk, 16 << 20).await.unwrap_err();
    assert!(matches!(error, Error::Contradiction { .. }), "{error}");
    lay(&host, IMAGE, &disk, 64 << 20).await.unwrap();
}

#[tokio::test]
async fn what_is_no_seed_of_an_image_is_garbage() {
    use crate::collect::{When, find, remove};
    let directory = tempfile::tempdir().unwrap();
    let Some(host) = bench(directory.path()).await else {
        return;
    };
    lay(&host, IMAGE, &directory.path().join("disk"), SIZE)
        .await
        .unwrap();
    let seeds = seeds_dir(directory.path());
    let garbage = async |when| -> Vec<_> { find(&host, when).await.unwrap() };
    assert!(
        garbage(When::Starting)
            .await
            .iter()
            .all(|one| !one.what.contains("seeds"))
    );

    // Of an image that is gone, of a daemon that died at work on it, and before it removed the one before.
    let newest = files(&host);
    std::fs::create_dir(seeds.join("gone")).unwrap();
    std::fs::create_dir(seeds.join(".bgr-tmp-left")).unwrap();
    let part = "0123456789abcdef";
    let former = seeds.join(IMAGE).join(format!("none-none-{part}.ext4"));
    let file = File::create(&former).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    for when in [When::Starting, When::Running] {
        let found = garbage(when).await;
        let mut found: Vec<_> = found.iter().filter(|one| one.what.contains("seeds")).collect();
        found.sort_by(|a, b| a.what.cmp(&b.what));
        let paths: Vec<_> = found.iter().map(|one| PathBuf::from(&one.what)).collect();
        assert_eq!(
            paths,
            [seeds.join(".bgr-tmp-left"), seeds.join("gone"), former.clone()]
        );
    }
    // None of it while somebody is at work.
    let held = [
        held::hold(&seeds.join(IMAGE)),
        held::hold(&seeds.join(".bgr-tmp-left")),
    ];
    let left = garbage(When::Running).await;
    assert_eq!(left.iter().filter(|one| one.what.contains("seeds")).count(), 1);
    drop(held);
    for one in garbage(When::Running)
        .await
        .iter()
        .filter(|one| one.what.contains("seeds"))
    {
        remove(&host, one).await.unwrap();
    }
    assert_eq!(files(&host), newest);
}
