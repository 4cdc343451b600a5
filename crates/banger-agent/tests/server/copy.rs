//! Copies through the real agent, over a Unix socket.

use crate::common::{Agent, failure, is_root};
use banger_agent_api::proto::{DownloadRequest, UploadStart};
use banger_agent_api::{AgentClient, AgentError, FailureKind, Uploaded};
use bytes::Bytes;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use tar::{Builder, EntryType, Header};

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(1234);
    header.set_gid(2345);
    header.set_mtime(1_000_000_000);
    header
}

/// An archive made entry by entry.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn dir(mut self, name: &str) -> Self {
        self.0
            .append_data(&mut header(EntryType::Directory, 0, 0o750), name, &b""[..])
            .expect("entry");
        self
    }

    fn file(mut self, name: &str, text: &str, mode: u32) -> Self {
        let mut header = header(EntryType::Regular, text.len() as u64, mode);
        self.0
            .append_data(&mut header, name, text.as_bytes())
            .expect("entry");
        self
    }

    fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        self.0
            .append_link(&mut header(kind, 0, 0o777), name, target)
            .expect("entry");
        self
    }

    /// With a name that the builder would refuse.
    fn raw(mut self, kind: EntryType, name: &[u8], target: &[u8], text: &str) -> Self {
        let mut header = header(kind, text.len() as u64, 0o644);
        let gnu = header.as_gnu_mut().expect("a GNU header");
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        self.0.append(&header, text.as_bytes()).expect("entry");
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().expect("archive")
    }
}

fn to(path: &Path) -> UploadStart {
    UploadStart {
        path: path.to_str().expect("UTF-8").to_owned(),
        ..UploadStart::default()
    }
}

async fn put(client: &AgentClient, start: UploadStart, archive: Vec<u8>) -> Result<Uploaded, AgentError> {
    let mut upload = client.upload(start);
    upload.send(Bytes::from(archive)).await?;
    upload.finish().await
}

async fn get(client: &AgentClient, path: &Path) -> Result<(String, Vec<u8>), AgentError> {
    let path = path.to_str().expect("UTF-8").to_owned();
    let mut download = client
        .download(DownloadRequest {
            path,
            ..DownloadRequest::default()
        })
        .await?;
    let mut archive = Vec::new();
    while let Some(bytes) = download.next().await? {
        archive.extend_from_slice(&bytes);
    }
    Ok((download.name().to_owned(), archive))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a tree holds, for comparing: names, kinds, owners, modes, times, contents.
fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().expect("exists");
        let name = path.strip_prefix(root).expect("below").display().to_string();
        let what = if metadata.is_symlink() {
            fs::read_link(&path).expect("link").display().to_string()
        } else if metadata.is_file() {
            read(&path)
        } else {
            String::new()
        };
        let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
        let mtime = if metadata.is_symlink() {
            0
        } else {
            metadata.mtime()
        };
        lines.push(format!(
            "{name} {mode:o} {uid} {gid} {} {mtime} {what}",
            metadata.nlink()
        ));
        if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("directory")
                    .map(|entry| entry.expect("entry").path()),
            );
        }
    }
    lines.sort();
    lines
}

#[tokio::test]
async fn a_tree_goes_out_and_in_unchanged() {
    if !is_root("a_tree_goes_out_and_in_unchanged") {
        return;
    }
    let agent = Agent::start().await;
    let client = agent.client();
    let source = agent.scratch().join("source");
    fs::create_dir_all(source.join("deep/er")).expect("directories");
    fs::write(source.join("deep/file"), "text").expect("file");
    fs::write(source.join("setuid"), "#!").expect("file");
    fs::hard_link(source.join("deep/file"), source.join("deep/er/same")).expect("hard link");
    symlink("../outside", source.join("deep/dangling")).expect("link");
    symlink("/etc", source.join("absolute")).expect("link");
    let long = "n".repeat(200);
    fs::write(source.join(&long), "long name").expect("file");
    std::os::unix::fs::chown(source.join("deep/file"), Some(1234), Some(2345)).expect("owner");
    std::os::unix::fs::lchown(source.join("absolute"), Some(77), Some(78)).expect("owner");
    fs::set_permissions(source.join("setuid"), fs::Permissions::from_mode(0o4711)).expect("mode");
    fs::set_permissions(source.join("deep"), fs::Permissions::from_mode(0o2550)).expect("mode");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(source.join("deep"))
        .and_then(|file| file.set_modified(old))
        .expect("time");

    let (name, archive) = get(&client, &source).await.expect("download");
    assert_eq!(name, "source");
    let copy = agent.scratch().join("copy");
    let start = UploadStart {
        keep_owner: true,
        ..to(&copy)
    };
    let uploaded = put(&client, start, archive).await.expect("upload");
    assert_eq!(
        uploaded,
        Uploaded {
            entries: 9,
            bytes: 15
        }
    );
    assert_eq!(describe(&copy), describe(&source));
}

#[tokio::test]
async fn where_a_copy_lands() {
    let agent = Agent::start().await;
    let client = agent.client();
    let base = agent.scratch().join("base");
    fs::create_dir(&base).expect("directory");
    let at = |name: &str| base.join(name);
    let file = || Tar::new().file("src", "new", 0o644).done();
    let tree = || Tar::new().dir("src").file("src/a", "A", 0o640).done();

    put(&client, to(&base), file()).await.expect("into a directory");
    assert_eq!(read(&at("src")), "new");
    put(&client, to(&at("named")), file())
        .await
        .expect("under another name");
    assert_eq!(read(&at("named")), "new");
    fs::write(at("old"), "old").expect("file");
    put(&client, to(&at("old")), file()).await.expect("over a file");
    assert_eq!(read(&at("old")), "new");
    symlink(at("old"), at("link")).expect("link");
    put(
        &client,
        to(&at("link")),
        Tar::new().file("x", "via", 0o644).done(),
    )
    .await
    .expect("through a link");
    assert_eq!(read(&at("old")), "via");
    assert!(at("link").symlink_metadata().expect("still there").is_symlink());

    put(&client, to(&at("tree")), tree())
        .await
        .expect("a tree under another name");
    assert_eq!(read(&at("tree/a")), "A");
    put(&client, to(&at("tree")), tree())
        .await
        .expect("a tree into a directory");
    assert_eq!(read(&at("tree/src/a")), "A");
    let contents = |path: &Path| UploadStart {
        contents_only: true,
        ..to(path)
    };
    put(
        &client,
        contents(&at("tree/src")),
        Tar::new().dir("x").file("x/b", "B", 0o600).done(),
    )
    .await
    .expect("merged");
    assert_eq!(
        (read(&at("tree/src/a")), read(&at("tree/src/b"))),
        ("A".to_owned(), "B".to_owned())
    );
    put(
        &client,
        contents(&at("fresh")),
        Tar::new().dir("./").file("./c", "C", 0o600).done(),
    )
    .await
    .expect("made");
    assert_eq!(read(&at("fresh/c")), "C");
    assert_eq!(fs::metadata(at("fresh/c")).expect("file").mode() & 0o7777, 0o600);

    for (start, archive, expected) in [
        (to(&at("no/where")), file(), FailureKind::ParentNotFound),
        (
            to(Path::new(&format!("{}/", at("missing").display()))),
            file(),
            FailureKind::PathNotFound,
        ),
        (to(&at("old")), tree(), FailureKind::NotADirectory),
        (to(&at("old/x")), file(), FailureKind::NotADirectory),
        (contents(&at("old")), tree(), FailureKind::NotADirectory),
        (contents(&at("tree")), file(), FailureKind::BadArchive),
        (to(Path::new("")), file(), FailureKind::InvalidRequest),
        (
            UploadStart {
                user: "no-such-user".to_owned(),
                ..to(&base)
            },
            file(),
            FailureKind::UnknownUser,
        ),
        // A directory stands in the file's way, and the reverse.
        (
            to(&at("tree")),
            Tar::new().file("src", "x", 0o644).done(),
            FailureKind::IsADirectory,
        ),
        (
            to(&base),
            Tar::new().dir("named").done(),
            FailureKind::NotADirectory,
        ),
        (to(&base), Tar::new().done(), FailureKind::BadArchive),
        (
            to(&base),
            b"this is no archive".repeat(100),
            FailureKind::BadArchive,
        ),
        (to(&base), file()[..600].to_vec(), FailureKind::BadArchive),
    ] {
        let shown = format!("{start:?}");
        assert_eq!(failure(put(&client, start, archive).await), expected, "{shown}");
    }
}

#[tokio::test]
async fn no_archive_leaves_its_destination() {
    let agent = Agent::start().await;
    let client = agent.client();
    let outside = agent.scratch().join("outside");
    fs::create_dir(&outside).expect("directory");
    fs::write(outside.join("precious"), "mine").expect("file");
    let out = outside.to_str().expect("UTF-8");
    let into = |name: &str| {
        let path = agent.scratch().join(name);
        fs::create_dir(&path).expect("directory");
        path
    };

    for (number, archive) in [
        Tar::new().raw(EntryType::Regular, b"../outside/evil", b"", "x"),
        Tar::new().raw(EntryType::Regular, format!("{out}/evil").as_bytes(), b"", "x"),
        Tar::new()
            .dir("src")
            .raw(EntryType::Regular, b"src/../../outside/evil", b"", "x"),
        Tar::new()
            .dir("src")
            .raw(EntryType::Regular, b"other/evil", b"", "x"),
        Tar::new()
            .dir("src")
            .link(EntryType::Symlink, "src/l", out)
            .file("src/l/evil", "x", 0o644),
        Tar::new()
            .dir("src")
            .link(EntryType::Symlink, "src/l", "../../outside")
            .dir("src/l/evil"),
        Tar::new()
            .link(EntryType::Symlink, "src", out)
            .file("src/evil", "x", 0o644),
        Tar::new().dir("src").raw(
            EntryType::Link,
            b"src/h",
            format!("{out}/precious").as_bytes(),
            "",
        ),
        Tar::new()
            .dir("src")
            .raw(EntryType::Link, b"src/h", b"src/../../outside/precious", ""),
        Tar::new().dir("src").link(EntryType::Symlink, "src/l", out).link(
            EntryType::Link,
            "src/h",
            "src/l/precious",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let destination = into(&format!("d{number}"));
        let result = put(&client, to(&destination), archive.done()).await;
        let kind = failure(result);
        assert!(
            matches!(kind, FailureKind::BadArchive | FailureKind::NotADirectory),
            "{number}: {kind:?}"
        );
    }
    // A link which was there before is no way out either, and a link is replaced rather than written through.
    let destination = into("before");
    fs::create_dir(destination.join("src")).expect("directory");
    symlink(&outside, destination.join("src/l")).expect("link");
    symlink(outside.join("precious"), destination.join("src/f")).expect("link");
    let archive = Tar::new().dir("src").file("src/f", "x", 0o644).done();
    put(&client, to(&destination), archive)
        .await
        .expect("replaces the link");
    assert!(
        destination
            .join("src/f")
            .symlink_metadata()
            .expect("file")
            .is_file()
    );
    let archive = Tar::new().dir("src").file("src/l/evil", "x", 0o644).done();
    assert_eq!(
        failure(put(&client, to(&destination), archive).await),
        FailureKind::NotADirectory
    );

    let left: Vec<_> = fs::read_dir(&outside)
        .expect("directory")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(left, ["precious"]);
    let precious = fs::metadata(outside.join("precious")).expect("file");
    assert_eq!(
        (read(&outside.join("precious")), precious.nlink()),
        ("mine".to_owned(), 1)
    );
}

#[tokio::test]
async fn metadata_is_bounded() {
    let agent = Agent::start().await;
    let client = agent.client();
    let destination = agent.scratch().join("d");
    fs::create_dir(&destination).expect("directory");
    // A long name of 64 MiB, which a reader would keep in memory.
    let mut long = header(EntryType::GNULongName, 64 * 1024 * 1024, 0o644);
    long.as_gnu_mut().expect("a GNU header").name[..13].copy_from_slice(b"././@LongLink");
    long.set_cksum();
    let mut upload = client.upload(to(&destination));
    let mut result = upload.send(Bytes::copy_from_slice(long.as_bytes())).await;
    let chunk = Bytes::from(vec![b'x'; 1024 * 1024]);
    for _ in 0..64 {
        if result.is_err() {
            break;
        }
        result = upload.send(chunk.clone()).await;
    }
    assert_eq!(failure(result), FailureKind::BadArchive);
    assert!(agent.resident_kib() < 64 * 1024);
}

#[tokio::test]
async fn owners_and_existing_directories() {
    if !is_root("owners_and_existing_directories") {
        return;
    }
    let agent = Agent::start().await;
    let client = agent.client();
    let destination = agent.scratch().join("d");
    fs::create_dir(&destination).expect("directory");
    fs::set_permissions(&destination, fs::Permissions::from_mode(0o1777)).expect("mode");
    let archive = || {
        Tar::new()
            .dir("d")
            .dir("d/new")
            .file("d/new/f", "x", 0o4755)
            .done()
    };
    let start = UploadStart {
        user: "4321:5432".to_owned(),
        ..to(agent.scratch())
    };
    put(&client, start, archive()).await.expect("upload");
    let of = |name: &str| {
        fs::metadata(agent.scratch().join(name))
            .map(|m| (m.uid(), m.gid(), m.mode() & 0o7777))
            .expect("there")
    };
    assert_eq!(of("d"), (0, 0, 0o1777));
    assert_eq!(of("d/new"), (4321, 5432, 0o750));
    assert_eq!(of("d/new/f"), (4321, 5432, 0o4755));
    put(
        &client,
        UploadStart {
            keep_owner: true,
            ..to(agent.scratch())
        },
        archive(),
    )
    .await
    .expect("upload");
    assert_eq!(of("d/new/f"), (1234, 2345, 0o4755));
}

#[tokio::test]
async fn what_is_cut_off_replaces_nothing() {
    let agent = Agent::start().await;
    let client = agent.client();
    let target = agent.scratch().join("file");
    fs::write(&target, "old").expect("file");
    let archive = Tar::new().file("f", &"n".repeat(500_000), 0o644).done();
    let mut upload = client.upload(to(&target));
    upload
        .send(Bytes::copy_from_slice(&archive[..300_000]))
        .await
        .expect("half of it");
    drop(upload);
    // The half is taken back.
    crate::common::eventually("the temporary file's end", || {
        fs::read_dir(agent.scratch()).expect("directory").count() == 2
    })
    .await;
    assert_eq!(read(&target), "old");
    // Without the client's word that it is complete, an archive is not.
    put(&client, to(&target), archive).await.expect("all of it");
    assert_eq!(read(&target).len(), 500_000);
}

#[tokio::test]
async fn holes_stay_holes() {
    let agent = Agent::start().await;
    let client = agent.client();
    let source = agent.scratch().join("sparse");
    let file = fs::File::create(&source).expect("file");
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 8 * 1024 * 1024).expect("write");
    drop(file);
    let (_, archive) = get(&client, &source).await.expect("download");
    let copy = agent.scratch().join("copy");
    put(&client, to(&copy), archive).await.expect("upload");
    let metadata = fs::metadata(&copy).expect("file");
    assert_eq!(metadata.len(), 8 * 1024 * 1024 + 3);
    assert!(
        metadata.blocks() * 512 < 256 * 1024,
        "{} blocks",
        metadata.blocks()
    );
    assert_eq!(fs::read(&copy).expect("copy"), fs::read(&source).expect("source"));
}

#[tokio::test]
async fn downloads() {
    let agent = Agent::start().await;
    let client = agent.client();
    let base = agent.scratch();
    fs::write(base.join("file"), "text").expect("file");
    symlink("file", base.join("link")).expect("link");
    let kind = |archive: &[u8]| {
        let mut archive = tar::Archive::new(archive);
        let mut entry = archive
            .entries()
            .expect("archive")
            .next()
            .expect("one")
            .expect("entry");
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("text");
        (
            entry.header().entry_type(),
            entry.path().expect("name").display().to_string(),
            text,
        )
    };
    let (name, archive) = get(&client, &base.join("link")).await.expect("the link");
    assert_eq!(
        (name.as_str(), kind(&archive)),
        ("link", (EntryType::Symlink, "link".to_owned(), String::new()))
    );
    let path = base.join("link").to_str().expect("UTF-8").to_owned();
    let request = DownloadRequest {
        path,
        follow_link: true,
        ..DownloadRequest::default()
    };
    let mut download = client.download(request).await.expect("what it points to");
    let mut archive = Vec::new();
    while let Some(bytes) = download.next().await.expect("data") {
        archive.extend_from_slice(&bytes);
    }
    assert_eq!(
        kind(&archive),
        (EntryType::Regular, "link".to_owned(), "text".to_owned())
    );
    assert_eq!(
        failure(get(&client, &base.join("none")).await),
        FailureKind::PathNotFound
    );
    assert_eq!(
        failure(get(&client, &base.join("file/x")).await),
        FailureKind::NotADirectory
    );
    assert_eq!(
        failure(get(&client, &agent.socket()).await),
        FailureKind::InvalidRequest
    );
}
