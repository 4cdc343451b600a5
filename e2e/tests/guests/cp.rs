//! Copying: both ways, files and trees, owners, modes, links, names that try to get out.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use e2e::{Daemon, Guest, Settings, Testbed, testbed};

/// Every path below a directory with kind, mode and content or target.
fn tree(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut stack = vec![root.to_owned()];
    while let Some(next) = stack.pop() {
        for entry in std::fs::read_dir(&next).expect("list").flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().expect("look"));
            let name = path
                .strip_prefix(root)
                .expect("below")
                .as_os_str()
                .to_owned()
                .into_vec();
            let content = if metadata.is_dir() {
                stack.push(path.clone());
                String::from("directory")
            } else if metadata.is_symlink() {
                format!("link to {:?}", std::fs::read_link(&path).expect("read a link"))
            } else {
                let content = std::fs::read(&path).expect("read");
                let mut hasher = DefaultHasher::new();
                content.hash(&mut hasher);
                format!("{} bytes {:x}", content.len(), hasher.finish())
            };
            // A link's own mode means nothing (symlink(7)).
            let mode = if metadata.is_symlink() {
                0
            } else {
                metadata.mode() & 0o7777
            };
            all.push(format!(
                "{} {mode:o} {} {content}",
                name.escape_ascii(),
                metadata.mtime()
            ));
        }
    }
    all.sort();
    all
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set a mode");
}

#[test]
fn a_tree_goes_in_and_comes_back_as_it_was() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "trees", "busybox");
    let from = daemon.scratch().join("tree");
    std::fs::create_dir_all(from.join("sub/empty")).expect("make directories");
    std::fs::write(from.join("plain"), "content\n").expect("write");
    std::fs::write(from.join("sub/script"), "#!/bin/sh\necho ran\n").expect("write");
    std::fs::write(from.join("sub/none"), "").expect("write");
    std::fs::write(from.join("big"), vec![0x5a; 3 << 20]).expect("write");
    mode(&from.join("plain"), 0o640);
    mode(&from.join("sub/script"), 0o751);
    mode(&from.join("sub/none"), 0o400);
    mode(&from.join("sub/empty"), 0o1777);
    mode(&from.join("sub"), 0o750);
    symlink("plain", from.join("link")).expect("link");
    symlink("../../../etc/passwd", from.join("sub/out")).expect("link");
    symlink("nowhere", from.join("dangling")).expect("link");
    for name in [
        &b"a b"[..],
        b"-rf",
        b"new\nline",
        "ü".as_bytes(),
        b"not\xffutf8",
        b"quote'\"",
        b"...",
    ] {
        std::fs::write(from.join(std::ffi::OsString::from_vec(name.to_vec())), "named").expect("write");
    }
    std::fs::write(from.join("x".repeat(255)), "long").expect("write");
    let deep = (0..40).fold(from.join("deep"), |path, _| path.join("directory"));
    std::fs::create_dir_all(&deep).expect("make directories");
    std::fs::write(deep.join("file"), "deep").expect("write");

    daemon.banger(["cp"]).args([&from]).args(["trees:/root/"]).ok();
    assert_eq!(
        guest.sh("cat /root/tree/plain; /root/tree/sub/script; readlink /root/tree/sub/out"),
        "content\nran\n../../../etc/passwd"
    );
    assert_eq!(
        guest.sh("stat -c %a /root/tree/sub/script /root/tree/sub/empty /root/tree/plain"),
        "751\n1777\n640"
    );
    let back = daemon.scratch().join("back");
    std::fs::create_dir(&back).expect("make a directory");
    daemon.banger(["cp", "trees:/root/tree"]).args([&back]).ok();
    let (sent, got) = (tree(&from), tree(&back.join("tree")));
    let lost: Vec<_> = sent.iter().filter(|line| !got.contains(line)).collect();
    let new: Vec<_> = got.iter().filter(|line| !sent.contains(line)).collect();
    assert!(
        lost.is_empty() && new.is_empty(),
        "sent: {lost:#?}\nbut got: {new:#?}"
    );
    daemon.finish();
}

#[test]
fn destinations_are_those_of_docker() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "where", "busybox");
    let scratch = daemon.scratch();
    std::fs::write(scratch.join("f"), "one").expect("write");
    let f = scratch.join("f");
    let f = f.to_str().expect("ASCII");
    let to = |target: &str| daemon.banger(["cp", f, target]);
    to("where:/root/").ok();
    assert_eq!(guest.sh("cat /root/f"), "one");
    to("where:/root/other").ok();
    assert_eq!(guest.sh("cat /root/other"), "one");
    to("where:relative").ok();
    assert_eq!(guest.sh("cat /root/relative"), "one");
    // An existing file is replaced, not written into.
    guest.sh("ln /root/other /root/kept; echo two > /root/kept");
    to("where:/root/other").ok();
    assert_eq!(guest.sh("cat /root/other"), "one");

    // Errors name the side and the path, and leave nothing.
    let missing = to("where:/no/such/place").fails(3);
    assert!(missing.contains("/no/such"), "{missing}");
    let absent = daemon.banger(["cp", "where:/no/such", f]).run();
    assert!(
        absent.code() != 0 && absent.err().contains("/no/such"),
        "{absent}"
    );
    let here = daemon.banger(["cp", "/no/such/here", "where:/root/"]).run();
    assert!(here.code() != 0 && here.err().contains("/no/such/here"), "{here}");
    daemon.banger(["cp", f, "nobody:/root/"]).fails(3);
    daemon.banger(["cp", f, f]).run().expect(2);
    assert_eq!(guest.sh("ls /no 2>/dev/null || echo none"), "none");

    // A directory's content, by `/.`; a stream, by `-`.
    std::fs::create_dir(scratch.join("d")).expect("make a directory");
    std::fs::write(scratch.join("d/inner"), "in").expect("write");
    daemon
        .banger(["cp"])
        .args([scratch.join("d/.")])
        .args(["where:/tmp"])
        .ok();
    assert_eq!(guest.sh("cat /tmp/inner"), "in");
    let stream = daemon.banger(["cp", "where:/tmp/inner", "-"]).run().expect(0);
    let back = daemon
        .banger(["cp", "-", "where:/root"])
        .input(stream.stdout)
        .run()
        .expect(0);
    assert_eq!(back.stdout, b"");
    assert_eq!(guest.sh("cat /root/inner"), "in");
    daemon.finish();
}

#[test]
fn owners_are_kept() {
    let Some(bed) = Testbed::find() else { return };
    if !testbed::is_root() {
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "owners", "busybox");
    let file = daemon.scratch().join("owned");
    std::fs::write(&file, "x").expect("write");
    std::os::unix::fs::chown(&file, Some(1234), Some(5678)).expect("give away");
    mode(&file, 0o4751);
    let owner = || guest.sh("stat -c '%u:%g %a' /root/owned");
    let cp = |arguments: &[&str]| daemon.banger(["cp"]).args(arguments);
    let (there, back) = (file.to_str().expect("ASCII"), daemon.scratch().join("back"));
    let back = back.to_str().expect("ASCII");

    // Root keeps owners without being asked; only -a lets a guest's file have a set-user-id mode here.
    cp(&[there, "owners:/root/"]).ok();
    assert_eq!(owner(), "1234:5678 4751");
    guest.sh("chown 4321:8765 /root/owned; chmod 4711 /root/owned");
    let here = || {
        let metadata = Path::new(back).metadata().expect("look");
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    cp(&["owners:/root/owned", back]).ok();
    assert_eq!(here(), (4321, 8765, 0o711));
    cp(&["-a", "owners:/root/owned", back]).ok();
    assert_eq!(here(), (4321, 8765, 0o4711));
    cp(&["--no-owner", there, "owners:/root/"]).ok();
    assert!(owner().starts_with("0:0 "), "{}", owner());
    daemon.finish();
}

/// The guest is hostile: whatever it sends, nothing appears on the host outside the destination.
#[test]
fn a_hostile_guest_writes_nothing_elsewhere() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let guest = Guest::start(&daemon, "bad", "busybox");
    let scratch = daemon.scratch();
    let target = scratch.join("target");
    std::fs::create_dir(&target).expect("make a directory");
    std::fs::write(scratch.join("victim"), "untouched").expect("write");

    // A link that a later copy would follow: into the destination, then through it.
    guest.sh("mkdir -p /srv/a; ln -s ../../victim /srv/a/x; ln -s .. /srv/a/up");
    daemon.banger(["cp", "bad:/srv/a"]).args([&target]).ok();
    guest.sh(
        "rm /srv/a/x /srv/a/up; echo overwritten > /srv/a/x; mkdir /srv/a/up; echo stray > /srv/a/up/stray",
    );
    let again = daemon.banger(["cp", "bad:/srv/a"]).args([&target]).run();
    assert_eq!(
        std::fs::read(scratch.join("victim")).expect("read"),
        b"untouched",
        "{again}"
    );
    assert!(!target.join("stray").exists(), "{again}");
    // Devices do not become devices.
    guest.sh(
        "mkdir -p /srv/dev; mknod /srv/dev/null c 1 3; mknod /srv/dev/disk b 254 0; echo ok > /srv/dev/file",
    );
    let devices = daemon.banger(["cp", "bad:/srv/dev"]).args([&target]).run();
    for name in ["null", "disk"] {
        if let Ok(metadata) = target.join("dev").join(name).symlink_metadata() {
            assert!(metadata.is_file(), "{name} is special on the host: {devices}");
        }
    }
    daemon.finish();
}
