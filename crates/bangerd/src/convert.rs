//! The engine's types to the wire's, and back. No decisions here: each function spells out which field goes where, so
//! that a change on either side is a compile error and not a change of the contract.

use std::collections::BTreeMap;

use banger_agent_api::{AgentError, FailureKind};
use banger_api::types;
use banger_api::{ErrorKind, RpcError};
use banger_engine::doctor::{Check, Outcome};
use banger_engine::image::registry::{Image, Kernel};
use banger_engine::operation::{Operation, OperationState};
use banger_engine::vm::policy::State;
use banger_engine::vm::state::{Phase, Running, Vm, vmm_kind};
use banger_engine::vmms::FoundVmm;
use banger_engine::{Garbage, Kind, Preflight, Report};
use banger_vmm::VmmKind;

// ---- errors --------------------------------------------------------------------------------------------------------

fn error_kind(kind: Kind) -> ErrorKind {
    match kind {
        Kind::InvalidArgument => ErrorKind::InvalidArgument,
        Kind::NotFound => ErrorKind::NotFound,
        Kind::AlreadyExists => ErrorKind::AlreadyExists,
        Kind::WrongState => ErrorKind::WrongState,
        Kind::InUse => ErrorKind::InUse,
        Kind::Busy => ErrorKind::Busy,
        Kind::MissingPrerequisite => ErrorKind::MissingPrerequisite,
        Kind::OutOfResources => ErrorKind::OutOfResources,
        Kind::StartFailed => ErrorKind::StartFailed,
        Kind::GuestUnavailable => ErrorKind::GuestUnavailable,
        Kind::TimedOut => ErrorKind::TimedOut,
        Kind::Cancelled => ErrorKind::Cancelled,
        Kind::Internal => ErrorKind::Internal,
    }
}

fn report(report: Report) -> RpcError {
    let Report {
        kind,
        message,
        hint,
        details,
    } = report;
    RpcError {
        kind: error_kind(kind),
        message,
        hint,
        details,
    }
}

/// The engine's refusal or failure. Taken by value, as `map_err` has it.
#[expect(clippy::needless_pass_by_value, reason = "for use with map_err")]
pub(crate) fn error(error: banger_engine::Error) -> RpcError {
    report(error.report())
}

/// What went wrong between us and a guest's agent.
pub(crate) fn agent_error(vm: &str, error: &AgentError) -> RpcError {
    let text = format!("machine {vm:?}: failed to {}", crate::chain(error));
    match error {
        AgentError::Failed(failure) => {
            let kind = match failure.kind {
                FailureKind::InvalidRequest => ErrorKind::InvalidArgument,
                FailureKind::Busy => ErrorKind::Busy,
                FailureKind::CommandNotFound => ErrorKind::CommandNotFound,
                FailureKind::NotExecutable => ErrorKind::NotExecutable,
                FailureKind::PathNotFound | FailureKind::ParentNotFound | FailureKind::NoSuchCommand => {
                    ErrorKind::NotFound
                }
                FailureKind::NoSpace => ErrorKind::OutOfResources,
                FailureKind::System
                | FailureKind::UnknownUser
                | FailureKind::UnknownGroup
                | FailureKind::WorkdirUnusable
                | FailureKind::IsADirectory
                | FailureKind::NotADirectory
                | FailureKind::BadArchive
                | FailureKind::ReadOnly
                | FailureKind::Incomplete
                // Kinds to come are refusals too.
                | _ => ErrorKind::GuestRefused,
            };
            RpcError::new(kind, text)
        }
        AgentError::DeadlineExceeded { .. } => RpcError::new(ErrorKind::TimedOut, text)
            .hint("the guest may be busy; `banger vm logs` shows its console"),
        AgentError::Unreachable(_) | AgentError::Broken { .. } | AgentError::Protocol { .. } => {
            RpcError::new(ErrorKind::GuestUnavailable, text)
                .hint("the machine may have stopped: see `banger vm show`")
        }
        AgentError::Incompatible(_) | AgentError::Unsupported { .. } => {
            RpcError::new(ErrorKind::GuestUnavailable, text)
                .hint("stop and start the machine: it gets this release's agent")
        }
    }
}

// ---- machines ------------------------------------------------------------------------------------------------------

pub(crate) fn vmm(kind: VmmKind) -> types::VmmKind {
    match kind {
        VmmKind::Firecracker => types::VmmKind::Firecracker,
        VmmKind::Qemu => types::VmmKind::Qemu,
    }
}

pub(crate) fn vmm_of(kind: types::VmmKind) -> VmmKind {
    match kind {
        types::VmmKind::Firecracker => VmmKind::Firecracker,
        types::VmmKind::Qemu => VmmKind::Qemu,
    }
}

fn state(state: State) -> types::VmState {
    match state {
        State::Creating => types::VmState::Creating,
        State::Stopped => types::VmState::Stopped,
        State::Starting => types::VmState::Starting,
        State::Running => types::VmState::Running,
        State::Stopping => types::VmState::Stopping,
        State::Failed => types::VmState::Failed,
        State::Removing => types::VmState::Removing,
    }
}

pub(crate) fn vm(vm: Vm) -> types::Vm {
    let Vm {
        id,
        name,
        phase,
        image,
        image_id,
        kernel,
        vcpus,
        memory,
        disk,
        disk_used,
        vmm: pinned,
        labels,
        ephemeral,
        created,
        vsock,
    } = vm;
    let state = state(phase.state());
    let vsock = vsock.to_string_lossy().into_owned();
    let (running, failure) = match phase {
        // A run of a VMM that this release does not know is shown as no run.
        Phase::Running(run) | Phase::Stopping(run) => (running(run, vsock), None),
        Phase::Failed { reason } => (None, Some(reason)),
        Phase::Creating | Phase::Stopped | Phase::Starting | Phase::Removing => (None, None),
    };
    types::Vm {
        id,
        name,
        state,
        failure,
        image,
        image_id,
        kernel,
        vcpus,
        memory,
        disk,
        disk_used,
        vmm: pinned.map(vmm),
        labels,
        ephemeral,
        system_disk: types::SystemDisk::Overlay,
        work_disk: 0,
        work_disk_used: 0,
        nat: true,
        autostart: false,
        restart: types::RestartPolicy::No,
        expires: None,
        restarts: 0,
        restarts_at: None,
        pending: Vec::new(),
        created,
        running,
    }
}

fn running(run: Running, vsock: String) -> Option<types::VmRunning> {
    let Running {
        vmm: name,
        acceleration,
        pid,
        since,
        start_milliseconds,
        agent_version,
        kernel_release,
    } = run;
    vmm_kind(&name).map(|kind| types::VmRunning {
        vmm: vmm(kind),
        acceleration,
        pid,
        since,
        start_milliseconds,
        agent_version,
        kernel_release,
        vsock,
    })
}

/// A piece of garbage, with what became of it unless it was only looked for.
pub(crate) fn garbage(
    (garbage, outcome): (Garbage, Option<Result<(), banger_engine::Error>>),
) -> types::Garbage {
    let (collected, problem) = match outcome {
        None => (None, None),
        Some(Ok(())) => (Some(true), None),
        Some(Err(error)) => (Some(false), Some(error.report().message)),
    };
    types::Garbage {
        kind: garbage.kind.as_str().to_owned(),
        what: garbage.what,
        why: garbage.why,
        size: garbage.size,
        collected,
        problem,
    }
}

pub(crate) fn ping(ping: banger_engine::guest::Ping) -> types::VmPing {
    let banger_engine::guest::Ping {
        vm,
        latency,
        agent_version,
        uptime,
    } = ping;
    types::VmPing {
        vm,
        latency_microseconds: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
        agent_version,
        guest_uptime_seconds: uptime.as_secs(),
    }
}

// ---- images and kernels --------------------------------------------------------------------------------------------

pub(crate) fn image(image: Image) -> types::Image {
    let Image { row, used_by } = image;
    types::Image {
        id: row.id,
        name: row.name,
        kernel: row.kernel,
        sha256: row.sha256,
        size: row.size,
        used: row.used,
        source: row.source,
        used_by,
        created: row.created,
    }
}

pub(crate) fn kernel(kernel: Kernel) -> types::Kernel {
    let Kernel { row, default } = kernel;
    types::Kernel {
        name: row.name,
        version: row.version,
        sha256: row.sha256,
        size: row.size,
        modules: row.modules,
        source: row.source,
        default,
        created: row.created,
    }
}

// ---- operations ----------------------------------------------------------------------------------------------------

pub(crate) fn operation(operation: Operation) -> types::Operation {
    let Operation {
        id,
        kind,
        subject,
        state,
        generation,
        stage,
        message,
        done,
        total,
        notices,
        error,
        began,
        ended,
    } = operation;
    types::Operation {
        id,
        kind,
        subject,
        state: match state {
            OperationState::Running => types::OperationState::Running,
            OperationState::Cancelling => types::OperationState::Cancelling,
            OperationState::Succeeded => types::OperationState::Succeeded,
            OperationState::Failed => types::OperationState::Failed,
            OperationState::Cancelled => types::OperationState::Cancelled,
        },
        generation,
        stage,
        message,
        done,
        total,
        notices,
        error: error.map(report),
        began,
        ended,
    }
}

// ---- daemon --------------------------------------------------------------------------------------------------------

pub(crate) fn found_vmm(found: &FoundVmm) -> types::Vmm {
    let (component, acceleration) = match &found.info {
        Ok(info) => (
            types::Component {
                path: Some(info.path.to_string_lossy().into_owned()),
                version: Some(info.version.clone()),
                problem: None,
            },
            Some(info.accelerator.as_str().to_owned()),
        ),
        Err(problem) => (
            types::Component {
                path: None,
                version: None,
                problem: Some(problem.clone()),
            },
            None,
        ),
    };
    types::Vmm {
        kind: vmm(found.kind),
        component,
        acceleration,
    }
}

/// Counts by the states' names.
pub(crate) fn machines(counts: &BTreeMap<&'static str, u32>) -> BTreeMap<types::VmState, u32> {
    const NAMES: [(&str, types::VmState); 7] = [
        ("creating", types::VmState::Creating),
        ("stopped", types::VmState::Stopped),
        ("starting", types::VmState::Starting),
        ("running", types::VmState::Running),
        ("stopping", types::VmState::Stopping),
        ("failed", types::VmState::Failed),
        ("removing", types::VmState::Removing),
    ];
    let known = NAMES
        .into_iter()
        .filter_map(|(name, state)| counts.get(name).map(|count| (state, *count)));
    known.collect()
}

pub(crate) fn preflight(preflight: Preflight) -> types::VmPreflight {
    let Preflight { vm, checks } = preflight;
    types::VmPreflight {
        vm,
        ready: checks.iter().all(|check| check.outcome != Outcome::Failure),
        checks: checks.into_iter().map(check).collect(),
    }
}

pub(crate) fn check(check: Check) -> types::Check {
    let Check {
        group,
        name,
        outcome,
        reason,
        fix,
    } = check;
    types::Check {
        group: group.to_owned(),
        name: name.to_owned(),
        state: match outcome {
            Outcome::Fine => types::CheckState::Ok,
            Outcome::Warning => types::CheckState::Warning,
            Outcome::Failure => types::CheckState::Failure,
        },
        reason,
        fix,
    }
}
