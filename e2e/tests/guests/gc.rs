//! Garbage: found, said and collected; and never what somebody is about to use.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{Banger, Daemon, Guest, Settings, Testbed, Wire, truth, wait_for};
use serde_json::{Value, json};

const SMALL: [&str; 4] = ["--vcpus", "1", "--memory", "160M"];
/// An id that no machine has.
const NOBODY: &str = "bgrzzzzzzzzz9";

fn garbage(daemon: &Daemon, dry_run: bool) -> Vec<Value> {
    let report = Wire::connect(daemon).call("gc.run", &json!({"dry_run": dry_run}));
    let report = report.expect("a report");
    report["garbage"].as_array().expect("a list").clone()
}

/// Starts a daemon on prepared state without what an older build of the guest's agent has left in it.
fn tidy_daemon(bed: &Testbed) -> Daemon {
    let daemon = Daemon::start(bed, Settings::prepared());
    garbage(&daemon, false);
    // What the first installation makes.
    std::fs::create_dir_all(daemon.state().join("runtimes/firecracker")).expect("a directory");
    daemon
}

/// A process that looks like a machine's VMM: its arguments say so, and it does nothing. Killed when dropped.
struct Impostor(Child);

impl Impostor {
    fn start(daemon: &Daemon, token: &str) -> Self {
        let disk = format!(
            "file={}",
            daemon
                .state()
                .join("vms")
                .join(token)
                .join("overlay.img")
                .display()
        );
        let child = Command::new("sh")
            .args(["-c", "kill -STOP $$", "sh", "-name", token, "-qmp", "fd=3", &disk])
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .expect("run a shell");
        Self(child)
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("look at a child").is_none()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Everything that a crash, a bug or a hand can leave: what it is called in the report, and where it is.
fn litter(daemon: &Daemon) -> Vec<(&'static str, std::path::PathBuf)> {
    let (state, runtime) = (daemon.state(), daemon.runtime());
    let archive = format!("{}.cpio", "5".repeat(64));
    let all = [
        ("directory", state.join("vms").join(NOBODY)),
        ("directory", runtime.join(NOBODY)),
        ("image", state.join("images/zzzzzzzzz9")),
        ("image", state.join("images/.bgr-tmp-litter")),
        ("kernel", state.join("kernels/nobodys")),
        ("kernel", state.join("kernels/.bgr-tmp-litter")),
        ("initramfs", state.join("initramfs/.bgr-tmp-litter")),
        ("runtime", state.join("runtimes/firecracker/.bgr-tmp-litter")),
    ];
    for (_, directory) in &all {
        std::fs::create_dir_all(directory).expect("make litter");
        std::fs::write(directory.join("file"), vec![1; 5000]).expect("write litter");
    }
    let archive = state.join("initramfs").join(archive);
    std::fs::write(&archive, "no kernel's").expect("write litter");
    all.into_iter().chain([("initramfs", archive)]).collect()
}

fn names(report: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut names: Vec<_> = report
        .iter()
        .map(|piece| (text(&piece["kind"]), text(&piece["what"])))
        .collect();
    names.sort();
    names
}

#[test]
fn garbage_is_said_then_collected_and_nothing_else_is() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = tidy_daemon(&bed);
    let runs = Guest::start_with(&daemon, "runs", "busybox", &SMALL);
    Guest::create_with(&daemon, "rests", "busybox", &SMALL);
    assert_eq!(
        garbage(&daemon, true),
        [] as [Value; 0],
        "a daemon at work has none"
    );
    let before = daemon.snapshot();

    let litter = litter(&daemon);
    let mut orphan = Impostor::start(&daemon, NOBODY);
    let mut expected: Vec<_> = litter
        .iter()
        .map(|(kind, path)| ((*kind).to_owned(), path.display().to_string()))
        .collect();
    expected.push(("process".to_owned(), orphan.0.id().to_string()));
    expected.sort();

    let said = daemon.banger(["gc", "--dry-run"]).ok();
    for (_, path) in &litter {
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
        assert!(said.contains(name), "{name} is not in: {said}");
    }
    let report = garbage(&daemon, true);
    assert_eq!(names(&report), expected);
    for piece in &report {
        assert!(piece["collected"].is_null(), "{piece}");
        assert!(!piece["why"].as_str().expect("a reason").is_empty(), "{piece}");
        let sized = piece["kind"] == "process" || piece["size"].as_u64().is_some_and(|size| size >= 4096);
        assert!(sized, "{piece}");
    }
    assert!(
        litter.iter().all(|(_, path)| path.exists()) && orphan.lives(),
        "only said, not done"
    );

    let report = garbage(&daemon, false);
    assert_eq!(names(&report), expected);
    assert!(
        report.iter().all(|piece| piece["collected"] == true),
        "{report:#?}"
    );
    assert!(!litter.iter().any(|(_, path)| path.exists()));
    assert!(!orphan.lives());
    before.assert_nothing_left(&daemon);
    assert_eq!(garbage(&daemon, true), [] as [Value; 0]);
    assert_eq!(runs.sh("echo still"), "still");
    daemon.banger(["vm", "start", "rests"]).ok();
    daemon.finish();
}

/// A VMM whose row is gone holds its sockets, its disks, its processor: the daemon starts, and ends it.
#[test]
fn a_daemon_starts_over_what_an_orphan_holds() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = tidy_daemon(&bed);
    let before = daemon.snapshot();
    let state = daemon.state();
    Guest::start_with(&daemon, "lost", "busybox", &SMALL);
    Guest::start_with(&daemon, "kept", "busybox", &SMALL);
    let kept = daemon.banger(["vm", "show", "kept", "--output", "json"]).json();
    daemon.kill();
    // As after a state file that was put back from a copy: the ledger knows nothing of it either.
    let connection = rusqlite::Connection::open(state.join("banger.db")).expect("open the state file");
    let id: String = connection
        .query_row("SELECT id FROM vms WHERE name = 'lost'", [], |row| row.get(0))
        .expect("its row");
    connection
        .execute("DELETE FROM vms WHERE id = ?1", [&id])
        .expect("lose the row");
    let rows = connection.execute(
        "DELETE FROM ledger WHERE owner IN ('machine:' || ?1, 'run:' || ?1)",
        [&id],
    );
    assert!(rows.expect("lose the ledger") >= 4);
    drop(connection);
    litter(&daemon);
    assert!(processes_of(&daemon, &id) == 2);

    daemon.launch();
    truth_but_for_archives(&daemon);
    assert_eq!(processes_of(&daemon, &id), 0);
    let shown = daemon.banger(["vm", "show", "kept", "--output", "json"]).json();
    assert_eq!(
        shown["running"]["pid"], kept["running"]["pid"],
        "another machine is none of its business"
    );
    assert_eq!(daemon.banger(["exec", "kept", "--", "echo", "here"]).ok(), "here");
    daemon.banger(["gc"]).ok();
    truth::assert_true(&daemon);
    daemon.banger(["vm", "rm", "--force", "kept"]).ok();
    before.assert_nothing_left(&daemon);
    daemon.finish();
}

/// What the start of the daemon leaves for `gc`: archives, which take reading every kernel's modules to judge.
fn truth_but_for_archives(daemon: &Daemon) {
    let settled = wait_for(Duration::from_secs(60), || {
        let left = garbage(daemon, true);
        left.iter()
            .all(|piece| piece["kind"] == "initramfs")
            .then_some(left.len())
    });
    assert_eq!(settled, Some(1), "{:#?}", garbage(daemon, true));
}

fn processes_of(daemon: &Daemon, id: &str) -> usize {
    daemon
        .machine_processes()
        .iter()
        .filter(|p| p.command.contains(id))
        .count()
}

/// A reset that a crash has broken off leaves a disk that the row does not name; so does nothing else.
#[test]
fn disks_that_no_row_names() {
    let Some(bed) = Testbed::find() else { return };
    let mut daemon = tidy_daemon(&bed);
    let guest = Guest::create_with(&daemon, "disks", "busybox", &["--system-disk", "overlay"]);
    let directory = daemon
        .state()
        .join("vms")
        .join(format!("bgr{}", guest.show()["id"].as_str().expect("an id")));
    guest.banger("reset").ok();
    let disk = only_disk(&directory);
    // The one before, and the next one: of a reset that died after, and before, the row was switched over.
    let (former, next) = (directory.join("overlay.img"), directory.join("overlay-2.img"));
    assert!(disk != former && disk != next, "{}", disk.display());
    for path in [&former, &next] {
        // Its holes are 10 GiB.
        Banger::new("cp")
            .args(["--sparse=always".as_ref(), disk.as_os_str(), path.as_os_str()])
            .ok();
    }
    // The next one may be in the making while the daemon is at work.
    let report = garbage(&daemon, false);
    assert_eq!(
        names(&report),
        [("directory".to_owned(), former.display().to_string())]
    );
    assert!(!former.exists() && next.exists());
    daemon.kill();
    daemon.launch();
    assert_eq!(only_disk(&directory), disk);
    truth::assert_true(&daemon);
    daemon.banger(["vm", "start", "disks"]).ok();
    daemon.finish();
}

fn only_disk(directory: &Path) -> std::path::PathBuf {
    let entries = std::fs::read_dir(directory)
        .expect("list a machine's directory")
        .flatten();
    let mut disks: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "img"))
        .collect();
    assert_eq!(disks.len(), 1, "{disks:?}");
    disks.remove(0)
}

/// Collecting without pause takes nothing from creations, starts, resets, images and kernels under way.
#[test]
fn collecting_takes_nothing_from_what_is_under_way() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = tidy_daemon(&bed);
    let kernels = std::fs::read_dir(daemon.state().join("kernels"))
        .expect("kernels")
        .flatten();
    let kernel = kernels
        .map(|entry| entry.path().join("vmlinux"))
        .find(|path| path.is_file())
        .expect("a kernel");
    let image = daemon
        .banger(["image", "show", "busybox", "--output", "json"])
        .json();
    let kept = daemon
        .state()
        .join("images")
        .join(image["id"].as_str().expect("an id"))
        .join("rootfs.ext4");
    // What is registered is the user's own file, which never lies in the state directory.
    let outside = tempfile::tempdir().expect("a directory");
    let rootfs = outside.path().join("rootfs.ext4");
    std::fs::copy(kept, &rootfs).expect("copy an image");

    let over = AtomicBool::new(false);
    let (rounds, taken) = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let (mut rounds, mut taken) = (0_u32, Vec::new());
            while !over.load(Ordering::Relaxed) {
                taken.extend(garbage(&daemon, false));
                rounds += 1;
            }
            (rounds, taken)
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut wire = Wire::connect(&daemon);
            let mut good = |method: &str, params: Value| {
                let outcome = wire.operate(method, &params).expect("a daemon that lives");
                outcome.unwrap_or_else(|e| panic!("{method}: {e:#}"))
            };
            for round in 0..12 {
                let vm = format!("vm-{round}");
                good(
                    "vm.create",
                    json!({"name": vm, "image": "busybox", "vcpus": 1, "memory": 160 << 20}),
                );
                good("vm.reset", json!({"vm": vm}));
                good(
                    "image.register",
                    json!({"name": "other", "path": rootfs, "replace": true}),
                );
                if round % 4 == 0 {
                    good("kernel.add", json!({"name": "other", "source": {"file": kernel}}));
                    Wire::connect(&daemon)
                        .call("kernel.remove", &json!({"kernel": "other"}))
                        .expect("a kernel");
                }
                if round % 6 == 0 {
                    good("vm.start", json!({"vm": vm}));
                }
                good("vm.remove", json!({"vm": vm, "force": true}));
            }
        }));
        over.store(true, Ordering::Relaxed);
        let collected = collector.join().expect("a collector that did not panic");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        collected
    });
    println!("collected {rounds} times meanwhile");
    assert!(rounds > 12, "{rounds}");
    assert!(taken.is_empty(), "{taken:#?}");
    daemon.banger(["image", "rm", "other"]).ok();
    truth::assert_true(&daemon);
    daemon.finish();
}
