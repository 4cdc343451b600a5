//! The façade: everything the daemon's entry points may call, one function a method of the contract.
//!
//! What is slow returns an [`Operation`] at once; arguments are checked before it begins, so that a mistake is the call's
//! own error and not an operation's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_agent_api::AgentClient;
use banger_store::Store;
use banger_store::vms::VmRow;
use banger_vmm::VmmKind;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::assets::Assets;
use crate::collect::{self, Garbage};
use crate::crash::Write;
use crate::doctor::Check;
use crate::error::{Error, io};
use crate::guest::{self, Ping};
use crate::host::Host;
use crate::image::registry::{self, Image, Kernel, KernelSource, Source};
use crate::ledger::Ledger;
use crate::operation::{Operation, Operations, Progress};
use crate::rows::Rows;
use crate::settings::Settings;
use crate::vm::capability::system_disk::{self, Availability};
use crate::vm::machines::{Machines, phase_text};
use crate::vm::policy::{Request, State};
use crate::vm::state::{Paths, Phase, Vm};
use crate::vm::task::{self, Begin, Handle};
use crate::vm::{console, preflight};
use crate::vmms::{FoundVmm, Vmms};
use crate::{id, name, reconcile};

/// Memory a machine needs at least: the kernel, an initramfs and an agent, with some room.
pub(crate) const MEMORY_MINIMUM: u64 = 64 << 20;
/// Firecracker's limit, kept for all so that a machine can move between VMMs.
pub(crate) const VCPUS_MAXIMUM: u32 = 32;
/// The writable layer holds at least a small file system.
pub(crate) const DISK_MINIMUM: u64 = 16 << 20;
/// ext4's limit with 4 KiB blocks.
pub(crate) const DISK_MAXIMUM: u64 = 16 << 40;
/// Longest timeouts that can be asked for.
const TIMEOUT_MAXIMUM: Duration = Duration::from_hours(1);
/// A ping's.
const PING: Duration = Duration::from_secs(10);
/// How long closing waits for machines' tasks after their operations have ended.
const CLOSING: Duration = Duration::from_secs(10);
/// Chunks of a console that may wait for a slow reader.
const LOG_CHUNKS: usize = 4;

/// Why the engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state file.
    #[error(transparent)]
    Store(#[from] banger_store::OpenError),
    /// What was found at the start could not be dealt with.
    #[error("failed to take up what was there")]
    Reconcile(#[source] Error),
    /// A directory could not be made.
    #[error("failed to make the directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
}

/// What a new machine shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVm {
    /// Absent: made up.
    pub name: Option<String>,
    /// Name or id.
    pub image: String,
    /// Absent: the default.
    pub vcpus: Option<u32>,
    /// Bytes. Absent: the default.
    pub memory: Option<u64>,
    /// Bytes. Absent: the default.
    pub disk: Option<u64>,
    /// Absent: the image's.
    pub kernel: Option<String>,
    /// Absent: chosen at each start.
    pub vmm: Option<VmmKind>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Start it as well.
    pub start: bool,
    /// Remove it when it stops.
    pub ephemeral: bool,
}

/// The engine's part of `daemon.status`.
#[derive(Debug, Clone)]
pub struct Status {
    /// The guest agent: its path and version, or why there is none.
    pub agent: Result<(PathBuf, String), String>,
    /// VMMs that were looked for.
    pub vmms: Vec<FoundVmm>,
    /// What a machine without a pin gets, with the reason; or why none.
    pub chosen: Result<(VmmKind, String), String>,
    /// Machines by state.
    pub machines: BTreeMap<&'static str, u32>,
    /// Images.
    pub images: usize,
    /// Operations at work.
    pub operations: usize,
}

/// What a start of a machine would look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// The machine's name.
    pub vm: String,
    /// Every check with its outcome.
    pub checks: Vec<Check>,
}

/// The engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    host: Arc<Host>,
    machines: Machines,
}

impl Engine {
    /// Opens the state directory and takes up what an earlier daemon left: adopts what runs, reaps what died, collects
    /// what is orphaned. The caller holds the state directory's lock.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        let store = Store::open(&settings.state_dir.join("banger.db"))?;
        let rows = Rows::new(store.clone());
        for directory in registry::directories(&settings.state_dir) {
            std::fs::create_dir_all(&directory).map_err(|source| OpenError::Directory {
                path: directory.clone(),
                source,
            })?;
        }
        let operations = Operations::open(rows.clone())
            .await
            .map_err(OpenError::Reconcile)?;
        let host = Arc::new(Host {
            assets: Assets::new(&settings),
            ledger: Ledger::new(store),
            vmms: Vmms::new(&settings),
            operations,
            store: rows,
            settings,
        });
        let machines = Machines::default();
        reconcile::run(&host, &machines)
            .await
            .map_err(OpenError::Reconcile)?;
        // Probing runs each VMM once; by the first start it is known.
        let probing = host.clone();
        tokio::spawn(async move { probing.vmms.probe().await });
        Ok(Self { host, machines })
    }

    /// Cancels what is at work, waits for its clean-up and ends all tasks. Machines go on running.
    pub async fn close(&self) {
        self.host.operations.close().await;
        self.machines.close(CLOSING).await;
    }

    /// What there is.
    pub async fn status(&self) -> Result<Status, Error> {
        let mut machines = BTreeMap::new();
        for handle in self.machines.all() {
            *machines
                .entry(state_name(handle.view.borrow().phase.state()))
                .or_default() += 1;
        }
        let images = self.host.store.read(banger_store::images::list).await?.len();
        Ok(Status {
            agent: self
                .host
                .assets
                .agent_version()
                .await
                .map_err(|e| crate::error::chain(&e)),
            vmms: self.host.vmms.found().await,
            chosen: match self.host.vmms.choose(None).await {
                Ok(chosen) => Ok((chosen.vmm.kind(), chosen.reason)),
                Err(e) => Err(crate::error::chain(&e)),
            },
            machines,
            images,
            operations: self.host.operations.running(),
        })
    }

    /// Checks the host.
    pub async fn doctor(&self) -> Vec<Check> {
        crate::doctor::run(&self.host).await
    }

    // ---- images and kernels ----------------------------------------------------------------------------------------

    /// All images, by name.
    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        registry::list(&self.host).await
    }

    /// One image.
    pub async fn image(&self, reference: &str) -> Result<Image, Error> {
        registry::show(&self.host, reference).await
    }

    /// Removes an image that no machine uses.
    pub async fn remove_image(&self, reference: &str) -> Result<Image, Error> {
        registry::remove(&self.host, reference).await
    }

    /// Begins to make an image from a file.
    pub async fn register_image(
        &self,
        name: String,
        path: PathBuf,
        kernel: Option<String>,
        replace: bool,
    ) -> Result<Operation, Error> {
        registry::begin(
            &self.host,
            "image.register",
            name,
            Source::File(path),
            kernel,
            replace,
        )
        .await
    }

    /// Begins to make a bootstrap image.
    pub async fn bootstrap_image(
        &self,
        source: Source,
        name: Option<String>,
        kernel: Option<String>,
        replace: bool,
    ) -> Result<Operation, Error> {
        let name = name.unwrap_or_else(|| source.default_name().to_owned());
        registry::begin(&self.host, "image.bootstrap", name, source, kernel, replace).await
    }

    /// All kernels, by name.
    pub async fn kernels(&self) -> Result<Vec<Kernel>, Error> {
        registry::kernels(&self.host).await
    }

    /// Begins to add a kernel.
    pub async fn add_kernel(&self, name: String, source: KernelSource) -> Result<Operation, Error> {
        registry::begin_kernel(&self.host, name, source).await
    }

    /// Removes a kernel that nothing uses.
    pub async fn remove_kernel(&self, name: &str) -> Result<Kernel, Error> {
        registry::remove_kernel(&self.host, name).await
    }

    // ---- machines --------------------------------------------------------------------------------------------------

    /// Begins to create a machine. The name is reserved and the image pinned when this returns.
    pub async fn create_vm(&self, new: NewVm) -> Result<Operation, Error> {
        let row = self.reserve(&new).await?;
        let (host, machines, start) = (self.host.clone(), self.machines.clone(), new.start);
        let (id, subject) = (row.id.clone(), row.name.clone());
        let work = move |progress: Progress| create(host, machines, row, start, progress);
        let begun = self.host.operations.begin("vm.create", &subject, work).await;
        if begun.is_err() {
            self.host
                .store
                .write(Write::VmRemove, move |tx| banger_store::vms::remove(tx, &id))
                .await?;
        }
        begun
    }

    /// All machines that carry the labels, by name.
    pub async fn vms(&self, labels: &BTreeMap<String, String>) -> Result<Vec<Vm>, Error> {
        let names = self.image_names().await?;
        let wanted = |row: &VmRow| {
            labels.iter().all(|(key, value)| match row.labels.get(key) {
                Some(found) => value.is_empty() || value == found,
                None => false,
            })
        };
        let handles = self.machines.all();
        Ok(handles
            .iter()
            .filter(|h| wanted(&h.view.borrow().row))
            .map(|h| self.describe(h, &names))
            .collect())
    }

    /// One machine.
    pub async fn vm(&self, reference: &str) -> Result<Vm, Error> {
        let handle = self.machines.find(reference)?;
        Ok(self.describe(&handle, &self.image_names().await?))
    }

    /// Begins to start a machine.
    pub async fn start_vm(&self, reference: &str, timeout: Option<Duration>) -> Result<Operation, Error> {
        let timeout = checked_timeout(timeout)?;
        self.begin("vm.start", reference, Request::Start, timeout).await
    }

    /// Begins to stop a machine.
    pub async fn stop_vm(&self, reference: &str, timeout: Option<Duration>) -> Result<Operation, Error> {
        let timeout = checked_timeout(timeout)?;
        self.begin("vm.stop", reference, Request::Stop, timeout).await
    }

    /// Begins to kill a machine.
    pub async fn kill_vm(&self, reference: &str) -> Result<Operation, Error> {
        self.begin("vm.kill", reference, Request::Kill, None).await
    }

    /// Begins to remove a machine.
    pub async fn remove_vm(&self, reference: &str, force: bool) -> Result<Operation, Error> {
        self.begin("vm.remove", reference, Request::Remove { force }, None)
            .await
    }

    /// Everything that a start of a machine looks at, failed or not. Touches nothing.
    pub async fn preflight_vm(&self, reference: &str) -> Result<Preflight, Error> {
        let handle = self.machines.find(reference)?;
        let row = handle.view.borrow().row.clone();
        let settings = &self.host.settings;
        let paths = Paths::new(&settings.state_dir, &settings.runtime_dir, &row.id);
        let examined = preflight::examine(&self.host, &row, &paths, None).await?;
        Ok(Preflight {
            vm: row.name.clone(),
            checks: examined.checks,
        })
    }

    /// Each way of making a system disk, the best first, with what stands in its way on this host.
    pub async fn system_disks(&self) -> Vec<Availability> {
        system_disk::available(&self.host).await
    }

    /// Measures the way to a guest's agent and back.
    pub async fn ping_vm(&self, reference: &str) -> Result<Ping, Error> {
        let handle = self.machines.find(reference)?;
        let client = guest::client(&handle)?;
        let began = Instant::now();
        let uptime = client.ping(PING).await.map_err(|e| Error::Agent {
            vm: handle.name.clone(),
            source: Box::new(e),
        })?;
        let latency = began.elapsed();
        let view = handle.view.borrow();
        let agent_version = view
            .phase
            .running()
            .map(|r| r.agent_version.clone())
            .unwrap_or_default();
        Ok(Ping {
            vm: handle.name.clone(),
            latency,
            agent_version,
            uptime,
        })
    }

    /// The client of a running machine's agent.
    pub fn guest(&self, reference: &str) -> Result<AgentClient, Error> {
        guest::client(&self.machines.find(reference)?)
    }

    /// A machine's serial console: chunks until the end, or, when following, until the machine stops or the receiver is
    /// dropped.
    pub fn logs(
        &self,
        reference: &str,
        tail: Option<u32>,
        follow: bool,
    ) -> Result<mpsc::Receiver<Vec<u8>>, Error> {
        let handle = self.machines.find(reference)?;
        let settings = &self.host.settings;
        let console = Paths::new(&settings.state_dir, &settings.runtime_dir, &handle.id).console();
        let (out, chunks) = mpsc::channel(LOG_CHUNKS);
        let (view, name) = (handle.view.clone(), handle.name);
        tokio::spawn(async move {
            if let Err(e) = console::send(console, tail, follow, view, out).await
                && e.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(vm = name, error = %e, "console not read");
            }
        });
        Ok(chunks)
    }

    // ---- garbage ---------------------------------------------------------------------------------------------------

    /// What nothing needs any more; unless only asked, it is removed, each piece with its outcome.
    pub async fn gc(&self, dry_run: bool) -> Result<Vec<(Garbage, Option<Result<(), Error>>)>, Error> {
        let mut all = Vec::new();
        for piece in collect::find(&self.host, collect::When::Running).await? {
            let outcome = match dry_run {
                true => None,
                false => Some(collect::remove(&self.host, &piece).await),
            };
            all.push((piece, outcome));
        }
        Ok(all)
    }

    // ---- operations ------------------------------------------------------------------------------------------------

    /// All operations, newest first.
    pub async fn operations(&self) -> Result<Vec<Operation>, Error> {
        self.host.operations.list().await
    }

    /// One operation.
    pub async fn operation(&self, id: &str) -> Result<Operation, Error> {
        self.host.operations.show(id).await
    }

    /// Each change of an operation, beginning with how it stands; the last has ended.
    pub async fn watch_operation(&self, id: &str) -> Result<watch::Receiver<Operation>, Error> {
        self.host.operations.watch(id).await
    }

    /// Cancels an operation and waits for its end.
    pub async fn cancel_operation(&self, id: &str) -> Result<Operation, Error> {
        self.host.operations.cancel(id).await
    }

    // ---- within ----------------------------------------------------------------------------------------------------

    /// Checks what a new machine shall be and inserts its row.
    async fn reserve(&self, new: &NewVm) -> Result<VmRow, Error> {
        if let Some(name) = &new.name {
            name::machine(name)?;
        }
        for (key, value) in &new.labels {
            name::label(key, value)?;
        }
        let defaults = &self.host.settings.vm;
        let vcpus = new.vcpus.unwrap_or(defaults.vcpus);
        in_range(
            "vcpus",
            u64::from(vcpus),
            1,
            u64::from(VCPUS_MAXIMUM),
            &u64::to_string,
        )?;
        let memory = new.memory.unwrap_or(defaults.memory);
        let most = hostkit_memory()?;
        in_range("memory", memory, MEMORY_MINIMUM, most, &bytes)?;
        let disk = new.disk.unwrap_or(defaults.disk);
        in_range("disk", disk, DISK_MINIMUM, DISK_MAXIMUM, &bytes)?;
        let image = registry::find(&self.host, &new.image).await?;
        let kernel = match &new.kernel {
            Some(kernel) => registry::find_kernel(&self.host, kernel).await?.name,
            None => image.kernel.clone(),
        };
        let mut row = VmRow {
            id: id::new(),
            name: String::new(),
            image: image.id,
            kernel,
            vcpus,
            memory_mib: u32::try_from(memory >> 20).unwrap_or(u32::MAX),
            disk: disk & !4095,
            vmm: new.vmm.map(|kind| kind.as_str().to_owned()),
            labels: new.labels.clone(),
            ephemeral: new.ephemeral,
            phase: phase_text(&Phase::Creating)?,
            created: Timestamp::now(),
            system_disk: "overlay".to_owned(),
            generation: 0,
            work_disk: 0,
            nat: true,
            autostart: false,
            restart: "no".to_owned(),
            expires: None,
        };
        // A made-up name may be taken by somebody faster; one that was asked for is the caller's to change.
        for attempt in 0..16 {
            row.name = match &new.name {
                Some(name) => name.clone(),
                None => made_up_name(attempt),
            };
            let inserted = row.clone();
            match self
                .host
                .store
                .write(Write::VmInsert, move |tx| {
                    banger_store::vms::insert(tx, &inserted)
                })
                .await
            {
                Ok(()) => return Ok(row),
                Err(banger_store::StoreError::Exists { .. }) if new.name.is_none() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Error::Host {
            action: "make up a name",
            source: "all that were tried are taken; give one".into(),
        })
    }

    async fn begin(
        &self,
        kind: &'static str,
        reference: &str,
        request: Request,
        timeout: Option<Duration>,
    ) -> Result<Operation, Error> {
        let handle = self.machines.find(reference)?;
        let subject = handle.name.clone();
        let work = move |progress: Progress| async move { handle.ask(request, timeout, &progress).await };
        self.host.operations.begin(kind, &subject, work).await
    }

    async fn image_names(&self) -> Result<BTreeMap<String, String>, Error> {
        let rows = self.host.store.read(banger_store::images::list).await?;
        Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
    }

    fn describe(&self, handle: &Handle, images: &BTreeMap<String, String>) -> Vm {
        let view = handle.view.borrow();
        let row = &view.row;
        let settings = &self.host.settings;
        let paths = Paths::new(&settings.state_dir, &settings.runtime_dir, &row.id);
        Vm {
            id: row.id.clone(),
            name: row.name.clone(),
            phase: view.phase.clone(),
            image: images
                .get(&row.image)
                .cloned()
                .unwrap_or_else(|| row.image.clone()),
            image_id: row.image.clone(),
            kernel: row.kernel.clone(),
            vcpus: row.vcpus,
            memory: u64::from(row.memory_mib) << 20,
            disk: row.disk,
            disk_used: system_disk::usage(row, &paths),
            vmm: row.vmm.as_deref().and_then(crate::vm::state::vmm_kind),
            labels: row.labels.clone(),
            ephemeral: row.ephemeral,
            created: row.created,
            vsock: paths.vsock(),
        }
    }
}

/// Creates a machine and starts it where asked; when the start fails, it is removed again.
async fn create(
    host: Arc<Host>,
    machines: Machines,
    row: VmRow,
    start: bool,
    progress: Progress,
) -> Result<(), Error> {
    let (reply, created) = oneshot::channel();
    let handle = task::spawn(host, &machines, row, Begin::Create(progress.clone(), reply));
    created.await.map_err(|_| Error::ShuttingDown)??;
    if !start {
        return Ok(());
    }
    let started = handle.ask(Request::Start, None, &progress).await;
    if started.is_err() {
        match handle.ask(Request::Remove { force: true }, None, &progress).await {
            Ok(()) | Err(Error::Missing { .. }) => {}
            Err(e) => tracing::error!(
                vm = handle.name,
                error = crate::error::chain(&e),
                "left after a failed start"
            ),
        }
    }
    started
}

fn checked_timeout(timeout: Option<Duration>) -> Result<Option<Duration>, Error> {
    match timeout {
        Some(timeout) if timeout > TIMEOUT_MAXIMUM => Err(Error::OutOfRange {
            field: "timeout",
            value: format!("{} s", timeout.as_secs()),
            problem: format!("above the maximum of {} s", TIMEOUT_MAXIMUM.as_secs()),
        }),
        other => Ok(other),
    }
}

fn in_range(
    field: &'static str,
    value: u64,
    least: u64,
    most: u64,
    shown: &dyn Fn(&u64) -> String,
) -> Result<(), Error> {
    let problem = if value < least {
        format!("below the minimum of {}", shown(&least))
    } else if value > most {
        format!("above the maximum of {}", shown(&most))
    } else {
        return Ok(());
    };
    Err(Error::OutOfRange {
        field,
        value: shown(&value),
        problem,
    })
}

/// Bytes for people: the largest binary unit that leaves no fraction, or one decimal.
pub(crate) fn bytes(value: &u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if *value >= 1 << shift {
            let whole = value >> shift;
            let tenth = ((value - (whole << shift)) * 10) >> shift;
            return if tenth == 0 {
                format!("{whole} {unit}")
            } else {
                format!("{whole}.{tenth} {unit}")
            };
        }
    }
    format!("{value} B")
}

/// All of the host's memory in bytes (`MemTotal`, proc_meminfo(5)).
fn hostkit_memory() -> Result<u64, Error> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).map_err(io("read", path))?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|n| n.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::Host {
        action: "read the host's memory",
        source: "no MemTotal in /proc/meminfo".into(),
    })
}

/// Two words that people can say; a third part when these run out.
fn made_up_name(attempt: u32) -> String {
    let name = petname::petname(2, "-").unwrap_or_else(|| format!("vm-{}", id::new()));
    if attempt < 8 {
        name
    } else {
        format!("{name}-{}", &id::new()[..4])
    }
}

/// A state's name, as in the contract.
pub(crate) fn state_name(state: State) -> &'static str {
    match state {
        State::Creating => "creating",
        State::Stopped => "stopped",
        State::Starting => "starting",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Failed => "failed",
        State::Removing => "removing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (value, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1 MiB"),
            (3 << 29, "1.5 GiB"),
            (4 << 40, "4 TiB"),
        ] {
            assert_eq!(bytes(&value), expected);
        }
    }

    #[test]
    fn made_up_names_are_valid() {
        for attempt in 0..16 {
            name::machine(&made_up_name(attempt)).unwrap();
        }
    }
}
