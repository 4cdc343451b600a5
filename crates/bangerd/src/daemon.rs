//! The daemon's life: engine, socket, server; then, told to stop, the same in reverse.
//!
//! ```text
//! open the engine → bind the socket → READY=1 → serve … until SIGTERM, SIGINT or daemon.shutdown
//! STOPPING=1 → streams are told → accept no more → calls finish → close the engine (operations clean up)
//!   → remove the socket → release the lock
//! ```
//! A second signal skips what is left: the lock and the ledger make that safe.

use std::sync::Arc;

use banger_api::server::{Access, BindError, Server, bind};
use banger_engine::{
    Engine, NetworkMode, NetworkSettings, OpenError, Settings, SystemDiskKind, VmDefaults, VmmSettings,
};
use banger_vmm::Preference;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Loaded, NetworkChoice, SystemDiskChoice, VmmChoice};
use crate::directories::{Directories, Environment};
use crate::lock::Lock;
use crate::service::{Facts, Rpc};

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The engine.
    #[error("open the state directory")]
    Engine(#[source] Box<OpenError>),
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The signals.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
    /// A second signal came while the daemon was stopping.
    #[error("stop in order: told again to stop")]
    Impatient,
}

impl RunError {
    /// What to try.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Bind(BindError::PathTooLong { .. }) => {
                Some("name a shorter one with --socket or --runtime-dir")
            }
            Self::Bind(BindError::NotASocket { .. }) => Some("remove it, or name another with --socket"),
            Self::Bind(BindError::Served { .. }) => {
                Some("another daemon with another state directory uses it; name another with --socket")
            }
            Self::Bind(BindError::Io { .. }) => {
                Some("check the directory's permissions, or name another with --socket")
            }
            Self::Engine(_) | Self::Signals(_) | Self::Impatient => None,
        }
    }
}

/// What the daemon was started with.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) directories: Directories,
    pub(crate) group: Option<u32>,
    pub(crate) loaded: Loaded,
    pub(crate) environment: Environment,
}

/// The signals that stop the daemon.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one; says which.
    async fn next(&mut self) -> &'static str {
        // Cancel-safe, both: a signal that has come stays pending until received.
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

impl Daemon {
    /// Runs until told to stop. The lock is held throughout.
    pub(crate) async fn run(self, mut lock: Lock) -> Result<(), RunError> {
        let mut signals = StopSignals::new().map_err(RunError::Signals)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tracing::info!("SIGHUP ignored: the configuration is read when the daemon starts");
            }
        });

        let engine = tokio::select! {
            opened = Engine::open(self.settings()) => opened.map_err(|e| RunError::Engine(Box::new(e)))?,
            // Dropping it half-way is what a daemon's death is, which the next start deals with.
            name = signals.next() => {
                tracing::info!(signal = name, "stopped while starting");
                return Ok(());
            }
        };
        // Dropped at the very end, which removes the file; whatever fails on the way removes it too.
        let (listener, socket) = bind(&self.directories.socket, self.group)?;
        let stopping = CancellationToken::new();
        let service = Arc::new(Rpc::new(engine.clone(), stopping.clone(), self.facts()));
        let server = Server::new(Access::of_this_process(self.group));
        let serving = tokio::spawn(server.serve(listener, service, stopping.clone().cancelled_owned()));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            socket = %socket.path().display(),
            state_directory = %self.directories.state.display(),
            "ready"
        );
        notify(&NotifyState::Ready);

        let reason = tokio::select! {
            name = signals.next() => name,
            () = stopping.cancelled() => "daemon.shutdown",
        };
        tracing::info!(reason, "stopping");
        notify(&NotifyState::Stopping);
        lock.announce_stop();
        stopping.cancel();
        let end = async {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the server failed");
            }
            engine.close().await;
        };
        tokio::select! {
            () = end => {}
            // Dropping the end half-way is what a daemon's death is, which the next start deals with.
            name = signals.next() => {
                tracing::warn!(signal = name, "told again to stop; leaving the rest to the next start");
                return Err(RunError::Impatient);
            }
        }
        tracing::info!("stopped");
        Ok(())
    }

    fn settings(&self) -> Settings {
        let config = &self.loaded.config;
        let path =
            |path: &Option<crate::config::units::AbsolutePath>| path.as_ref().map(|path| path.0.clone());
        Settings {
            state_dir: self.directories.state.clone(),
            space_floor: config.daemon.space_floor.0,
            runtime_dir: self.directories.runtime.clone(),
            libexec: self.environment.libexec(),
            path: self.environment.path(),
            agent: path(&config.agent.path),
            vmm: VmmSettings {
                preference: match config.vmm.choice {
                    VmmChoice::Auto => Preference::Auto,
                    VmmChoice::Firecracker => Preference::Firecracker,
                    VmmChoice::Qemu => Preference::Qemu,
                },
                firecracker: path(&config.vmm.firecracker),
                qemu: path(&config.vmm.qemu),
                vhost_device_vsock: path(&config.vmm.vhost_device_vsock),
            },
            network: NetworkSettings {
                mode: match config.network.mode {
                    NetworkChoice::Auto => NetworkMode::Auto,
                    NetworkChoice::Bridge => NetworkMode::Bridge,
                    NetworkChoice::User => NetworkMode::User,
                },
                bridge: config.network.bridge.0.clone(),
                subnet: config.network.subnet.0,
                pool: config.network.pool.0,
                passt: config.network.passt.0.clone(),
            },
            vm: VmDefaults {
                vcpus: config.vm.vcpus.get(),
                memory: config.vm.memory.0,
                disk: config.vm.disk.0,
                system_disk: match config.vm.system_disk {
                    SystemDiskChoice::Auto => None,
                    SystemDiskChoice::Overlay => Some(SystemDiskKind::Overlay),
                    SystemDiskChoice::Reflink => Some(SystemDiskKind::Reflink),
                    SystemDiskChoice::Dm => Some(SystemDiskKind::Dm),
                },
                work_disk: config.vm.work_disk.0,
                start_timeout: config.vm.start_timeout.0,
                stop_timeout: config.vm.stop_timeout.0,
            },
            default_kernel: config.kernel.default.clone(),
            seed_template: config.seed.template.clone().map(|path| path.0),
            registries: config.registries(
                self.environment.docker_config(),
                self.environment.path.clone(),
                self.environment.proxies.clone(),
            ),
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            owner: self.environment.uid,
            socket: self.directories.socket.clone(),
            state_dir: self.directories.state.clone(),
            config_file: self.loaded.file.clone(),
            unknown_keys: self.loaded.unknown_keys.clone(),
            started: std::time::Instant::now(),
        }
    }
}

/// Tells the service manager, where there is one (sd_notify(3)).
fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
