//! The daemon killed two hundred times at random, under clients that do at random what clients do. What runs and was not
//! asked to stop goes on and answers, after every single kill; nobody is told of a fault of the daemon's; and in the
//! end nothing is there that no machine needs.
//!
//! Where the kills hit differs with the machine's load; what is asserted must hold wherever they do. The choices are
//! those of the seed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use e2e::{Daemon, Guest, Random, Settings, Testbed, Wire, truth};
use serde_json::{Value, json};

const KILLS: u64 = 200;
/// Every so many kills, guests get the time to boot.
const PAUSE: u64 = 12;
const CLIENTS: usize = 3;
/// Machines that the clients fight over.
const CONTESTED: [&str; 4] = ["red", "green", "blue", "grey"];
/// Machines that nobody stops.
const STEADY: [&str; 2] = ["oak", "elm"];

/// What a client may be told: that it is too late, too early or too much, not that the daemon does not know what it does.
const FAIR: [&str; 9] = [
    "already_exists",
    "not_found",
    "wrong_state",
    "busy",
    "in_use",
    "cancelled",
    "shutting_down",
    "guest_unavailable",
    "start_failed",
];

/// What the clients share.
struct Crowd {
    socket: PathBuf,
    over: AtomicBool,
    asked: AtomicU64,
    answered: AtomicU64,
    unfair: Mutex<Vec<String>>,
}

impl Crowd {
    /// One client: asks until it is over; comes back whenever the daemon does.
    fn client(&self, mut random: Random) {
        let mut wire = None;
        while !self.over.load(Ordering::Relaxed) {
            let Some(connected) = wire.as_mut() else {
                wire = Wire::open(&self.socket).ok();
                if wire.is_none() {
                    // A socket's coming has no event that a client could wait for.
                    std::thread::sleep(Duration::from_millis(10));
                }
                continue;
            };
            if self.ask(connected, &mut random).is_none() {
                wire = None;
            }
        }
    }

    /// One request; `None` once the daemon is gone.
    fn ask(&self, wire: &mut Wire, random: &mut Random) -> Option<()> {
        let vm = random.one_of(&CONTESTED);
        let (method, params, begins) = match random.below(12) {
            0 | 1 => ("vm.create", machine(vm), true),
            2..=4 => ("vm.start", json!({"vm": vm}), true),
            5 => (
                "vm.stop",
                json!({"vm": vm, "timeout_seconds": random.below(3)}),
                true,
            ),
            6 => ("vm.kill", json!({"vm": vm}), true),
            7 => (
                "vm.remove",
                json!({"vm": vm, "force": random.below(2) == 0}),
                true,
            ),
            8 => ("vm.reset", json!({"vm": vm, "force": random.below(2) == 0}), true),
            9 => (
                "vm.set",
                json!({"vm": vm, "labels": {"turn": random.below(1000).to_string()}}),
                false,
            ),
            10 => (
                "vm.set",
                json!({"vm": vm, "disk": (64 + random.below(64)) << 20}),
                false,
            ),
            _ => ("vm.list", json!({}), false),
        };
        self.asked.fetch_add(1, Ordering::Relaxed);
        // Half of the clients do not care for the end of what they began.
        let outcome = if begins && random.below(2) == 0 {
            wire.operate(method, &params)?
        } else {
            wire.ask(method, &params)?
        };
        self.answered.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = outcome {
            let kind = kind_of(&error);
            // A disk is only asked to grow, and sometimes it is larger already.
            let shrinks = method == "vm.set" && kind == "invalid_argument";
            if !FAIR.contains(&kind) && !shrinks {
                let unfair = format!("{method} {params}: {error}");
                self.unfair
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(unfair);
            }
        }
        Some(())
    }
}

/// The kind of an error answer, or of a failed operation's report.
fn kind_of(error: &Value) -> &str {
    let answer = error["data"]["kind"].as_str();
    answer
        .or_else(|| error["error"]["kind"].as_str())
        .unwrap_or_default()
}

fn machine(name: &str) -> Value {
    json!({"name": name, "image": "busybox", "vcpus": 1, "memory": 160 << 20, "disk": 64 << 20})
}

/// A machine that nobody stops, as it was when it had started.
struct Steady {
    name: &'static str,
    pid: Value,
    since: Value,
}

impl Steady {
    fn start(daemon: &Daemon, name: &'static str) -> Self {
        let guest = Guest::start_with(daemon, name, "busybox", &["--memory", "160M", "--vcpus", "1"]);
        guest.sh(&format!("echo {name} > /tmp/mark"));
        let running = guest.show()["running"].clone();
        Self {
            name,
            pid: running["pid"].clone(),
            since: running["since"].clone(),
        }
    }

    /// The same run as before.
    fn assert_runs_on(&self, wire: &mut Wire) {
        let vm = wire
            .call("vm.show", &json!({"vm": self.name}))
            .expect("a machine");
        assert_eq!(vm["state"], "running", "{vm:#}");
        assert_eq!(
            (&vm["running"]["pid"], &vm["running"]["since"]),
            (&self.pid, &self.since),
            "{vm:#}"
        );
    }
}

#[test]
fn two_hundred_random_kills() {
    let Some(bed) = Testbed::find() else { return };
    let mut random = Random::seeded(0x6261_6e67);
    let mut daemon = Daemon::start(&bed, Settings::prepared());
    let steady: Vec<_> = STEADY.iter().map(|name| Steady::start(&daemon, name)).collect();
    let crowd = Arc::new(Crowd {
        socket: daemon.socket(),
        over: AtomicBool::new(false),
        asked: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        unfair: Mutex::default(),
    });
    let clients: Vec<JoinHandle<()>> = (0..CLIENTS)
        .map(|_| {
            let (crowd, random) = (crowd.clone(), random.fork());
            std::thread::spawn(move || crowd.client(random))
        })
        .collect();

    for kill in 1..=KILLS {
        let wait = if kill % PAUSE == 0 {
            4000 + random.below(3000)
        } else {
            random.below(400)
        };
        std::thread::sleep(Duration::from_millis(wait));
        daemon.kill();
        daemon.launch();
        let mut wire = Wire::connect(&daemon);
        for one in &steady {
            one.assert_runs_on(&mut wire);
        }
    }
    crowd.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("a client that did not panic");
    }
    let unfair = std::mem::take(&mut *crowd.unfair.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(unfair.is_empty(), "{unfair:#?}");
    let (asked, answered) = (
        crowd.asked.load(Ordering::Relaxed),
        crowd.answered.load(Ordering::Relaxed),
    );
    println!("{KILLS} kills; {answered} of {asked} requests were answered");
    // A workload, and not one that the kills have choked.
    assert!(answered > KILLS, "{answered} of {asked}");

    let vms = truth::assert_true(&daemon);
    for one in &steady {
        one.assert_runs_on(&mut Wire::connect(&daemon));
        assert_eq!(
            daemon.banger(["exec", one.name, "--", "cat", "/tmp/mark"]).ok(),
            one.name
        );
    }
    for vm in vms.iter().filter(|vm| vm["state"] == "running") {
        let name = vm["name"].as_str().expect("a name");
        assert_eq!(daemon.banger(["exec", name, "--", "echo", "here"]).ok(), "here");
    }
    daemon.finish();
}
