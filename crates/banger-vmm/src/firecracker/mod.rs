//! The Firecracker driver: one process for a machine, described and controlled over its API socket.
//!
//! The machine is described by API requests rather than by `--config-file`, although that would save six round trips on
//! a Unix socket, some milliseconds: a request that Firecracker refuses is answered with the reason, and the answer to
//! the last one says that the guest runs. With a file the reason is somewhere in the log, among other lines, and is lost
//! altogether if somebody asks the API for the state meanwhile: the API's thread then panics and takes the process along
//! before the message is written (seen with 1.12.1).
//!
//! The guest's serial console is the process's standard output; its own messages go to the log, errors from before the
//! log is open included (standard error). Firecracker ends when the guest resets.
//!
//! The jailer is not used: it needs root, and belongs with the privileged helper.

mod api;
mod config;
mod http;
mod metrics;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hostkit::exec::Tool;
use hostkit::process::Detached;

use crate::check::{self, Limits, SpecProblem};
use crate::error::{AdoptError, ControlError, KillError, LaunchError, ProbeError};
use crate::figures::MachineFigures;
use crate::files::{open_append, remove_socket};
use crate::probe;
use crate::spec::{Disk, MachineSpec};
use crate::supervise::{Cleanup, Launching, Supervised};
use crate::virtualization::HostVirtualization;
use crate::vmm::{
    Accelerator, Machine, MachineExit, ProcessLog, ProcessRecord, ProcessRole, RunState, UserNetwork, Vmm,
    VmmInfo, VmmKind,
};
use api::Api;
use config::Config;
use metrics::Metrics;

/// How long Firecracker has to start the guest and answer; it takes a tenth of a second where KVM is what it should be.
const READY: Duration = Duration::from_secs(60);
/// How long figures wait for Firecracker's part of them.
const FIGURES: Duration = Duration::from_secs(1);
/// The oldest supported version: ACPI tables, without which distribution kernels do not find the devices.
const OLDEST: (u32, u32) = (1, 8);

/// The driver: a probed program.
#[derive(Debug, Clone)]
pub struct Firecracker {
    info: VmmInfo,
}

impl Firecracker {
    /// Asks the program at `path` for its version.
    pub async fn probe(
        path: impl Into<PathBuf>,
        virtualization: &HostVirtualization,
    ) -> Result<Self, ProbeError> {
        let path = path.into();
        let tool = Tool::at(&path).map_err(|source| ProbeError::Run {
            program: "firecracker",
            source,
        })?;
        let version = probe::version("firecracker", &tool, "Firecracker ").await?;
        if probe::major_minor(&version).is_none_or(|found| found < OLDEST) {
            return Err(ProbeError::TooOld {
                path,
                version,
                least: "1.8",
            });
        }
        let slow = match virtualization {
            HostVirtualization::Usable => None,
            HostVirtualization::Doubtful { reason } | HostVirtualization::Unusable { reason, .. } => {
                Some(reason.clone())
            }
        };
        let info = VmmInfo {
            kind: VmmKind::Firecracker,
            path,
            version,
            accelerator: Accelerator::Kvm,
            slow,
            companions: Vec::new(),
            user_network: None,
        };
        Ok(Self { info })
    }

    async fn start(&self, spec: &MachineSpec, launching: &mut Launching<'_>) -> Result<Api, LaunchError> {
        let file_error = |action, path: &Path, source| LaunchError::File {
            action,
            path: path.to_owned(),
            source,
        };
        let open = |path: &Path| open_append(path).map_err(|source| file_error("open", path, source));
        let sockets = Sockets::of(spec);
        for socket in sockets.all() {
            remove_socket(socket).map_err(|source| file_error("remove the old", socket, source))?;
        }
        // It exists before Firecracker is told to write there, and is this run's alone: its lines are summed up.
        drop(open(&spec.metrics)?);
        std::fs::File::options()
            .write(true)
            .truncate(true)
            .open(&spec.metrics)
            .map_err(|source| file_error("empty", &spec.metrics, source))?;

        let mut process = Detached::new(&self.info.path);
        process.args = arguments(spec, &sockets);
        process.stdout = Some(open(&spec.console)?);
        process.stderr = Some(open(&spec.log)?);
        launching.spawn(ProcessRole::Vmm, process).await?;

        let api = Api::new(sockets.api);
        let config = Config::of(spec);
        match launching
            .wait_for(ProcessRole::Vmm, READY, api.start(&spec.token, &config))
            .await?
        {
            Ok(()) => Ok(api),
            Err(source) => Err(launching.explain(LaunchError::Control { source }).await),
        }
    }

    fn cleanup(spec: &MachineSpec) -> Cleanup {
        let sockets = Sockets::of(spec).all().map(Path::to_owned).into();
        // Firecracker gives no reason but its exit code.
        Cleanup {
            sockets,
            reason: Box::pin(async { None }),
        }
    }
}

/// The sockets of one machine.
struct Sockets<'a> {
    api: PathBuf,
    vsock: &'a Path,
}

impl<'a> Sockets<'a> {
    const API: &'static str = "api.sock";

    fn of(spec: &'a MachineSpec) -> Self {
        Self {
            api: spec.runtime_dir.join(Self::API),
            vsock: &spec.vsock.socket,
        }
    }

    fn all(&self) -> [&Path; 2] {
        [&self.api, self.vsock]
    }
}

fn arguments(spec: &MachineSpec, sockets: &Sockets<'_>) -> Vec<std::ffi::OsString> {
    let mut args: Vec<std::ffi::OsString> = vec!["--id".into(), spec.token.clone().into()];
    for (option, path) in [
        ("--api-sock", sockets.api.as_path()),
        ("--log-path", &spec.log),
        ("--metrics-path", &spec.metrics),
    ] {
        args.push(option.into());
        args.push(path.into());
    }
    args.extend(["--level", "Info", "--show-level"].map(Into::into));
    args
}

#[async_trait]
impl Vmm for Firecracker {
    fn kind(&self) -> VmmKind {
        VmmKind::Firecracker
    }

    fn describe(&self) -> VmmInfo {
        self.info.clone()
    }

    fn check(&self, spec: &MachineSpec) -> Vec<SpecProblem> {
        check::check(
            spec,
            &Limits {
                // MAX_SUPPORTED_VCPUS of Firecracker's vmm_config/machine_config.rs.
                vcpus: 32,
                kernel: check::KernelFormats::Elf,
                command_line: &config::command_line(spec),
                command_line_limit: config::command_line_limit(spec),
                user_network: Err(check::NoUserNetwork {
                    message: "Firecracker has no user-mode network".to_owned(),
                    hint: "use QEMU, or start the machine without a network",
                }),
                sockets: &[Sockets::API],
            },
        )
    }

    async fn launch(
        &self,
        spec: &MachineSpec,
        log: &dyn ProcessLog,
    ) -> Result<Arc<dyn Machine>, LaunchError> {
        let problems = self.check(spec);
        if !problems.is_empty() {
            return Err(LaunchError::Spec { problems });
        }
        let mut launching = Launching::new(log, &spec.log);
        match self.start(spec, &mut launching).await {
            Ok(api) => {
                let supervised = launching.supervise(Self::cleanup(spec));
                Ok(Arc::new(FirecrackerMachine::new(spec, supervised, api)))
            }
            Err(error) => {
                launching.abandon().await;
                Err(error)
            }
        }
    }

    async fn adopt(
        &self,
        spec: &MachineSpec,
        processes: &[ProcessRecord],
    ) -> Result<Arc<dyn Machine>, AdoptError> {
        let supervised = Supervised::adopt(spec, processes, &[ProcessRole::Vmm], Self::cleanup(spec))?;
        let api = Api::new(Sockets::of(spec).api);
        Ok(Arc::new(FirecrackerMachine::new(spec, supervised, api)))
    }
}

/// A machine under Firecracker.
#[derive(Debug)]
struct FirecrackerMachine {
    supervised: Supervised,
    api: Api,
    disks: Vec<Disk>,
    has_network: bool,
    metrics: Arc<Metrics>,
}

impl FirecrackerMachine {
    fn new(spec: &MachineSpec, supervised: Supervised, api: Api) -> Self {
        Self {
            supervised,
            api,
            disks: spec.disks.clone(),
            has_network: spec.network.is_some(),
            metrics: Arc::new(Metrics::new(&spec.metrics)),
        }
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
    fn processes(&self) -> Vec<ProcessRecord> {
        self.supervised.processes()
    }

    async fn exited(&self) -> MachineExit {
        self.supervised.exited().await
    }

    async fn kill(&self) -> Result<(), KillError> {
        self.supervised.kill().await
    }

    async fn pause(&self) -> Result<(), ControlError> {
        self.api.pause().await
    }

    async fn resume(&self) -> Result<(), ControlError> {
        self.api.resume().await
    }

    async fn control_alive(&self) -> Result<RunState, ControlError> {
        self.api.state().await
    }

    async fn resize_disk(&self, id: &str, _bytes: u64) -> Result<(), ControlError> {
        let disk = self.disks.iter().find(|disk| disk.id == id);
        let disk = disk.ok_or_else(|| ControlError::NoDisk { id: id.to_owned() })?;
        // Paths that are not UTF-8 have been refused at launch.
        let path = disk.path.to_str().unwrap_or_default();
        self.api.refresh_drive(id, path).await
    }

    async fn figures(&self) -> MachineFigures {
        // What was written before counts, whether this succeeds or not.
        drop(tokio::time::timeout(FIGURES, self.api.flush_metrics()).await);
        let metrics = Arc::clone(&self.metrics);
        // Only fails when the runtime shuts down.
        let sum = tokio::task::spawn_blocking(move || metrics.sum())
            .await
            .unwrap_or_default();
        MachineFigures {
            disk: sum.disk,
            network: self.has_network.then_some(sum.network),
            ..self.supervised.usage()
        }
    }

    fn stopped_processes(&self) -> Vec<ProcessRole> {
        self.supervised.stopped_processes()
    }

    fn user_network(&self) -> Option<UserNetwork> {
        None
    }

    fn network_lost(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use hostkit::process::{CommandLine, ProcessId};

    use super::*;
    use crate::check::tests::spec;

    #[test]
    fn arguments_name_every_file_and_the_machine() {
        let spec = spec(Path::new("/d"));
        let args = arguments(&spec, &Sockets::of(&spec));
        let text: Vec<_> = args.iter().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(
            text.join(" "),
            "--id bgrabc0123456 --api-sock /d/api.sock --log-path /d/vmm.log \
             --metrics-path /d/metrics.json --level Info --show-level"
        );
        let mut with_name = args.clone();
        with_name.insert(0, "firecracker".into());
        let line = CommandLine {
            id: ProcessId {
                pid: 1,
                start_time: 1,
            },
            uid: 0,
            args: with_name,
        };
        assert_eq!(crate::identify(&line), Some((spec.token, ProcessRole::Vmm)));
    }
}
