//! The parts of the end-to-end suite `host`, which boots a whole Debian host as a Banger guest and installs Banger in it.
//!
//! `target/testbed/host/` holds `rootfs.tar`, a Debian with systemd, udev, systemd-resolved, QEMU and the tools for file
//! systems, and `kernel.deb`, the kernel that boots it. The tree holds all modules of that very kernel, device-mapper's among them,
//! and the package once more, for the guests in that host. It does not depend on the product, so it is made once.
//!
//! The suite also runs the compiled tests of `hostkit` in there, as root: what drives device-mapper can be tried nowhere
//! else where the kernel of the machine has none. [`test_binaries`] tells where they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layout;
use crate::sh::{self, Result};

const CUSTOMIZE: &str = include_str!("host/customize.sh");
const SUITE: &str = "bookworm";
const PACKAGES: [&str; 19] = [
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "iproute2",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    // To look at what Banger made with other eyes than its own; it brings the rules by which udev treats such devices.
    "dmsetup",
    "qemu-system-x86",
    "busybox-static",
    // The network: rules, names as hosts have them, ways to look; and ssh, with the server for the guests in this host.
    "nftables",
    "systemd-resolved",
    "libnss-resolve",
    "iputils-ping",
    "openssh-client",
    "openssh-server",
];

/// What the image is made from. A change of it makes the image anew.
fn recipe(kernel_package: &Path) -> String {
    let kernel = kernel_package.file_name().unwrap_or_default().to_string_lossy();
    format!("{SUITE}\n{}\n{kernel}\n{CUSTOMIZE}", PACKAGES.join(" "))
}

/// Makes the directory; a minute or two, and a download of 120 MiB.
pub(crate) fn prepare(bed: &Path, kernel_package: &Path) -> Result<PathBuf> {
    let directory = bed.join("host");
    let recipe = recipe(kernel_package);
    if fs::read_to_string(directory.join("recipe")).is_ok_and(|of| of != recipe) {
        fs::remove_dir_all(&directory)?;
    }
    crate::testbed::once(&directory, "making a Debian host (a minute or two)", |new| {
        let kernel = new.join("kernel.deb");
        repack(kernel_package, &kernel)?;
        let hook = ["--customize-hook=sh -c \"$HOST_CUSTOMIZE\" customize \"$1\""];
        let mut make = mmdebstrap("tar", &PACKAGES, &hook, &new.join("rootfs.tar"));
        make.env("HOST_CUSTOMIZE", CUSTOMIZE)
            .env("KERNEL_PACKAGE", &kernel);
        sh::read(&mut make)?;
        fs::write(new.join("recipe"), &recipe)?;
        Ok(())
    })
}

/// The same package without compression: an emulated processor takes half a minute to undo that.
fn repack(package: &Path, to: &Path) -> Result {
    let tree = to.with_extension("tree");
    let mut unpack = Command::new("dpkg-deb");
    sh::read(unpack.arg("--raw-extract").arg(package).arg(&tree))?;
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--build", "--root-owner-group", "-Znone"]);
    sh::read(pack.args([&tree, to]))?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

/// A Debian of these packages, as an archive or a directory. As root in namespaces of its own, so that a build that is interrupted leaves neither a process nor a mount; as a user
/// mmdebstrap makes such namespaces by itself.
pub(crate) fn mmdebstrap(format: &str, packages: &[&str], options: &[&str], to: &Path) -> Command {
    let mut command;
    if layout::is_root() {
        command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            "--",
            "mmdebstrap",
            "--mode=root",
        ]);
    } else {
        command = Command::new("mmdebstrap");
        command.arg("--mode=unshare");
    }
    command
        .args([
            "--quiet",
            "--variant=minbase",
            "--skip=output/dev",
            "--architectures=amd64",
            "--dpkgopt=force-unsafe-io",
        ])
        .args(options)
        .arg(format!("--format={format}"))
        .arg(format!("--include={}", packages.join(",")))
        .arg(SUITE)
        .arg(to);
    command
}

/// The compiled tests of `hostkit`: those of the whole workspace are compiled, as the run that follows needs them anyway.
pub(crate) fn test_binaries() -> Result<Vec<PathBuf>> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "test",
        "--no-run",
        "--locked",
        "--workspace",
        "--message-format=json",
    ]);
    Ok(executables(&sh::read_aloud(&mut cargo)?, "hostkit"))
}

/// The test executables of a package in cargo's messages, a JSON document a line.
fn executables(messages: &str, package: &str) -> Vec<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages
        .filter(|message| {
            // `path+file:///…/crates/hostkit#0.1.0` (cargo-pkgid(1)).
            let id = message["package_id"].as_str().unwrap_or_default();
            id.split('#')
                .next()
                .is_some_and(|url| url.ends_with(&format!("/{package}")))
                && message["profile"]["test"] == true
        })
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_executables_are_found_by_package() {
        let messages = r#"
{"reason":"compiler-artifact","package_id":"path+file:///a/crates/hostkit#0.1.0","profile":{"test":true},"executable":"/t/hostkit-1"}
{"reason":"compiler-artifact","package_id":"path+file:///a/crates/hostkit#0.1.0","profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","package_id":"path+file:///a/crates/other#0.1.0","profile":{"test":true},"executable":"/t/other-1"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(executables(messages, "hostkit"), [PathBuf::from("/t/hostkit-1")]);
    }
}
