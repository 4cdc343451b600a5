//! The service stops, is killed, and is replaced by another build; machines do not notice.

use e2e::{Host, Testbed};

use crate::disks::{self, KINDS};
use crate::install::RELEASE;

pub(crate) fn steps(host: &Host<'_>, bed: &Testbed) {
    let before = pids(host);
    host.step("restart the service", || {
        host.sh("systemctl restart bangerd");
        go_on(host, &before);
    });
    host.step("kill the daemon", || {
        let daemon = host.sh("systemctl show --value --property MainPID bangerd");
        host.sh(&format!("kill -KILL {daemon}"));
        disks::back(host);
        assert_ne!(
            host.sh("systemctl show --value --property MainPID bangerd"),
            daemon
        );
        go_on(host, &before);
    });
    host.step("install another build", || {
        let daemon = host.sh("systemctl show --value --property MainPID bangerd");
        // Not the same file, though it does the same.
        host.put(&bed.stage.join("bin"), &format!("{RELEASE}/"));
        host.sh(&format!("printf x >> {RELEASE}/bin/bangerd"));
        host.sh(&format!("{RELEASE}/bin/banger daemon install"));
        assert_ne!(
            host.sh("systemctl show --value --property MainPID bangerd"),
            daemon
        );
        let installed = host.sh("readlink /proc/$(systemctl show --value --property MainPID bangerd)/exe");
        host.sh(&format!("cmp {installed} {RELEASE}/bin/bangerd"));
        go_on(host, &before);
    });
}

/// Process ids of the machines' VMMs.
fn pids(host: &Host<'_>) -> Vec<u64> {
    KINDS
        .iter()
        .map(|(_, name)| {
            host.vm(name)["running"]["pid"]
                .as_u64()
                .expect("a machine that runs")
        })
        .collect()
}

/// The same processes still run them, and they answer.
fn go_on(host: &Host<'_>, before: &[u64]) {
    assert_eq!(pids(host), before, "other processes than before");
    for (_, name) in KINDS {
        disks::assert_witness(host, name);
    }
}
