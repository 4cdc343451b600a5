//! "Bad input gets a clear error, and nothing is lost": names, figures, files, directories, other daemons. What fails
//! while a machine starts is in `failed_start`, a full disk in `disk_full`, Ctrl-C in `interrupt`, the socket in
//! `protocol`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::{Banger, Daemon, Finished, Guest, Settings, Testbed};

/// An error for people: one that says what is wrong, in a line that begins so, without the look of a crash.
#[track_caller]
fn clear(finished: &Finished, words: &[&str]) {
    let text = finished.err();
    // The command line says `error: …`, the daemon its own name.
    assert!(
        text.contains("error: ") || text.contains("bangerd: failed to "),
        "{finished}"
    );
    assert!(
        !text.contains("panicked") && !text.contains("Error {") && !text.contains("Os {"),
        "{finished}"
    );
    for word in words {
        assert!(text.contains(word), "{word:?} is not in it: {finished}");
    }
    assert_eq!(
        finished.out(),
        "",
        "an error belongs on standard error: {finished}"
    );
}

#[test]
fn unknown_things_are_named_with_a_near_match() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    Guest::create_with(&daemon, "devbox", "busybox", &[]);
    let before = daemon.snapshot();
    for (arguments, code, words) in [
        (&["vm", "show", "devbx"][..], 3, &["devbx", "devbox"][..]),
        (&["vm", "start", "devbx"], 3, &["devbx", "devbox"]),
        (&["vm", "rm", "devbx"], 3, &["devbx", "devbox"]),
        (&["vm", "stop", "devbx"], 3, &["devbx"]),
        (&["vm", "kill", "devbx"], 3, &["devbx"]),
        (&["vm", "logs", "devbx"], 3, &["devbx"]),
        (&["vm", "ping", "devbx"], 3, &["devbx"]),
        (&["vm", "restart", "devbx"], 3, &["devbx"]),
        (&["vm", "reset", "devbx"], 3, &["devbx"]),
        (&["vm", "rename", "devbx", "x"], 3, &["devbx"]),
        (&["vm", "set", "devbx", "--vcpus", "1"], 3, &["devbx", "devbox"]),
        (&["vm", "start", "--dry-run", "devbx"], 3, &["devbx"]),
        (&["vm", "stats", "devbx"], 3, &["devbx"]),
        (&["vm", "health", "devbx"], 3, &["devbx"]),
        (&["vm", "wait", "devbx"], 3, &["devbx"]),
        (
            &["vm", "reset", "devbox", "--image", "debain"],
            3,
            &["debain", "debian"],
        ),
        (
            &["vm", "set", "devbox", "--image", "debain"],
            3,
            &["debain", "debian"],
        ),
        (&["op", "cancel", "none"], 3, &["none"]),
        (&["exec", "devbx", "--", "true"], 125, &["devbx", "devbox"]),
        (&["cp", "/etc/hostname", "devbx:/"], 3, &["devbx"]),
        (
            &["vm", "create", "x", "--image", "debain"],
            3,
            &["debain", "debian"],
        ),
        (&["run", "debain"], 3, &["debain", "debian"]),
        (&["run", "debain", "--", "true"], 125, &["debain", "debian"]),
        (
            &["vm", "create", "x", "--image", "busybox", "--kernel", "debain"],
            3,
            &["debain", "debian"],
        ),
        (&["image", "show", "busybx"], 3, &["busybx", "busybox"]),
        (&["image", "rm", "busybx"], 3, &["busybx", "busybox"]),
        (&["kernel", "rm", "debain"], 3, &["debain", "debian"]),
        (&["op", "show", "none"], 3, &["none"]),
        (&["image", "bootstrap", "fedora"], 2, &["debian", "busybox"]),
        (&["vm", "strat", "devbox"], 2, &["start"]),
        (
            &["vm", "create", "x", "--image", "busybox", "--memroy", "1G"],
            2,
            &["--memory"],
        ),
        (&["imag", "ls"], 2, &["image"]),
    ] {
        let finished = daemon.banger(arguments).run().expect(code);
        clear(&finished, words);
    }
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn names_and_figures_out_of_range() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    let long = "a".repeat(64);
    for name in [
        "a/b", "../up", "a.b", "a b", "Dev", "UP", "", "1st", "-", "end-", "ü", "a\nb", "a_b", &long,
    ] {
        // A name may look like an option; `=` keeps it a name.
        let run = daemon
            .banger(["run", "busybox"])
            .args([format!("--name={name}")])
            .run();
        assert_eq!(run.code(), 2, "{name:?}: {run}");
        clear(&run, &["name"]);
    }
    let create = |arguments: &[&str]| {
        daemon
            .banger(["vm", "create", "x", "--image", "busybox"])
            .args(arguments)
            .run()
    };
    for (arguments, words) in [
        (&["--vcpus", "0"][..], &["vcpus", "0"][..]),
        (&["--vcpus", "100000"], &["100000"]),
        (&["--vcpus", "-1"], &[]),
        (&["--vcpus", "many"], &["many"]),
        (&["--memory", "1M"], &["memory"]),
        (&["--memory", "70M"], &["kernel", "--memory"]),
        (&["--memory", "900T"], &["memory"]),
        (&["--memory", "0M"], &[]),
        (&["--memory", "lots"], &["lots"]),
        (&["--memory", "512"], &["512M"]),
        (&["--disk", "1M"], &["disk"]),
        (&["--disk", "0G"], &[]),
        (&["--disk", "99999999T"], &[]),
    ] {
        let run = create(arguments);
        assert_eq!(run.code(), 2, "{arguments:?}: {run}");
        clear(&run, words);
    }
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn files_that_are_no_images_and_no_kernels() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let scratch = daemon.scratch();
    let file = |name: &str, content: &[u8]| {
        std::fs::write(scratch.join(name), content).expect("write");
        scratch.join(name).to_str().expect("ASCII").to_owned()
    };
    let (empty, text, zeros) = (
        file("empty", b""),
        file("text", b"not an image"),
        file("zeros", &[0; 1 << 20]),
    );
    // An ELF file, but of this host's userland; a gzip file that ends in the middle.
    let program = bed.program("banger").display().to_string();
    let cut = file("cut.tar.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3]);
    // A good image whose end is missing.
    let image = daemon
        .banger(["image", "show", "busybox", "--output", "json"])
        .json();
    let id = image["id"].as_str().expect("an id");
    let good =
        std::fs::read(daemon.state().join("images").join(id).join("rootfs.ext4")).expect("read the image");
    let short = file("short.ext4", &good[..good.len() / 2]);
    let directory = scratch.display().to_string();
    let before = daemon.snapshot();
    for path in [
        "/no/such/file",
        &directory,
        &empty,
        &text,
        &zeros,
        &cut,
        &short,
        "/dev/null",
        "/dev/zero",
    ] {
        let register = daemon.banger(["image", "register", "bad", path]).run();
        assert!(matches!(register.code(), 1..=3), "{path}: {register}");
        clear(&register, &[path]);
        let add = daemon.banger(["kernel", "add", "bad", "--file", path]).run();
        assert!(matches!(add.code(), 1..=3), "{path}: {add}");
        clear(&add, &[path]);
    }
    let no_kernel = daemon.banger(["kernel", "add", "bad", "--file", &program]).run();
    assert!(matches!(no_kernel.code(), 1 | 2), "{no_kernel}");
    clear(&no_kernel, &[]);
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

#[test]
fn what_is_in_use_stays() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    Guest::create_with(&daemon, "user", "busybox", &[]);
    let before = daemon.snapshot();
    clear(
        &daemon.banger(["image", "rm", "busybox"]).run().expect(4),
        &["busybox", "user"],
    );
    clear(
        &daemon.banger(["kernel", "rm", "debian"]).run().expect(4),
        &["debian"],
    );
    clear(
        &daemon
            .banger(["vm", "create", "user", "--image", "busybox"])
            .run()
            .expect(4),
        &["user"],
    );
    before.assert_nothing_left(&daemon);
    // Without its user it goes, and can be made again.
    daemon.banger(["vm", "rm", "user"]).ok();
    daemon.banger(["image", "rm", "busybox"]).ok();
    daemon.banger(["image", "show", "busybox"]).fails(3);
    daemon.banger(["image", "bootstrap", "busybox"]).ok();
    assert_eq!(
        daemon
            .banger(["run", "busybox", "--rm", "--", "echo", "anew"])
            .ok(),
        "anew"
    );
    daemon.finish();
}

#[test]
fn an_image_from_a_file_and_from_a_tar() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let scratch = daemon.scratch();
    let root = scratch.join("root");
    std::fs::create_dir_all(root.join("bin")).expect("make directories");
    let busybox = e2e::testbed::find_program("busybox").expect("busybox");
    std::fs::copy(busybox, root.join("bin/busybox")).expect("copy");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("link");
    std::fs::write(root.join("marker"), "from a tar").expect("write");
    let tar = scratch.join("root.tar.gz");
    let packed = Command::new("tar")
        .arg("-czf")
        .arg(&tar)
        .arg("-C")
        .arg(&root)
        .arg(".")
        .status()
        .expect("run tar");
    assert!(packed.success());
    daemon.banger(["image", "register", "from-tar"]).args([&tar]).ok();
    let cat = ["--", "/bin/busybox", "cat", "/marker"];
    assert_eq!(
        daemon.banger(["run", "from-tar", "--rm"]).args(cat).ok(),
        "from a tar"
    );

    let ext4 = scratch.join("root.ext4");
    let mke2fs = e2e::testbed::find_program("mke2fs").expect("mke2fs");
    let made = Command::new(mke2fs)
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&root)
        .arg(&ext4)
        .arg("16M")
        .status();
    assert!(made.expect("run mke2fs").success());
    daemon
        .banger(["image", "register", "from-file"])
        .args([&ext4])
        .ok();
    assert_eq!(
        daemon.banger(["run", "from-file", "--rm"]).args(cat).ok(),
        "from a tar"
    );
    // Once it is a copy the file may go.
    daemon.banger(["image", "promote", "from-file"]).ok();
    std::fs::remove_file(&ext4).expect("remove");
    assert_eq!(
        daemon.banger(["run", "from-file", "--rm"]).args(cat).ok(),
        "from a tar"
    );
    daemon.finish();
}

/// A daemon that is not meant to start.
fn bangerd(bed: &Testbed, state: &Path, runtime: &Path, config: &Path) -> Finished {
    Banger::new(bed.program("bangerd"))
        .args(["run"])
        .env("BANGER_STATE_DIR", state)
        .env("BANGER_RUNTIME_DIR", runtime)
        .env("BANGER_CONFIG", config)
        .deadline(Duration::from_secs(20))
        .run()
}

#[test]
fn directories_a_daemon_cannot_have() {
    let Some(bed) = Testbed::find() else { return };
    let home = tempfile::tempdir().expect("make a directory");
    let path = |name: &str| home.path().join(name);
    std::fs::write(path("config.toml"), "").expect("write");
    let config = path("config.toml");

    let long = path(&"x".repeat(100));
    let run = bangerd(&bed, &path("state"), &long, &config);
    assert_ne!(run.code(), 0);
    clear(&run, &["107"]);
    // Not even root writes below /proc.
    let run = bangerd(&bed, Path::new("/proc/banger"), &path("run"), &config);
    assert_ne!(run.code(), 0);
    clear(&run, &["/proc/banger"]);
    let run = bangerd(&bed, &path("state"), Path::new("/proc/banger"), &config);
    assert_ne!(run.code(), 0);
    clear(&run, &["/proc/banger"]);
    std::fs::write(path("file"), "").expect("write");
    let run = bangerd(&bed, &path("file"), &path("run"), &config);
    assert_ne!(run.code(), 0);
    clear(&run, &["file"]);
    assert!(!path("run").join("bangerd.sock").exists());
}

#[test]
fn configuration_that_makes_no_sense() {
    let Some(bed) = Testbed::find() else { return };
    let home = tempfile::tempdir().expect("make a directory");
    let path = |name: &str| home.path().join(name);
    for (content, word) in [
        ("[vm\n", "config.toml"),
        ("[vm]\nmemory = 7\n", "memory"),
        ("[vm]\nmemory = \"lots\"\n", "lots"),
        ("[vm]\nvcpus = 0\n", "vcpus"),
        ("[vmm]\nchoice = \"xen\"\n", "xen"),
    ] {
        std::fs::write(path("config.toml"), content).expect("write");
        let run = bangerd(&bed, &path("state"), &path("run"), &path("config.toml"));
        assert_ne!(run.code(), 0, "{content}");
        clear(&run, &[word]);
    }
    // A key that is not known is a warning, with its path.
    let daemon = Daemon::start(
        &bed,
        Settings::empty().config("[vmm]\nchoice = \"qemu\"\n[vm]\nmemroy = \"1G\"\n"),
    );
    assert!(daemon.log().contains("vm.memroy"), "{}", daemon.log());
    daemon.finish();
}

#[test]
fn one_daemon_for_a_state_directory() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let environment = daemon.environment();
    let other = daemon.scratch();
    let second = bangerd(&bed, &environment[0].1, &other, &environment[2].1);
    assert_ne!(second.code(), 0);
    clear(&second, &[&daemon.pid().to_string()]);
    // The same runtime directory with another state directory: its socket is not taken over.
    let third = bangerd(&bed, &other, &environment[1].1, &environment[2].1);
    assert_ne!(third.code(), 0);
    clear(&third, &[]);
    daemon.banger(["ls"]).ok();
    daemon.finish();
}

/// No daemon, and none to be started: the error says how to get one.
#[test]
fn a_daemon_that_is_not_there() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::new(&bed, Settings::empty());
    for arguments in [
        &["ls"][..],
        &["image", "ls"],
        &["run", "busybox"],
        &["daemon", "status"],
    ] {
        let run = daemon.banger(arguments).run().expect(9);
        clear(&run, &["bangerd"]);
    }
    let exec = daemon.banger(["exec", "x", "--", "true"]).run().expect(125);
    clear(&exec, &["bangerd"]);
    daemon.finish();
}
