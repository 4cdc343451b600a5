//! The same tap under Firecracker.

use e2e::state::TESTBED_IMAGE;
use e2e::{Daemon, Guest, Settings, Testbed};

use crate::world::{GATEWAY, HOST, INTERNET, World, answer, ask, host_reaches, objects, reaches};

#[test]
fn a_firecracker_guest_on_the_bridge() {
    let Some(bed) = Testbed::find() else { return };
    let Some((firecracker, _)) = bed.firecracker() else {
        return;
    };
    let Some(_world) = World::around(&bed) else { return };
    let config = format!(
        "[vmm]\nchoice = \"firecracker\"\nfirecracker = {:?}\n[vm]\nstart_timeout = \"240s\"\nstop_timeout = \"120s\"\n\
         [network]\nmode = \"bridge\"\n",
        firecracker.display().to_string()
    );
    let daemon = Daemon::start(&bed, Settings::prepared().config(config));
    let guest = Guest::start_with(
        &daemon,
        "fc",
        TESTBED_IMAGE,
        &["--vcpus", "1", "--memory", "128M"],
    );
    let address = guest.show()["address"].as_str().expect("an address").to_owned();
    reaches(&guest, GATEWAY);
    host_reaches(&address);
    assert_eq!(answer(&guest, INTERNET), HOST);
    assert_eq!(ask(&guest, HOST), None);
    daemon.finish();
    assert_eq!(objects(), [""; 0]);
}
