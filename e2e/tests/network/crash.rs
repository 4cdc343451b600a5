//! The daemon killed at every step of making and taking down the host's network, and started again: what it left is taken
//! over, and an end in order leaves nothing.

use std::time::Duration;

use e2e::{Daemon, Guest, Settings, Testbed};

use crate::world::{World, objects, wait_taps};

/// A daemon ends, or comes up, within this.
const DEATH: Duration = Duration::from_secs(60);
const NETWORK: &str = "[network]\nmode = \"bridge\"\npool = 2\n";

fn daemon(bed: &Testbed) -> Daemon {
    let daemon = Daemon::new(bed, Settings::empty().crash_points(bed));
    daemon.configure(NETWORK);
    daemon
}

#[test]
fn dying_while_the_network_is_made_and_taken_down() {
    let Some(bed) = Testbed::find() else { return };
    if !bed.has_crash_daemon() {
        return;
    }
    let Some(_world) = World::around(&bed) else { return };
    for kind in ["bridge", "table", "tap"] {
        for step in ["entering", "entered", "made"] {
            let mut daemon = daemon(&bed);
            let point = format!("{kind}.{step}");
            // Making goes on beside serving, so the daemon may be ready before it dies.
            let _ended = daemon.launch_with(&[("BANGER_CRASH_AT", &point)]);
            if daemon.runs() {
                daemon.wait_killed(DEATH);
            }
            daemon.launch();
            wait_taps(2);
            daemon.finish();
            assert_eq!(objects(), [""; 0], "{point}");
        }
        for step in ["removing", "removed", "struck"] {
            let mut daemon = daemon(&bed);
            let point = format!("{kind}.{step}");
            daemon
                .launch_with(&[("BANGER_CRASH_AT", &point)])
                .expect("a daemon that serves");
            wait_taps(2);
            daemon.signal_end();
            daemon.wait_killed(DEATH);
            daemon.launch();
            wait_taps(2);
            daemon.finish();
            assert_eq!(objects(), [""; 0], "{point}");
        }
    }
}

#[test]
fn dying_while_a_machine_is_connected_and_let_go() {
    let Some(bed) = Testbed::find() else { return };
    if !bed.has_crash_daemon() {
        return;
    }
    let Some(_world) = World::around(&bed) else { return };
    for point in [
        "before.lease-take",
        "after.lease-take",
        "tap-use.entering",
        "tap-use.entered",
        "tap-use.made",
        "sysctl.entered",
        "sysctl.made",
        "tap-use.removing",
        "tap-use.removed",
        "tap-use.struck",
        "sysctl.removing",
        "sysctl.removed",
        "sysctl.struck",
    ] {
        let settings = Settings::prepared().crash_points(&bed).add_config(NETWORK);
        let mut daemon = Daemon::start(&bed, settings);
        let options = ["--memory", "256M", "--vcpus", "1"];
        // Made by a daemon without a bridge: its first start leases the address.
        daemon.terminate();
        daemon.configure(&daemon.config().replace("\"bridge\"", "\"user\""));
        daemon.launch();
        drop(Guest::create_with(&daemon, "mortal", "busybox", &options));
        daemon.terminate();
        daemon.configure(&daemon.config().replace("\"user\"", "\"bridge\""));
        daemon
            .launch_with(&[("BANGER_CRASH_AT", point)])
            .expect("a daemon that serves");
        for verb in ["start", "kill"] {
            // Whichever it dies in; the other is refused or works.
            drop(daemon.banger(["vm", verb, "mortal"]).run());
        }
        daemon.wait_killed(DEATH);
        daemon.launch();
        wait_taps(2);
        daemon.banger(["vm", "start", "mortal"]).ok();
        wait_taps(3);
        daemon.finish();
        assert_eq!(objects(), [""; 0], "{point}");
    }
}
