//! Checks of the host, each with what to do. A check never changes anything.

use std::sync::Arc;

use banger_vmm::{HostVirtualization, host_virtualization};
use hostkit::exec::Tool;

use crate::crash::Write;
use crate::error::chain;
use crate::host::Host;
use crate::image::{registered, registry};
use crate::vm::capability;

/// Outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Fine.
    Fine,
    /// Works, with a limit.
    Warning,
    /// Something will not work.
    Failure,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// `host`, `vmm`, `guest`, `images`, `state`, `disks`; before a start, the capability's name.
    pub group: &'static str,
    /// Stable name.
    pub name: &'static str,
    /// Outcome.
    pub outcome: Outcome,
    /// What was found.
    pub reason: String,
    /// What to do, unless fine.
    pub fix: Option<String>,
}

impl Check {
    /// A check that found nothing wrong.
    pub(crate) fn fine(group: &'static str, name: &'static str, reason: impl Into<String>) -> Self {
        Self {
            group,
            name,
            outcome: Outcome::Fine,
            reason: reason.into(),
            fix: None,
        }
    }

    /// One that found a limit.
    pub(crate) fn warning(
        group: &'static str,
        name: &'static str,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            group,
            name,
            outcome: Outcome::Warning,
            reason: reason.into(),
            fix: Some(fix.into()),
        }
    }

    /// One that found something that will not work.
    pub(crate) fn failure(
        group: &'static str,
        name: &'static str,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Failure,
            ..Self::warning(group, name, reason, fix)
        }
    }
}

/// All checks: the host's own, then those of every capability.
pub(crate) async fn run(host: &Arc<Host>) -> Vec<Check> {
    let mut checks = vec![virtualization()];
    checks.extend(vmms(host).await);
    checks.extend(tools(host));
    checks.push(crate::guest::ssh::doctor(host));
    checks.push(crate::space::pressure(host));
    checks.push(store(host).await);
    checks.extend(images(host).await);
    for capability in capability::ALL {
        checks.extend(capability.doctor(host).await);
    }
    checks
}

fn virtualization() -> Check {
    let (group, name) = ("host", "virtualization");
    match host_virtualization() {
        HostVirtualization::Usable => Check::fine(group, name, "/dev/kvm is usable"),
        HostVirtualization::Doubtful { reason } => Check::warning(
            group,
            name,
            format!("{reason}; machines are emulated, several times slower"),
            "run on a host with hardware virtualization, or enable nested virtualization for this one",
        ),
        HostVirtualization::Unusable { reason, fix } => Check::warning(
            group,
            name,
            format!("{reason}; machines are emulated, several times slower"),
            fix,
        ),
    }
}

async fn vmms(host: &Host) -> Vec<Check> {
    let mut checks = Vec::new();
    for found in host.vmms.found().await {
        let name = found.kind.as_str();
        checks.push(match found.info {
            Ok(info) => {
                let with: Vec<String> = info
                    .companions
                    .iter()
                    .map(|c| format!("{} {}", c.name, c.version))
                    .collect();
                let with = if with.is_empty() {
                    String::new()
                } else {
                    format!(", with {}", with.join(", "))
                };
                Check::fine(
                    "vmm",
                    name,
                    match found.origin {
                        Some(origin) => format!(
                            "{} {}{with}, installed from {} (sha256:{})",
                            info.path.display(),
                            info.version,
                            origin.source,
                            origin.sha256
                        ),
                        None => format!("{} {}{with}", info.path.display(), info.version),
                    },
                )
            }
            // One of them suffices; whether that is so is the next check's.
            Err(reason) => Check::warning(
                "vmm",
                name,
                reason,
                match found.kind {
                    banger_vmm::VmmKind::Firecracker => {
                        "run `banger runtime install firecracker`, put `firecracker` on PATH, or set `firecracker` under `[vmm]` in the configuration"
                    }
                    banger_vmm::VmmKind::Qemu => {
                        "run `make setup` (it installs qemu-system-x86 and vhost-device-vsock)"
                    }
                },
            ),
        });
    }
    checks.push(match host.vmms.choose(None).await {
        Ok(chosen) => Check::fine(
            "vmm",
            "choice",
            format!("{} ({})", chosen.vmm.kind(), chosen.reason),
        ),
        Err(e) => Check::failure("vmm", "choice", chain(&e), "mend one of the two above"),
    });
    checks
}

fn tools(host: &Host) -> Vec<Check> {
    // Name of the check, program, what cannot be done without it, package, how bad that is.
    let wanted = [
        (
            "mke2fs",
            "machines and images cannot be made",
            "e2fsprogs",
            Outcome::Failure,
        ),
        (
            "debugfs",
            "images cannot be made from archives",
            "e2fsprogs",
            Outcome::Failure,
        ),
        (
            "e2fsck",
            "disks that were in use when their machine ended cannot be checked",
            "e2fsprogs",
            Outcome::Failure,
        ),
        (
            "mmdebstrap",
            "the image `debian` cannot be bootstrapped",
            "mmdebstrap",
            Outcome::Warning,
        ),
        (
            "apt-get",
            "kernels cannot be fetched as Debian packages",
            "apt",
            Outcome::Warning,
        ),
        (
            "dpkg-deb",
            "kernels cannot be unpacked from Debian packages",
            "dpkg",
            Outcome::Warning,
        ),
    ];
    let directories = host.settings.tool_dirs();
    wanted
        .into_iter()
        .map(
            |(name, without, package, outcome)| match Tool::find(name, &directories) {
                Ok(tool) => Check::fine("images", name, tool.path().display().to_string()),
                Err(e) => Check {
                    outcome,
                    ..Check::warning(
                        "images",
                        name,
                        format!("{}; without it {without}", chain(&e)),
                        format!("apt-get install {package}"),
                    )
                },
            },
        )
        .collect()
}

async fn store(host: &Host) -> Check {
    let (group, name) = ("state", "store");
    match host.store.write(Write::Probe, banger_store::probe).await {
        Ok(()) => Check::fine(group, name, "the state file can be written"),
        Err(e) => Check::failure(
            group,
            name,
            chain(&e),
            "make the state directory writable and free space",
        ),
    }
}

async fn images(host: &Host) -> Vec<Check> {
    let group = "images";
    match registry::list(host).await {
        Ok(images) if images.is_empty() => vec![Check::warning(
            group,
            "images",
            "there are none",
            "banger image bootstrap debian",
        )],
        Ok(images) => {
            let names: Vec<_> = images.iter().map(|image| image.row.name()).collect();
            let mut checks = vec![Check::fine(group, "images", names.join(", "))];
            let state = &host.settings.state_dir;
            // Those that are files of the user's, and are not what was registered any more.
            let problems = images
                .iter()
                .filter_map(|image| registered::obstacle(state, &image.row));
            checks.extend(problems.map(|problem| {
                Check::warning(
                    group,
                    "registered",
                    problem.message,
                    problem.fix.unwrap_or_default(),
                )
            }));
            checks
        }
        Err(e) => vec![Check::failure(group, "images", chain(&e), "see the daemon's log")],
    }
}
