//! The façade: everything the daemon's entry points may call, one function a method of the contract.
//!
//! What is slow returns an [`Operation`] at once; arguments are checked before it begins, so that a mistake is the call's
//! own error and not an operation's.
//!
//! What is about machines' lives is beside: `create`, `change` (start to remove, settings), `describe`, `ports`.

mod build;
mod change;
mod create;
mod describe;
mod network;
mod ports;
mod sessions;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_agent_api::{AgentClient, BootState, proto};
use banger_store::Store;
use banger_vmm::VmmKind;
use tokio::sync::{mpsc, watch};

use crate::assets::Assets;
use crate::collect::{self, Garbage};
use crate::doctor::Check;
use crate::error::{Error, chain};
use crate::figures;
use crate::figures::health::{self, VmHealth};
use crate::figures::stats::{self, VmStats};
use crate::guest::ssh::{self, Keys, SshIdentity};
use crate::guest::{self, Ping};
use crate::host::Host;
use crate::image::blobs::BlobStore;
use crate::image::config::{self, ImageConfig};
use crate::image::export;
use crate::image::import::{self, Import};
use crate::image::kernels::{self, DefaultKernel, Kernel, KernelSource};
use crate::image::make::{self, Source};
use crate::image::places;
use crate::image::registry::{self, Image, Removed, Search};
use crate::image::seed::{self, Seed, Seeds};
use crate::image::verify;
use crate::image::{promote, pull};
use crate::ledger::Ledger;
use crate::net::Network;
use crate::net::hands::Hands;
use crate::operation::{Operation, Operations};
use crate::ports::Ports;
use crate::reconcile;
use crate::rows::Rows;
use crate::runtime::{self, Runtime};
use crate::session::{Sessions, follow};
use crate::settings::Settings;
use crate::vm::capability::system_disk::devices::scope;
use crate::vm::capability::system_disk::{self, Availability};
use crate::vm::machines::Machines;
use crate::vm::policy::State;
use crate::vm::state::{Paths, Phase};
use crate::vm::{console, preflight};
use crate::vmms::{FoundVmm, Vmms};
pub use change::Done;
use change::checked_timeout;
pub use create::NewVm;
pub use network::{HostResolver, Names, NetworkMachine, NetworkStatus};
pub use ports::{Direct, HostPort, Unpublish, VmPorts};

/// A ping's.
const PING: Duration = Duration::from_secs(10);
/// How long a guest's services are waited for.
const BOOTED: Duration = Duration::from_secs(120);
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
    /// With a new one everything in the state directory would be nobody's, and collected.
    #[error(
        "the state file {} is lost, and {} is there, which only it speaks for: put the file back (copies from before \
         upgrades are beside it), or move what is there away",
        file.display(), left.display()
    )]
    StateLost {
        /// Where it should be.
        file: PathBuf,
        /// One of those that would be lost.
        left: PathBuf,
    },
    /// What was found at the start could not be dealt with.
    #[error("failed to take up what was there")]
    Reconcile(#[source] Error),
    /// The directory of what images came as cannot be used.
    #[error("failed to open the directory of blobs")]
    Blobs(#[source] banger_oci::BlobError),
    /// A directory could not be made.
    #[error("failed to make the directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
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
        let file = settings.state_dir.join("banger.db");
        let is_there = std::fs::metadata(&file).is_ok_and(|found| found.len() > 0);
        if let Some(left) = first_of_what_is_kept(&settings).filter(|_| !is_there) {
            return Err(OpenError::StateLost { file, left });
        }
        let store = Store::open(&file)?;
        let rows = Rows::new(store.clone());
        for directory in places::directories(&settings.state_dir) {
            std::fs::create_dir_all(&directory).map_err(|source| OpenError::Directory {
                path: directory.clone(),
                source,
            })?;
        }
        let blobs = BlobStore::open(&settings.state_dir).map_err(OpenError::Blobs)?;
        let operations = Operations::open(rows.clone())
            .await
            .map_err(OpenError::Reconcile)?;
        let scope = scope(&settings.state_dir).map_err(OpenError::Reconcile)?;
        let hands = Hands::new(&settings.network.bridge, &scope, &settings.tool_dirs());
        let ledger = Ledger::new(store, hands.clone());
        let network = Network::open(settings.network.clone(), hands, ledger.clone(), rows.clone())
            .await
            .map_err(OpenError::Reconcile)?;
        let host = Arc::new(Host {
            assets: Assets::new(&settings),
            network: network.clone(),
            ledger,
            vmms: Vmms::new(&settings),
            keys: Keys::open(&settings),
            blobs,
            seeds: Seeds::default(),
            sessions: Sessions::default(),
            ports: Ports::default(),
            operations,
            store: rows,
            settings,
        });
        let published = host.store.read(banger_store::publications::list).await;
        match published {
            Ok((published, unreadable)) => {
                host.ports.load(&published);
                for row in unreadable {
                    tracing::error!(
                        vm = row.vm,
                        row = row.says,
                        error = chain(&row.error),
                        "unreadable publication, not served"
                    );
                }
            }
            // Machines go on without them, which is better than no daemon.
            Err(e) => tracing::error!(
                error = chain(&e),
                "published ports cannot be read, and are not served"
            ),
        }
        let machines = Machines::default();
        reconcile::run(&host, &machines)
            .await
            .map_err(OpenError::Reconcile)?;
        follow::take_up(&host, &machines).await;
        network.keep();
        // Probing runs each VMM once; by the first start it is known.
        let probing = host.clone();
        tokio::spawn(async move { probing.vmms.probe().await });
        Ok(Self { host, machines })
    }

    /// Cancels what is at work, waits for its clean-up and ends all tasks. Machines go on running.
    pub async fn close(&self) {
        self.host.operations.close().await;
        self.machines.close(CLOSING).await;
        self.host.network.close().await;
    }

    /// What there is.
    pub async fn status(&self) -> Result<Status, Error> {
        let mut machines = BTreeMap::new();
        for handle in self.machines.all() {
            *machines
                .entry(phase_name(&handle.view.borrow().phase))
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

    /// Takes a name away from an image, which goes with its last one unless a machine uses it.
    pub async fn remove_image(&self, reference: &str) -> Result<Removed, Error> {
        registry::remove(&self.host, reference).await
    }

    /// Gives an image another name, which another image may lose by that where `replace` allows it.
    pub async fn tag_image(&self, reference: &str, name: &str, replace: bool) -> Result<Image, Error> {
        registry::tag(&self.host, reference, name, replace).await
    }

    /// Images that meet what is searched for, by name.
    pub async fn find_images(&self, search: &Search) -> Result<Vec<Image>, Error> {
        registry::search(&self.host, search).await
    }

    /// Begins to make an image from a file, which stays the caller's where it is an ext4 file system by itself.
    pub async fn register_image(
        &self,
        name: String,
        path: PathBuf,
        partition: Option<u32>,
        kernel: Option<String>,
        replace: bool,
    ) -> Result<Operation, Error> {
        let source = Source::File { path, partition };
        make::begin(&self.host, "image.register", name, source, kernel, replace).await
    }

    /// Begins to make a bootstrap image.
    pub async fn bootstrap_image(
        &self,
        source: Source,
        name: Option<String>,
        kernel: Option<String>,
        replace: bool,
    ) -> Result<Operation, Error> {
        let name = name.unwrap_or_else(|| source.default_name());
        make::begin(&self.host, "image.bootstrap", name, source, kernel, replace).await
    }

    /// Begins to get an image from a registry. Absent: the reference's name, the default kernel.
    pub async fn pull_image(
        &self,
        reference: &str,
        name: Option<String>,
        kernel: Option<String>,
    ) -> Result<Operation, Error> {
        pull::begin(&self.host, reference, name, kernel).await
    }

    /// Begins to take an image out of an OCI layout or a docker archive.
    pub async fn import_image(&self, import: Import) -> Result<Operation, Error> {
        import::begin(&self.host, import).await
    }

    /// Begins to write an image to a file that is not there yet.
    pub async fn export_image(
        &self,
        reference: &str,
        path: PathBuf,
        format: export::Format,
    ) -> Result<Operation, Error> {
        export::begin(&self.host, reference, path, format).await
    }

    /// Begins to make a registered image Banger's own.
    pub async fn promote_image(&self, reference: &str) -> Result<Operation, Error> {
        promote::begin(&self.host, reference).await
    }

    /// Begins to read images again, those named or all, and to compare them with their digests.
    pub async fn verify_images(&self, references: &[String]) -> Result<Operation, Error> {
        verify::begin(&self.host, references).await
    }

    /// How it stands with the work seeds of these images, of all where none is named.
    pub async fn seeds(&self, references: &[String]) -> Result<Vec<Seed>, Error> {
        seed::show(&self.host, references).await
    }

    /// Makes the work seeds of these images anew, of all where none is named.
    pub async fn refresh_seeds(&self, references: &[String]) -> Result<Vec<Seed>, Error> {
        seed::refresh(&self.host, references).await
    }

    /// Images without name and machine, and blobs that no image needs; unless only asked, they are removed, each with its
    /// outcome.
    pub async fn prune_images(
        &self,
        dry_run: bool,
    ) -> Result<Vec<(Garbage, Option<Result<(), Error>>)>, Error> {
        self.collected(collect::images(&self.host).await?, dry_run).await
    }

    /// All kernels, by name.
    pub async fn kernels(&self) -> Result<Vec<Kernel>, Error> {
        kernels::kernels(&self.host).await
    }

    /// Begins to add a kernel.
    pub async fn add_kernel(&self, name: String, source: KernelSource) -> Result<Operation, Error> {
        kernels::begin_kernel(&self.host, name, source).await
    }

    /// Removes a kernel that nothing uses.
    pub async fn remove_kernel(&self, name: &str) -> Result<Kernel, Error> {
        kernels::remove_kernel(&self.host, name).await
    }

    /// The kernel of images that name none.
    pub async fn default_kernel(&self) -> Result<DefaultKernel, Error> {
        kernels::default_kernel(&self.host).await
    }

    /// Chooses the kernel of images that name none; absent: the configured one again.
    pub async fn set_default_kernel(&self, name: Option<String>) -> Result<DefaultKernel, Error> {
        kernels::set_default(&self.host, name).await
    }

    /// Installed versions of Firecracker, the one in use first.
    pub async fn runtimes(&self) -> Result<Vec<Runtime>, Error> {
        runtime::list(&self.host).await
    }

    /// Begins to install Firecracker.
    pub async fn install_runtime(
        &self,
        source: runtime::Source,
        version: Option<String>,
    ) -> Result<Operation, Error> {
        runtime::begin(&self.host, source, version).await
    }

    /// Removes a version of Firecracker that no machine runs on; the only one, where none is named.
    pub async fn remove_runtime(&self, version: Option<&str>) -> Result<Runtime, Error> {
        runtime::remove(&self.host, version).await
    }

    // ---- machines --------------------------------------------------------------------------------------------------

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
            vm: handle.name(),
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
            vm: handle.name(),
            latency,
            agent_version,
            uptime,
        })
    }

    /// Figures of the machines named, or of all that run. None waits for another.
    pub async fn stats(&self, references: &[String]) -> Result<Vec<VmStats>, Error> {
        stats::of(&self.host, &self.machines, references).await
    }

    /// How a machine fares. That it does not run, or that its guest hangs, is an answer and not an error.
    pub async fn health(&self, reference: &str) -> Result<VmHealth, Error> {
        let handle = self.machines.find(reference)?;
        Ok(health::of(&self.host, &handle).await)
    }

    /// Waits until a guest's init has started everything, for two minutes unless told otherwise; gives the machine's name
    /// and how far its guest has come.
    pub async fn wait_booted(
        &self,
        reference: &str,
        timeout: Option<Duration>,
    ) -> Result<(String, BootState), Error> {
        let timeout = checked_timeout(timeout)?.unwrap_or(BOOTED);
        figures::wait_booted(&self.machines.find(reference)?, timeout).await
    }

    /// The client of a running machine's agent.
    pub fn guest(&self, reference: &str) -> Result<AgentClient, Error> {
        guest::client(&self.machines.find(reference)?)
    }

    /// What the image of a machine says of processes in it: the default of what runs there.
    pub async fn image_config(&self, reference: &str) -> Result<Option<ImageConfig>, Error> {
        let image = self.machines.find(reference)?.view.borrow().row.image.clone();
        config::of_image(&self.host, image).await
    }

    /// What a client of ssh needs: its key, and the host keys of all machines that have one. The machine named gets one.
    pub async fn ssh_identity(&self, vm: Option<&str>) -> Result<SshIdentity, Error> {
        ssh::identity(&self.host, &self.machines, vm).await
    }

    /// Makes the client's key anew; the former opens nothing from the next connection on.
    pub async fn rotate_ssh(&self) -> Result<SshIdentity, Error> {
        ssh::rotate(&self.host, &self.machines).await
    }

    /// The client of a running machine's agent, and what an ssh connection to it begins with.
    pub async fn ssh(&self, reference: &str) -> Result<(AgentClient, proto::SshStart), Error> {
        ssh::start(&self.host, &self.machines, reference).await
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
        let (name, view) = (handle.name(), handle.view);
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
        let found = collect::find(&self.host, collect::When::Running).await?;
        self.collected(found, dry_run).await
    }

    async fn collected(
        &self,
        found: Vec<Garbage>,
        dry_run: bool,
    ) -> Result<Vec<(Garbage, Option<Result<(), Error>>)>, Error> {
        let mut all = Vec::new();
        for piece in found {
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
    pub async fn cancel_operation(&self, id: &str, by: &str) -> Result<Operation, Error> {
        self.host.operations.cancel(id, by).await
    }
}

/// Something that only the state file speaks for: a machine's disks, an image.
fn first_of_what_is_kept(settings: &Settings) -> Option<PathBuf> {
    let machines = crate::vm::state::machines_dir(&settings.state_dir);
    let images = places::images_dir(&settings.state_dir);
    [machines, images]
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten())
        // What begins with a dot is unfinished work.
        .find(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
}

/// A phase's name, as in the contract.
pub(crate) fn phase_name(phase: &Phase) -> &'static str {
    match phase.state() {
        State::Creating => "creating",
        State::Stopped => "stopped",
        State::Starting => "starting",
        // The phase of a machine that is being changed is that of one that runs.
        State::Running | State::Changing => "running",
        State::Stopping => "stopping",
        State::Resetting => "resetting",
        State::Failed => "failed",
        State::Removing => "removing",
    }
}
