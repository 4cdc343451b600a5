//! The daemon killed at every step of everything it does, and started again: nothing leaked, nothing lost, nothing lies.
//!
//! The steps come from the daemon itself, a build of it with named crash points (`banger-engine/src/crash.rs`). Each
//! scenario is first run to its end while the daemon records the points it passes; then it is run once for each of
//! them, and the daemon kills itself there. What must hold after that is the same for all: [`truth`], and that the next
//! command does what it should. The first test asserts that the scenarios together pass every point that there is, so
//! that a step which is added later is either part of a scenario or fails it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, Settings, Testbed, Wire, truth, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A guest's boot on a busy machine, and more.
const STEP: Duration = Duration::from_secs(120);
/// From a scenario's end to the daemon's.
const DEATH: Duration = Duration::from_secs(10);
/// The machine of all scenarios.
const VM: &str = "mortal";

/// One thing that a daemon does.
struct Scenario {
    name: &'static str,
    /// How the machine stands before.
    before: Before,
    /// Asks the guest to end.
    ends: bool,
    /// Does it; `None` once the daemon has died. Panics when it fails otherwise.
    act: fn(&Bench, &mut Wire) -> Option<()>,
}

/// How a scenario finds the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Absent,
    Stopped,
    Running,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "create",
        before: Before::Absent,
        ends: false,
        act: create,
    },
    Scenario {
        name: "create, cancelled",
        before: Before::Absent,
        ends: false,
        act: create_cancelled,
    },
    Scenario {
        name: "change",
        before: Before::Stopped,
        ends: false,
        act: change,
    },
    Scenario {
        name: "rename",
        before: Before::Stopped,
        ends: false,
        act: rename,
    },
    Scenario {
        name: "reset",
        before: Before::Stopped,
        ends: false,
        act: reset,
    },
    Scenario {
        name: "remove",
        before: Before::Stopped,
        ends: false,
        act: remove,
    },
    Scenario {
        name: "images",
        before: Before::Absent,
        ends: false,
        act: images,
    },
    Scenario {
        name: "kernels",
        before: Before::Absent,
        ends: false,
        act: kernels,
    },
    Scenario {
        name: "doctor",
        before: Before::Absent,
        ends: false,
        act: doctor,
    },
    Scenario {
        name: "start",
        before: Before::Stopped,
        ends: false,
        act: start,
    },
    Scenario {
        name: "start, failing",
        before: Before::Stopped,
        ends: false,
        act: start_failing,
    },
    Scenario {
        name: "stop",
        before: Before::Running,
        ends: true,
        act: stop,
    },
    Scenario {
        name: "kill",
        before: Before::Running,
        ends: false,
        act: kill,
    },
    Scenario {
        name: "restart",
        before: Before::Running,
        ends: true,
        act: restart,
    },
    Scenario {
        name: "remove by force",
        before: Before::Running,
        ends: false,
        act: remove_running,
    },
    Scenario {
        name: "grow while running",
        before: Before::Running,
        ends: false,
        act: grow_running,
    },
    Scenario {
        name: "end by itself",
        before: Before::Running,
        ends: false,
        act: end_by_itself,
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
        Self {
            daemon,
            from: scratch.join("from"),
            record: scratch.join("record"),
        }
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
        let now = self.state();
        match (before, now.as_deref()) {
            (Before::Absent, None)
            | (Before::Running, Some("running"))
            | (Before::Stopped, Some("stopped")) => {}
            (Before::Absent, Some(_)) => drop(good("vm.remove", json!({"vm": VM, "force": true}))),
            (Before::Stopped | Before::Running, None) => {
                good("vm.create", new_vm());
                self.bring(before);
            }
            (Before::Running, Some(_)) => drop(good("vm.start", json!({"vm": VM}))),
            (Before::Stopped, Some(_)) => {
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

    /// Starts the daemon anew with these variables; what it then does for a scenario is counted.
    fn arm(&mut self, name: &str, value: &str) {
        drop(std::fs::remove_file(&self.from));
        let from = self.from.display().to_string();
        let launched = self
            .daemon
            .launch_with(&[(name, value), ("BANGER_CRASH_FROM", &from)]);
        assert!(launched.is_ok(), "{launched:?}: {}", self.daemon.log());
        // Its answer waits for what a daemon does once at its start.
        Wire::connect(&self.daemon)
            .call("daemon.status", &json!({}))
            .expect("the status");
        std::fs::write(&self.from, "").expect("count from here");
    }

    /// Runs a scenario to its end; the points it passes, in order.
    fn record(&mut self, scenario: &Scenario) -> Vec<String> {
        self.bring(scenario.before);
        self.daemon.terminate();
        drop(std::fs::remove_file(&self.record));
        let record = self.record.display().to_string();
        self.arm("BANGER_CRASH_RECORD", &record);
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
        self.arm("BANGER_CRASH_AT", point);
        let mut wire = Wire::connect(&self.daemon);
        // What the daemon does after its answer may be what it dies of.
        let _acted = (scenario.act)(self, &mut wire);
        self.daemon.wait_killed(DEATH);
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
    let all: BTreeSet<&str> = listed.lines().collect();
    let mut bench = Bench::new(&bed);
    let mut reached = BTreeSet::new();
    for scenario in SCENARIOS {
        let record = bench.record(scenario);
        println!("{}: {} points", scenario.name, counted(&record).len());
        reached.extend(record);
    }
    let unknown: Vec<_> = reached
        .iter()
        .filter(|point| !all.contains(point.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let missed: Vec<_> = all.iter().filter(|point| !reached.contains(**point)).collect();
    assert!(missed.is_empty(), "no scenario passes {missed:#?}");
    println!("crash points: {} of {}", reached.len(), all.len());
    bench.daemon.finish();
}

#[test]
fn dying_while_creating_changing_and_removing() {
    die_everywhere(
        &["create", "change", "rename", "reset", "remove", "doctor"],
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
