//! The daemon killed at every step of everything it does, and started again: nothing leaked, nothing lost, nothing lies.
//!
//! The steps come from the daemon itself, a build of it with named crash points (`banger-engine/src/crash.rs`). Each
//! scenario is first run to its end while the daemon records the points it passes; then it is run once for each of
//! them, and the daemon kills itself there. What must hold after that is the same for all: [`truth`], and that the next
//! command does what it should. The first test asserts that the scenarios together pass every point that there is, so
//! that a step which is added later is either part of a scenario or fails it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, Settings, Testbed, Wire, truth, wait_for};
use std::os::unix::process::ExitStatusExt;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A guest's boot on a busy machine, and more.
const STEP: Duration = Duration::from_secs(120);
/// From a scenario's end to the daemon's.
const DEATH: Duration = Duration::from_secs(60);
/// The machine of all scenarios.
const VM: &str = "mortal";

/// One thing that a daemon does.
struct Scenario {
    name: &'static str,
    /// How the machine stands before.
    before: Before,
    /// Asks the guest to end.
    ends: bool,
    /// What is done to the state of a daemon that does not run. The scenario is then the daemon's own start, and what it
    /// does by itself.
    left: Option<fn(&Bench)>,
    /// Does it; `None` once the daemon has died. Panics when it fails otherwise.
    act: fn(&Bench, &mut Wire) -> Option<()>,
}

/// How a scenario finds the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Absent,
    Stopped,
    Running,
    /// Stopped, with a system disk of that kind. For hosts that have it.
    Mapped,
}

/// What a host without device-mapper cannot do: these kinds of objects have no steps there.
const MAPPED: [&str; 2] = ["loop-device.", "mapped-device."];
/// What these daemons do not have, since they leave the network of their host alone: the suite `network` has one of its own.
const NETWORK: [&str; 8] = [
    "bridge.",
    "passt.",
    "table.",
    "sysctl.",
    "tap.",
    "tap-use.",
    "before.lease-take",
    "after.lease-take",
];

fn has_device_mapper() -> bool {
    Path::new("/dev/mapper/control").exists() && Path::new("/sys/class/misc/device-mapper").exists()
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "create",
        before: Before::Absent,
        ends: false,
        left: None,
        act: create,
    },
    Scenario {
        name: "create, cancelled",
        before: Before::Absent,
        ends: false,
        left: None,
        act: create_cancelled,
    },
    Scenario {
        name: "change",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: change,
    },
    Scenario {
        name: "rename",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: rename,
    },
    Scenario {
        name: "publish",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: publish,
    },
    Scenario {
        name: "renew the key of ssh",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: renew_key,
    },
    Scenario {
        name: "reset",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: reset,
    },
    Scenario {
        name: "remove",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: remove,
    },
    Scenario {
        name: "images",
        before: Before::Absent,
        ends: false,
        left: None,
        act: images,
    },
    Scenario {
        name: "kernels",
        before: Before::Absent,
        ends: false,
        left: None,
        act: kernels,
    },
    Scenario {
        name: "doctor",
        before: Before::Absent,
        ends: false,
        left: None,
        act: doctor,
    },
    Scenario {
        name: "start",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: start,
    },
    Scenario {
        name: "start, failing",
        before: Before::Stopped,
        ends: false,
        left: None,
        act: start_failing,
    },
    Scenario {
        name: "stop",
        before: Before::Running,
        ends: true,
        left: None,
        act: stop,
    },
    Scenario {
        name: "kill",
        before: Before::Running,
        ends: false,
        left: None,
        act: kill,
    },
    Scenario {
        name: "restart",
        before: Before::Running,
        ends: true,
        left: None,
        act: restart,
    },
    Scenario {
        name: "remove by force",
        before: Before::Running,
        ends: false,
        left: None,
        act: remove_running,
    },
    Scenario {
        name: "grow while running",
        before: Before::Running,
        ends: false,
        left: None,
        act: grow_running,
    },
    Scenario {
        name: "end by itself",
        before: Before::Running,
        ends: false,
        left: None,
        act: end_by_itself,
    },
    Scenario {
        name: "the host has booted",
        before: Before::Stopped,
        ends: false,
        left: Some(another_boot),
        act: comes_up,
    },
    Scenario {
        name: "take up a start that was broken off",
        before: Before::Stopped,
        ends: false,
        left: Some(broken_off),
        act: settles,
    },
    Scenario {
        name: "start on device-mapper, failing",
        before: Before::Mapped,
        ends: false,
        left: None,
        act: start_failing,
    },
];

// ---- scenarios -----------------------------------------------------------------------------------------------------

fn done(wire: &mut Wire, method: &str, params: &Value) -> Option<Value> {
    Some(
        wire.operate(method, params)?
            .unwrap_or_else(|e| panic!("{method}: {e:#}")),
    )
}

fn asked(wire: &mut Wire, method: &str, params: &Value) -> Option<Value> {
    Some(
        wire.ask(method, params)?
            .unwrap_or_else(|e| panic!("{method}: {e:#}")),
    )
}

fn new_vm() -> Value {
    json!({"name": VM, "image": "busybox", "vcpus": 1, "memory": 256 << 20, "disk": 64 << 20, "work_disk": 32 << 20,
        "system_disk": "overlay"})
}

fn create(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.create", &new_vm())?;
    Some(())
}

fn create_cancelled(_: &Bench, wire: &mut Wire) -> Option<()> {
    let mut new = new_vm();
    new["start"] = json!(true);
    let operation = asked(wire, "vm.create", &new)?;
    let booting = wait_for(STEP, || {
        let now = wire.ask("op.show", &json!({"operation": operation["id"]}));
        match now {
            None => Some(None),
            Some(now) => (now.expect("an operation")["stage"] == "booting").then_some(Some(())),
        }
    });
    booting.expect("a boot")?;
    let ended = asked(wire, "op.cancel", &json!({"operation": operation["id"]}))?;
    assert_eq!(ended["state"], "cancelled", "{ended:#}");
    Some(())
}

/// Each time something else: what is so already is no change.
fn change(_: &Bench, wire: &mut Wire) -> Option<()> {
    let shown = asked(wire, "vm.show", &json!({"vm": VM}))?;
    let more = |key: &str| shown[key].as_u64().expect("a size") + (1 << 20);
    let memory = if shown["memory"] == 256 << 20 {
        320 << 20
    } else {
        256 << 20
    };
    let change = json!({"vm": VM, "memory": memory, "disk": more("disk"), "work_disk": more("work_disk")});
    asked(wire, "vm.set", &change)?;
    Some(())
}

fn rename(_: &Bench, wire: &mut Wire) -> Option<()> {
    asked(wire, "vm.rename", &json!({"vm": VM, "name": "renamed"}))?;
    asked(wire, "vm.rename", &json!({"vm": "renamed", "name": VM}))?;
    Some(())
}

/// Any free port, so that none that a daemon left published is in the way.
fn publish(_: &Bench, wire: &mut Wire) -> Option<()> {
    let ports = json!([{"guest_port": 80}, {"protocol": "udp", "guest_port": 53}]);
    let published = asked(wire, "vm.publish", &json!({"vm": VM, "ports": ports}))?;
    assert!(
        published.as_array().is_some_and(|list| list.len() >= 2),
        "{published:#}"
    );
    asked(wire, "vm.unpublish", &json!({"vm": VM}))?;
    let shown = asked(wire, "vm.show", &json!({"vm": VM}))?;
    assert_eq!(shown["published"], Value::Null, "{shown:#}");
    Some(())
}

fn renew_key(_: &Bench, wire: &mut Wire) -> Option<()> {
    let renewed = asked(wire, "ssh.rotate", &json!({}))?;
    let identity = asked(wire, "ssh.identity", &json!({}))?;
    assert_eq!(identity["public_key"], renewed["public_key"]);
    Some(())
}

fn reset(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.reset", &json!({"vm": VM}))?;
    Some(())
}

fn remove(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.remove", &json!({"vm": VM}))?;
    Some(())
}

fn images(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let file = bench.small_image();
    let new = json!({"name": "small", "path": file, "replace": true});
    done(wire, "image.register", &new)?;
    // Once more, which removes the one before.
    done(wire, "image.register", &new)?;
    asked(wire, "image.remove", &json!({"image": "small"}))?;
    Some(())
}

fn kernels(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let file = bench.kernel();
    done(
        wire,
        "kernel.add",
        &json!({"name": "another", "source": {"file": file}}),
    )?;
    asked(wire, "kernel.remove", &json!({"kernel": "another"}))?;
    Some(())
}

fn doctor(_: &Bench, wire: &mut Wire) -> Option<()> {
    asked(wire, "doctor.run", &json!({}))?;
    Some(())
}

fn start(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.start", &json!({"vm": VM}))?;
    Some(())
}

/// The VMM is killed as soon as it is there.
fn start_failing(bench: &Bench, wire: &mut Wire) -> Option<()> {
    let operation = asked(wire, "vm.start", &json!({"vm": VM}))?;
    let vmm = wait_for(STEP, || {
        let vmm = bench
            .daemon
            .machine_processes()
            .into_iter()
            .find(|p| p.command.contains("qemu-system"));
        vmm.map(Some).or_else(|| bench.died().then_some(None))
    });
    if let Some(vmm) = vmm.expect("a VMM") {
        e2e::processes::kill(&[vmm]);
    }
    let failed = wire.follow(&operation)?;
    failed.expect_err("a start without a VMM");
    Some(())
}

/// The machine is to be started when the host has booted, and the state file knows another boot than this.
fn another_boot(bench: &Bench) {
    let connection =
        rusqlite::Connection::open(bench.daemon.state().join("banger.db")).expect("open the state file");
    connection
        .execute("UPDATE vms SET autostart = 1", [])
        .expect("set autostart");
    connection
        .execute("UPDATE facts SET value = 'another' WHERE key = 'boot_id'", [])
        .expect("forget the boot");
}

fn comes_up(_: &Bench, wire: &mut Wire) -> Option<()> {
    let up = wait_for(STEP, || match wire.ask("vm.show", &json!({"vm": VM})) {
        None => Some(None),
        Some(vm) => (vm.expect("a machine")["state"] == "running").then_some(Some(())),
    });
    up.expect("a machine that was started by itself")
}

/// A start that its daemon did not outlive: processes, sockets and rows of a run that nobody knows to have begun.
fn broken_off(bench: &Bench) {
    // The daemon that is to take it up must not be the one that left it, so another one is started for a moment.
    let mut daemon = std::process::Command::new(bench.daemon.bed().crash_daemon.as_ref().expect("a daemon"));
    daemon
        .arg("run")
        .envs(bench.daemon.environment())
        .env("BANGER_CRASH_AT", "stage.booting");
    let log = std::fs::File::create(bench.daemon.scratch().join("broken-off.log")).expect("make a log");
    let mut daemon = daemon
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log)
        .spawn()
        .expect("run bangerd");
    // A connection may still be taken by the daemon before, at its last instructions: that one starts nothing.
    let ended = wait_for(STEP, || {
        if let Ok(mut wire) = Wire::open(&bench.daemon.socket()) {
            let told = wire.operate("vm.start", &json!({"vm": VM}));
            assert!(told.is_none(), "{told:?}");
        }
        daemon.try_wait().expect("wait for bangerd")
    });
    if ended.is_none() {
        daemon.kill().expect("kill bangerd");
        daemon.wait().expect("wait for bangerd");
        panic!("the daemon did not die at its crash point");
    }
}

fn settles(_: &Bench, wire: &mut Wire) -> Option<()> {
    asked(wire, "vm.list", &json!({}))?;
    Some(())
}

fn stop(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.stop", &json!({"vm": VM}))?;
    Some(())
}

fn kill(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.kill", &json!({"vm": VM}))?;
    Some(())
}

fn restart(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.restart", &json!({"vm": VM, "timeout_seconds": 0}))?;
    Some(())
}

fn remove_running(_: &Bench, wire: &mut Wire) -> Option<()> {
    done(wire, "vm.remove", &json!({"vm": VM, "force": true}))?;
    Some(())
}

fn grow_running(_: &Bench, wire: &mut Wire) -> Option<()> {
    let shown = asked(wire, "vm.show", &json!({"vm": VM}))?;
    let more = |key: &str| shown[key].as_u64().expect("a size") + (1 << 20);
    asked(
        wire,
        "vm.set",
        &json!({"vm": VM, "disk": more("disk"), "work_disk": more("work_disk")}),
    )?;
    Some(())
}

fn end_by_itself(_: &Bench, wire: &mut Wire) -> Option<()> {
    let pid = asked(wire, "vm.show", &json!({"vm": VM}))?["running"]["pid"].as_i64();
    let pid = pid
        .and_then(|pid| Pid::from_raw(pid.try_into().ok()?))
        .expect("a process id");
    kill_process(pid, Signal::KILL).expect("kill the VMM");
    let failed = wait_for(STEP, || match wire.ask("vm.show", &json!({"vm": VM})) {
        None => Some(None),
        Some(vm) => (vm.expect("a machine")["state"] == "failed").then_some(Some(())),
    });
    failed.expect("a machine that is known to have failed")?;
    Some(())
}

// ---- the bench -----------------------------------------------------------------------------------------------------

/// A daemon that is killed over and over, on one state directory: what leaks once is there for all that follows.
struct Bench {
    daemon: Daemon,
    /// Points count from when this file is there.
    from: PathBuf,
    record: PathBuf,
}

impl Bench {
    fn new(bed: &Testbed) -> Self {
        let daemon = Daemon::start(bed, Settings::prepared().crash_points(bed));
        let scratch = daemon.scratch();
        let bench = Self {
            daemon,
            from: scratch.join("from"),
            record: scratch.join("record"),
        };
        // Prepared state of an older build: its archive would be garbage, and the first start would make another.
        let garbage = Wire::connect(&bench.daemon).call("gc.run", &json!({"dry_run": false}));
        if garbage.expect("a report")["garbage"] != json!([]) {
            bench.bring(Before::Running);
        }
        bench
    }

    fn died(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.daemon.socket()).is_err()
    }

    /// A root file system of one MiB.
    fn small_image(&self) -> PathBuf {
        let file = self.daemon.scratch().join("small.ext4");
        if !file.exists() {
            let mke2fs = e2e::testbed::find_program("mke2fs").expect("mke2fs");
            let made = Command::new(mke2fs)
                .args(["-q", "-t", "ext4"])
                .arg(&file)
                .arg("1M")
                .status();
            assert!(made.expect("run mke2fs").success());
        }
        file
    }

    /// A kernel that is there already.
    fn kernel(&self) -> PathBuf {
        let kernels = std::fs::read_dir(self.daemon.state().join("kernels")).expect("kernels");
        let mut files = kernels.flatten().map(|entry| entry.path().join("vmlinux"));
        files.find(|path| path.is_file()).expect("a kernel")
    }

    /// Brings the machine to where the scenario begins, with the daemon as it is.
    fn bring(&self, before: Before) {
        let mut wire = Wire::connect(&self.daemon);
        let mut good = |method: &str, params: Value| {
            let outcome = wire.operate(method, &params).expect("a daemon that lives");
            outcome.unwrap_or_else(|e| panic!("{method}: {e:#}"))
        };
        // What a scenario with images or kernels had made when it was broken off.
        for (method, params) in [
            ("image.remove", json!({"image": "small"})),
            ("kernel.remove", json!({"kernel": "another"})),
        ] {
            let removed = Wire::connect(&self.daemon).call(method, &params);
            assert!(
                removed
                    .as_ref()
                    .map_or_else(|e| e["data"]["kind"] == "not_found", |_| true),
                "{removed:?}"
            );
        }
        if before == Before::Mapped {
            if self.state().is_some() {
                good("vm.remove", json!({"vm": VM, "force": true}));
            }
            let mut new = new_vm();
            new["system_disk"] = json!("dm");
            good("vm.create", new);
            return;
        }
        let now = self.state();
        match (before, now.as_deref()) {
            (Before::Absent, None)
            | (Before::Running, Some("running"))
            | (Before::Stopped, Some("stopped")) => {}
            (Before::Absent, Some(_)) => drop(good("vm.remove", json!({"vm": VM, "force": true}))),
            (Before::Stopped | Before::Running | Before::Mapped, None) => {
                good("vm.create", new_vm());
                self.bring(before);
            }
            (Before::Running, Some(_)) => drop(good("vm.start", json!({"vm": VM}))),
            (Before::Stopped | Before::Mapped, Some(_)) => {
                // Out of `failed` leads a start.
                good("vm.kill", json!({"vm": VM}));
                if self.state().as_deref() != Some("stopped") {
                    good("vm.remove", json!({"vm": VM, "force": true}));
                    self.bring(before);
                }
            }
        }
    }

    /// The machine's state; `None` where there is none.
    fn state(&self) -> Option<String> {
        let vms = Wire::connect(&self.daemon)
            .call("vm.list", &json!({}))
            .expect("machines");
        let vm = vms.as_array().expect("a list").first()?;
        Some(vm["state"].as_str().expect("a state").to_owned())
    }

    /// Starts the daemon anew with this variable; what it then does for a scenario is counted. `None` when it died of that
    /// before it was ready.
    fn arm(&mut self, scenario: &Scenario, name: &str, value: &str) -> Option<()> {
        drop(std::fs::remove_file(&self.from));
        let count = || std::fs::write(&self.from, "").expect("count from here");
        if let Some(left) = scenario.left {
            left(self);
            count();
        }
        let from = self.from.display().to_string();
        let launched = self
            .daemon
            .launch_with(&[(name, value), ("BANGER_CRASH_FROM", &from)]);
        if let Err(status) = launched {
            let died = scenario.left.is_some() && status.signal() == Some(Signal::KILL.as_raw());
            assert!(died, "{status}: {}", self.daemon.log());
            return None;
        }
        if scenario.left.is_none() {
            // Its answer waits for what a daemon does once at its start.
            let mut wire = Wire::connect(&self.daemon);
            wire.call("daemon.status", &json!({})).expect("the status");
            count();
        }
        Some(())
    }

    /// Runs a scenario to its end; the points it passes, in order.
    fn record(&mut self, scenario: &Scenario) -> Vec<String> {
        self.bring(scenario.before);
        self.daemon.terminate();
        drop(std::fs::remove_file(&self.record));
        let record = self.record.display().to_string();
        let armed = self.arm(scenario, "BANGER_CRASH_RECORD", &record);
        assert!(armed.is_some(), "{} died of nothing", scenario.name);
        let mut wire = Wire::connect(&self.daemon);
        let acted = (scenario.act)(self, &mut wire);
        assert!(acted.is_some(), "{} died of nothing", scenario.name);
        drop(wire);
        self.daemon.terminate();
        let record = std::fs::read_to_string(&self.record).expect("a record");
        assert!(!record.is_empty(), "{} passes no point at all", scenario.name);
        self.daemon.launch();
        record.lines().map(str::to_owned).collect()
    }

    /// Runs a scenario and has the daemon die at a point of it; then starts the daemon again and looks.
    fn die(&mut self, scenario: &Scenario, point: &str) {
        self.bring(scenario.before);
        // As a crash leaves it: neither start nor end is part of what is tried here.
        self.daemon.kill();
        if self.arm(scenario, "BANGER_CRASH_AT", point).is_some() {
            // What the daemon does after its answer may be what it dies of, and what it does at once may be.
            if let Ok(mut wire) = Wire::open(&self.daemon.socket()) {
                let _acted = (scenario.act)(self, &mut wire);
            }
            self.daemon.wait_killed(DEATH);
        }
        self.daemon.launch();
        let vms = truth::assert_true(&self.daemon);
        assert!(vms.len() <= 1, "{vms:#?}");
        if let Some(vm) = vms.first() {
            self.usable(scenario, vm);
        }
    }

    /// What is there must be of use: a machine that runs answers, one that rests has all that a start needs.
    fn usable(&self, scenario: &Scenario, vm: &Value) {
        let name = vm["name"].as_str().expect("a name");
        let mut wire = Wire::connect(&self.daemon);
        if vm["state"] == "running" {
            let exec = self.daemon.banger(["exec", name, "--", "echo", "here"]).run();
            // A guest that had agreed to end before its daemon died keeps its word.
            let ends = scenario.ends
                && exec.code() != 0
                && wait_for(STEP, || (self.state()? == "stopped").then_some(())).is_some();
            assert!(
                ends || exec.out() == "here",
                "{exec}\n{:#}\n{}",
                wire.call("vm.show", &json!({"vm": name})).unwrap_or_default(),
                self.daemon.banger(["vm", "logs", name]).ok()
            );
        } else {
            let preflight = wire
                .call("vm.preflight", &json!({"vm": name}))
                .expect("a preflight");
            let failed = preflight["checks"]
                .as_array()
                .expect("checks")
                .iter()
                .find(|c| c["state"] == "failure");
            assert!(failed.is_none(), "{preflight:#}");
        }
        // A name from the middle of a scenario would not be found by the next one.
        if name != VM {
            wire.call("vm.rename", &json!({"vm": name, "name": VM}))
                .expect("the old name");
        }
    }
}

/// Each point with how often it is passed, in the order of the first time.
fn counted(record: &[String]) -> Vec<(String, usize)> {
    let mut order = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for point in record {
        let count = counts.entry(point).or_default();
        if *count == 0 {
            order.push(point.clone());
        }
        *count += 1;
    }
    order
        .into_iter()
        .map(|point| (point.clone(), counts[point.as_str()]))
        .collect()
}

/// How thoroughly a scenario is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deaths {
    /// At each point each time it is passed.
    Every,
    /// At the points that no scenario before it in the same test has died at, the first and the last time. For scenarios
    /// in which a death costs a guest's boot.
    New,
}

impl Deaths {
    fn of(self, record: &[String], died: &mut BTreeSet<String>) -> Vec<String> {
        let times = |count: usize| match self {
            Self::Every => (1..=count).collect(),
            Self::New => BTreeSet::from([1, count]),
        };
        let mut deaths = Vec::new();
        for (point, count) in counted(record) {
            if died.insert(point.clone()) || self == Self::Every {
                deaths.extend(times(count).into_iter().map(|n| format!("{point}#{n}")));
            }
        }
        deaths
    }
}

fn die_everywhere(names: &[&str], deaths: Deaths) {
    let Some(bed) = Testbed::find() else { return };
    if !bed.has_crash_daemon() {
        return;
    }
    let mut bench = Bench::new(&bed);
    let mut died = BTreeSet::new();
    for name in names {
        let scenario = SCENARIOS
            .iter()
            .find(|s| s.name == *name)
            .expect("a scenario of that name");
        let record = bench.record(scenario);
        let points = deaths.of(&record, &mut died);
        for point in &points {
            println!("{name}: {point}");
            bench.die(scenario, point);
        }
        println!("{name}: died at {0} of {0} steps", points.len());
    }
    // After all that a machine can still be made, and works, and goes without a trace.
    bench.bring(Before::Running);
    assert_eq!(
        bench.daemon.banger(["exec", VM, "--", "echo", "whole"]).ok(),
        "whole"
    );
    bench.bring(Before::Absent);
    truth::assert_true(&bench.daemon);
    bench.daemon.finish();
}

// ---- tests ---------------------------------------------------------------------------------------------------------

#[test]
fn every_point_is_part_of_a_scenario() {
    let Some(bed) = Testbed::find() else { return };
    if !bed.has_crash_daemon() {
        return;
    }
    let listed = e2e::Banger::new(bed.crash_daemon.as_ref().expect("a daemon"))
        .args(["crash-points"])
        .ok();
    let mut all: BTreeSet<&str> = listed.lines().collect();
    let mut bench = Bench::new(&bed);
    let mut reached = BTreeSet::new();
    let mapped = has_device_mapper();
    for scenario in SCENARIOS.iter().filter(|s| mapped || s.before != Before::Mapped) {
        let record = bench.record(scenario);
        println!("{}: {} points", scenario.name, counted(&record).len());
        reached.extend(record);
    }
    let unknown: Vec<_> = reached
        .iter()
        .filter(|point| !all.contains(point.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    all.retain(|point| !NETWORK.iter().any(|kind| point.starts_with(kind)));
    let listed = all.len();
    if !mapped {
        all.retain(|point| !MAPPED.iter().any(|kind| point.starts_with(kind)));
        println!(
            "this host has no device-mapper, whose {} points are tried where there is one",
            listed - all.len()
        );
    }
    let missed: Vec<_> = all.iter().filter(|point| !reached.contains(**point)).collect();
    assert!(missed.is_empty(), "no scenario passes {missed:#?}");
    println!("crash points: {} of {}", reached.len(), all.len());
    bench.daemon.finish();
}

#[test]
fn dying_while_creating_changing_and_removing() {
    die_everywhere(
        &[
            "create",
            "change",
            "rename",
            "renew the key of ssh",
            "reset",
            "remove",
            "doctor",
        ],
        Deaths::Every,
    );
}

#[test]
fn dying_while_making_images_and_kernels() {
    die_everywhere(&["images", "kernels"], Deaths::Every);
}

#[test]
fn dying_while_starting() {
    die_everywhere(&["start", "start, failing", "create, cancelled"], Deaths::New);
}

#[test]
fn dying_while_running() {
    let scenarios = [
        "stop",
        "kill",
        "restart",
        "remove by force",
        "grow while running",
        "end by itself",
    ];
    die_everywhere(&scenarios, Deaths::New);
}

#[test]
fn dying_while_taking_up_what_was_left() {
    let scenarios = ["take up a start that was broken off", "the host has booted"];
    die_everywhere(&scenarios, Deaths::New);
}

/// Loop devices and mapped devices. Needs no guest to boot, so that it can be run within one.
#[test]
fn dying_with_device_mapper() {
    if !has_device_mapper() {
        e2e::testbed::skip("this host has no device-mapper");
        return;
    }
    die_everywhere(&["start on device-mapper, failing"], Deaths::New);
}
