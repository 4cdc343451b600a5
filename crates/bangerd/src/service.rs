//! The contract's methods. Each validates, converts and delegates to the engine; nothing else happens here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_agent_api::{AgentClient, proto};
use banger_api::contract::{Caller, Events, StreamHandler, openrpc};
use banger_api::types::*;
use banger_api::{RpcError, Service};
use banger_engine::fetch::Pin;
use banger_engine::guest::Command;
use banger_engine::image::build::{Build, Secret};
use banger_engine::image::debian::{DebianOptions, Distribution};
use banger_engine::image::export;
use banger_engine::image::import::Import;
use banger_engine::image::kernels::KernelSource as EngineKernelSource;
use banger_engine::image::make::Source;
use banger_engine::image::registry::Search;
use banger_engine::runtime;
use banger_engine::session::{NewSession, Part};
use banger_engine::{Engine, NewVm, SetVm};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::guest_stream;
use crate::{convert, process, validate};

/// Changes of an operation that may wait for a slow watcher. What changes meanwhile is seen as one change.
const WATCH_QUEUE: usize = 4;

/// What the daemon knows of itself.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The user it runs as.
    pub(crate) owner: u32,
    pub(crate) socket: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) config_file: Option<PathBuf>,
    /// Keys of that file that mean nothing.
    pub(crate) unknown_keys: Vec<String>,
    pub(crate) started: Instant,
}

impl Facts {
    /// What doctor says of the configuration. A value that is wrong keeps the daemon from starting, a key that is wrong
    /// does not: a file may be written for a newer release.
    fn check_configuration(&self) -> Check {
        let file = match &self.config_file {
            Some(path) => path.to_string_lossy().into_owned(),
            None => "none, all defaults".to_owned(),
        };
        let (state, reason, fix) = match self.unknown_keys.as_slice() {
            [] => (CheckState::Ok, file, None),
            keys => {
                let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
                let reason = format!("{file}: unknown and without effect: {}", keys.join(", "));
                let fix = "correct the keys or remove them, then restart the daemon; config.default.toml has every key";
                (CheckState::Warning, reason, Some(fix.to_owned()))
            }
        };
        Check {
            group: "daemon".to_owned(),
            name: "configuration".to_owned(),
            state,
            reason,
            fix,
        }
    }
}

/// The service.
pub(crate) struct Rpc {
    engine: Engine,
    /// Set when the daemon stops; setting it stops the daemon.
    stopping: CancellationToken,
    facts: Arc<Facts>,
}

impl Rpc {
    pub(crate) fn new(engine: Engine, stopping: CancellationToken, facts: Facts) -> Self {
        Self {
            engine,
            stopping,
            facts: Arc::new(facts),
        }
    }

    fn session(&self, vm: String) -> guest_stream::Session {
        guest_stream::Session {
            vm,
            stopping: self.stopping.clone(),
        }
    }

    fn guest(&self, vm: &str) -> Result<AgentClient, RpcError> {
        self.engine.guest(vm).map_err(convert::error)
    }
}

fn seconds(timeout: Option<u32>) -> Option<Duration> {
    timeout.map(|seconds| Duration::from_secs(seconds.into()))
}

impl Service for Rpc {
    // ---- daemon ----------------------------------------------------------------------------------------------------

    async fn daemon_status(&self, _: Caller, Empty {}: Empty) -> Result<DaemonStatus, RpcError> {
        let status = self.engine.status().await.map_err(convert::error)?;
        let (chosen_vmm, chosen_vmm_reason) = match status.chosen {
            Ok((kind, reason)) => (Some(convert::vmm(kind)), reason),
            Err(reason) => (None, reason),
        };
        Ok(DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.facts.started.elapsed().as_secs(),
            socket: self.facts.socket.to_string_lossy().into_owned(),
            state_directory: self.facts.state_dir.to_string_lossy().into_owned(),
            config_file: self
                .facts
                .config_file
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned()),
            config_unknown_keys: self.facts.unknown_keys.clone(),
            memory: process::resident_memory(),
            agent: match status.agent {
                Ok((path, version)) => Component {
                    path: Some(path.to_string_lossy().into_owned()),
                    version: Some(version),
                    problem: None,
                },
                Err(problem) => Component {
                    path: None,
                    version: None,
                    problem: Some(problem),
                },
            },
            vmms: status.vmms.iter().map(convert::found_vmm).collect(),
            chosen_vmm,
            chosen_vmm_reason,
            machines: convert::machines(&status.machines),
            images: u32::try_from(status.images).unwrap_or(u32::MAX),
            operations: u32::try_from(status.operations).unwrap_or(u32::MAX),
        })
    }

    async fn daemon_shutdown(&self, caller: Caller, Empty {}: Empty) -> Result<Empty, RpcError> {
        tracing::info!(uid = caller.uid, pid = caller.pid, "told to stop");
        self.stopping.cancel();
        Ok(Empty {})
    }

    async fn doctor_run(&self, _: Caller, Empty {}: Empty) -> Result<DoctorReport, RpcError> {
        let mut checks = vec![self.facts.check_configuration()];
        checks.extend(self.engine.doctor().await.into_iter().map(convert::check));
        Ok(DoctorReport { checks })
    }

    async fn rpc_discover(&self, _: Caller, Empty {}: Empty) -> Result<serde_json::Value, RpcError> {
        Ok(openrpc())
    }

    // ---- images and kernels ----------------------------------------------------------------------------------------

    async fn image_list(&self, _: Caller, Empty {}: Empty) -> Result<Vec<Image>, RpcError> {
        let images = self.engine.images().await.map_err(convert::error)?;
        Ok(images.into_iter().map(convert::image).collect())
    }

    async fn image_show(&self, _: Caller, params: ImageRef) -> Result<Image, RpcError> {
        self.engine
            .image(&params.image)
            .await
            .map(convert::image)
            .map_err(convert::error)
    }

    async fn image_remove(&self, _: Caller, params: ImageRef) -> Result<Image, RpcError> {
        self.engine
            .remove_image(&params.image)
            .await
            .map(convert::removed_image)
            .map_err(convert::error)
    }

    async fn image_find(&self, _: Caller, params: ImageFind) -> Result<Vec<Image>, RpcError> {
        let ImageFind { name, labels, digest } = params;
        let search = Search {
            pattern: name,
            labels,
            digest,
        };
        let images = self.engine.find_images(&search).await.map_err(convert::error)?;
        Ok(images.into_iter().map(convert::image).collect())
    }

    async fn image_tag(&self, _: Caller, params: ImageTag) -> Result<Image, RpcError> {
        let ImageTag { image, name, replace } = params;
        let tagged = self.engine.tag_image(&image, &name, replace).await;
        tagged.map(convert::image).map_err(convert::error)
    }

    async fn image_register(&self, caller: Caller, params: ImageRegister) -> Result<Operation, RpcError> {
        let ImageRegister {
            name,
            path,
            partition,
            kernel,
            replace,
        } = params;
        let path = validate::host_path(caller, self.facts.owner, "path", path)?;
        let begun = self
            .engine
            .register_image(name, path, partition, kernel, replace)
            .await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_promote(&self, _: Caller, params: ImageRef) -> Result<Operation, RpcError> {
        let begun = self.engine.promote_image(&params.image).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_bootstrap(&self, _: Caller, params: ImageBootstrap) -> Result<Operation, RpcError> {
        let ImageBootstrap {
            source,
            suite,
            mirror,
            packages,
            name,
            kernel,
            replace,
        } = params;
        let source = match source {
            BootstrapSource::Debian => Some(Distribution::Debian),
            BootstrapSource::Ubuntu => Some(Distribution::Ubuntu),
            BootstrapSource::Busybox => None,
        };
        validate::packages(&packages)?;
        let source = match source {
            Some(distribution) => Source::Packages(DebianOptions {
                distribution,
                suite,
                mirror,
                packages,
                ..DebianOptions::default()
            }),
            None if suite.is_some() || mirror.is_some() || !packages.is_empty() => {
                return Err(validate::only_of_packages());
            }
            None => Source::Busybox,
        };
        let begun = self.engine.bootstrap_image(source, name, kernel, replace).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_pull(&self, _: Caller, params: ImagePull) -> Result<Operation, RpcError> {
        let ImagePull {
            reference,
            name,
            kernel,
        } = params;
        let begun = self.engine.pull_image(&reference, name, kernel).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_import(&self, caller: Caller, params: ImageImport) -> Result<Operation, RpcError> {
        let ImageImport {
            path,
            name,
            select,
            kernel,
            replace,
        } = params;
        let import = Import {
            path: validate::host_path(caller, self.facts.owner, "path", path)?,
            name,
            select,
            kernel,
            replace,
        };
        let begun = self.engine.import_image(import).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_build(&self, caller: Caller, params: ImageBuild) -> Result<Operation, RpcError> {
        let ImageBuild {
            name,
            recipe,
            file,
            context,
            base,
            args,
            secrets,
            target,
            no_cache,
            kernel,
            keep_failed,
            vcpus,
            memory,
            disk,
        } = params;
        let context = match context {
            Some(path) => Some(validate::host_path(caller, self.facts.owner, "context", path)?),
            None => None,
        };
        let secret = |(id, value): (String, BuildSecret)| (id, Secret(value.0.into_bytes()));
        let build = Build {
            name,
            recipe,
            file,
            base,
            context,
            args,
            secrets: secrets.into_iter().map(secret).collect(),
            target,
            no_cache,
            kernel,
            keep_failed,
            vcpus,
            memory,
            disk,
        };
        let begun = self.engine.build_image(build).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_build_prune(&self, _: Caller, _: Empty) -> Result<BuildCache, RpcError> {
        let (steps, bytes) = self.engine.prune_builds().await.map_err(convert::error)?;
        Ok(BuildCache { steps, bytes })
    }

    async fn image_export(&self, caller: Caller, params: ImageExport) -> Result<Operation, RpcError> {
        let ImageExport { image, path, format } = params;
        let path = validate::host_path(caller, self.facts.owner, "path", path)?;
        let format = match format {
            ExportFormat::Oci => export::Format::Oci,
            ExportFormat::Tar => export::Format::Tar,
        };
        let begun = self.engine.export_image(&image, path, format).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_verify(&self, _: Caller, params: ImageVerify) -> Result<Operation, RpcError> {
        let begun = self.engine.verify_images(&params.images).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn image_seed_show(&self, _: Caller, params: ImageSeeds) -> Result<Vec<ImageSeed>, RpcError> {
        let seeds = self.engine.seeds(&params.images).await;
        let seeds = seeds.map_err(convert::error)?;
        Ok(seeds.into_iter().map(convert::seed).collect())
    }

    async fn image_seed_refresh(&self, _: Caller, params: ImageSeeds) -> Result<Vec<ImageSeed>, RpcError> {
        let seeds = self.engine.refresh_seeds(&params.images).await;
        let seeds = seeds.map_err(convert::error)?;
        Ok(seeds.into_iter().map(convert::seed).collect())
    }

    async fn image_prune(&self, _: Caller, params: GcRun) -> Result<GcReport, RpcError> {
        let pruned = self.engine.prune_images(params.dry_run).await;
        let garbage = pruned.map_err(convert::error)?;
        Ok(GcReport {
            garbage: garbage.into_iter().map(convert::garbage).collect(),
        })
    }

    async fn kernel_list(&self, _: Caller, Empty {}: Empty) -> Result<Vec<Kernel>, RpcError> {
        let kernels = self.engine.kernels().await.map_err(convert::error)?;
        Ok(kernels.into_iter().map(convert::kernel).collect())
    }

    async fn kernel_add(&self, caller: Caller, params: KernelAdd) -> Result<Operation, RpcError> {
        let KernelAdd { name, source } = params;
        let path = |path| validate::host_path(caller, self.facts.owner, "source", path);
        let source = match source {
            KernelSource::File(file) => EngineKernelSource::File(path(file)?),
            // A package's name has no slash; everything else is a file.
            KernelSource::Debian(package) if package.contains('/') => {
                validate::is_there(&path(package.clone())?)?;
                EngineKernelSource::Debian(package)
            }
            KernelSource::Debian(package) => EngineKernelSource::Debian(package),
            KernelSource::Url { url, sha256 } => {
                EngineKernelSource::Url(Pin::parse(&url, &sha256).map_err(convert::error)?)
            }
        };
        self.engine
            .add_kernel(name, source)
            .await
            .map(convert::operation)
            .map_err(convert::error)
    }

    async fn kernel_remove(&self, _: Caller, params: KernelRef) -> Result<Kernel, RpcError> {
        self.engine
            .remove_kernel(&params.kernel)
            .await
            .map(convert::kernel)
            .map_err(convert::error)
    }

    async fn kernel_default(&self, _: Caller, Empty {}: Empty) -> Result<DefaultKernel, RpcError> {
        let default = self.engine.default_kernel().await;
        default.map(convert::default_kernel).map_err(convert::error)
    }

    async fn kernel_set_default(
        &self,
        _: Caller,
        params: KernelSetDefault,
    ) -> Result<DefaultKernel, RpcError> {
        let default = self.engine.set_default_kernel(params.kernel).await;
        default.map(convert::default_kernel).map_err(convert::error)
    }

    // ---- runtimes --------------------------------------------------------------------------------------------------

    async fn runtime_list(&self, _: Caller, Empty {}: Empty) -> Result<Vec<Runtime>, RpcError> {
        let runtimes = self.engine.runtimes().await.map_err(convert::error)?;
        Ok(runtimes.into_iter().map(convert::runtime).collect())
    }

    async fn runtime_install(&self, caller: Caller, params: RuntimeInstall) -> Result<Operation, RpcError> {
        let RuntimeInstall {
            runtime: RuntimeKind::Firecracker,
            source,
            version,
        } = params;
        validate::may_install(caller, self.facts.owner)?;
        let source = match source {
            RuntimeSource::File { path, sha256 } => {
                let path = validate::host_path(caller, self.facts.owner, "path", path)?;
                runtime::Source::file(path, sha256.as_deref()).map_err(convert::error)?
            }
            RuntimeSource::Url { url, sha256 } => {
                runtime::Source::Url(Pin::parse(&url, &sha256).map_err(convert::error)?)
            }
        };
        let begun = self.engine.install_runtime(source, version).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn runtime_remove(&self, caller: Caller, params: RuntimeRef) -> Result<Runtime, RpcError> {
        let RuntimeRef {
            runtime: RuntimeKind::Firecracker,
            version,
        } = params;
        validate::may_install(caller, self.facts.owner)?;
        let removed = self.engine.remove_runtime(version.as_deref()).await;
        removed.map(convert::runtime).map_err(convert::error)
    }

    // ---- machines --------------------------------------------------------------------------------------------------

    async fn vm_create(&self, _: Caller, params: VmCreate) -> Result<Operation, RpcError> {
        let VmCreate {
            name,
            image,
            vcpus,
            memory,
            disk,
            kernel,
            vmm,
            labels,
            start,
            ephemeral,
            system_disk,
            work_disk,
            nat,
            autostart,
            restart,
            expires,
            allow,
            publish,
        } = params;
        let new = NewVm {
            name,
            image,
            vcpus,
            memory: memory.map(validate::memory).transpose()?,
            disk,
            kernel,
            vmm: vmm.map(convert::vmm_of),
            labels,
            start,
            ephemeral,
            system_disk: system_disk.map(convert::system_disk_of),
            work_disk,
            nat,
            autostart,
            restart: convert::restart_of(restart),
            expires,
            allow: convert::allow_of(&allow),
            publish: validate::publish(&publish)?,
            build: None,
        };
        self.engine
            .create_vm(new)
            .await
            .map(convert::operation)
            .map_err(convert::error)
    }

    async fn vm_list(&self, _: Caller, params: VmList) -> Result<Vec<Vm>, RpcError> {
        let vms = self.engine.vms(&params.labels).await.map_err(convert::error)?;
        Ok(vms.into_iter().map(convert::vm).collect())
    }

    async fn vm_show(&self, _: Caller, params: VmRef) -> Result<Vm, RpcError> {
        self.engine
            .vm(&params.vm)
            .await
            .map(convert::vm)
            .map_err(convert::error)
    }

    async fn vm_start(&self, _: Caller, params: VmStart) -> Result<Operation, RpcError> {
        let begun = self
            .engine
            .start_vm(&params.vm, seconds(params.timeout_seconds))
            .await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn vm_stop(&self, _: Caller, params: VmStop) -> Result<Operation, RpcError> {
        let begun = self
            .engine
            .stop_vm(&params.vm, seconds(params.timeout_seconds))
            .await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn vm_kill(&self, _: Caller, params: VmRef) -> Result<Operation, RpcError> {
        self.engine
            .kill_vm(&params.vm)
            .await
            .map(convert::operation)
            .map_err(convert::error)
    }

    async fn vm_remove(&self, _: Caller, params: VmRemove) -> Result<Operation, RpcError> {
        let begun = self.engine.remove_vm(&params.vm, params.force).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn vm_ports(&self, _: Caller, params: VmRef) -> Result<VmPorts, RpcError> {
        let ports = self.engine.ports(&params.vm).await.map_err(convert::error)?;
        Ok(convert::ports(ports, Timestamp::now()))
    }

    async fn vm_publish(&self, _: Caller, params: VmPublish) -> Result<Vec<Publication>, RpcError> {
        let wanted = validate::publish(&params.ports)?;
        let published = self.engine.publish(&params.vm, &wanted).await;
        let published = published.map_err(convert::error)?;
        Ok(published.into_iter().map(convert::published).collect())
    }

    async fn vm_unpublish(&self, _: Caller, params: VmUnpublish) -> Result<Vec<Publication>, RpcError> {
        let which = convert::unpublish_of(params.ports);
        let gone = self.engine.unpublish(&params.vm, &which).await;
        let gone = gone.map_err(convert::error)?;
        Ok(gone.into_iter().map(convert::publication).collect())
    }

    async fn session_start(&self, _: Caller, params: SessionStart) -> Result<Session, RpcError> {
        let SessionStart {
            vm,
            name,
            command,
            env,
            workdir,
            user,
            ends_machine,
        } = params;
        let command = Command {
            argv: command,
            env,
            workdir,
            user,
        };
        validate::command(&command)?;
        let new = NewSession {
            name,
            command,
            ends_machine,
        };
        let started = self.engine.start_session(&vm, new).await;
        started.map(convert::session).map_err(convert::error)
    }

    async fn session_list(&self, _: Caller, params: SessionsOf) -> Result<Vec<Session>, RpcError> {
        let sessions = self.engine.sessions(params.vm.as_deref()).await;
        let sessions = sessions.map_err(convert::error)?;
        Ok(sessions.into_iter().map(convert::session).collect())
    }

    async fn session_show(&self, _: Caller, params: SessionRef) -> Result<Session, RpcError> {
        let session = self.engine.session(&params.vm, &params.session).await;
        session.map(convert::session).map_err(convert::error)
    }

    async fn session_wait(&self, _: Caller, params: SessionRef) -> Result<Session, RpcError> {
        let ended = self.engine.wait_session(&params.vm, &params.session).await;
        ended.map(convert::session).map_err(convert::error)
    }

    async fn session_signal(&self, _: Caller, params: SessionSignal) -> Result<Empty, RpcError> {
        let SessionSignal { vm, session, signal } = params;
        validate::signal(signal)?;
        let sent = self.engine.signal_session(&vm, &session, signal).await;
        sent.map(|()| Empty {}).map_err(convert::error)
    }

    async fn session_remove(&self, _: Caller, params: SessionRemove) -> Result<Session, RpcError> {
        let SessionRemove { vm, session, force } = params;
        let removed = self.engine.remove_session(&vm, &session, force).await;
        removed.map(convert::session).map_err(convert::error)
    }

    async fn net_status(&self, _: Caller, Empty {}: Empty) -> Result<NetStatus, RpcError> {
        let status = self.engine.network().await;
        status.map(convert::network::status).map_err(convert::error)
    }

    async fn vm_ping(&self, _: Caller, params: VmRef) -> Result<VmPing, RpcError> {
        self.engine
            .ping_vm(&params.vm)
            .await
            .map(convert::ping)
            .map_err(convert::error)
    }

    async fn vm_restart(&self, _: Caller, params: VmRestart) -> Result<Operation, RpcError> {
        let begun = self
            .engine
            .restart_vm(&params.vm, seconds(params.timeout_seconds))
            .await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn vm_set(&self, _: Caller, params: VmSet) -> Result<VmSetReply, RpcError> {
        let VmSet {
            vm,
            vcpus,
            memory,
            disk,
            work_disk,
            kernel,
            vmm,
            labels,
            nat,
            allow,
            autostart,
            restart,
            expires,
            no_expiry,
        } = params;
        let set = SetVm {
            vcpus,
            memory: memory.map(validate::memory).transpose()?,
            disk,
            work_disk,
            kernel,
            vmm: vmm.map(convert::pin_of),
            labels,
            nat,
            allow: allow.as_ref().map(convert::allow_of),
            autostart,
            restart: restart.map(convert::restart_of),
            expires: validate::expiry(expires, no_expiry)?,
        };
        let done = self.engine.set_vm(&vm, set).await.map_err(convert::error)?;
        Ok(VmSetReply {
            vm: convert::vm(done.vm),
            changes: done.changes.into_iter().map(convert::change).collect(),
            notices: done.notices,
        })
    }

    async fn vm_reset(&self, _: Caller, params: VmReset) -> Result<Operation, RpcError> {
        let VmReset { vm, image, force } = params;
        let begun = self.engine.reset_vm(&vm, image.as_deref(), force).await;
        begun.map(convert::operation).map_err(convert::error)
    }

    async fn vm_rename(&self, _: Caller, params: VmRename) -> Result<Vm, RpcError> {
        let VmRename { vm, name } = params;
        let renamed = self.engine.rename_vm(&vm, name).await;
        renamed.map(convert::vm).map_err(convert::error)
    }

    async fn vm_preflight(&self, _: Caller, params: VmRef) -> Result<VmPreflight, RpcError> {
        let preflight = self.engine.preflight_vm(&params.vm).await;
        preflight.map(convert::preflight).map_err(convert::error)
    }

    async fn vm_stats(&self, _: Caller, params: VmStatsOf) -> Result<Vec<VmStats>, RpcError> {
        let stats = self.engine.stats(&params.vms).await.map_err(convert::error)?;
        Ok(stats.into_iter().map(convert::stats).collect())
    }

    async fn vm_health(&self, _: Caller, params: VmRef) -> Result<VmHealth, RpcError> {
        let health = self.engine.health(&params.vm).await.map_err(convert::error)?;
        Ok(convert::health(health))
    }

    async fn vm_wait(&self, _: Caller, params: VmWait) -> Result<VmWaited, RpcError> {
        let VmWait { vm, timeout_seconds } = params;
        let waited = self.engine.wait_booted(&vm, seconds(timeout_seconds)).await;
        let (vm, state) = waited.map_err(convert::error)?;
        let boot = convert::boot_state(state);
        Ok(VmWaited { vm, boot })
    }

    async fn gc_run(&self, _: Caller, params: GcRun) -> Result<GcReport, RpcError> {
        let garbage = self.engine.gc(params.dry_run).await.map_err(convert::error)?;
        Ok(GcReport {
            garbage: garbage.into_iter().map(convert::garbage).collect(),
        })
    }

    // ---- operations ------------------------------------------------------------------------------------------------

    async fn op_list(&self, _: Caller, Empty {}: Empty) -> Result<Vec<Operation>, RpcError> {
        let operations = self.engine.operations().await.map_err(convert::error)?;
        Ok(operations.into_iter().map(convert::operation).collect())
    }

    async fn op_show(&self, _: Caller, params: OperationRef) -> Result<Operation, RpcError> {
        self.engine
            .operation(&params.operation)
            .await
            .map(convert::operation)
            .map_err(convert::error)
    }

    async fn op_cancel(&self, caller: Caller, params: OperationRef) -> Result<Operation, RpcError> {
        let by = convert::caller(&caller);
        let cancelled = self.engine.cancel_operation(&params.operation, &by).await;
        cancelled.map(convert::operation).map_err(convert::error)
    }

    async fn op_watch(&self, _: Caller, params: OperationRef) -> Result<Events<Operation>, RpcError> {
        let mut changes = self
            .engine
            .watch_operation(&params.operation)
            .await
            .map_err(convert::error)?;
        let (sender, events) = mpsc::channel(WATCH_QUEUE);
        tokio::spawn(async move {
            loop {
                let operation = convert::operation(changes.borrow_and_update().clone());
                let ended = operation.state.ended();
                // An error means that the watcher has gone.
                if sender.send(Ok(operation)).await.is_err() || ended {
                    return;
                }
                tokio::select! {
                    // Cancel-safe: a change that was not seen is there the next time.
                    changed = changes.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(events)
    }

    // ---- guest -----------------------------------------------------------------------------------------------------

    async fn ssh_identity(&self, _: Caller, params: SshIdentityOf) -> Result<SshIdentity, RpcError> {
        let identity = self.engine.ssh_identity(params.vm.as_deref()).await;
        identity.map(convert::ssh_identity).map_err(convert::error)
    }

    async fn ssh_rotate(&self, _: Caller, Empty {}: Empty) -> Result<SshIdentity, RpcError> {
        let identity = self.engine.rotate_ssh().await;
        identity.map(convert::ssh_identity).map_err(convert::error)
    }

    async fn guest_ssh(&self, _: Caller, params: SshOpen) -> Result<StreamHandler, RpcError> {
        let SshOpen { vm } = params;
        let (client, start) = self.engine.ssh(&vm).await.map_err(convert::error)?;
        let (input, output) = client
            .ssh(start)
            .await
            .map_err(|e| convert::agent_error(&vm, &e))?;
        let session = self.session(vm);
        Ok(Box::new(|stream| Box::pin(session.ssh(stream, input, output))))
    }

    async fn guest_exec(&self, _: Caller, params: ExecOpen) -> Result<StreamHandler, RpcError> {
        let ExecOpen {
            vm,
            command,
            env,
            workdir,
            user,
            stdin,
            terminal,
        } = params;
        let command = Command {
            argv: command,
            env,
            workdir,
            user,
        };
        validate::command(&command)?;
        terminal.as_ref().map_or(Ok(()), validate::terminal)?;
        // What the caller does not say, the machine's image does.
        let image = self.engine.image_config(&vm).await.map_err(convert::error)?;
        let start = proto::ExecStart {
            stdin,
            terminal: terminal.map(|Terminal { term, rows, columns }| proto::Terminal {
                term,
                size: Some(proto::TerminalSize {
                    rows: rows.into(),
                    cols: columns.into(),
                }),
            }),
            ..command.start(image.unwrap_or_default())
        };
        let client = self.guest(&vm)?;
        let (input, output) = client
            .exec(start)
            .await
            .map_err(|e| convert::agent_error(&vm, &e))?;
        let session = self.session(vm);
        Ok(Box::new(|stream| Box::pin(session.exec(stream, input, output))))
    }

    async fn guest_upload(&self, _: Caller, params: UploadOpen) -> Result<StreamHandler, RpcError> {
        let UploadOpen {
            vm,
            path,
            contents_only,
            keep_owner,
        } = params;
        validate::guest_path("path", &path)?;
        let start = proto::UploadStart {
            path,
            user: String::new(),
            keep_owner,
            contents_only,
        };
        let upload = self.guest(&vm)?.upload(start);
        let session = self.session(vm);
        Ok(Box::new(|stream| Box::pin(session.upload(stream, upload))))
    }

    async fn guest_download(&self, _: Caller, params: DownloadOpen) -> Result<StreamHandler, RpcError> {
        let DownloadOpen {
            vm,
            path,
            follow_link,
        } = params;
        validate::guest_path("path", &path)?;
        let request = proto::DownloadRequest {
            path,
            user: String::new(),
            follow_link,
        };
        let client = self.guest(&vm)?;
        let download = client
            .download(request)
            .await
            .map_err(|e| convert::agent_error(&vm, &e))?;
        let session = self.session(vm);
        Ok(Box::new(|stream| Box::pin(session.download(stream, download))))
    }

    async fn image_build_log(&self, _: Caller, params: BuildLog) -> Result<StreamHandler, RpcError> {
        let BuildLog { operation, follow } = params;
        let chunks = self.engine.build_log(&operation, follow).await;
        let chunks = chunks.map_err(convert::error)?;
        let session = self.session(operation);
        Ok(Box::new(|stream| Box::pin(session.logs(stream, chunks))))
    }

    async fn session_logs(&self, _: Caller, params: SessionLogs) -> Result<StreamHandler, RpcError> {
        let SessionLogs {
            vm,
            session,
            follow,
            tail,
            since,
        } = params;
        let part = Part { tail, since, follow };
        let pieces = self.engine.session_logs(&vm, &session, part).await;
        let pieces = pieces.map_err(convert::error)?;
        let session = self.session(vm);
        Ok(Box::new(|stream| Box::pin(session.session_logs(stream, pieces))))
    }

    async fn vm_logs(&self, _: Caller, params: LogsOpen) -> Result<StreamHandler, RpcError> {
        let LogsOpen { vm, follow, tail } = params;
        let chunks = self.engine.logs(&vm, tail, follow).map_err(convert::error)?;
        let session = self.session(vm);
        Ok(Box::new(|stream| Box::pin(session.logs(stream, chunks))))
    }
}
