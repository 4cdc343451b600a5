//! The programs beside which the network of machines has to work: a Debian tree with ufw, firewalld and Docker, for the
//! end-to-end suite `network`.
//!
//! Never installed on this machine, where they would take over its packet filter: the suite runs them in the tree and in
//! namespaces of its own. That takes root, so nobody else gets the tree.

use std::path::{Path, PathBuf};

use crate::host::mmdebstrap;
use crate::layout;
use crate::sh::{self, Result};

const PACKAGES: [&str; 7] = [
    "ufw",
    "firewalld",
    "docker.io",
    "dbus",
    "nftables",
    "iproute2",
    "procps",
];

/// Makes the tree; a minute, a download of 100 MiB, and 530 MiB on disk.
pub(crate) fn prepare(bed: &Path) -> Result<PathBuf> {
    if !layout::is_root() {
        return Err("only root can use them".into());
    }
    let made = crate::testbed::once(
        &bed.join("firewalls"),
        "making a tree with firewalls (a minute or two)",
        |new| {
            sh::read(&mut mmdebstrap("directory", &PACKAGES, &[], &new.join("tree")))?;
            Ok(())
        },
    )?;
    Ok(made.join("tree"))
}
