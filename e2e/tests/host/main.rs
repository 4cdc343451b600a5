//! Banger on a host of its own: a Debian guest with systemd, udev, device-mapper, XFS and systemd-resolved, in which
//! Banger is installed as a service and used as root.
//!
//! One test, because the host takes half a minute to boot and its machines, emulated within an emulated host, as long:
//! its steps build on each other, in this order. Each says its name and time; a failure shows the inner daemon's journal
//! and the host's console.

mod disks;
mod hostkit;
mod images;
mod install;
mod network;
mod reboot;
mod service;

use e2e::{Daemon, Host, Settings, Testbed};

#[test]
fn a_real_host() {
    let Some(bed) = Testbed::find() else { return };
    let Some(parts) = e2e::host::parts(&bed) else {
        return;
    };
    let daemon = Daemon::start(&bed, Settings::empty());
    let host = Host::boot(&daemon, &parts);
    hostkit::steps(&host);
    install::steps(&host, &bed);
    images::steps(&host);
    disks::steps(&host);
    let leases = network::steps(&host);
    service::steps(&host, &bed);
    disks::renewed(&host);
    reboot::steps(&host);
    network::again(&host, &leases);
    install::undone(&host);
    drop(host);
    daemon.finish();
}
