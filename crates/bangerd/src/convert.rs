//! The engine's types to the wire's, and back. No decisions here: each function spells out which field goes where, so
//! that a change on either side is a compile error and not a change of the contract.

mod figures;
pub(crate) mod network;
mod ports;
mod session;

use std::collections::{BTreeMap, BTreeSet};

use banger_agent_api::{AgentError, FailureKind};
use banger_api::contract::Caller;
use banger_api::types;
use banger_api::{ErrorKind, RpcError};
use banger_engine::doctor::{Check, Outcome};
use banger_engine::guest::ssh::SshIdentity;
use banger_engine::image::config::ImageConfig;
use banger_engine::image::kernels::{DefaultKernel, Kernel};
use banger_engine::image::registry::{Image, Removed};
use banger_engine::image::seed::{Fingerprint, Seed};
use banger_engine::operation::{Cancel, Operation, OperationState};
use banger_engine::runtime::Runtime;
use banger_engine::vm::state::{Failure, Phase, Running, Vm, vmm_kind};
use banger_engine::vmms::FoundVmm;
use banger_engine::{Allow, Applies, Change, Garbage, Kind, Preflight, Report, Restart, SystemDiskKind};
use banger_vmm::VmmKind;
pub(crate) use figures::{boot_state, health, stats};
pub(crate) use ports::{ports, publication, publication_of, published, unpublish_of};
pub(crate) use session::session;

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
        Kind::PermissionDenied => ErrorKind::PermissionDenied,
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
    if let banger_engine::Error::Agent { vm, source } = &error
        && let Some(source) = source.downcast_ref::<AgentError>()
    {
        return agent_error(vm, source);
    }
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
            let error = RpcError::new(kind, text);
            match failure.kind == FailureKind::NoSshServer {
                true => error.hint(format!(
                    "install one: banger exec {vm} -- apt-get install -y openssh-server (or the image's own way); \
                     `banger exec -it {vm} -- sh` needs none"
                )),
                false => error,
            }
        }
        AgentError::DeadlineExceeded { .. } => RpcError::new(ErrorKind::TimedOut, text)
            .hint("the guest may be busy; `banger vm logs` shows its console"),
        AgentError::Unreachable(_) | AgentError::Broken { .. } | AgentError::Protocol { .. } => {
            RpcError::new(ErrorKind::GuestUnavailable, text).hint(format!(
                "the machine may have stopped: `banger vm health {vm}` says how it fares"
            ))
        }
        AgentError::Incompatible(_) | AgentError::Unsupported { .. } => {
            RpcError::new(ErrorKind::GuestUnavailable, text)
                .hint("stop and start the machine: it gets this release's agent")
        }
    }
}

// ---- ssh -----------------------------------------------------------------------------------------------------------

pub(crate) fn ssh_identity(identity: SshIdentity) -> types::SshIdentity {
    let SshIdentity { client, hosts } = identity;
    types::SshIdentity {
        private_key: client.private,
        public_key: client.public,
        hosts: hosts
            .into_iter()
            .map(|(vm, host_key)| types::SshHost { vm, host_key })
            .collect(),
    }
}

// ---- machines ------------------------------------------------------------------------------------------------------

pub(crate) fn vmm(kind: VmmKind) -> types::VmmKind {
    match kind {
        VmmKind::Firecracker => types::VmmKind::Firecracker,
        VmmKind::Qemu => types::VmmKind::Qemu,
    }
}

pub(crate) fn pin_of(pin: types::VmmPin) -> Option<VmmKind> {
    match pin {
        types::VmmPin::Auto => None,
        types::VmmPin::Firecracker => Some(VmmKind::Firecracker),
        types::VmmPin::Qemu => Some(VmmKind::Qemu),
    }
}

/// `user 1000 (process 1234)`.
pub(crate) fn caller(caller: &Caller) -> String {
    match caller.pid {
        0 => format!("user {}", caller.uid),
        pid => format!("user {} (process {pid})", caller.uid),
    }
}

pub(crate) fn vmm_of(kind: types::VmmKind) -> VmmKind {
    match kind {
        types::VmmKind::Firecracker => VmmKind::Firecracker,
        types::VmmKind::Qemu => VmmKind::Qemu,
    }
}

pub(crate) fn system_disk(kind: SystemDiskKind) -> types::SystemDisk {
    match kind {
        SystemDiskKind::Overlay => types::SystemDisk::Overlay,
        SystemDiskKind::Reflink => types::SystemDisk::Reflink,
        SystemDiskKind::Dm => types::SystemDisk::Dm,
    }
}

pub(crate) fn system_disk_of(kind: types::SystemDisk) -> SystemDiskKind {
    match kind {
        types::SystemDisk::Overlay => SystemDiskKind::Overlay,
        types::SystemDisk::Reflink => SystemDiskKind::Reflink,
        types::SystemDisk::Dm => SystemDiskKind::Dm,
    }
}

fn restart(policy: Restart) -> types::RestartPolicy {
    match policy {
        Restart::No => types::RestartPolicy::No,
        Restart::OnFailure => types::RestartPolicy::OnFailure,
        Restart::Always => types::RestartPolicy::Always,
    }
}

pub(crate) fn restart_of(policy: types::RestartPolicy) -> Restart {
    match policy {
        types::RestartPolicy::No => Restart::No,
        types::RestartPolicy::OnFailure => Restart::OnFailure,
        types::RestartPolicy::Always => Restart::Always,
    }
}

/// What a guest may reach.
pub(crate) fn allow(allow: Allow) -> BTreeSet<types::Reach> {
    let Allow { guests, host, lan } = allow;
    [
        (guests, types::Reach::Guests),
        (host, types::Reach::Host),
        (lan, types::Reach::Lan),
    ]
    .into_iter()
    .filter_map(|(is, reach)| is.then_some(reach))
    .collect()
}

pub(crate) fn allow_of(reach: &BTreeSet<types::Reach>) -> Allow {
    Allow {
        guests: reach.contains(&types::Reach::Guests),
        host: reach.contains(&types::Reach::Host),
        lan: reach.contains(&types::Reach::Lan),
    }
}

/// A hardware address as everybody writes it.
pub(crate) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

pub(crate) fn change(change: Change) -> types::VmChange {
    let Change {
        setting,
        from,
        to,
        applies,
        reason,
    } = change;
    types::VmChange {
        setting,
        from,
        to,
        applies: match applies {
            Applies::Now => types::Applies::Now,
            Applies::NextStart => types::Applies::NextStart,
        },
        reason,
    }
}

fn state(phase: &Phase) -> types::VmState {
    match phase {
        Phase::Creating => types::VmState::Creating,
        Phase::Stopped => types::VmState::Stopped,
        Phase::Starting => types::VmState::Starting,
        Phase::Running(_) => types::VmState::Running,
        Phase::Stopping(_) => types::VmState::Stopping,
        Phase::Resetting => types::VmState::Resetting,
        Phase::Failed(_) => types::VmState::Failed,
        Phase::Due(due) if due.failure.is_some() => types::VmState::Failed,
        Phase::Due(_) => types::VmState::Stopped,
        Phase::Removing => types::VmState::Removing,
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
        system_disk: made,
        work_disk,
        work_disk_used,
        nat,
        allow: allowed,
        address,
        mac: card,
        tap,
        autostart,
        restart: policy,
        expires,
        restarts_at,
        pending,
        created,
        vsock,
        published: ports,
    } = vm;
    let (state, restarts) = (state(&phase), phase.restarts());
    let vsock = vsock.to_string_lossy().into_owned();
    let (running, failure) = match phase {
        // A run of a VMM that this release does not know is shown as no run.
        Phase::Running(run) | Phase::Stopping(run) => (running(run, vsock, tap), None),
        Phase::Failed(failure) => (None, Some(failure)),
        Phase::Due(due) => (None, due.failure),
        Phase::Creating | Phase::Stopped | Phase::Starting | Phase::Resetting | Phase::Removing => {
            (None, None)
        }
    };
    let (failure, last_lines) = match failure {
        Some(Failure { reason, console }) => (Some(reason), console),
        None => (None, Vec::new()),
    };
    types::Vm {
        id,
        name,
        state,
        failure,
        last_lines,
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
        // One of a newer release cannot be started by this one, whatever is said of its disk.
        system_disk: made.map_or(types::SystemDisk::Overlay, system_disk),
        work_disk,
        work_disk_used,
        nat,
        allow: allow(allowed),
        address,
        mac: mac(card),
        autostart,
        restart: restart(policy),
        expires,
        restarts,
        restarts_at,
        pending,
        created,
        published: ports.into_iter().map(published).collect(),
        running,
    }
}

fn running(run: Running, vsock: String, tap: Option<String>) -> Option<types::VmRunning> {
    let Running {
        vmm: name,
        acceleration,
        pid,
        since,
        start_milliseconds,
        agent_version,
        kernel_release,
        with: _,
        restarts: _,
        streak: _,
        user_network,
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
        tap,
        user_network: user_network.and_then(network::of_run),
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
    let Image {
        row,
        config,
        used_by,
        blobs,
        shared,
        shared_blocks,
        registered,
    } = image;
    types::Image {
        name: row.name().to_owned(),
        id: row.id,
        names: row.names,
        digest: row.digest,
        index_digest: row.index_digest,
        config: config.map(image_config),
        blobs,
        shared,
        shared_blocks,
        registered: registered.map(|file| types::RegisteredFile {
            path: file.path.display().to_string(),
            problem: file.problem,
        }),
        kernel: row.kernel,
        sha256: row.sha256,
        size: row.size,
        used: row.used,
        source: row.source,
        used_by,
        created: row.created,
    }
}

/// An image that has lost a name: called by that, with the names that it still has.
pub(crate) fn removed_image(removed: Removed) -> types::Image {
    let Removed { name, image: left } = removed;
    types::Image { name, ..image(left) }
}

pub(crate) fn seed(seed: Seed) -> types::ImageSeed {
    let Seed {
        image: id,
        names,
        wanted,
        made,
        stale,
        template,
        problem,
    } = seed;
    types::ImageSeed {
        image: names.into_iter().next().unwrap_or_else(|| id.clone()),
        id,
        wanted: wanted.map(fingerprint),
        made: made.map(|made| types::SeedMade {
            fingerprint: fingerprint(made.fingerprint),
            path: made.path.display().to_string(),
            used: made.used,
            created: made.created,
        }),
        stale,
        template: template.map(|path| path.display().to_string()),
        problem,
    }
}

fn fingerprint(fingerprint: Fingerprint) -> types::SeedFingerprint {
    let shown = fingerprint.to_string();
    let Fingerprint { key, template, setup } = fingerprint;
    types::SeedFingerprint {
        fingerprint: shown,
        key,
        template,
        setup,
    }
}

fn image_config(config: ImageConfig) -> types::ImageConfig {
    let env = config.environment();
    let ImageConfig {
        env: _,
        user,
        workdir,
        entrypoint,
        cmd,
        exposed,
        volumes,
        labels,
        stop_signal,
        architecture,
        os,
        variant: _,
        created,
    } = config;
    types::ImageConfig {
        env,
        user,
        workdir,
        entrypoint,
        cmd,
        exposed,
        volumes,
        labels,
        stop_signal,
        architecture,
        os,
        // Whatever stands there that is no time says nothing.
        created: created.and_then(|created| created.parse().ok()),
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

pub(crate) fn default_kernel(default: DefaultKernel) -> types::DefaultKernel {
    let DefaultKernel { name, chosen, there } = default;
    types::DefaultKernel {
        kernel: name,
        chosen,
        there,
    }
}

pub(crate) fn runtime(runtime: Runtime) -> types::Runtime {
    let Runtime {
        installed,
        current,
        used_by,
    } = runtime;
    types::Runtime {
        runtime: types::RuntimeKind::Firecracker,
        version: installed.version,
        path: installed.path.to_string_lossy().into_owned(),
        size: installed.size,
        sha256: installed.origin.sha256,
        source: installed.origin.source,
        source_sha256: installed.origin.source_sha256,
        current,
        used_by,
        installed: installed.origin.installed,
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
        cancel,
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
        cancel: cancel.map(|Cancel { by, at, stage }| types::OperationCancel { by, at, stage }),
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
        origin: found.origin.as_ref().map(|origin| types::Origin {
            source: origin.source.clone(),
            sha256: origin.sha256.clone(),
        }),
    }
}

/// Counts by the states' names.
pub(crate) fn machines(counts: &BTreeMap<&'static str, u32>) -> BTreeMap<types::VmState, u32> {
    const NAMES: [(&str, types::VmState); 8] = [
        ("creating", types::VmState::Creating),
        ("stopped", types::VmState::Stopped),
        ("starting", types::VmState::Starting),
        ("running", types::VmState::Running),
        ("stopping", types::VmState::Stopping),
        ("resetting", types::VmState::Resetting),
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
