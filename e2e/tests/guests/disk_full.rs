//! No space left, in a small file system that only the daemon sees.

use e2e::{Daemon, Settings, Testbed, testbed};

#[test]
fn bootstrap_on_a_full_disk() {
    let Some(bed) = Testbed::find() else { return };
    if !testbed::is_root() {
        return;
    }
    // Room for the database and the kernel's package, not for Debian.
    let daemon = Daemon::start(&bed, Settings::empty().small_disk("24M"));
    let before = daemon.snapshot();
    for image in ["busybox", "debian"] {
        let full = daemon.banger(["image", "bootstrap", image]).run().expect(1);
        assert!(full.err().contains("space"), "{full}");
        before.assert_nothing_left(&daemon);
    }
    daemon.finish();
}

#[test]
fn create_register_and_run_on_a_full_disk() {
    let Some(bed) = Testbed::find() else { return };
    if !testbed::is_root() {
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared().small_disk("4G"));
    let source = daemon.scratch().join("source.ext4");
    let image = daemon
        .banger(["image", "show", "busybox", "--output", "json"])
        .json();
    let rootfs = daemon
        .state()
        .join("images")
        .join(image["id"].as_str().expect("an id"))
        .join("rootfs.ext4");
    std::fs::copy(rootfs, &source).expect("copy");
    // A start makes what is kept (the initramfs), so that what is compared below is only what fails.
    daemon.banger(["run", "busybox", "--rm", "--", "true"]).ok();
    let before = daemon.snapshot();

    // Everything but a few blocks is taken; the database has its pages already.
    let filler = daemon.state().join("filler");
    fill(&filler);
    for arguments in [
        &["vm", "create", "full", "--image", "busybox"][..],
        &["run", "busybox", "--name", "full"],
        &["image", "register", "full", source.to_str().expect("ASCII")],
    ] {
        let full = daemon.banger(arguments).run().expect(1);
        assert!(full.err().contains("space"), "{full}");
    }
    std::fs::remove_file(&filler).expect("make room");
    before.assert_nothing_left(&daemon);
    assert_eq!(
        daemon
            .banger(["run", "busybox", "--rm", "--", "echo", "room"])
            .ok(),
        "room"
    );
    daemon.finish();
}

/// Writes a file until the file system takes no more.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("make the filler");
    for size in [1 << 20, 4096] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
}
