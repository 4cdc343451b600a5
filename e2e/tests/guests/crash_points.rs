//! The daemon killed at every step of everything it does, and started again: nothing leaked, nothing lost, nothing lies.
//!
//! The steps come from the daemon itself, a build of it with named crash points (`banger-engine/src/crash.rs`). Each
//! scenario is first run to its end while the daemon records the points it passes; then it is run once for each of
//! them, and the daemon kills itself there. What must hold after that is the same for all: [`truth`], and that the next
//! command does what it should. The first test asserts that the scenarios together pass every point that there is, so
//! that a step which is added later is either part of a scenario or fails it.

mod bench;
mod scenarios;

use std::collections::BTreeSet;
use std::path::Path;

use bench::{Bench, Deaths, counted};
use e2e::{Testbed, truth};
use scenarios::{Before, SCENARIOS, VM};

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
    die_everywhere(
        &[
            "images",
            "promote an image",
            "imports and names",
            "seeds",
            "kernels",
        ],
        Deaths::Every,
    );
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
        "sessions",
        "a session that ends its machine",
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
