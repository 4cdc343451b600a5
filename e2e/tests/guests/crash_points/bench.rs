//! A daemon that dies where it is told to, and what must hold afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, Settings, Testbed, Wire, truth, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::scenarios::{Before, Scenario, VM, new_vm};

/// A guest's boot on a busy machine, and more.
pub(super) const STEP: Duration = Duration::from_secs(120);
/// From a scenario's end to the daemon's.
const DEATH: Duration = Duration::from_secs(60);

/// A daemon that is killed over and over, on one state directory: what leaks once is there for all that follows.
pub(super) struct Bench {
    pub(super) daemon: Daemon,
    /// Points count from when this file is there.
    from: PathBuf,
    record: PathBuf,
}

impl Bench {
    pub(super) fn new(bed: &Testbed) -> Self {
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

    pub(super) fn died(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.daemon.socket()).is_err()
    }

    /// A root file system of one MiB.
    pub(super) fn small_image(&self) -> PathBuf {
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

    /// A container image in a file.
    pub(super) fn small_archive(&self) -> PathBuf {
        let archive = self.daemon.scratch().join("small-1.tar");
        match archive.exists() {
            true => archive,
            false => e2e::images::docker_archive(&self.daemon.scratch(), "small:1", &[]),
        }
    }

    /// A kernel that is there already.
    pub(super) fn kernel(&self) -> PathBuf {
        let kernels = std::fs::read_dir(self.daemon.state().join("kernels")).expect("kernels");
        let mut files = kernels.flatten().map(|entry| entry.path().join("vmlinux"));
        files.find(|path| path.is_file()).expect("a kernel")
    }

    /// Brings the machine to where the scenario begins, with the daemon as it is.
    pub(super) fn bring(&self, before: Before) {
        let mut wire = Wire::connect(&self.daemon);
        let mut good = |method: &str, params: Value| {
            let outcome = wire.operate(method, &params).expect("a daemon that lives");
            outcome.unwrap_or_else(|e| panic!("{method}: {e:#}"))
        };
        // What a scenario with images or kernels had made when it was broken off.
        for (method, params) in [
            ("image.remove", json!({"image": "small"})),
            ("image.remove", json!({"image": "small-too"})),
            ("kernel.set_default", json!({})),
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
        // Else the first machine would have its home made of a seed that is made for it, and no other would.
        let of = json!({"images": ["busybox"]});
        let seeds = Wire::connect(&self.daemon).call("image.seed_show", &of);
        let seed = &seeds.expect("how it stands with seeds")[0];
        if seed["made"].is_null() || !seed["stale"].is_null() {
            let made = Wire::connect(&self.daemon).call("image.seed_refresh", &of);
            made.expect("a seed");
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
    pub(super) fn record(&mut self, scenario: &Scenario) -> Vec<String> {
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
    pub(super) fn die(&mut self, scenario: &Scenario, point: &str) {
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
pub(super) fn counted(record: &[String]) -> Vec<(String, usize)> {
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
pub(super) enum Deaths {
    /// At each point each time it is passed.
    Every,
    /// At the points that no scenario before it in the same test has died at, the first and the last time. For scenarios
    /// in which a death costs a guest's boot.
    New,
}

impl Deaths {
    pub(super) fn of(self, record: &[String], died: &mut BTreeSet<String>) -> Vec<String> {
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
