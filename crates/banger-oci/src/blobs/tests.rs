use bytes::Bytes;

use super::*;

fn blobs() -> (tempfile::TempDir, Blobs) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
    (dir, blobs)
}

fn partials(blobs: &Blobs) -> usize {
    std::fs::read_dir(blobs.directory().join("partial"))
        .unwrap()
        .count()
}

#[test]
fn what_is_adopted_is_there_and_what_is_wrong_is_not() {
    let (_dir, blobs) = blobs();
    let (digest, size) = blobs.adopt(b"hello".as_slice(), None, 5, |_| Ok(())).unwrap();
    assert_eq!((digest, size), (Digest::of_bytes(b"hello"), 5));
    assert_eq!(blobs.read(&digest, 5).unwrap(), b"hello");
    assert!(matches!(blobs.read(&digest, 4), Err(BlobError::Size { .. })));
    blobs.verify(&digest, |_| Ok(())).unwrap();
    assert_eq!(blobs.adopt_bytes(b"hello").unwrap(), digest);

    let wrong = blobs.adopt(b"other".as_slice(), Some(&digest), 5, |_| Ok(()));
    assert!(matches!(wrong, Err(BlobError::Digest { .. })));
    let long = blobs.adopt(io::repeat(0), None, 1 << 21, |_| Ok(()));
    assert!(matches!(long, Err(BlobError::Size { .. })));
    let stopped = blobs.adopt(io::repeat(0), None, u64::MAX, |_| Err(io::Error::other("enough")));
    assert!(matches!(stopped, Err(BlobError::Stopped { .. })));
    assert_eq!(partials(&blobs), 0);

    std::fs::write(blobs.path(&digest), b"jello").unwrap();
    assert!(matches!(
        blobs.verify(&digest, |_| Ok(())),
        Err(BlobError::Digest { .. })
    ));
    assert!(matches!(blobs.read(&digest, 5), Err(BlobError::Digest { .. })));
    assert!(blobs.remove(&digest).unwrap() && blobs.remove(&digest).unwrap());
    assert!(matches!(blobs.read(&digest, 5), Err(BlobError::Missing { .. })));
}

#[test]
fn what_is_there_is_listed_and_strangers_are_told_apart() {
    let (_dir, blobs) = blobs();
    let digest = blobs.adopt_bytes(b"hello").unwrap();
    let other = Digest::of_bytes(b"other");
    std::fs::write(blobs.partial(&other), b"oth").unwrap();
    let strays = ["partial/new-1-0", "partial/x", "sha256/hello"].map(|name| blobs.directory().join(name));
    for stray in &strays {
        std::fs::write(stray, b"").unwrap();
    }
    let mine = blobs.new_file().unwrap();
    let listing = blobs.list().unwrap();
    assert_eq!(listing.strays, strays);
    let shown: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| (entry.digest, entry.size, entry.partial, entry.in_use))
        .collect();
    assert_eq!(shown, [(digest, 5, false, false), (other, 3, true, false)]);
    drop(mine);
    assert_eq!(partials(&blobs), 3);
}

async fn incoming(blobs: &Blobs, contents: &[u8]) -> Incoming {
    let size = contents.len() as u64;
    match blobs
        .begin(Digest::of_bytes(contents), size, |_| {})
        .await
        .unwrap()
    {
        Begun::Incoming(incoming) => incoming,
        Begun::There => panic!("it is there"),
    }
}

#[tokio::test]
async fn a_download_that_is_dropped_goes_on_later() {
    let (_dir, blobs) = blobs();
    let contents = b"hello world";
    let digest = Digest::of_bytes(contents);
    let mut first = incoming(&blobs, contents).await;
    first.write(Bytes::from_static(b"hello ")).await.unwrap();
    assert!(blobs.list().unwrap().entries[0].in_use);
    assert!(!blobs.remove(&digest).unwrap());
    drop(first);
    // Waits for the thread that writes.
    let mut second = incoming(&blobs, contents).await;
    assert_eq!(second.offset(), 6);
    second.write(Bytes::from_static(b"world")).await.unwrap();
    second.finish().await.unwrap();
    assert_eq!(blobs.read(&digest, 100).unwrap(), contents);
    assert_eq!(partials(&blobs), 0);
    assert!(matches!(
        blobs.begin(digest, 11, |_| {}).await.unwrap(),
        Begun::There
    ));
}

#[tokio::test]
async fn too_much_too_little_and_something_else() {
    let (_dir, blobs) = blobs();
    let contents = b"hello world";
    let mut long = incoming(&blobs, contents).await;
    long.write(Bytes::from_static(b"hello ")).await.unwrap();
    let error = long.write(Bytes::from_static(b"world!")).await.unwrap_err();
    assert!(matches!(
        error,
        BlobError::Size {
            expected: 11,
            actual: 12
        }
    ));
    drop(long);

    let mut wrong = incoming(&blobs, contents).await;
    assert_eq!((wrong.offset(), partials(&blobs)), (0, 1));
    wrong.write(Bytes::from_static(b"hello_world")).await.unwrap();
    let error = wrong.finish().await.unwrap_err();
    assert!(matches!(error, BlobError::Digest { resumed: false, .. }));
    assert_eq!(partials(&blobs), 0);

    let mut short = incoming(&blobs, contents).await;
    short.write(Bytes::from_static(b"jello")).await.unwrap();
    assert!(matches!(
        short.finish().await,
        Err(BlobError::Size {
            expected: 11,
            actual: 5
        })
    ));
    // What is kept may be wrong, which shows in the end, and then it may be begun anew.
    let mut resumed = incoming(&blobs, contents).await;
    assert_eq!(resumed.offset(), 5);
    resumed.write(Bytes::from_static(b" world")).await.unwrap();
    let error = resumed.finish().await.unwrap_err();
    assert!(matches!(error, BlobError::Digest { resumed: true, .. }));
    let mut anew = incoming(&blobs, contents).await;
    anew.write(Bytes::from_static(b"xxx")).await.unwrap();
    anew.restart().await.unwrap();
    anew.write(Bytes::from_static(b"hello world")).await.unwrap();
    anew.finish().await.unwrap();
    assert!(blobs.has(&Digest::of_bytes(contents)));
}

#[tokio::test]
async fn who_cannot_have_it_all_is_told_before() {
    let (_dir, blobs) = blobs();
    let error = blobs
        .begin(Digest::of_bytes(b"x"), u64::MAX / 2, |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, BlobError::Full { needed, free, .. } if needed > free));
}
