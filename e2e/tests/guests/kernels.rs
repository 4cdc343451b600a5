//! Kernels that are downloaded, the default one, and Firecracker as an installed runtime.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use e2e::images::{docker_archive, sha256};
use e2e::state::{TESTBED_IMAGE, TESTBED_KERNEL};
use e2e::testbed::find_program;
use e2e::{Daemon, Guest, Settings, Testbed, wait_for};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(120);
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Serves one file over HTTP, with ranges.
struct Files {
    port: u16,
    state: Arc<State>,
    /// Held by answers that are to stop in the middle; they end when this does.
    _hold: Sender<()>,
}

struct State {
    bytes: Vec<u8>,
    /// Where the requests began.
    begins: Mutex<Vec<usize>>,
    /// For the next answers: how many bytes to send before the end, and whether to break off then or to stall.
    short: Mutex<Vec<(usize, End)>>,
    held: Mutex<Receiver<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    BreakOff,
    Stall,
}

impl Files {
    fn serve(file: &Path, short: &[(usize, End)]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let (hold, held) = channel();
        let state = Arc::new(State {
            bytes: std::fs::read(file).expect("read"),
            begins: Mutex::default(),
            short: Mutex::new(short.iter().rev().copied().collect()),
            held: Mutex::new(held),
        });
        let serving = state.clone();
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = serving.clone();
                // A client that has had enough closes.
                std::thread::spawn(move || answer(client, &state).ok());
            }
        });
        Self {
            port,
            state,
            _hold: hold,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/file", self.port)
    }

    fn begins(&self) -> Vec<usize> {
        let begins = &self.state.begins;
        begins.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(mut client: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
    let from = range
        .and_then(|range| range.strip_suffix('-')?.parse().ok())
        .unwrap_or(0);
    let locked = |begins: &Mutex<Vec<usize>>| {
        begins.lock().unwrap_or_else(PoisonError::into_inner).push(from);
    };
    locked(&state.begins);
    let rest = &state.bytes[from..];
    let status = match from {
        0 => "200 OK".to_owned(),
        from => format!(
            "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
            state.bytes.len() - 1,
            state.bytes.len()
        ),
    };
    let length = rest.len();
    write!(
        client,
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )?;
    let short = state.short.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let Some((bytes, end)) = short else {
        return client.write_all(rest);
    };
    client.write_all(&rest[..bytes])?;
    if end == End::Stall {
        // Until the test ends: nobody sends anything.
        let held = state.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.recv().ok();
    }
    Ok(())
}

fn vmlinux(daemon: &Daemon) -> PathBuf {
    daemon.state().join("kernels/debian/vmlinux")
}

fn kernels(daemon: &Daemon) -> Vec<String> {
    let all = daemon.banger(["kernel", "ls", "--output", "json"]).json();
    let names = all.as_array().expect("kernels").iter();
    names
        .map(|kernel| kernel["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Bytes of downloads that are there, whole or not.
fn downloaded(daemon: &Daemon) -> u64 {
    let part = |part: &str| {
        let files = std::fs::read_dir(daemon.state().join("blobs").join(part)).expect("blobs");
        let sizes = files.map(|file| {
            file.and_then(|file| file.metadata())
                .map_or(0, |found| found.len())
        });
        sizes.sum::<u64>()
    };
    part("sha256") + part("partial")
}

fn add(daemon: &Daemon, name: &str, url: &str, sha256: &str) -> e2e::command::Banger {
    daemon
        .banger(["kernel", "add", name, "--url", url, "--sha256", sha256])
        .deadline(LONG)
}

#[test]
fn a_default_that_was_chosen_is_what_images_get_that_name_none() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    assert!(
        daemon
            .banger(["kernel", "default"])
            .ok()
            .contains("debian (configured)")
    );
    // The kernel with its modules, as a package that was built by somebody.
    let package = package(&daemon);
    let files = Files::serve(&package, &[]);
    add(&daemon, "mine", &files.url(), &sha256(&package)).ok();
    assert_eq!(daemon.banger(["kernel", "default", "mine"]).ok(), "mine");
    let listed = daemon.banger(["kernel", "ls", "--output", "json"]).json();
    let default: Vec<&Value> = listed
        .as_array()
        .expect("kernels")
        .iter()
        .filter(|kernel| kernel["default"] == true)
        .collect();
    assert_eq!(default.len(), 1);
    assert_eq!(default[0]["name"], "mine");
    assert_eq!(default[0]["source"], files.url());

    let archive = docker_archive(&daemon.scratch(), "small:1", &[]);
    daemon
        .banger(["image", "import", "--name", "small"])
        .args([&archive])
        .ok();
    let guest = Guest::start(&daemon, "dev", "small");
    assert_eq!(guest.show()["kernel"], "mine");
    assert_eq!(guest.exec(["/bin/sh", "-c", "echo booted"]).ok(), "booted");
    guest.banger("rm").args(["--force"]).ok();

    // In use by being the default, also where no image has it.
    daemon.banger(["image", "rm", "small"]).ok();
    let refused = daemon.banger(["kernel", "rm", "mine"]).fails(4);
    assert!(refused.contains("kernel default"), "{refused}");
    assert!(
        daemon
            .banger(["kernel", "default", "nosuch"])
            .fails(3)
            .contains("nosuch")
    );
    daemon.banger(["kernel", "default", "--reset"]).ok();
    daemon.banger(["kernel", "rm", "mine"]).ok();
    assert_eq!(downloaded(&daemon), 0);
    daemon.finish();
}

/// The prepared kernel as the package that it may have come in.
fn package(daemon: &Daemon) -> PathBuf {
    let root = daemon.scratch().join("package");
    let kernel = daemon.state().join("kernels/debian");
    let modules = root.join("lib/modules/6.1-own/kernel");
    for directory in [&root.join("DEBIAN"), &root.join("boot"), &modules] {
        std::fs::create_dir_all(directory).expect("a directory");
    }
    let control = "Package: linux-image-own\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <n@example.org>\n\
                   Description: a kernel\n";
    std::fs::write(root.join("DEBIAN/control"), control).expect("write");
    std::fs::copy(kernel.join("vmlinuz"), root.join("boot/vmlinuz-6.1-own")).expect("copy");
    for module in std::fs::read_dir(kernel.join("modules"))
        .expect("modules")
        .flatten()
    {
        if module
            .path()
            .extension()
            .is_some_and(|extension| extension == "ko")
        {
            std::fs::copy(module.path(), modules.join(module.file_name())).expect("copy");
        }
    }
    // What the kernel has built in, and so no file of.
    std::fs::write(
        root.join("lib/modules/6.1-own/modules.builtin"),
        "kernel/fs/ext4.ko\n",
    )
    .expect("write");
    let package = daemon.scratch().join("kernel.deb");
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Znone", "-b"])
        .args([&root, &package]));
    package
}

#[expect(clippy::disallowed_methods, reason = "nothing of the product's is used here")]
fn run(command: &mut Command) {
    let output = command.output().expect("run");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn what_is_not_what_was_pinned_leaves_nothing() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let (before, kernel) = (kernels(&daemon), vmlinux(&daemon));
    let files = Files::serve(&kernel, &[]);
    let refused = add(&daemon, "bad", &files.url(), NOTHING).fails(2);
    assert!(
        refused.contains(NOTHING) && refused.contains(&sha256(&kernel)),
        "{refused}"
    );
    for (url, sha256, expected) in [
        ("http://files.invalid/x", NOTHING, "plain http"),
        ("ftp://files.invalid/x", NOTHING, "neither https"),
        ("https://me:secret@files.invalid/x", NOTHING, "password"),
        (&files.url(), "abc", "64 hexadecimal digits"),
    ] {
        let refused = add(&daemon, "bad", url, sha256).fails(2);
        assert!(refused.contains(expected), "{refused}");
    }
    let text = daemon.scratch().join("text");
    std::fs::write(&text, "no kernel").expect("write");
    let files = Files::serve(&text, &[]);
    add(&daemon, "bad", &files.url(), &sha256(&text)).fails(2);
    assert_eq!(kernels(&daemon), before);
    assert_eq!(downloaded(&daemon), 0);
    daemon.finish();
}

#[test]
fn a_download_goes_on_where_a_server_and_where_the_daemon_has_died() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let kernel = vmlinux(&daemon);
    let digest = sha256(&kernel);
    let third = std::fs::read(&kernel).expect("read").len() / 3;
    let files = Files::serve(&kernel, &[(third, End::BreakOff)]);
    add(&daemon, "one", &files.url(), &digest).ok();
    assert_eq!(files.begins(), [0, third]);

    let files = Files::serve(&kernel, &[(third, End::Stall)]);
    let url = files.url();
    add(&daemon, "two", &url, &digest).args(["--detach"]).ok();
    wait_for(LONG, || (downloaded(&daemon) == third as u64).then_some(())).expect("a third of it");
    daemon.kill();
    daemon.launch();
    add(&daemon, "two", &url, &digest).ok();
    assert_eq!(files.begins(), [0, third]);

    let files = Files::serve(&kernel, &[(third, End::Stall)]);
    let begun = add(&daemon, "three", &files.url(), &digest)
        .args(["--detach"])
        .ok();
    wait_for(LONG, || (downloaded(&daemon) == third as u64).then_some(())).expect("a third of it");
    daemon.banger(["op", "cancel", &begun]).ok();
    assert!(!kernels(&daemon).contains(&"three".to_owned()));
    add(&daemon, "three", &files.url(), &digest).ok();
    assert_eq!(files.begins(), [0, third]);
    let listed = kernels(&daemon);
    for name in ["one", "two", "three"] {
        assert!(listed.iter().any(|kernel| kernel == name), "{listed:?}");
    }
    assert_eq!(downloaded(&daemon), 0);
    daemon.finish();
}

fn runtimes(daemon: &Daemon) -> Value {
    daemon.banger(["runtime", "ls", "--output", "json"]).json()
}

/// The archive of a release, as it is published.
fn release(daemon: &Daemon, firecracker: &Path) -> PathBuf {
    let name = "release-v1.12.1-x86_64";
    let directory = daemon.scratch().join(name);
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::copy(firecracker, directory.join("firecracker-v1.12.1-x86_64")).expect("copy");
    for beside in [
        "firecracker-v1.12.1-x86_64.debug",
        "jailer-v1.12.1-x86_64",
        "LICENSE",
    ] {
        std::fs::write(directory.join(beside), beside).expect("write");
    }
    let archive = daemon.scratch().join("firecracker-v1.12.1-x86_64.tgz");
    run(Command::new("tar")
        .arg("-czf")
        .arg(&archive)
        .arg("-C")
        .arg(daemon.scratch())
        .arg(name));
    archive
}

fn install(daemon: &Daemon, from: &str) -> e2e::command::Banger {
    daemon
        .banger(["runtime", "install", "firecracker", "--from", from])
        .deadline(LONG)
}

#[test]
fn what_is_no_firecracker_is_refused() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let text = daemon.scratch().join("text");
    std::fs::write(&text, "#!/bin/sh\necho Firecracker v1.12.1\n").expect("write");
    let busybox = find_program("busybox").expect("busybox");
    for (file, expected) in [(&text, "neither a program"), (&busybox, "firecracker")] {
        let refused = install(&daemon, &file.display().to_string()).fails(2);
        assert!(refused.contains(expected), "{refused}");
    }
    let refused = install(&daemon, &busybox.display().to_string())
        .args(["--sha256", NOTHING])
        .fails(2);
    assert!(
        refused.contains(NOTHING) && refused.contains(&sha256(&busybox)),
        "{refused}"
    );
    install(&daemon, "https://files.invalid/firecracker").fails(2);
    let refused = daemon.banger(["runtime", "install", "firecracker"]).fails(2);
    assert!(refused.contains("--from"), "{refused}");
    daemon.banger(["runtime", "rm", "firecracker"]).fails(3);
    assert_eq!(runtimes(&daemon), Value::Array(Vec::new()));
    let left = std::fs::read_dir(daemon.state().join("runtimes/firecracker")).expect("runtimes");
    assert_eq!(left.count(), 0);
    daemon.finish();
}

#[test]
fn an_installed_firecracker_runs_machines_and_stays_while_it_does() {
    let Some(bed) = Testbed::find() else { return };
    let Some((firecracker, _)) = bed.firecracker() else {
        return;
    };
    let config = "[vmm]\nchoice = \"firecracker\"\n[vm]\nstart_timeout = \"240s\"\nstop_timeout = \"120s\"\n";
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    let doctor = daemon.banger(["doctor"]).run();
    assert!(
        doctor.out().contains("banger runtime install firecracker"),
        "{doctor}"
    );

    let archive = release(&daemon, firecracker);
    let files = Files::serve(&archive, &[]);
    install(&daemon, &files.url())
        .args(["--sha256", &sha256(&archive), "--version", "9.9.9"])
        .fails(2);
    install(&daemon, &files.url())
        .args(["--sha256", &sha256(&archive), "--version", "1.12.1"])
        .ok();
    let shown = runtimes(&daemon);
    assert_eq!(shown[0]["version"], "1.12.1");
    assert_eq!(shown[0]["sha256"], sha256(firecracker));
    assert_eq!(shown[0]["source_sha256"], sha256(&archive));
    assert_eq!(shown[0]["source"], files.url());
    assert_eq!(shown[0]["current"], true);
    let path = shown[0]["path"].as_str().expect("a path").to_owned();
    assert!(path.starts_with(&daemon.state().display().to_string()), "{path}");
    for command in ["version", "doctor"] {
        let said = daemon.banger([command]).run().out();
        assert!(said.contains(&files.url()), "{said}");
    }

    let guest = Guest::start_with(
        &daemon,
        "fc",
        TESTBED_IMAGE,
        &["--vcpus", "1", "--memory", "128M"],
    );
    assert_eq!(guest.show()["kernel"], TESTBED_KERNEL);
    let program = std::fs::read_link(format!("/proc/{}/exe", guest.vmm_pid())).expect("a program");
    assert_eq!(program, std::fs::canonicalize(&path).expect("a path"));
    let pid = guest.vmm_pid();
    assert!(
        daemon
            .banger(["runtime", "rm", "firecracker"])
            .fails(4)
            .contains("fc")
    );
    // The same one again, from a file this time: it is the one in use, and nobody is disturbed.
    let again = install(&daemon, &firecracker.display().to_string())
        .run()
        .expect(0);
    assert!(again.err().contains("there already"), "{again}");
    assert_eq!(runtimes(&daemon)[0]["used_by"], serde_json::json!(["fc"]));
    assert_eq!(guest.exec(["echo", "hi"]).ok(), "hi");
    assert_eq!(guest.vmm_pid(), pid);
    guest.banger("rm").args(["--force"]).ok();

    daemon.banger(["runtime", "rm", "firecracker"]).ok();
    assert_eq!(runtimes(&daemon), Value::Array(Vec::new()));
    let doctor = daemon.banger(["doctor"]).run();
    assert!(
        doctor.out().contains("banger runtime install firecracker"),
        "{doctor}"
    );
    daemon.finish();
}
