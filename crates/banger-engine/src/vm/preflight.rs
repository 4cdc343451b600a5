//! What a start looks at before it touches anything: the VMM, everything its capabilities check, and the machine as the
//! VMM would be given it. A start goes by it, and `vm.preflight` shows it.

use std::sync::Arc;

use banger_store::vms::VmRow;
use banger_vmm::{SpecProblem, Vmm, VmmKind};

use crate::doctor::{Check, Outcome};
use crate::error::{Error, chain};
use crate::host::Host;
use crate::operation::Progress;
use crate::space;
use crate::vm::capability::Start;
use crate::vm::lifecycle;
use crate::vm::state::{Paths, vmm_kind};
use crate::vmms::Chosen;

const MACHINE: &str = "machine";

/// What was found, and what a start goes on with where nothing failed.
pub(crate) struct Examined<'a> {
    /// Every check with its outcome, failed or not.
    pub(crate) checks: Vec<Check>,
    /// The VMM to be launched; absent when none can be, which the checks say.
    pub(crate) vmm: Option<Arc<dyn Vmm>>,
    /// Why the guest will be slow.
    pub(crate) slow: Option<String>,
    /// What the start is made of; absent when its parts could not be looked up, which the checks say.
    pub(crate) plan: Option<Start<'a>>,
}

/// Looks at everything a start of the machine needs. Touches nothing.
pub(crate) async fn examine<'a>(
    host: &'a Arc<Host>,
    row: &'a VmRow,
    paths: &'a Paths,
    progress: Option<&'a Progress>,
) -> Result<Examined<'a>, Error> {
    let pinned = row.vmm.as_deref().and_then(vmm_kind);
    let mut checks = vec![room(host)];
    let (vmm, slow) = match host.vmms.choose(pinned).await {
        Ok(Chosen { vmm, reason, slow }) => {
            let shown = format!("{}: {reason}", vmm.kind());
            checks.push(match &slow {
                None => Check::fine("vmm", "choice", shown),
                Some(slow) => Check::warning(
                    "vmm",
                    "choice",
                    format!("{shown}; slow: {slow}"),
                    "run on a host with hardware virtualization",
                ),
            });
            (Some(vmm), slow)
        }
        Err(e) => {
            let hint = e.report().hint.unwrap_or_default();
            checks.push(Check::failure("vmm", "choice", chain(&e), hint));
            (None, None)
        }
    };
    // Where there is no VMM the rest is looked at all the same, as one that needs least of a host would see it.
    let kind = vmm
        .as_ref()
        .map_or(pinned.unwrap_or(VmmKind::Qemu), |vmm| vmm.kind());
    let plan = match lifecycle::plan(host, row, paths, kind, progress).await {
        Ok(plan) => plan,
        Err(e @ Error::Missing { .. }) => {
            let report = e.report();
            checks.push(Check::failure(
                "boot",
                "kernel",
                report.message,
                report.hint.unwrap_or_default(),
            ));
            return Ok(Examined {
                checks,
                vmm,
                slow,
                plan: None,
            });
        }
        Err(e) => return Err(e),
    };
    checks.extend(plan.checks().await);
    if let Some(vmm) = &vmm {
        checks.extend(specification(vmm.as_ref(), &plan));
    }
    Ok(Examined {
        checks,
        vmm,
        slow,
        plan: Some(plan),
    })
}

/// A start makes nothing that takes room, so that it goes on below the floor.
fn room(host: &Host) -> Check {
    let check = space::pressure(host);
    match check.outcome {
        Outcome::Fine | Outcome::Warning => check,
        Outcome::Failure => Check {
            outcome: Outcome::Warning,
            ..check
        },
    }
}

/// The machine as it will be, judged by the VMM, apart from what a start has yet to make.
fn specification(vmm: &dyn Vmm, plan: &Start<'_>) -> Vec<Check> {
    let spec = plan.spec();
    let is_made = |field: &str| {
        let disk = field
            .strip_prefix("disks[")
            .and_then(|rest| rest.strip_suffix("].path"))
            .and_then(|index| spec.disks.get(index.parse::<usize>().ok()?));
        match disk {
            Some(disk) => plan.makes(&disk.path),
            None => matches!(field, "boot.initramfs" | "runtime_dir"),
        }
    };
    let problems: Vec<SpecProblem> = vmm
        .check(&spec)
        .into_iter()
        .filter(|p| !is_made(&p.field))
        .collect();
    if problems.is_empty() {
        let shown = format!("{} vCPUs, {}MiB", plan.row.vcpus, plan.row.memory_mib);
        return vec![Check::fine(MACHINE, "specification", shown)];
    }
    problems.into_iter().map(of_problem).collect()
}

/// A VMM's complaint about a specification, as a check.
pub(crate) fn of_problem(problem: SpecProblem) -> Check {
    Check {
        fix: Some(problem.hint).filter(|hint| !hint.is_empty()),
        ..Check::failure(
            MACHINE,
            "specification",
            format!("{}: {}", problem.field, problem.message),
            "",
        )
    }
}
