//! Two clients that want different things of one machine, in all orders. Every request is answered, no answer is the
//! daemon's own fault, and what stands in the end is what the answers say.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed, Wire, truth, wait_for};
use serde_json::{Value, json};

const VM: &str = "contested";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Start,
    Stop,
    Kill,
    Reset,
    Remove,
}

const WISHES: [Wish; 5] = [Wish::Start, Wish::Stop, Wish::Kill, Wish::Reset, Wish::Remove];

impl Wish {
    fn request(self) -> (&'static str, Value) {
        match self {
            Self::Start => ("vm.start", json!({"vm": VM})),
            Self::Stop => ("vm.stop", json!({"vm": VM, "timeout_seconds": 5})),
            Self::Kill => ("vm.kill", json!({"vm": VM})),
            Self::Reset => ("vm.reset", json!({"vm": VM})),
            Self::Remove => ("vm.remove", json!({"vm": VM, "force": true})),
        }
    }
}

/// One client's wish and what it was told. Begun at once, followed to its end in a thread of its own.
struct Asked {
    wish: Wish,
    answer: std::thread::JoinHandle<Result<Value, Value>>,
}

fn ask(daemon: &Daemon, wish: Wish) -> Asked {
    let mut wire = Wire::connect(daemon);
    let (method, params) = wish.request();
    // Begun here, so that the order is the caller's; a refusal is an answer too.
    let begun = wire.ask(method, &params).expect("a daemon that lives");
    let answer = std::thread::spawn(move || wire.follow(&begun?).expect("a daemon that lives"));
    Asked { wish, answer }
}

/// Kinds of errors that losing a race may end with.
const FAIR: [&str; 6] = [
    "not_found",
    "wrong_state",
    "busy",
    "cancelled",
    "start_failed",
    "in_use",
];

fn kind_of(error: &Value) -> &str {
    let answer = error["data"]["kind"].as_str();
    answer
        .or_else(|| error["error"]["kind"].as_str())
        .unwrap_or_default()
}

/// Both wishes at once, the first a moment before the second; then everything must be true.
fn race(daemon: &Daemon, first: Wish, second: Wish) {
    let asked = [ask(daemon, first), ask(daemon, second)];
    let told = asked.map(|asked| {
        (
            asked.wish,
            asked.answer.join().expect("a client that did not panic"),
        )
    });
    let shown = format!("{told:#?}");
    for (_, outcome) in &told {
        if let Err(error) = outcome {
            assert!(FAIR.contains(&kind_of(error)), "{shown}");
        }
    }
    // Nobody wins nothing: where both fail, neither was possible.
    let vms = truth::assert_true(daemon);
    let state = vms
        .first()
        .map(|vm| vm["state"].as_str().expect("a state").to_owned());
    let done = |wish: Wish| {
        told.iter()
            .any(|(asked, outcome)| *asked == wish && outcome.is_ok())
    };
    if done(Wish::Remove) {
        assert_eq!(state, None, "{shown}");
        return;
    }
    let state = state.unwrap_or_else(|| panic!("gone, and nobody was told: {shown}"));
    assert_ne!(state, "failed", "{shown}");
    // Which of the two came first is the daemon's to say, unless it makes no difference.
    let ends = |wish: Wish| matches!(wish, Wish::Stop | Wish::Kill);
    if ends(first) && ends(second) {
        assert_eq!(state, "stopped", "{shown}");
    } else if first == Wish::Start && second == Wish::Start {
        assert_eq!(state, "running", "{shown}");
    }
    if state == "running" {
        assert_eq!(daemon.banger(["exec", VM, "--", "echo", "here"]).ok(), "here");
    }
}

fn machine(daemon: &Daemon) {
    if daemon.banger(["ls", "-q"]).ok().is_empty() {
        Guest::create_with(daemon, VM, "busybox", &["--vcpus", "1", "--memory", "160M"]);
    }
}

#[test]
fn two_clients_on_a_machine_that_rests() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    for first in WISHES {
        for second in WISHES {
            machine(&daemon);
            daemon.banger(["vm", "kill", VM]).ok();
            println!("stopped: {first:?}, {second:?}");
            race(&daemon, first, second);
        }
    }
    daemon.finish();
}

#[test]
fn two_clients_on_a_machine_that_runs() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    for first in WISHES {
        for second in WISHES {
            machine(&daemon);
            daemon.banger(["vm", "start", VM]).ok();
            println!("running: {first:?}, {second:?}");
            race(&daemon, first, second);
        }
    }
    daemon.finish();
}

/// Clients that vanish at any moment of a creation leave a whole machine or none, at once and not after a restart.
#[test]
fn clients_that_vanish_while_creating() {
    let Some(bed) = Testbed::find() else { return };
    let daemon = Daemon::start(&bed, Settings::prepared());
    let before = daemon.snapshot();
    for milliseconds in [0, 1, 3, 5, 8, 12, 20, 40] {
        let mut wire = Wire::connect(&daemon);
        let new = json!({"name": VM, "image": "busybox", "vcpus": 1, "memory": 160 << 20});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "vm.create", "params": new});
        wire.send(request.to_string().as_bytes());
        std::thread::sleep(Duration::from_millis(milliseconds));
        drop(wire);
        let begun = wait_for(Duration::from_secs(1), || {
            (!truth::assert_true(&daemon).is_empty()).then_some(())
        });
        if begun.is_some() {
            daemon.banger(["vm", "rm", VM]).ok();
        }
        before.assert_nothing_left(&daemon);
    }
    daemon.finish();
}
