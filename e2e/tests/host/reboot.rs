//! The host boots again, in order and after a power cut.

use e2e::Host;

use crate::disks;

pub(crate) fn steps(host: &Host<'_>) {
    host.banger(["vm", "set", "mapped", "--autostart"]).ok();
    host.step("reboot", || host.reboot());
    host.step("the machine with autostart comes back", || {
        came_back(host);
    });
    host.step("power cut", || host.power_cycle());
    host.step("the machine comes back after a power cut", || came_back(host));
}

/// The only one that runs, with what it had.
fn came_back(host: &Host<'_>) {
    host.wait("the machine runs again", "banger exec mapped -- true 2>/dev/null");
    disks::assert_witness(host, "mapped");
    for name in ["over", "ref"] {
        assert_eq!(host.vm(name)["state"], "stopped");
    }
}
