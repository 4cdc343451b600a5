//! The registry over a state directory with one machine, `dev`, whose image is `debian`.

use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::error::Kind;
use crate::image::make::enter;

struct Bench {
    directory: tempfile::TempDir,
    host: Arc<Host>,
}

impl Bench {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Arc::new(crate::host::tests::host(directory.path()).await);
        std::fs::create_dir_all(image_dir(directory.path(), "image")).unwrap();
        Self { directory, host }
    }

    fn dir(&self, id: &str) -> PathBuf {
        image_dir(self.directory.path(), id)
    }

    /// Enters an image with files, as what makes one does.
    async fn make(&self, id: &str, digest: &str, name: Option<(&str, bool)>) -> Result<(), Error> {
        std::fs::create_dir_all(self.dir(id)).unwrap();
        let row = ImageRow {
            id: id.to_owned(),
            names: Vec::new(),
            kernel: "debian".to_owned(),
            sha256: "ee".repeat(32),
            size: 1,
            used: 1,
            source: "test".to_owned(),
            created: jiff::Timestamp::UNIX_EPOCH,
            digest: Some(format!("sha256:{digest}")),
            index_digest: None,
            config: None,
            registered: None,
        };
        enter(&self.host, row, Vec::new(), name).await
    }

    async fn found(&self, reference: &str) -> (String, Option<String>) {
        let found = find(&self.host, reference).await.unwrap();
        (found.row.id, found.by_name)
    }

    async fn names(&self, id: &str) -> Option<Vec<String>> {
        let images = list(&self.host).await.unwrap();
        images
            .into_iter()
            .find(|image| image.row.id == id)
            .map(|image| image.row.names)
    }
}

#[tokio::test]
async fn an_image_is_found_by_name_id_and_the_beginning_of_a_digest() {
    let bench = Bench::new().await;
    let digest = "aabbccdd".repeat(8);
    bench
        .make("second", &digest, Some(("tools:1", false)))
        .await
        .unwrap();
    let full = format!("registry.example/tools@sha256:{digest}");
    for (reference, id, by_name) in [
        ("debian", "image", Some("debian")),
        ("debian:latest", "image", Some("debian")),
        ("docker.io/library/debian", "image", Some("debian")),
        ("image", "image", None),
        ("docker.io/library/tools:1", "second", Some("tools:1")),
        ("sha256:aabbcc", "second", None),
        ("sha256:AABBCC", "second", None),
        (&full, "second", None),
    ] {
        let found = bench.found(reference).await;
        assert_eq!(found, (id.to_owned(), by_name.map(str::to_owned)), "{reference}");
    }
    let refused = async |reference: &str| find(&bench.host, reference).await.unwrap_err().report();
    let near = refused("tools:2").await;
    assert_eq!(
        (near.kind, near.hint.as_deref()),
        (Kind::NotFound, Some("did you mean \"tools:1\"?"))
    );
    for short in ["sha256:", "sha256:aabbc", "sha256:not-hexadecimal"] {
        assert_eq!(refused(short).await.kind, Kind::InvalidArgument, "{short}");
    }
    // Both root file systems have the same digest.
    bench.make("third", &"11".repeat(32), None).await.unwrap();
    let ambiguous = refused("sha256:eeeeee").await;
    assert_eq!(ambiguous.kind, Kind::InvalidArgument);
    assert_eq!(
        ambiguous.details,
        [
            format!("tools:1: sha256:{digest}"),
            format!("third: sha256:{}", "11".repeat(32))
        ]
    );
    assert_eq!(refused("sha256:010101").await.kind, Kind::NotFound);
}

#[tokio::test]
async fn a_search_takes_all_that_is_asked_for_together() {
    let bench = Bench::new().await;
    bench
        .make("second", &"ab".repeat(32), Some(("tools:1", false)))
        .await
        .unwrap();
    let labels = r#"{"labels": {"team": "a", "org.example.Title": ""}}"#;
    let labelled = bench.host.store.read(move |tx| {
        tx.execute("UPDATE images SET config = ?1 WHERE id = 'second'", [labels])?;
        Ok(())
    });
    labelled.await.unwrap();
    let search = async |pattern: Option<&str>, label: Option<(&str, &str)>, digest: Option<&str>| {
        let wanted = Search {
            pattern: pattern.map(str::to_owned),
            labels: label
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into_iter()
                .collect(),
            digest: digest.map(str::to_owned),
        };
        let found = search(&bench.host, &wanted).await.unwrap();
        found
            .into_iter()
            .map(|image| image.row.id)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(search(None, None, None).await, "image second");
    assert_eq!(search(Some("*"), None, None).await, "image second");
    assert_eq!(search(Some("tools:*"), None, None).await, "second");
    assert_eq!(search(None, Some(("team", "")), None).await, "second");
    assert_eq!(search(None, Some(("team", "a")), None).await, "second");
    assert_eq!(search(None, Some(("team", "b")), None).await, "");
    assert_eq!(
        search(None, Some(("org.example.Title", "")), None).await,
        "second"
    );
    assert_eq!(search(None, None, Some("sha256:ababab")).await, "second");
    assert_eq!(search(Some("debian"), None, Some("sha256:ababab")).await, "");
}

#[tokio::test]
async fn an_image_goes_with_its_last_name_and_not_under_a_machine() {
    let bench = Bench::new().await;
    tag(&bench.host, "debian", "base", false).await.unwrap();
    let removed = remove(&bench.host, "debian:latest").await.unwrap();
    assert_eq!(removed.name, "debian");
    assert_eq!(removed.image.row.names, ["base"]);
    assert_eq!(removed.image.used_by, ["dev"]);
    // Neither its last name nor, by its id, all of it.
    for reference in ["base", "image"] {
        let refused = remove(&bench.host, reference).await.unwrap_err().report();
        assert_eq!(refused.kind, Kind::InUse);
        assert_eq!(refused.message, "image \"base\" is in use by dev");
    }
    assert!(bench.dir("image").exists());

    bench
        .make("second", &"ab".repeat(32), Some(("one", false)))
        .await
        .unwrap();
    tag(&bench.host, "one", "two", false).await.unwrap();
    let removed = remove(&bench.host, "sha256:ababab").await.unwrap();
    assert_eq!(
        (removed.name.as_str(), removed.image.row.names),
        ("one", Vec::new())
    );
    assert!(!bench.dir("second").exists());
    assert_eq!(bench.names("second").await, None);
}

#[tokio::test]
async fn a_name_that_moves_leaves_its_former_image_to_its_machines() {
    let bench = Bench::new().await;
    bench
        .make("second", &"ab".repeat(32), Some(("new", false)))
        .await
        .unwrap();
    let taken = tag(&bench.host, "new", "debian", false).await.unwrap_err();
    assert_eq!(taken.kind(), Kind::AlreadyExists);
    tag(&bench.host, "new", "docker.io/library/debian", true)
        .await
        .unwrap();
    assert_eq!(bench.names("second").await.unwrap(), ["debian", "new"]);
    assert_eq!(bench.names("image").await.unwrap(), [""; 0], "a machine uses it");
    assert!(bench.dir("image").exists());
    // Nobody uses that one: it goes when it has lost its last name.
    bench
        .make("third", &"cd".repeat(32), Some(("debian", true)))
        .await
        .unwrap();
    assert!(bench.dir("second").exists());
    let refused = bench
        .make("fourth", &"ef".repeat(32), Some(("new", false)))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), Kind::AlreadyExists);
    assert!(!bench.dir("fourth").exists(), "what is not entered is removed");
    assert_eq!(bench.names("fourth").await, None);
    bench
        .make("fourth", &"ef".repeat(32), Some(("new", true)))
        .await
        .unwrap();
    assert!(!bench.dir("second").exists());
    assert_eq!(bench.names("second").await, None);
    assert_eq!(bench.names("third").await.unwrap(), ["debian"]);
}
