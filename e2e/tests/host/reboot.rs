//! The host boots again.

use e2e::Host;

use crate::disks::{self, BOOTED};

pub(crate) fn steps(host: &Host<'_>) {
    host.banger(["vm", "set", "mapped", "--autostart"]).ok();
    host.step("reboot", || host.reboot());
    host.step("the machine with autostart starts, on its renewed disk", || {
        host.wait(
            "it starts by itself",
            "banger vm show mapped --output json | grep -Eq '\"state\": ?\"(starting|running)\"'",
        );
        // Joins the start that is under way.
        host.banger(["vm", "start", "mapped"]).deadline(BOOTED).ok();
        disks::assert_new(host, "mapped");
        assert_eq!(host.vm("ref")["state"], "stopped");
    });
}
