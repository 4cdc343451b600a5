//! Banger becomes a service of the host, and is gone again in the end.

use e2e::{Host, Testbed};

use crate::network;

/// Where the release lies on the host, as if it had been unpacked there.
pub(crate) const RELEASE: &str = "/opt/banger";

pub(crate) fn steps(host: &Host<'_>, bed: &Testbed) {
    host.step("a state directory on XFS", || state_directory(host));
    host.step("copy the release", || {
        host.sh(&format!("mkdir -p {RELEASE}"));
        for part in ["bin", "libexec"] {
            host.put(&bed.stage.join(part), &format!("{RELEASE}/"));
        }
    });
    host.step("install", || install(host));
    host.step("kernel and image", || {
        host.banger(["kernel", "add", "debian", "--deb", "/srv/kernel.deb"])
            .ok();
        host.banger(["image", "bootstrap", "busybox"]).ok();
    });
}

/// An XFS of its own for the machines, as hosts have: it can share blocks between files. The host mounts it at boot.
fn state_directory(host: &Host<'_>) {
    host.sh(
        "truncate --size 6G /srv/state.img; mkfs.xfs -q /srv/state.img; mkdir -m 0700 /var/lib/banger; \
         echo '/srv/state.img /var/lib/banger xfs loop 0 0' > /etc/fstab; systemctl daemon-reload; \
         mount /var/lib/banger; chmod 0700 /var/lib/banger",
    );
}

fn install(host: &Host<'_>) {
    // A machine in a machine in a machine is slow to start.
    host.sh("mkdir -p /etc/banger; printf '[vm]\\nstart_timeout = \"600s\"\\n' > /etc/banger/config.toml");
    host.sh(&format!("{RELEASE}/bin/banger daemon install"));
    assert_eq!(host.sh("systemctl is-active bangerd"), "active");
    assert_eq!(host.sh("systemctl is-enabled bangerd"), "enabled");
    // Ready means what it says: systemd has waited for the daemon's word, and the very next command is answered.
    assert_eq!(
        host.sh("systemctl show --property Type,NRestarts bangerd"),
        "Type=notify\nNRestarts=0"
    );
    let status = host.banger(["daemon", "status", "--output", "json"]).json();
    let pid = host.sh("systemctl show --value --property MainPID bangerd");
    assert_eq!(status["pid"].to_string(), pid);
    let doctor = host.banger(["doctor", "--output", "json"]).json();
    for disk in ["reflink", "dm", "overlay"] {
        let checks = doctor["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == disk);
        assert_eq!(
            check.map(|check| &check["state"]),
            Some(&"ok".into()),
            "{disk}: {doctor}"
        );
    }
}

/// After `daemon uninstall` there is nothing that `daemon install` made, and nothing that ran. Machines are the user's.
pub(crate) fn undone(host: &Host<'_>) {
    host.step("uninstall", || {
        host.banger(["vm", "rm", "--force", "--all", "--yes"]).ok();
        host.banger(["daemon", "uninstall"]).ok();
        host.sh("systemctl reset-failed");
        let unit = host.exec(["systemctl", "cat", "bangerd"]).run();
        assert_ne!(unit.code(), 0, "the unit is left: {unit}");
        // The host is a guest itself: an agent that is not of its installation serves us.
        let left = host.sh("pgrep --list-full 'bangerd|banger$|qemu|vhost' || true");
        assert_eq!(left, "");
        assert_eq!(
            host.sh("ls -d /run/banger /usr/local/bin/banger* /usr/local/libexec/banger 2>/dev/null || true"),
            ""
        );
        assert_eq!(host.sh("dmsetup ls"), "No devices found");
        network::gone(host);
    });
}
