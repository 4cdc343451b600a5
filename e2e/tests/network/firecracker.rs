//! The same tap under Firecracker, and ssh.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::state::{TESTBED_IMAGE, TESTBED_KERNEL};
use e2e::testbed::{find_program, require};
use e2e::{Banger, Daemon, Guest, Settings, Testbed};

use crate::world::{GATEWAY, HOST, INTERNET, World, answer, ask, host_reaches, objects, reaches};

/// For a login where sshd's kernel is interpreted: 13 s with nothing else to do.
const LOGIN: Duration = Duration::from_secs(400);

/// In the test's image, in place of sshd. Where the kernel is interpreted it keeps no more of the vector registers than
/// SSE's, and OpenSSL takes AVX and its like wherever the processor has them: bit 60 of the first word, all of the second.
const SSHD: &str = "#!/bin/sh\nOPENSSL_ia32cap=~0x1000000000000000:0 exec /usr/sbin/sshd.real \"$@\"\n";

#[test]
fn a_firecracker_guest_on_the_bridge() {
    let Some(bed) = Testbed::find() else { return };
    let Some((firecracker, _)) = bed.firecracker() else {
        return;
    };
    if find_program("ssh").is_none() {
        require("the OpenSSH client is missing: make setup");
        return;
    }
    let Some(_world) = World::around(&bed) else { return };
    let config = format!(
        "[vmm]\nchoice = \"firecracker\"\nfirecracker = {:?}\n[vm]\nstart_timeout = \"240s\"\nstop_timeout = \"120s\"\n\
         [network]\nmode = \"bridge\"\n",
        firecracker.display().to_string()
    );
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    daemon
        .banger(["image", "register", "sshd", "--kernel", TESTBED_KERNEL])
        .args([with_sshd(&daemon)])
        .ok();
    let guest = Guest::start_with(&daemon, "fc", "sshd", &["--vcpus", "1", "--memory", "128M"]);
    let address = guest.show()["address"].as_str().expect("an address").to_owned();
    reaches(&guest, GATEWAY);
    host_reaches(&address);
    assert_eq!(answer(&guest, INTERNET), HOST);
    assert_eq!(ask(&guest, HOST), None);
    let home = daemon.scratch().join("home");
    let login = daemon
        .banger(["ssh", "fc", "--", "hostname; exit 5"])
        .env("HOME", &home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .deadline(LOGIN)
        .run()
        .expect(5);
    assert_eq!((login.out().as_str(), login.err().as_str()), ("fc", ""));
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}

/// An archive of the test bed's busybox and Debian's sshd, with the libraries that it needs and no more: such a guest reads
/// its disk slowly.
fn with_sshd(daemon: &Daemon) -> PathBuf {
    let parts = daemon.scratch().join("parts");
    let root = daemon.scratch().join("root");
    for directory in [&parts, &root] {
        fs::create_dir_all(directory).expect("make a directory");
    }
    dump(&rootfs(daemon, "debian"), "/usr/sbin/sshd", &parts);
    dump(&rootfs(daemon, "debian"), "/usr/lib/x86_64-linux-gnu", &parts);
    dump(&rootfs(daemon, TESTBED_IMAGE), "/", &root);
    let libraries = parts.join("x86_64-linux-gnu");
    let loader = libraries.join("ld-linux-x86-64.so.2");
    let listed = Banger::new(&loader)
        .args([Path::new("--library-path"), &libraries, Path::new("--list")])
        .args([parts.join("sshd")])
        .ok();
    // `libz.so.1 => /where/it/is (0x…)`
    let needed = listed.lines().filter_map(|line| line.split_whitespace().nth(2));
    let needed: Vec<&str> = needed.filter(|path| path.starts_with('/')).collect();
    assert!(needed.len() > 5, "sshd needs {listed}");
    let (lib, sbin) = (root.join("lib/x86_64-linux-gnu"), root.join("usr/sbin"));
    for directory in [&lib, &sbin, &root.join("lib64")] {
        fs::create_dir_all(directory).expect("make a directory");
    }
    for path in needed {
        let name = Path::new(path).file_name().expect("a name");
        fs::copy(path, lib.join(name)).expect("copy a library");
    }
    symlink(
        "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        root.join("lib64/ld-linux-x86-64.so.2"),
    )
    .expect("link the loader");
    fs::copy(parts.join("sshd"), sbin.join("sshd.real")).expect("copy sshd");
    fs::write(sbin.join("sshd"), SSHD).expect("write what starts sshd");
    fs::set_permissions(sbin.join("sshd"), fs::Permissions::from_mode(0o755)).expect("make it a program");
    let passwd = root.join("etc/passwd");
    let users = fs::read_to_string(&passwd).expect("read the image's users");
    let sshd = "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n";
    fs::write(&passwd, users + sshd).expect("write the image's users");
    let archive = daemon.scratch().join("sshd.tar");
    Banger::new("tar")
        .args([Path::new("-C"), &root, Path::new("-cf"), &archive, Path::new(".")])
        .ok();
    archive
}

/// The root file system of a prepared image.
fn rootfs(daemon: &Daemon, image: &str) -> PathBuf {
    let shown = daemon.banger(["image", "show", image, "--output", "json"]).json();
    let id = shown["id"].as_str().expect("an id");
    daemon.state().join("images").join(id).join("rootfs.ext4")
}

/// Copies a file, or a directory with all that is in it, out of a file system.
fn dump(rootfs: &Path, path: &str, to: &Path) {
    Banger::new("debugfs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-R", &format!("rdump {path} {}", to.display())])
        .args([rootfs])
        .ok();
}
