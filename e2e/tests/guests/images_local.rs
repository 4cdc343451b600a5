//! Images to files of the host and back again: what was made of packages has no layers, and is exported all the same.

use e2e::{Daemon, Guest, Settings, Testbed, truth};

/// What is exported is the same after it was taken in again, byte by byte, and boots.
#[test]
fn an_image_without_layers_goes_out_and_comes_back() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let scratch = daemon.scratch();
    let file = |name: &str| scratch.join(name);
    let tar = |image: &str, name: &str| {
        let exporting = daemon.banger(["image", "export", "--format", "tar", image]);
        exporting.args([&file(name)]).ok();
        std::fs::read(file(name)).expect("the archive")
    };
    let first = tar("busybox", "first.tar");
    assert_eq!(first.len() % 512, 0);

    daemon
        .banger(["image", "register", "from-tar"])
        .args([&file("first.tar")])
        .ok();
    assert!(tar("from-tar", "again.tar") == first, "the same files");

    let exporting = daemon.banger(["image", "export", "busybox"]);
    exporting.args([&file("oci.tar")]).ok();
    let blobs = std::fs::read_dir(daemon.state().join("blobs/sha256")).expect("blobs");
    assert_eq!(blobs.count(), 0, "what the archive was made of is gone");
    let importing = daemon.banger(["image", "import", "--name", "from-oci"]);
    importing.args([&file("oci.tar")]).ok();
    assert!(tar("from-oci", "third.tar") == first, "the same files");

    for image in ["from-tar", "from-oci"] {
        let guest = Guest::start(&daemon, image, image);
        assert_eq!(guest.exec(["/bin/busybox", "echo", "here"]).ok(), "here");
        daemon.banger(["vm", "rm", "--force", image]).ok();
    }
    // What is there already is not touched.
    let refused = daemon.banger(["image", "export", "--format", "tar", "busybox"]);
    let refused = refused.args([&file("first.tar")]).run().expect(2);
    assert!(refused.err().contains("there already"), "{refused}");
    assert!(std::fs::read(file("first.tar")).expect("the archive") == first);
    let left = std::fs::read_dir(&scratch).expect("the directory");
    let unfinished = |entry: std::fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".banger");
    assert!(!left.flatten().any(unfinished), "nothing half-written");
    truth::assert_true(&daemon);
    daemon.finish();
}
