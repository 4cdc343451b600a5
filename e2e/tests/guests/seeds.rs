//! Work seeds: what a new machine's home has, and that nothing ever happens to one that exists.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use e2e::images::docker_archive;
use e2e::testbed::{find_program, require};
use e2e::{Daemon, Guest, Settings, Testbed, truth};

/// One that is a copy of a seed, and one that is smaller than a seed.
const LARGE: [&str; 6] = ["--memory", "256M", "--vcpus", "1", "--work-disk", "3G"];
const SMALL: [&str; 6] = ["--memory", "256M", "--vcpus", "1", "--work-disk", "64M"];

/// A template as users have them, and a daemon that is told of it.
fn with_template(bed: &Testbed) -> (tempfile::TempDir, Daemon) {
    let template = tempfile::tempdir().expect("a directory");
    let at = |name: &str| template.path().join(name);
    fs::create_dir_all(at("bin")).expect("directories");
    fs::write(at("bin/tool"), "#!/bin/sh\necho tool\n").expect("write");
    fs::set_permissions(at("bin/tool"), fs::Permissions::from_mode(0o750)).expect("mode");
    fs::write(at(".secret"), "first").expect("write");
    fs::set_permissions(at(".secret"), fs::Permissions::from_mode(0o600)).expect("mode");
    symlink("bin/tool", at("short")).expect("a link");
    let config = format!("[seed]\ntemplate = {:?}\n", template.path());
    let daemon = Daemon::start(bed, Settings::prepared().add_config(&config));
    (template, daemon)
}

fn seed(daemon: &Daemon, image: &str) -> serde_json::Value {
    let shown = daemon
        .banger(["image", "seed", "show", image, "-o", "json"])
        .json();
    shown[0].clone()
}

/// The files of all seeds that there are.
fn seeds(daemon: &Daemon) -> Vec<PathBuf> {
    let directories = fs::read_dir(daemon.state().join("seeds"))
        .into_iter()
        .flatten()
        .flatten();
    let files =
        directories.flat_map(|directory| fs::read_dir(directory.path()).expect("a directory of seeds"));
    files.map(|file| file.expect("a file").path()).collect()
}

#[test]
fn new_machines_have_the_templates_files_and_old_ones_keep_theirs() {
    let Some(bed) = Testbed::find() else { return };
    let (template, daemon) = with_template(&bed);
    assert_eq!(seed(&daemon, "busybox")["made"], serde_json::Value::Null);
    let look = "cd; stat -c '%a %u:%g %n' bin bin/tool .secret .ssh .ssh/authorized_keys; readlink short; ./short; cat .secret";
    let is = "755 0:0 bin\n750 0:0 bin/tool\n600 0:0 .secret\n700 0:0 .ssh\n600 0:0 .ssh/authorized_keys\nbin/tool\ntool\nfirst";

    let old = Guest::start_with(&daemon, "old", "busybox", &LARGE);
    assert_eq!(old.sh(look), is);
    // Grown from the seed's size to the disk's.
    let size: u64 = old
        .sh("df -k /root | tail -1 | awk '{print $2}'")
        .parse()
        .expect("a number");
    assert!(size > 2_700_000, "{size} KiB");
    let small = Guest::start_with(&daemon, "small", "busybox", &SMALL);
    assert_eq!(small.sh(look), is);
    let first = seed(&daemon, "busybox");
    assert_eq!(
        (&first["made"]["fingerprint"], &first["stale"]),
        (&first["wanted"], &serde_json::Value::Null)
    );
    assert_eq!(seeds(&daemon).len(), 1);

    // What the user has since is his.
    old.sh("echo mine > /root/.secret; rm /root/short; sync");
    fs::write(template.path().join(".secret"), "second").expect("write");
    assert_eq!(seed(&daemon, "busybox")["stale"][0], "the template has changed");
    let new = Guest::start_with(&daemon, "new", "busybox", &LARGE);
    assert_eq!(new.sh("cat /root/.secret"), "second");
    let second = seed(&daemon, "busybox");
    assert_eq!(second["stale"], serde_json::Value::Null);
    assert_ne!(first["made"]["path"], second["made"]["path"]);
    assert_eq!(seeds(&daemon).len(), 1, "the one before is gone");

    old.banger("reset").args(["--force"]).ok();
    assert_eq!(
        old.sh("cat /root/.secret; ls /root/short 2>/dev/null || echo gone"),
        "mine\ngone"
    );
    old.banger("stop").ok();
    old.banger("set")
        .args(["--image", "debian", "--memory", "512M"])
        .ok();
    old.banger("start").ok();
    assert_eq!(old.sh("cat /root/.secret"), "mine");
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn a_renewed_key_is_in_the_next_home() {
    let Some(bed) = Testbed::find() else { return };
    if find_program("ssh-keygen").is_none() {
        require("the OpenSSH client is missing: make setup");
        return;
    }
    let daemon = Daemon::start(&bed, Settings::prepared());
    // The one of whoever logs in with `banger ssh`.
    let public = || {
        let key = daemon.state().join("ssh/client_ed25519_key");
        let said = e2e::Banger::new("ssh-keygen").args(["-y", "-f"]).args([key]).ok();
        said.split(' ').take(2).collect::<Vec<_>>().join(" ")
    };
    let before = Guest::start_with(&daemon, "before", "busybox", &LARGE);
    let first = public();
    let keys = "cat /root/.ssh/authorized_keys";
    assert_eq!(before.sh(keys), format!("{first} banger"));

    daemon.banger(["ssh-config", "rotate"]).ok();
    let second = public();
    assert_ne!(first, second);
    assert_eq!(seed(&daemon, "busybox")["stale"][0], "the ssh key is another");
    let after = Guest::start_with(&daemon, "after", "busybox", &LARGE);
    assert_eq!(after.sh(keys), format!("{second} banger"));
    assert_eq!(seed(&daemon, "busybox")["stale"], serde_json::Value::Null);
    assert_eq!(before.sh(keys), format!("{first} banger"), "a home that exists");
    daemon.finish();
}

#[test]
fn what_the_images_home_has_wins() {
    let Some(bed) = Testbed::find() else { return };
    let (template, daemon) = with_template(&bed);
    fs::write(template.path().join("added"), "template").expect("write");
    let files: [(&str, &[u8]); 4] = [
        ("root/.secret", b"image"),
        ("root/bin/other", b"image"),
        ("root/.profile", b"echo image"),
        ("etc/skel/skeleton", b"image"),
    ];
    let archive = docker_archive(daemon.scratch().as_path(), "home:1", &files);
    let archive = archive.to_str().expect("UTF-8");
    daemon.banger(["image", "import", archive, "--quiet"]).ok();
    let guest = Guest::start_with(&daemon, "wins", "home:1", &LARGE);
    let busybox = |script: &str| guest.sh(&format!("cd /root; {script}"));
    assert_eq!(
        busybox(
            "for f in .secret bin/other bin/tool .profile added; do /bin/busybox head -n 1 $f; echo; done"
        ),
        "image\nimage\n#!/bin/sh\n\necho image\ntemplate"
    );
    // The template stands in for the skeleton; the set-up fills what nobody has.
    assert_eq!(
        busybox("[ -e skeleton ] || echo none; [ -e .bashrc ] && echo there"),
        "none\nthere"
    );
    guest.banger("rm").args(["--force"]).ok();

    // A seed goes with its image.
    assert_eq!(seeds(&daemon).len(), 1);
    daemon.banger(["image", "rm", "home:1"]).ok();
    assert!(seeds(&daemon).is_empty());
    truth::assert_true(&daemon);
    daemon.finish();
}

#[test]
fn seeds_are_shown_refreshed_and_replaced_when_they_are_lost() {
    let Some(bed) = Testbed::find() else { return };
    let (template, daemon) = with_template(&bed);
    daemon.banger(["image", "seed", "refresh"]).fails(2);
    daemon.banger(["image", "seed", "refresh", "no-such"]).fails(3);
    let all = daemon
        .banger(["image", "seed", "refresh", "--all", "-o", "json"])
        .json();
    let images = daemon.banger(["image", "ls", "-o", "json"]).json();
    let count = images.as_array().map(Vec::len);
    assert_eq!(all.as_array().map(Vec::len), count, "{all:#}");
    assert_eq!(Some(seeds(&daemon).len()), count);
    let shown = daemon.banger(["image", "seed", "show"]).ok();
    assert!(shown.contains("current"), "{shown}");

    // A cache: whoever removes it has lost nothing.
    fs::remove_dir_all(daemon.state().join("seeds")).expect("remove");
    daemon
        .banger(["vm", "create", "one", "--image", "busybox", "--work-disk", "1G"])
        .ok();
    assert_eq!(seeds(&daemon).len(), 1);

    // Without a template there is no machine with a work disk, and it says why.
    let path = template.path().display().to_string();
    drop(template);
    let refused = daemon
        .banger(["vm", "create", "two", "--image", "busybox", "--work-disk", "1G"])
        .fails(2);
    assert!(refused.contains(&path), "{refused}");
    let shown = daemon.banger(["image", "seed", "show", "busybox"]).ok();
    assert!(shown.contains("No such file"), "{shown}");
    daemon.banger(["vm", "create", "two", "--image", "busybox"]).ok();
    truth::assert_true(&daemon);
    daemon.finish();
}
