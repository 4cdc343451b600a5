//! The host boots again: what runs is stopped in order before it goes down, what starts by itself comes back.

use e2e::Host;

use crate::disks::{self, BOOTED};

/// Written by the guest before the host goes down; no sync has put it on a disk.
const LATE: &str = "/etc/late";

pub(crate) fn steps(host: &Host<'_>) {
    host.banger(["vm", "set", "mapped", "--autostart"]).ok();
    assert_eq!(host.vm("ref")["state"], "running");
    host.vm_sh("ref", &format!("echo late > {LATE}"));
    host.step("reboot", || host.reboot());
    host.step("the machine that ran was stopped in order", || {
        stopped(host, "ref");
    });
    host.step("a reset renews the disk on a reflink", || {
        disks::reset(host, "reflink", "ref");
    });
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

/// `banger-machines.service` has asked the guest, which has shut down by itself: neither forced nor cut off with the host.
fn stopped(host: &Host<'_>, name: &str) {
    assert_eq!(host.vm(name)["state"], "stopped");
    // The request as the daemon keeps it. A guest that had to be forced is told of in a notice.
    let operations = host.banger(["op", "ls", "--output", "json"]).json();
    let stop = operations
        .as_array()
        .expect("operations")
        .iter()
        .find(|operation| operation["kind"] == "vm.stop" && operation["subject"] == name);
    let stop = stop.unwrap_or_else(|| panic!("nobody asked it to stop: {operations:#}"));
    assert_eq!(stop["state"], "succeeded", "{stop:#}");
    assert!(stop["notices"].is_null(), "{stop:#}");
    // The services' own word.
    let said = host.sh(
        "journalctl --boot -1 --no-pager --output cat --unit banger-machines --unit bangerd | tail -n 20",
    );
    let last = |text: &str| {
        said.rfind(text)
            .unwrap_or_else(|| panic!("no {text:?} in\n{said}"))
    };
    assert!(
        last("banger-machines.service: Deactivated successfully") < last("bangerd.service: Deactivated"),
        "{said}"
    );
    // The guest's: its kernel's last line.
    let directory = format!("/var/lib/banger/vms/{}", disks::token(host, name));
    let console = host.sh(&format!("tail -n 3 {directory}/console.log"));
    assert!(console.contains("reboot: Restarting system"), "{console}");
    // And what it left: a file system that was written back and needs no recovery.
    let disk = &disks::files(host, name)[0];
    let features = host.sh(&format!(
        "dumpe2fs -h {directory}/{disk} 2>/dev/null | grep features:"
    ));
    assert!(
        features.contains("has_journal") && !features.contains("needs_recovery"),
        "{features}"
    );
    assert_eq!(
        host.sh(&format!("debugfs -R 'cat {LATE}' {directory}/{disk} 2>/dev/null")),
        "late"
    );
}
