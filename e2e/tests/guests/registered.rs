//! Registered files: an image is the user's file where it is, no machine starts on anything else, and nothing of it is lost.
//! And how one becomes Banger's own.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Daemon, Finished, Guest, Settings, Testbed, truth};
use serde_json::Value;

const SMALL: [&str; 6] = ["--memory", "256M", "--vcpus", "1", "--work-disk", "0"];
/// Where a prerequisite is missing.
const MISSING: i32 = 6;

/// Makes an ext4 file system of a busybox and a marker.
fn root_file_system(directory: &Path, name: &str, marker: &str) -> PathBuf {
    let root = directory.join(format!("{name}.d"));
    fs::create_dir_all(root.join("bin")).expect("make directories");
    let busybox = e2e::testbed::find_program("busybox").expect("busybox");
    fs::copy(busybox, root.join("bin/busybox")).expect("copy");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("link");
    fs::write(root.join("marker"), marker).expect("write");
    let file = directory.join(name);
    let mke2fs = e2e::testbed::find_program("mke2fs").expect("mke2fs");
    let made = Command::new(mke2fs)
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &file])
        .arg("16M")
        .status();
    assert!(made.expect("run mke2fs").success());
    file
}

fn register(daemon: &Daemon, name: &str, file: &Path) -> Value {
    daemon.banger(["image", "register", name]).args([file]).ok();
    show(daemon, name)
}

fn show(daemon: &Daemon, name: &str) -> Value {
    daemon.banger(["image", "show", name, "--output", "json"]).json()
}

/// Text without the line breaks that fit it to a terminal.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn says(finished: &Finished, words: &[&str]) {
    let told = unwrapped(&format!("{} {}", finished.out(), finished.err()));
    for word in words {
        assert!(told.contains(word), "{word:?} is not in {finished}");
    }
}

fn read_marker(guest: &Guest<'_>) -> String {
    guest.exec(["/bin/busybox", "cat", "/marker"]).ok()
}

/// Writes into a file and gives it its time back.
fn change_secretly(file: &Path) {
    let opened = File::options().read(true).write(true).open(file).expect("open");
    let modified = opened
        .metadata()
        .and_then(|found| found.modified())
        .expect("a time");
    let at = opened.metadata().expect("metadata").len() - 1;
    let mut last = [0];
    opened.read_exact_at(&mut last, at).expect("read");
    opened.write_all_at(&[last[0] ^ 1], at).expect("write");
    opened
        .set_times(FileTimes::new().set_modified(modified))
        .expect("set the time");
}

#[test]
fn the_file_stays_the_users() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let scratch = daemon.scratch();
    let file = root_file_system(&scratch, "mine.ext4", "from my file");
    let path = file.to_str().expect("ASCII");
    let (bytes, before) = (fs::read(&file).expect("read"), file.metadata().expect("metadata"));
    let away = scratch.join("away");

    let image = register(&daemon, "mine", &file);
    assert_eq!(image["registered"]["path"], path, "{image}");
    assert_eq!(image["registered"].get("problem"), None, "{image}");
    assert_eq!(image["used"], 0, "{image}");
    assert_eq!(image["source"], format!("path:{path}"), "{image}");
    assert_eq!(image["sha256"], e2e::images::sha256(&file), "{image}");
    assert!(daemon.banger(["image", "ls"]).ok().contains("yours"));
    daemon.banger(["image", "tag", "mine", "mine:too"]).ok();

    let options = [&SMALL[..], &["--system-disk", "overlay"]].concat();
    let guest = Guest::start_with(&daemon, "dev", "mine", &options);
    assert_eq!(read_marker(&guest), "from my file");
    guest
        .exec(["/bin/busybox", "sh", "-c", "echo kept > /kept && sync"])
        .ok();
    let id = image["id"].as_str().expect("an id");
    let refused = daemon.banger(["image", "rm", id]).run().expect(4);
    says(&refused, &["dev"]);
    daemon.banger(["vm", "stop", "dev"]).ok();

    // What stands where the file was is not it: nothing is made of the image, and everything is once it is back.
    let put_back = || {
        drop(fs::remove_file(&file));
        fs::rename(&away, &file).expect("put it back");
    };
    let harms: [(&str, &str, &dyn Fn()); 4] = [
        ("missing", "is missing", &|| {}),
        ("another", "was replaced", &|| {
            fs::copy(&away, &file).expect("copy");
        }),
        ("longer", "was changed", &|| {
            fs::copy(&away, &file).expect("copy");
            File::options()
                .write(true)
                .open(&file)
                .and_then(|file| file.set_len((16 << 20) + 1))
                .expect("lengthen");
        }),
        ("a link", "no regular file", &|| {
            std::os::unix::fs::symlink(&away, &file).expect("link");
        }),
    ];
    for (what, told, harm) in harms {
        println!("{what}");
        fs::rename(&file, &away).expect("take it away");
        harm();
        let problem = show(&daemon, "mine")["registered"]["problem"].clone();
        assert!(
            problem.as_str().is_some_and(|text| text.contains(told)),
            "{problem}"
        );
        let start = daemon.banger(["vm", "start", "dev"]).run().expect(MISSING);
        says(&start, &[path, told, "put it back", "--replace"]);
        let create = ["vm", "create", "other", "--image", "mine"];
        let create = daemon.banger(create).run().expect(MISSING);
        says(&create, &[path, told, "machines of it: dev"]);
        let export = daemon.banger(["image", "export", "--format", "tar", "mine"]);
        says(
            &export.args([scratch.join("out.tar")]).run().expect(MISSING),
            &[path],
        );
        says(
            &daemon.banger(["image", "promote", "mine"]).run().expect(MISSING),
            &[path, told],
        );
        says(&daemon.banger(["doctor"]).run(), &[path, told]);
        put_back();
        daemon.banger(["vm", "start", "--dry-run", "dev"]).ok();
        daemon.banger(["image", "verify", "mine"]).ok();
    }
    // Written to, in place: seen by its time, and by reading it where that was set back.
    let opened = File::options().write(true).open(&file).expect("open");
    let modified = before.modified().expect("a time");
    opened
        .set_times(FileTimes::new().set_modified(std::time::SystemTime::now()))
        .expect("set the time");
    let start = daemon.banger(["vm", "start", "dev"]).run().expect(MISSING);
    says(&start, &[path, "was written to"]);
    opened
        .set_times(FileTimes::new().set_modified(modified))
        .expect("set the time");
    change_secretly(&file);
    says(
        &daemon.banger(["image", "verify", "mine"]).run().expect(1),
        &[path, "its digest is"],
    );
    says(
        &daemon.banger(["image", "promote", "mine"]).run().expect(1),
        &[path, "its digest is"],
    );
    assert_eq!(show(&daemon, "mine")["registered"]["path"], path);
    change_secretly(&file);

    // A copy is another file, and is known again by what is in it.
    fs::rename(&file, &away).expect("take it away");
    fs::copy(&away, &file).expect("copy");
    daemon.banger(["vm", "start", "dev"]).run().expect(MISSING);
    let verified = daemon.banger(["image", "verify", "mine"]).run().expect(0);
    says(&verified, &[path, "taken up again"]);
    daemon.banger(["vm", "start", "dev"]).ok();
    assert_eq!(read_marker(&guest), "from my file");
    assert_eq!(guest.exec(["/bin/busybox", "cat", "/kept"]).ok(), "kept");
    daemon.banger(["vm", "rm", "--force", "dev"]).ok();

    // The image goes, the file does not.
    daemon.banger(["image", "rm", "mine", "mine:too"]).ok();
    assert!(!daemon.state().join("images").join(id).exists());
    let found = file.metadata().expect("the file is there");
    assert_eq!((found.mode(), found.nlink()), (before.mode(), 1));
    assert!(fs::read(&file).expect("read") == bytes, "byte for byte");
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn promoted_the_file_may_go() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let file = root_file_system(&daemon.scratch(), "mine.ext4", "from my file");
    let image = register(&daemon, "mine", &file);
    let guest = Guest::start_with(&daemon, "dev", "mine", &SMALL);

    let promoted = daemon.banger(["image", "promote", "mine"]).run().expect(0);
    let now = show(&daemon, "mine");
    assert_eq!(now.get("registered"), None, "{now}\n{promoted}");
    assert_eq!((&now["id"], &now["sha256"]), (&image["id"], &image["sha256"]));
    assert_ne!(now["used"], 0, "{now}");
    let id = image["id"].as_str().expect("an id");
    let ours = daemon.state().join("images").join(id).join("rootfs.ext4");
    let found = ours.symlink_metadata().expect("a file");
    assert!(
        found.is_file() && found.permissions().mode() & 0o222 == 0,
        "{found:?}"
    );
    let again = daemon.banger(["image", "promote", "mine"]).run().expect(0);
    says(&again, &["already"]);

    fs::remove_file(&file).expect("remove");
    assert_eq!(read_marker(&guest), "from my file");
    daemon.banger(["vm", "restart", "dev", "--timeout", "0"]).ok();
    assert_eq!(read_marker(&guest), "from my file");
    daemon.banger(["image", "verify", "mine"]).ok();
    daemon.banger(["vm", "rm", "--force", "dev"]).ok();
    daemon.banger(["image", "rm", "mine"]).ok();
    assert!(!ours.exists());
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn builds_go_by_what_was_registered() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let scratch = daemon.scratch();
    let file = root_file_system(&scratch, "mine.ext4", "from my file");
    let bytes = fs::read(&file).expect("read");
    register(&daemon, "mine", &file);
    let context = scratch.join("context");
    fs::create_dir_all(&context).expect("make a directory");
    let recipe = "FROM mine\nRUN echo built > /built\nCOPY --from=mine /marker /copied\n";
    fs::write(context.join("Dockerfile"), recipe).expect("write");
    let build = || {
        daemon
            .banger(["image", "build", "--name", "app", "--no-cache"])
            .args([&context])
    };
    build().ok();
    assert!(fs::read(&file).expect("read") == bytes, "byte for byte");
    let cat = ["--", "/bin/busybox", "cat", "/marker", "/built", "/copied"];
    let ran = daemon.banger(["run", "app", "--rm"]).args(cat).ok();
    assert_eq!(ran, "from my filebuilt\nfrom my file");

    let away = scratch.join("away");
    fs::rename(&file, &away).expect("take it away");
    says(&build().run().expect(MISSING), &["mine.ext4", "is missing"]);
    fs::rename(&away, &file).expect("put it back");
    // What is the daemon's own already is nobody's to register.
    let app = show(&daemon, "app");
    let id = app["id"].as_str().expect("an id");
    let own = daemon.state().join("images").join(id).join("rootfs.ext4");
    let refused = daemon
        .banger(["image", "register", "own"])
        .args([&own])
        .run()
        .expect(2);
    says(&refused, &["state directory"]);
    truth::assert_true(&daemon);
    daemon.finish();
}

/// A file on another file system than the state shares no blocks with it: machines get another kind of disk.
#[test]
fn a_file_of_another_file_system() {
    let Some(bed) = Testbed::find() else { return };
    if !e2e::testbed::mounts("xfs") {
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared().file_system("xfs"));
    let elsewhere = tempfile::tempdir().expect("a directory");
    let file = root_file_system(elsewhere.path(), "mine.ext4", "from elsewhere");
    register(&daemon, "mine", &file);
    // One of the same file system shares no blocks with images either: it is not Banger's to change where they lie.
    let beside = daemon.scratch().join("beside.ext4");
    fs::copy(&file, &beside).expect("copy");
    let image = register(&daemon, "beside", &beside);
    let directory = daemon
        .state()
        .join("images")
        .join(image["id"].as_str().expect("an id"));
    let entries = fs::read_dir(directory)
        .expect("list")
        .flatten()
        .map(|entry| entry.file_name());
    assert_eq!(entries.collect::<Vec<_>>(), ["rootfs.ext4"]);
    let asked = [&["vm", "create", "dev", "--image", "mine"], &SMALL[..]].concat();
    let reflink = daemon.banger(&asked).args(["--system-disk", "reflink"]).run();
    says(&reflink.expect(MISSING), &["banger image promote mine"]);
    daemon.banger(&asked).ok();
    let shown = daemon.banger(["vm", "show", "dev", "--output", "json"]).json();
    assert_ne!(shown["system_disk"], "reflink", "{shown}");
    daemon.banger(["image", "promote", "mine"]).ok();
    daemon.banger(["vm", "rm", "dev"]).ok();
    let guest = Guest::start_with(
        &daemon,
        "dev",
        "mine",
        &[&SMALL[..], &["--system-disk", "reflink"]].concat(),
    );
    assert_eq!(read_marker(&guest), "from elsewhere");
    daemon.banger(["vm", "rm", "--force", "dev"]).ok();
    daemon.finish();
}

/// A disk with an ESP and a root partition, as images for clouds are.
fn disk_image(directory: &Path, file_system: &Path) -> Option<PathBuf> {
    let (Some(sfdisk), Some(_)) = ["sfdisk", "qemu-img"].map(e2e::testbed::find_program).into() else {
        e2e::testbed::require("sfdisk or qemu-img is missing: make setup");
        return None;
    };
    let disk = directory.join("disk.raw");
    let root = fs::read(file_system).expect("read");
    let file = File::create_new(&disk).expect("create");
    file.set_len(64 << 20).expect("lengthen");
    file.write_all_at(&root, 16 << 20).expect("write");
    let script = directory.join("table");
    let table = "label: gpt\nstart=2048, size=8MiB, type=uefi\nstart=32768, size=16MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n";
    fs::write(&script, table).expect("write");
    let made = Command::new(sfdisk)
        .args(["-q", "--wipe-partitions", "never"])
        .arg(&disk)
        .stdin(File::open(&script).expect("open"))
        .status();
    assert!(made.expect("run sfdisk").success());
    Some(disk)
}

#[test]
fn disks_with_partitions_raw_and_qcow2() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let scratch = daemon.scratch();
    let file_system = root_file_system(&scratch, "part.ext4", "from a partition");
    let Some(raw) = disk_image(&scratch, &file_system) else {
        return;
    };
    let qcow2 = scratch.join("disk.qcow2");
    let qemu_img = |arguments: &[&str]| {
        let mut command = Command::new("qemu-img");
        let ran = command.args(arguments).current_dir(&scratch).status();
        assert!(ran.expect("run qemu-img").success(), "{arguments:?}");
    };
    qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "disk.raw",
        "disk.qcow2",
    ]);
    for (name, file) in [("raw", &raw), ("qcow2", &qcow2)] {
        let registered = daemon
            .banger(["image", "register", name])
            .args([file])
            .run()
            .expect(0);
        says(&registered, &["is not needed any more"]);
        let shown = show(&daemon, name);
        assert_eq!(shown.get("registered"), None, "{shown}");
        assert_eq!(shown["size"], 16 << 20, "{shown}");
    }
    fs::remove_file(&raw).expect("remove");
    fs::remove_file(&qcow2).expect("remove");
    for name in ["raw", "qcow2"] {
        let guest = Guest::start_with(&daemon, name, name, &SMALL);
        assert_eq!(read_marker(&guest), "from a partition");
        daemon.banger(["vm", "rm", "--force", name]).ok();
    }
    // What names another file is refused before anything is read through it.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "/etc/shadow",
        "-F",
        "raw",
        "-u",
        "over.qcow2",
        "1M",
    ]);
    let before = daemon.snapshot();
    let over = daemon
        .banger(["image", "register", "over"])
        .args([scratch.join("over.qcow2")]);
    says(&over.run().expect(2), &["over.qcow2", "backing file"]);
    let whole = daemon
        .banger(["image", "register", "over", "--partition", "2"])
        .args([&file_system]);
    says(&whole.run().expect(2), &["leave --partition out"]);
    before.assert_nothing_left(&daemon);
    truth::assert_true(&daemon);
    daemon.finish();
}
