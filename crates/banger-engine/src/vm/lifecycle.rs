//! The work a machine's task does, as plain futures over the row: start, adopt, stop, remove.
//!
//! ```text
//!   start:  check -> prepare (ledger first) -> launch -> guest's hello (and what it says of itself) -> Started
//!   any failure, and a dropped future: the run's ledger is collected by the task
//! ```
//!
//! Nothing here keeps state of its own: what exists is in the ledger, where a machine stands is the task's to say.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use banger_agent_api::{AgentClient, AgentError, HelloLine, read_hello_line};
use banger_store::vms::VmRow;
use banger_vmm::{AdoptError, Carrier, Machine, ProcessRecord, UserNetwork, VmmKind};
use hostkit::process::Process;
use jiff::Timestamp;
use tokio::net::UnixListener;

use crate::crash::{self, Moment, Point, Write};
use crate::error::Error;
use crate::host::Host;
use crate::ledger::{Owner, RunLog};
use crate::operation::{Progress, Stage};
use crate::ports::Reserved;
use crate::vm::capability::{self, Start};
use crate::vm::change::RanWith;
use crate::vm::console::{self, Ending};
use crate::vm::preflight::{self, Examined};
use crate::vm::state::{Paths, Running, vmm_kind};

/// How long the first connection to an agent that has said hello may take.
const CONNECTING: Duration = Duration::from_secs(10);
/// How long a VMM may take to end whose guest is at its very end.
const ENDING: Duration = Duration::from_millis(500);
/// One attempt of the guest to say hello, once it is connected.
const HELLO: Duration = Duration::from_secs(5);

/// A run that came up.
pub(crate) struct Started {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) guest: AgentClient,
    pub(crate) running: Running,
    /// Its published ports, which wait for the guest.
    pub(crate) reserved: Vec<Reserved>,
}

/// What each process of a machine has used of the processor.
fn busy(machine: &dyn Machine) -> Vec<String> {
    let used = |record: &ProcessRecord| {
        let usage = Process::open(record.id).ok()?.usage().ok()?;
        let seconds = (usage.user + usage.system).as_secs_f64();
        Some(format!(
            "{} has used {seconds:.1} s of processor time",
            record.role
        ))
    };
    machine.processes().iter().filter_map(used).collect()
}

/// Starts a machine and waits for its agent. On an error the caller collects the run.
pub(crate) async fn start(
    host: &Arc<Host>,
    row: &VmRow,
    paths: &Paths,
    timeout: Duration,
    progress: &Progress,
) -> Result<Started, Error> {
    let (since, began) = (Timestamp::now(), Instant::now());
    progress.stage(Stage::Checking).await;
    let Examined {
        checks,
        vmm,
        slow,
        plan,
    } = preflight::examine(host, row, paths, Some(progress)).await?;
    let refused = |checks| Error::Preflight {
        vm: row.name.clone(),
        problems: capability::problems(checks),
    };
    let (Some(vmm), Some(plan), true) = (vmm, plan, capability::passed(&checks)) else {
        return Err(refused(checks));
    };
    if let Some(reason) = slow {
        progress.notice(format!("slow: {reason}"));
    }

    progress.stage(Stage::Preparing).await;
    for capability in capability::ALL {
        capability.prepare(&plan).await?;
    }
    let spec = plan.spec();
    // Again, now that all of it is there.
    let problems = vmm.check(&spec);
    if !problems.is_empty() {
        return Err(refused(problems.into_iter().map(preflight::of_problem).collect()));
    }

    progress.stage(Stage::Launching).await;
    let hello = plan
        .hello
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    let hello = hello.ok_or_else(|| Error::Host {
        action: "listen for the guest",
        source: "the guest's socket was not prepared".into(),
    })?;
    let log = RunLog {
        ledger: &host.ledger,
        owner: Owner::Run(row.id.clone()),
    };
    let machine = vmm.launch(&spec, &log).await.map_err(|source| Error::Launch {
        vm: row.name.clone(),
        source,
    })?;

    if let Some(UserNetwork {
        carrier: Carrier::Slirp,
        note: Some(reason),
    }) = machine.user_network()
    {
        tracing::warn!(vm = row.name, reason, "QEMU's own user-mode network");
        progress.notice(format!("the guest has QEMU's own user-mode network: {reason}"));
    }

    progress.stage(Stage::Booting).await;
    for capability in capability::ALL {
        capability.launched(&plan);
    }
    let guest = AgentClient::new(&paths.vsock());
    let answered = async {
        let line = hear_hello(&hello).await;
        crash::point(Point::Moment(Moment::HelloHeard));
        tracing::debug!(
            vm = row.name,
            ?line,
            milliseconds = began.elapsed().as_millis(),
            "the guest serves"
        );
        let info = match line.info() {
            // The line says all that the call would: a start needs no call.
            Some(info) => info.negotiated().map_err(AgentError::Incompatible),
            None => guest.hello(timeout).await,
        };
        info.map_err(|e| Error::Agent {
            vm: row.name.clone(),
            source: Box::new(e),
        })
    };
    let left = timeout.saturating_sub(began.elapsed());
    let info = tokio::select! {
        // What happened comes before what was waited for: a guest that panicked right after its hello has not started.
        biased;
        exit = machine.exited() => {
            let cause = match console::ending(&exit, &paths.console()) {
                Ending::Orderly => "the guest shut down before its agent answered".to_owned(),
                Ending::Bad(failure) => failure.reason,
            };
            return Err(Error::DiedStarting {
                vm: row.name.clone(),
                cause,
                console: console::last_lines(&paths.console()),
            });
        }
        info = answered => {
            crash::point(Point::Moment(Moment::GuestAnswered));
            info?
        }
        () = tokio::time::sleep(left) => {
            return Err(Error::Silent {
                vm: row.name.clone(),
                seconds: timeout.as_secs(),
                console: console::last_lines(&paths.console()),
                busy: busy(machine.as_ref()),
            });
        }
    };
    // Before it is said to run: a connection that is broken off while it is being made, as by the daemon's death, can leave
    // vhost-device-vsock deaf for good, and a start that is broken off is undone. The next call uses the connection.
    if let Err(e) = guest.ping(CONNECTING).await {
        tracing::warn!(
            vm = row.name,
            error = crate::error::chain(&e),
            "no connection to the agent yet"
        );
    }
    for capability in capability::ALL {
        capability.started(&plan).await;
    }
    let described = vmm.describe();
    let user_network = machine.user_network();
    let running = Running {
        vmm: described.kind.as_str().to_owned(),
        acceleration: described.accelerator.as_str().to_owned(),
        pid: machine_pid(machine.as_ref()),
        since,
        start_milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        agent_version: info.agent_version,
        kernel_release: info.kernel_release,
        with: Some(RanWith {
            bridged: host.network.tap_of(&row.id).is_some(),
            ..RanWith::of(row)
        }),
        restarts: 0,
        streak: 0,
        user_network: user_network.map(Into::into),
    };
    tracing::info!(
        vm = row.name,
        vmm = running.vmm,
        pid = running.pid,
        milliseconds = running.start_milliseconds,
        init = ?info.init_mode,
        "started"
    );
    let reserved = std::mem::take(
        &mut *plan
            .reserved
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    );
    Ok(Started {
        machine,
        guest,
        running,
        reserved,
    })
}

/// What a start would be made of.
pub(crate) async fn plan<'a>(
    host: &'a Arc<Host>,
    row: &'a VmRow,
    paths: &'a Paths,
    vmm: VmmKind,
    progress: Option<&'a Progress>,
) -> Result<Start<'a>, Error> {
    let (name, id) = (row.kernel.clone(), row.image.clone());
    let (kernel, image) = host
        .store
        .read(move |tx| {
            let kernel = banger_store::kernels::find(tx, &name)?;
            Ok((kernel, banger_store::images::get(tx, &id)?))
        })
        .await?;
    let kernel = kernel.ok_or_else(|| Error::Missing {
        what: "kernel",
        name: row.kernel.clone(),
        near: None,
    })?;
    let state = &host.settings.state_dir;
    Ok(Start {
        host,
        row,
        paths,
        vmm,
        rootfs: crate::image::rootfs_path(state, &row.image),
        image,
        kernel: crate::image::kernel_files(state, &row.kernel),
        kernel_pvh: kernel.pvh,
        initramfs: OnceLock::new(),
        address: OnceLock::new(),
        mtu: OnceLock::new(),
        adopts: false,
        hello: Mutex::new(None),
        reserved: Mutex::default(),
        progress,
    })
}

/// Waits for a well-formed hello line; what else connects is ignored, since the guest decides what connects.
async fn hear_hello(listener: &UnixListener) -> HelloLine {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match tokio::time::timeout(HELLO, read_hello_line(stream)).await {
                Ok(Ok(line)) => return line,
                Ok(Err(e)) => tracing::warn!(error = crate::error::chain(&e), "not a hello"),
                Err(_) => tracing::warn!("a guest connected and said nothing"),
            },
            // Out of file descriptors, most likely: others may close some.
            Err(e) => {
                tracing::warn!(error = %e, "no connection from the guest");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Process id of a machine's VMM.
pub(crate) fn machine_pid(machine: &dyn Machine) -> u32 {
    machine
        .processes()
        .iter()
        .find(|p| p.role == banger_vmm::ProcessRole::Vmm)
        .map_or(0, |p| p.id.pid)
}

/// Takes up the run that an earlier daemon left, if all its processes live.
pub(crate) async fn adopt(
    host: &Arc<Host>,
    row: &VmRow,
    paths: &Paths,
    running: &Running,
) -> Result<(Arc<dyn Machine>, AgentClient), Error> {
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| Error::Host {
        action: "adopt the machine",
        source,
    };
    let kind = vmm_kind(&running.vmm).ok_or_else(|| fail(format!("unknown VMM {:?}", running.vmm).into()))?;
    let vmm = host.vmms.for_adoption(kind).await?;
    // What was set since is not in this run.
    let started = running
        .with
        .clone()
        .map_or_else(|| row.clone(), |with| with.on(row));
    let plan = Start {
        adopts: true,
        ..plan(host, &started, paths, kind, None).await?
    };
    let spec = plan.spec();
    let processes = host.ledger.processes(&Owner::Run(row.id.clone())).await?;
    let machine = vmm
        .adopt(&spec, &processes)
        .await
        .map_err(|e| fail(Box::new(e)))?;
    Ok((machine, AgentClient::new(&paths.vsock())))
}

/// Whether an adoption failed because the run has ended, wholly or in part.
pub(crate) fn has_ended(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<AdoptError>());
    match source {
        Some(AdoptError::Gone | AdoptError::Partial { .. } | AdoptError::Stranger { .. }) => true,
        Some(AdoptError::Process { .. }) | None => false,
    }
}

/// Asks the guest to stop and waits for its end. An error says, for people, why it must be forced. Dropping this takes
/// nothing back: a guest that has agreed goes down all the same. One that was asked before (`again`) may have come so far
/// that its agent does not answer: it has its time all the same.
pub(crate) async fn ask_to_stop(
    machine: &dyn Machine,
    guest: &AgentClient,
    timeout: Duration,
    again: bool,
) -> Result<(), String> {
    let began = Instant::now();
    match guest
        .shutdown(Some(timeout), timeout.min(Duration::from_secs(10)))
        .await
    {
        Ok(()) => {
            crash::point(Point::Moment(Moment::ShutdownAgreed));
            let left = timeout.saturating_sub(began.elapsed());
            let ended = tokio::time::timeout(left, machine.exited()).await;
            ended
                .map(drop)
                .map_err(|_| format!("did not stop within {} s and was forced", timeout.as_secs()))
        }
        Err(e) => {
            // The machine may be ending this very moment, which breaks the connection.
            let left = if again {
                timeout.saturating_sub(began.elapsed())
            } else {
                ENDING
            };
            let ended = tokio::time::timeout(left, machine.exited()).await;
            ended.map(drop).map_err(|_| {
                let why = crate::error::chain(&e);
                format!("its agent did not take the request and it was forced: {why}")
            })
        }
    }
}

/// Ends a machine at once.
pub(crate) async fn kill(vm: &str, machine: &dyn Machine) -> Result<(), Error> {
    machine.kill().await.map_err(|source| Error::Kill {
        vm: vm.to_owned(),
        source,
    })
}

/// Removes all that a machine has on the host, its row last.
pub(crate) async fn remove(host: &Host, id: &str) -> Result<(), Error> {
    host.ledger.collect(&Owner::Run(id.to_owned())).await?;
    host.ledger.collect(&Owner::Machine(id.to_owned())).await?;
    // Whoever publishes a port of it now is told that there is no such machine.
    let _changing = host.ports.changing.lock().await;
    let row = id.to_owned();
    host.store
        .write(Write::VmRemove, move |tx| banger_store::vms::remove(tx, &row))
        .await?;
    host.ports.forget(id);
    host.network.changed();
    Ok(())
}

/// Bytes that a sparse file takes on its file system; 0 where it is not there.
pub(crate) fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // st_blocks counts 512-byte units whatever the file system's block size (stat(2)).
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}
