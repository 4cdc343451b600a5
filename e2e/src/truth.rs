//! Whether a daemon's words and the machine agree: every machine, image and kernel that it lists has what it needs, and
//! there is nothing else of its on the machine. Looked at from outside: in its directories, in `/proc`, in its state file,
//! and, in a network namespace of the test's own, among links, tables and settings.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::wait_for;
use crate::wire::Wire;

/// Taking up what was left may outlast the daemon's first word; whoever waits as long for it has failed.
const SETTLED: Duration = Duration::from_secs(60);

/// What a machine's directory may hold besides its one system disk.
const FILES: [&str; 6] = [
    "work.img",
    "console.log",
    "vmm.log",
    "metrics.json",
    "ssh_host_ed25519_key",
    "sessions",
];
/// What is appended to their names when they are put aside.
const ASIDE: [&str; 2] = [".old", ".previous"];

/// Asserts that all is settled and true; returns the machines by name.
#[track_caller]
pub fn assert_true(daemon: &Daemon) -> Vec<Value> {
    let mut lies = Vec::new();
    let settled = wait_for(SETTLED, || {
        let mut wire = Wire::connect(daemon);
        lies = look(daemon, &mut wire);
        lies.is_empty().then(|| list(&mut wire, "vm.list"))
    });
    settled.unwrap_or_else(|| panic!("not as the daemon says: {lies:#?}"))
}

fn list(wire: &mut Wire, method: &str) -> Vec<Value> {
    let answer = wire.call(method, &json!({})).expect("a list");
    answer.as_array().expect("a list").clone()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// Everything that is not as it should be, a line each.
fn look(daemon: &Daemon, wire: &mut Wire) -> Vec<String> {
    let mut lies = Vec::new();
    let vms = list(wire, "vm.list");
    let (mut all, mut running) = (BTreeSet::new(), BTreeSet::new());
    for vm in &vms {
        let token = format!("bgr{}", text(vm, "id"));
        match text(vm, "state") {
            "running" => {
                running.insert(token.clone());
            }
            "stopped" | "failed" => {}
            state => lies.push(format!("{} is still {state}", vm["name"])),
        }
        if vm["running"].is_null() == (text(vm, "state") == "running") {
            lies.push(format!("{} has no true figures of its run", vm["name"]));
        }
        disks(daemon, &token, &mut lies);
        all.insert(token);
    }
    same(
        "state directories",
        &names(&daemon.state().join("vms"), ""),
        &all,
        &mut lies,
    );
    same(
        "runtime directories",
        &names(&daemon.runtime(), "bgr"),
        &running,
        &mut lies,
    );
    processes(daemon, &running, &mut lies);

    let ids: BTreeSet<_> = list(wire, "image.list")
        .iter()
        .map(|image| text(image, "id").to_owned())
        .collect();
    same(
        "image directories",
        &names(&daemon.state().join("images"), ""),
        &ids,
        &mut lies,
    );
    let kernels: BTreeSet<_> = list(wire, "kernel.list")
        .iter()
        .map(|kernel| text(kernel, "name").to_owned())
        .collect();
    same(
        "kernel directories",
        &names(&daemon.state().join("kernels"), ""),
        &kernels,
        &mut lies,
    );
    let archives = names(&daemon.state().join("initramfs"), ".");
    same("unfinished archives", &archives, &BTreeSet::new(), &mut lies);

    // A cache, of images that there are: one each, and nothing unfinished.
    for image in names(&daemon.state().join("seeds"), "") {
        let seeds = names(&daemon.state().join("seeds").join(&image), "");
        if !ids.contains(&image) || seeds.len() > 1 {
            lies.push(format!("seeds of {image}: {seeds:?}"));
        }
    }

    let mut keys = names(&daemon.state().join("ssh"), "");
    keys.remove("client_ed25519_key");
    same("unfinished keys", &keys, &BTreeSet::new(), &mut lies);

    for operation in list(wire, "op.list") {
        if operation["ended"].is_null() {
            lies.push(format!(
                "{} of {} is still at work",
                operation["kind"], operation["subject"]
            ));
        }
    }
    let status = wire.call("net.status", &json!({})).expect("the network");
    lies.extend(crate::network::lies(&status, &vms));
    rows(daemon, &all, &running, &mut lies);
    blobs(daemon, &mut lies);
    devices(daemon, &all, &running, &mut lies);
    let garbage = wire.call("gc.run", &json!({"dry_run": true})).expect("garbage");
    for piece in garbage["garbage"].as_array().expect("a list") {
        // A cache: the prepared state may have archives of an older build of the guest's agent.
        // And what a pull that was broken off has fetched waits for the next one.
        if piece["kind"] != "initramfs" && piece["kind"] != "blob" {
            lies.push(format!("garbage: {piece}"));
        }
    }
    lies
}

/// One system disk, and nothing that no machine has.
fn disks(daemon: &Daemon, token: &str, lies: &mut Vec<String>) {
    let files = names(&daemon.state().join("vms").join(token), "");
    let others: Vec<_> = files
        .iter()
        .filter(|name| {
            let plain = ASIDE.iter().find_map(|suffix| name.strip_suffix(suffix));
            !FILES.contains(&plain.unwrap_or(name))
        })
        .collect();
    let is_disk = |name: &str| {
        let stem = name.strip_suffix(".img").unwrap_or_default();
        ["overlay", "root-", "cow-"]
            .iter()
            .any(|kind| stem.starts_with(kind))
    };
    match others[..] {
        [disk] if is_disk(disk) => {}
        _ => lies.push(format!("{token} has {others:?} for a system disk")),
    }
}

/// Each running machine has its VMM and its vsock device, once; no other process is there.
fn processes(daemon: &Daemon, running: &BTreeSet<String>, lies: &mut Vec<String>) {
    let found = daemon.machine_processes();
    for program in ["qemu-system", "vhost-device-vsock"] {
        for token in running {
            let count = found
                .iter()
                .filter(|p| p.command.contains(token) && first_word(&p.command).contains(program))
                .count();
            if count != 1 {
                lies.push(format!("{token} has {count} processes of {program}"));
            }
        }
    }
    for process in found {
        if !running.iter().any(|token| process.command.contains(token)) {
            lies.push(format!("process {} {}", process.pid, process.command));
        }
    }
}

fn first_word(command: &str) -> &str {
    command.split(' ').next().unwrap_or_default()
}

/// Loop devices on the daemon's files, mapped devices and mounts are those of machines that run.
fn devices(daemon: &Daemon, all: &BTreeSet<String>, running: &BTreeSet<String>, lies: &mut Vec<String>) {
    let state = daemon.state().display().to_string();
    let belongs = |text: &str| running.iter().any(|token| text.contains(token));
    let loops = names(Path::new("/sys/block"), "loop")
        .into_iter()
        .filter_map(|name| {
            let file = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
            Some(format!("{name} on {}", file.trim()))
        });
    // A base of all machines with an image is on the image's file: it lives as long as any of them.
    let ours = loops
        .filter(|device| device.contains(&state) && (running.is_empty() || !device.contains("/images/")));
    lies.extend(ours.filter(|device| !belongs(device)));
    // Other daemons may have some as well.
    let mapped = names(Path::new("/dev/mapper"), "bgr").into_iter();
    let ours = mapped.filter(|name| all.iter().any(|token| name.contains(token)));
    lies.extend(
        ours.filter(|name| !belongs(name))
            .map(|name| format!("mapped device {name}")),
    );
    // proc_pid_mountinfo(5): the fifth field is the mount point.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter(|point| point.contains(&state));
    lies.extend(ours.map(|point| format!("mount {point}")));
}

/// The ledger speaks of every machine, of every run, of the host's network where there is one, and of nothing else.
fn rows(daemon: &Daemon, all: &BTreeSet<String>, running: &BTreeSet<String>, lies: &mut Vec<String>) {
    let file = daemon.state().join("banger.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let rows = rusqlite::Connection::open_with_flags(file, flags).and_then(|connection| {
        connection.busy_timeout(Duration::from_secs(5))?;
        // What there is of the host's network is compared by itself.
        let mut statement =
            connection.prepare("SELECT DISTINCT owner FROM ledger WHERE owner != 'host:network'")?;
        let owners = statement.query_map([], |row| row.get::<_, String>(0))?;
        owners.collect::<Result<BTreeSet<_>, _>>()
    });
    let rows = rows.expect("read the state file");
    let owner = |kind: &str, token: &str| format!("{kind}:{}", token.trim_start_matches("bgr"));
    let mut expected: BTreeSet<_> = all.iter().map(|token| owner("machine", token)).collect();
    expected.extend(running.iter().map(|token| owner("run", token)));
    same("owners in the ledger", &rows, &expected, lies);
}

/// Every blob that an image refers to is there, at its size.
fn blobs(daemon: &Daemon, lies: &mut Vec<String>) {
    let file = daemon.state().join("banger.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let rows = rusqlite::Connection::open_with_flags(file, flags).and_then(|connection| {
        connection.busy_timeout(Duration::from_secs(5))?;
        let mut statement = connection.prepare("SELECT DISTINCT digest, size FROM image_blobs")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        rows.collect::<Result<Vec<_>, _>>()
    });
    for (digest, size) in rows.expect("read the state file") {
        let path = daemon
            .state()
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"));
        let found = path
            .metadata()
            .map_or(-1, |found| i64::try_from(found.len()).unwrap_or(i64::MAX));
        if found != size {
            lies.push(format!("the blob {digest} has {found} bytes of {size}"));
        }
    }
}

fn same(what: &str, found: &BTreeSet<String>, expected: &BTreeSet<String>, lies: &mut Vec<String>) {
    if found != expected {
        lies.push(format!("{what}: {found:?}, expected {expected:?}"));
    }
}

/// Names in a directory that begin so; none where there is no directory.
fn names(directory: &Path, prefix: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}
