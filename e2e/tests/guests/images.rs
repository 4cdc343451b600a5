//! Images from elsewhere: pulled from a real registry, imported from files, named, verified, pruned; a guest that boots from
//! one as it is.

use e2e::images::{Cut, Registry, docker_archive};
use e2e::{Daemon, Guest, Settings, Testbed, truth};
use serde_json::json;

/// Bytes that no compression makes fewer of.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        // xorshift64*, Vigna 2016.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

fn digest(daemon: &Daemon, image: &str) -> String {
    let shown = daemon.banger(["image", "show", image, "--output", "json"]).json();
    shown["digest"].as_str().expect("a digest").to_owned()
}

#[test]
fn an_image_of_a_registry_boots_and_moves_on() {
    let Some(bed) = Testbed::find() else { return };
    let Some(registry) = Registry::start() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let scratch = daemon.scratch();
    let app = format!("127.0.0.1:{}/app:v1", registry.port);
    registry.push(
        &docker_archive(&scratch, "app:1", &[("etc/hello", b"first")]),
        "app:v1",
    );
    assert_eq!(daemon.banger(["image", "pull", &app]).ok(), app);
    let first = digest(&daemon, &app);
    let again = daemon.banger(["image", "pull", &app]).run().expect(0);
    assert!(again.err().contains("there already, and current"), "{again}");

    let guest = Guest::start(&daemon, "dev", &app);
    assert_eq!(guest.exec(["/bin/cat", "/etc/hello"]).ok(), "first");
    // What the image says of its processes, and what is asked for instead.
    let greet = ["/bin/sh", "-c", "echo $GREETING"];
    assert_eq!(guest.exec(greet).ok(), "hello");
    assert_eq!(guest.exec_with(&["-e", "GREETING=bye"]).args(greet).ok(), "bye");
    let shown = daemon.banger(["image", "show", &app, "--output", "json"]).json();
    assert_eq!(shown["config"]["env"], json!({"GREETING": "hello"}));
    assert_eq!(shown["config"]["cmd"], json!(["/bin/sh"]));
    assert_eq!(shown["used_by"], json!(["dev"]));
    assert!(shown["blobs"].as_u64() > Some(0), "{shown:#}");

    // The registry has another by now: the name moves, the machine keeps what it has.
    registry.push(
        &docker_archive(&scratch, "app:2", &[("etc/hello", b"second")]),
        "app:v1",
    );
    daemon.banger(["image", "pull", &app]).ok();
    assert_ne!(digest(&daemon, &app), first);
    let vm = guest.show();
    assert_eq!(vm["image"], json!(app));
    let former = daemon
        .banger(["image", "show", &first, "--output", "json"])
        .json();
    assert_eq!((&former["id"], &former["names"]), (&vm["image_id"], &json!(null)));
    assert_eq!(
        daemon
            .banger(["image", "find", "--digest", &first[..20], "-q"])
            .ok(),
        former["id"]
    );
    daemon.banger(["image", "rm", &first]).fails(4);
    let nothing = daemon.banger(["image", "prune", "--dry-run", "-q"]).ok();
    assert_eq!(nothing, "", "a machine uses it");
    truth::assert_true(&daemon);
    daemon.banger(["vm", "rm", "--force", "dev"]).ok();
    let pruned = daemon.banger(["image", "prune", "-q"]).ok();
    assert_eq!(pruned, former["id"]);
    daemon.banger(["image", "show", &first]).fails(3);
    daemon.banger(["image", "rm", &app]).ok();
    // One that is not there is pulled first.
    let ran = daemon
        .banger([
            "run",
            "--rm",
            &app,
            "--",
            "/bin/sh",
            "-c",
            "echo $GREETING; cat /etc/hello",
        ])
        .run()
        .expect(0);
    assert_eq!(ran.out(), "hello\nsecond");
    assert!(ran.err().contains("is not here yet: pulling it"), "{ran}");
    daemon.banger(["image", "rm", &app]).ok();
    let blobs = std::fs::read_dir(daemon.state().join("blobs/sha256")).expect("blobs");
    assert_eq!(blobs.count(), 0);
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn a_pull_goes_on_where_the_registry_broke_off() {
    let Some(bed) = Testbed::find() else { return };
    let Some(registry) = Registry::start() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let archive = docker_archive(&daemon.scratch(), "large:1", &[("etc/noise", &noise(8 << 20))]);
    registry.push(&archive, "large:v1");
    let cut = Cut::before(&registry, 2 << 20);
    let large = format!("127.0.0.1:{}/large:v1", cut.port);
    // Until the end of all attempts nothing more comes.
    let broken = daemon.banger(["image", "pull", &large]).run().expect(1);
    assert!(
        broken.err().contains(&format!("127.0.0.1:{}", cut.port)),
        "{broken}"
    );
    let partial = std::fs::read_dir(daemon.state().join("blobs/partial")).expect("blobs");
    assert_eq!(partial.count(), 1, "what has come stays");
    daemon.banger(["image", "show", &large]).fails(3);
    let before = cut.passed();
    cut.allow(u64::MAX);
    daemon.banger(["image", "pull", &large]).ok();
    let rest = cut.passed() - before;
    let shown = daemon
        .banger(["image", "show", &large, "--output", "json"])
        .json();
    let all = shown["blobs"].as_u64().expect("bytes");
    assert!(
        rest + (1 << 20) < all,
        "{rest} bytes of {all} came the second time"
    );
    daemon.banger(["image", "verify", &large]).ok();
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn what_is_not_what_its_digest_says_is_refused_and_named() {
    let Some(bed) = Testbed::find() else { return };
    let Some(registry) = Registry::start() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let archive = docker_archive(&daemon.scratch(), "bad:1", &[("etc/hello", &noise(4096))]);
    registry.push(&archive, "bad:v1");
    let bad = format!("127.0.0.1:{}/bad:v1", registry.port);
    daemon.banger(["image", "pull", &bad]).ok();
    // In the state directory, where verifying finds it.
    let shown = daemon.banger(["image", "show", &bad, "--output", "json"]).json();
    let rootfs = daemon
        .state()
        .join("images")
        .join(shown["id"].as_str().expect("an id"))
        .join("rootfs.ext4");
    flip(&rootfs, 1 << 20);
    let damaged = daemon.banger(["image", "verify"]).run().expect(1);
    assert!(
        damaged.err().contains(&format!("the root file system of {bad}")),
        "{damaged}"
    );
    daemon.banger(["image", "rm", &bad]).ok();
    daemon.banger(["image", "verify"]).ok();

    // In the registry: nothing of it is kept, and no image is made.
    let manifest = std::fs::read(
        registry.blob(
            shown["digest"]
                .as_str()
                .expect("a digest")
                .trim_start_matches("sha256:"),
        ),
    );
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.expect("the manifest")).expect("JSON");
    let layer = manifest["layers"][0]["digest"]
        .as_str()
        .expect("a digest")
        .trim_start_matches("sha256:");
    flip(&registry.blob(layer), 100);
    let refused = daemon.banger(["image", "pull", &bad]).run().expect(1);
    assert!(refused.err().contains("has digest sha256:"), "{refused}");
    let kept = daemon.state().join("blobs/sha256").join(layer);
    assert!(!kept.exists());
    std::fs::remove_file(registry.blob(layer)).expect("remove");
    daemon.banger(["image", "pull", &bad]).fails(1);
    truth::assert_true(&daemon);
    daemon.finish();
}

fn flip(file: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(file)
        .expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0xff], at).expect("write");
}

#[test]
fn images_of_archives_get_names_and_lose_them() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let archive = docker_archive(&daemon.scratch(), "tools:1", &[("etc/hello", b"tools")]);
    let import = |options: &[&str]| daemon.banger(["image", "import"]).args([&archive]).args(options);
    assert_eq!(import(&[]).ok(), "tools:1");
    import(&["--name", "docker.io/library/busybox"]).fails(4);
    assert_eq!(
        daemon
            .banger(["image", "tag", "docker.io/library/tools:1", "extra:latest"])
            .ok(),
        "extra tools:1"
    );
    assert_eq!(
        daemon
            .banger(["image", "find", "*", "--label", "team=a", "-q"])
            .ok(),
        "extra\ntools:1"
    );
    assert_eq!(daemon.banger(["image", "rm", "tools:1"]).ok(), "tools:1");
    daemon.banger(["image", "show", "tools:1"]).fails(3);
    daemon
        .banger(["vm", "create", "dev", "--image", "extra:latest"])
        .ok();
    let used = daemon.banger(["image", "rm", "extra"]).run().expect(4);
    assert!(used.err().contains("in use by dev"), "{used}");
    daemon.banger(["vm", "rm", "dev"]).ok();
    daemon.banger(["image", "rm", "extra"]).ok();

    // Out again, and in by what was written: the same image.
    import(&[]).ok();
    let (first, out) = (digest(&daemon, "tools:1"), daemon.scratch().join("out.tar"));
    daemon.banger(["image", "export", "tools:1"]).args([&out]).ok();
    daemon
        .banger(["image", "export", "tools:1"])
        .args([&out])
        .fails(2);
    daemon.banger(["image", "rm", "tools:1"]).ok();
    assert_eq!(daemon.banger(["image", "import"]).args([&out]).ok(), "tools:1");
    assert_eq!(digest(&daemon, "tools:1"), first);

    // What cannot be: each says why.
    let absent = import(&["--select", "tools:2"]).run().expect(3);
    assert!(absent.err().contains("tools:1"), "{absent}");
    let scratch = daemon.scratch();
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    let path = |path: &std::path::Path| path.to_str().expect("ASCII").to_owned();
    for (arguments, code, says) in [
        (vec!["import".to_owned(), path(&empty)], 2, "no image archive"),
        (
            vec!["import".to_owned(), path(&scratch.join("nothing"))],
            3,
            "no file",
        ),
        (
            vec!["pull".to_owned(), "UPPER/case".to_owned()],
            1,
            "unknown host",
        ),
        (
            vec!["pull".to_owned(), "a//b".to_owned()],
            2,
            "cannot name an image",
        ),
        (
            vec!["pull".to_owned(), "127.0.0.1:1/a".to_owned()],
            1,
            "no connection to registry 127.0.0.1:1",
        ),
        (
            vec!["tag".to_owned(), "busybox".to_owned(), "a b".to_owned()],
            2,
            "cannot name an image",
        ),
        (
            vec!["show".to_owned(), "sha256:abc".to_owned()],
            2,
            "at least 6 digits",
        ),
    ] {
        let refused = daemon.banger(["image"]).args(&arguments).run().expect(code);
        assert!(refused.err().contains(says), "{refused}");
    }
    truth::assert_true(&daemon);
    daemon.finish();
}
