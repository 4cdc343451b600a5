//! What the network adds to a start whose tap is there already: a machine on the bridge against one without a network card,
//! in the same namespace, by two daemons that differ in nothing else.
//!
//! A guest's boot under emulation varies by more than is asked for here. So the daemon's own part, up to the moment when it
//! has nothing to do but wait for the guest, is taken from starts that are broken off there; there can be many of these.

use std::time::Instant;

use e2e::{Daemon, Guest, Settings, Wire};
use serde_json::json;

use crate::network::settled;
use crate::pairs::Pairs;
use crate::report::{Budget, Report, ms};
use crate::rows::MACHINE;

/// Pairs of starts that are broken off.
const BROKEN_OFF: usize = 40;
/// Pairs of whole ones.
const WHOLE: usize = 10;

pub(crate) fn starts(report: &mut Report, bridged: &Daemon) {
    let without = Daemon::start(bridged.bed(), Settings::prepared());
    // Without the bridge and without NAT a machine has no card at all.
    let no_card = [&MACHINE[..], &["--no-nat"]].concat();
    let sides = [(bridged, &MACHINE[..]), (&without, &no_card[..])];

    let mut broken = Pairs::default();
    let guests = sides.map(|(daemon, options)| Guest::create_with(daemon, "broken", "busybox", options));
    // The first of each is not kept: programs and images are read then.
    for round in 0..=BROKEN_OFF {
        settled(bridged);
        broken.take(
            round,
            || broken_off(bridged, "broken"),
            || broken_off(&without, "broken"),
        );
    }
    for guest in guests {
        guest.banger("rm").ok();
    }
    let whole = |(daemon, options): (&Daemon, &[&str])| {
        let guest = Guest::create_with(daemon, "whole", "busybox", options);
        let began = Instant::now();
        guest.banger("start").args(["--quiet"]).ok();
        guest.exec(["true"]).ok();
        let took = ms(began.elapsed());
        guest.banger("rm").args(["--force"]).ok();
        took
    };
    let mut entire = Pairs::default();
    for round in 0..=WHOLE {
        settled(bridged);
        entire.take(round, || whole(sides[0]), || whole(sides[1]));
    }
    without.finish();

    let column = |steps: &[Steps], of: fn(&Steps) -> f64| steps.iter().map(of).collect::<Vec<_>>();
    for (name, of, budget) in [
        (
            "start up to the VMM, warm pool (raw: none)",
            (|steps| steps.launching) as fn(&Steps) -> f64,
            Budget::Apart(5.0),
        ),
        (
            "start up to the boot, warm pool (raw: none)",
            |steps| steps.booting,
            Budget::Apart(5.0),
        ),
    ] {
        report.add(
            name,
            "ms",
            column(&broken.ours, of),
            column(&broken.raw, of),
            budget,
        );
    }
    report.add(
        "start to first exec, warm pool (raw: none)",
        "ms",
        entire.ours,
        entire.raw,
        Budget::Compared,
    );
}

/// When stages of a start began, in milliseconds since it was asked for. Those before may be over before they are watched.
struct Steps {
    /// All is there that the machine needs: its tap too.
    launching: f64,
    /// The VMM runs.
    booting: f64,
}

/// A start that is broken off when all is left to the guest.
fn broken_off(daemon: &Daemon, name: &str) -> Steps {
    let (mut wire, mut other) = (Wire::connect(daemon), Wire::connect(daemon));
    let [mut launching, mut booting] = [None; 2];
    let began = Instant::now();
    let operation = wire
        .call("vm.start", &json!({"vm": name}))
        .expect("a start that began");
    let ended = wire.follow_each(&operation, |now| {
        let stage = match now["stage"].as_str() {
            Some("launching") => &mut launching,
            Some("booting") => &mut booting,
            Some(_) | None => return,
        };
        if stage.is_none() {
            *stage = Some(ms(began.elapsed()));
            if now["stage"] == "booting" {
                let cancel = json!({"operation": operation["id"]});
                other.call("op.cancel", &cancel).expect("a start broken off");
            }
        }
    });
    let ended = ended.expect("a daemon that goes on");
    assert!(
        ended.as_ref().is_err_and(|end| end["state"] == "cancelled"),
        "{ended:?}"
    );
    Steps {
        launching: launching.expect("a stage"),
        booting: booting.expect("a stage"),
    }
}
