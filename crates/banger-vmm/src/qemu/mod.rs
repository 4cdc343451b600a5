//! The QEMU driver: `qemu-system-x86_64` with `vhost-device-vsock` beside it, controlled over QMP.
//!
//! ```text
//!   bangerd --qmp.sock------> qemu-system-x86_64 --vhost.sock--> vhost-device-vsock <--vsock.sock-- bangerd
//!                                    `--socket pair--> passt, for a user-mode network, where it works
//! ```
//!
//! Nobody is waited for in the dark. `vhost-device-vsock` takes no descriptor, so its socket is connected to as soon as it listens, and that connection is what QEMU inherits. QEMU does take descriptors,
//! so its control socket is made here, listens before QEMU is started, and stays usable for whichever daemon comes next.
//!
//! Machine type and processor were measured (emulated, Debian's 6.1 cloud kernel, start of QEMU to init, medians on two
//! shared cores): q35 with the ELF kernel 1.85 s, with the `bzImage` 2.4 s (its decompression is emulated too); microvm
//! 1.75 s and 2.0 s, but there 5 of 24 starts hung where the kernel calibrates its clock against the only timer it has,
//! the PIT; of 41 starts of q35 none did. Hence q35, for which every distribution's kernel is made anyway. `-cpu max`
//! and `qemu64` take the same time; `max` has RDRAND, so the guest's random numbers are ready at once.
//!
//! What to know of `vhost-device-vsock` (0.3.0): it has no half-close. When the host shuts down its sending side, the
//! connection ends in both directions, and what the guest has sent and nobody read yet is lost. And it delivers nothing
//! to the host while the guest does not take what the host sends, so whoever reads must not wait for its own writes.

mod argv;
mod message;
mod passt;
mod qmp;
mod tap;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hostkit::exec::Tool;
use hostkit::process::{Detached, command_line};

use crate::check::{self, Limits, SpecProblem};
use crate::choice;
use crate::error::{AdoptError, ControlError, KillError, LaunchError, ProbeError};
use crate::figures::{MachineFigures, Moved};
use crate::files::{connect_when_listening, open_append, remove_socket};
use crate::probe;
use crate::spec::{MachineSpec, Network};
use crate::supervise::{Cleanup, Launching, Supervised};
use crate::virtualization::HostVirtualization;
use crate::vmm::{
    Carrier, Companion, Machine, MachineExit, ProcessLog, ProcessRecord, ProcessRole, RunState, UserNetwork,
    Vmm, VmmInfo, VmmKind,
};
pub use passt::Passt;
use qmp::Qmp;
use tap::TapCounter;

/// How long `vhost-device-vsock` has to listen; it takes milliseconds.
const VSOCK_READY: Duration = Duration::from_secs(10);
/// How long passt has to find the gateway; it takes tens of milliseconds.
const PASST_READY: Duration = Duration::from_secs(10);
/// How long QEMU has to answer; it takes a tenth of a second, and maps a large initramfs before.
const QEMU_READY: Duration = Duration::from_secs(30);
/// How long QEMU may take to list its networks; a cold disk and a loaded host included.
const LISTING: Duration = Duration::from_secs(20);
/// How long figures wait for QEMU's part of them.
const FIGURES: Duration = Duration::from_secs(1);
/// The oldest QEMU whose options are those used here: `-device` takes JSON from 6.2 on.
const OLDEST: (u32, u32) = (6, 2);
/// How long an adopted QEMU may take to let us in. A healthy one needs milliseconds; one that is stopped is adopted
/// without, and only the reason of its end is not learnt unless it answers later.
const ADOPT_CONNECT: Duration = Duration::from_secs(1);

/// Where QEMU's programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuPaths {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// `vhost-device-vsock` of the rust-vmm project, 0.2 or later.
    pub vhost_device_vsock: PathBuf,
    /// `passt`, where it is to be used.
    pub passt: Passt,
}

/// The driver: a probed pair of programs.
#[derive(Debug, Clone)]
pub struct Qemu {
    info: VmmInfo,
    vsock_device: PathBuf,
    passt: Passt,
    networks: Networks,
}

/// Which of the networks that machines without privileges may have this QEMU was built with.
#[derive(Debug, Clone, Copy)]
struct Networks {
    /// Its own.
    slirp: bool,
    /// One over a stream, as passt has it; since 7.2.
    stream: bool,
}

impl Networks {
    /// Asks QEMU: distributions build it with and without libslirp.
    async fn ask(qemu: &Tool) -> Result<Self, ProbeError> {
        let source = match qemu
            .command()
            .args(["-netdev", "help"])
            .timeout(LISTING)
            .run()
            .await
        {
            Ok(output) => return Ok(Self::listed(&output.text())),
            Err(source) => source,
        };
        let program = "qemu-system-x86_64";
        Err(ProbeError::Run { program, source })
    }

    /// One kind a line. `socket` is in every build: without it this is no list, and libslirp the rule.
    fn listed(text: &str) -> Self {
        let has = |kind| text.lines().any(|line| line.trim() == kind);
        Self {
            slirp: has("user") || !has("socket"),
            stream: has("stream"),
        }
    }
}

impl Qemu {
    /// Asks both programs for their versions and settles whether guests run by KVM or are emulated.
    pub async fn probe(paths: &QemuPaths, virtualization: &HostVirtualization) -> Result<Self, ProbeError> {
        let run = |program, source| ProbeError::Run { program, source };
        let qemu = Tool::at(&paths.qemu).map_err(|source| run("qemu-system-x86_64", source))?;
        let device =
            Tool::at(&paths.vhost_device_vsock).map_err(|source| run("vhost-device-vsock", source))?;
        let (version, device_version, networks) = tokio::try_join!(
            probe::version("qemu-system-x86_64", &qemu, "version "),
            probe::version("vhost-device-vsock", &device, "vhost-device-vsock "),
            Networks::ask(&qemu),
        )?;
        if probe::major_minor(&version).is_none_or(|found| found < OLDEST) {
            return Err(ProbeError::TooOld {
                path: paths.qemu.clone(),
                version,
                least: "6.2",
            });
        }
        let info = VmmInfo {
            kind: VmmKind::Qemu,
            path: paths.qemu.clone(),
            version,
            accelerator: choice::accelerator(virtualization),
            slow: choice::slow(virtualization),
            companions: vec![Companion {
                name: "vhost-device-vsock".to_owned(),
                path: paths.vhost_device_vsock.clone(),
                version: device_version,
            }],
            // Found out each time that it is asked for.
            user_network: None,
        };
        Ok(Self {
            info,
            vsock_device: paths.vhost_device_vsock.clone(),
            passt: paths.passt.clone(),
            networks,
        })
    }

    /// The passt that a machine would get, or why it would get none.
    fn find_passt(&self) -> Result<PathBuf, String> {
        let found = self.passt.find()?;
        if self.networks.stream {
            return Ok(found);
        }
        Err(format!(
            "QEMU {} cannot use passt: 7.2 or later can",
            self.info.version
        ))
    }

    /// Starts passt for a machine that would have it. Without one, whatever the reason, QEMU's own network does.
    async fn spawn_passt(
        &self,
        spec: &MachineSpec,
        launching: &mut Launching<'_>,
    ) -> Result<Option<Result<UnixStream, String>>, LaunchError> {
        let Ok(program) = self.find_passt() else {
            return Ok(None);
        };
        let log = passt::log(&spec.runtime_dir);
        let (ours, its) =
            UnixStream::pair().map_err(|source| file_error("make a socket for", &program, source))?;
        let mut passt = Detached::new(program);
        passt.args = passt::arguments(&spec.token, its.as_raw_fd(), &log);
        passt.inherit = vec![its.into()];
        // Until it has its log.
        let stderr = open_append(&spec.log).map_err(|source| file_error("open", &spec.log, source))?;
        passt.stderr = Some(stderr);
        match launching.spawn(ProcessRole::Passt, passt).await {
            Ok(()) => Ok(Some(Ok(ours))),
            Err(error @ LaunchError::Spawn { .. }) => Ok(Some(Err(in_words(&error)))),
            Err(other) => Err(other),
        }
    }

    /// Waits until passt works, or gives it up.
    async fn greet_passt(
        &self,
        spec: &MachineSpec,
        begin: u64,
        stream: UnixStream,
        mac: [u8; 6],
        launching: &mut Launching<'_>,
    ) -> Result<(Option<UnixStream>, UserNetwork), LaunchError> {
        let greeting = async {
            stream.set_nonblocking(true)?;
            let mut wire = tokio::net::UnixStream::from_std(stream)?;
            let greeted = passt::greet(&mut wire, mac).await?;
            let stream = wire.into_std()?;
            stream.set_nonblocking(false)?;
            Ok::<_, std::io::Error>((stream, greeted))
        };
        let role = ProcessRole::Passt;
        let failure = match launching.wait_for(role, PASST_READY, greeting).await {
            Ok(Ok((stream, greeted))) => {
                let note = greeted.loopback_open.then(|| LOOPBACK_OPEN.to_owned());
                let carrier = Carrier::Passt;
                return Ok((Some(stream), UserNetwork { carrier, note }));
            }
            // It hung up, so it ends.
            Ok(Err(error)) => error.to_string(),
            Err(LaunchError::Exited {
                role: ProcessRole::Passt,
                exit,
                ..
            }) => format!("it ended with {exit}"),
            Err(LaunchError::Silent { within, .. }) => {
                format!("it found no gateway within {} s", within.as_secs())
            }
            Err(other) => return Err(other),
        };
        launching.give_up(role).await;
        let words = passt::last_words(&passt::log(&spec.runtime_dir), &spec.log, begin);
        Ok((None, self.slirp(&words.unwrap_or(failure))?))
    }

    /// QEMU's own network, because passt does not work.
    fn slirp(&self, reason: &str) -> Result<UserNetwork, LaunchError> {
        let reason = format!("passt does not work here: {reason}");
        if !self.networks.slirp {
            return Err(LaunchError::Network { reason });
        }
        Ok(UserNetwork {
            carrier: Carrier::Slirp,
            note: Some(reason),
        })
    }

    async fn start(
        &self,
        spec: &MachineSpec,
        launching: &mut Launching<'_>,
    ) -> Result<(Arc<Qmp>, Option<UserNetwork>), LaunchError> {
        let sockets = Sockets::of(spec);
        let open = |path: &Path| open_append(path).map_err(|source| file_error("open", path, source));
        drop(open(&spec.console)?);
        for socket in sockets.all() {
            remove_socket(socket).map_err(|source| file_error("remove the old", socket, source))?;
        }

        let begin = std::fs::metadata(&spec.log).map_or(0, |found| found.len());
        // First, since it takes longer to be ready than the other.
        let carrier = match &spec.network {
            Some(Network::User { mac }) => self
                .spawn_passt(spec, launching)
                .await?
                .map(|passt| (*mac, passt)),
            Some(Network::Tap { .. }) | None => None,
        };

        let mut device = Detached::new(&self.vsock_device);
        device.args = argv::vsock_device(spec, &sockets.vhost);
        device.env = vec![("RUST_LOG".into(), "warn".into())];
        device.stdout = Some(open(&spec.log)?);
        device.stderr = Some(open(&spec.log)?);
        launching.spawn(ProcessRole::VsockDevice, device).await?;
        let vhost = launching
            .wait_for(
                ProcessRole::VsockDevice,
                VSOCK_READY,
                connect_when_listening(&sockets.vhost),
            )
            .await?
            .and_then(|stream| {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                Ok(stream)
            })
            .map_err(|source| file_error("connect to", &sockets.vhost, source))?;

        let (passt, network) = match carrier {
            Some((mac, Ok(stream))) => {
                let (stream, network) = self.greet_passt(spec, begin, stream, mac, launching).await?;
                (stream, Some(network))
            }
            Some((_, Err(reason))) => (None, Some(self.slirp(&reason)?)),
            None => (None, user_network(spec, Carrier::Slirp)),
        };

        let monitor = std::os::unix::net::UnixListener::bind(&sockets.qmp)
            .map_err(|source| file_error("listen on", &sockets.qmp, source))?;
        let mut qemu = Detached::new(&self.info.path);
        qemu.args = argv::qemu(
            spec,
            self.info.accelerator,
            &argv::Descriptors::of(&vhost, &monitor, passt.as_ref()),
        );
        qemu.inherit = vec![vhost.into(), monitor.into()];
        qemu.inherit.extend(passt.map(Into::into));
        qemu.stdout = Some(open(&spec.log)?);
        qemu.stderr = Some(open(&spec.log)?);
        launching.spawn(ProcessRole::Vmm, qemu).await?;

        let qmp = Arc::new(Qmp::new(sockets.qmp));
        // The answer comes from QEMU's main loop, which it enters once every device has been made.
        let state = launching
            .wait_for(ProcessRole::Vmm, QEMU_READY, qmp.status(QEMU_READY))
            .await?;
        match state {
            Ok(_) => Ok((qmp, network)),
            Err(source) => Err(launching.explain(LaunchError::Control { source }).await),
        }
    }

    fn cleanup(spec: &MachineSpec, qmp: &Arc<Qmp>) -> Cleanup {
        let sockets = Sockets::of(spec);
        let qmp = Arc::clone(qmp);
        Cleanup {
            sockets: sockets.all().map(Path::to_owned).into(),
            reason: Box::pin(async move { qmp.last_words().await }),
        }
    }
}

/// What to know of a passt that does not look at what a guest sends to 127.0.0.1.
const LOOPBACK_OPEN: &str =
    "this passt passes on what the guest itself addresses to 127.0.0.1, a newer one does not";

/// The carrier of the machine's packets, if it has such a network.
fn user_network(spec: &MachineSpec, carrier: Carrier) -> Option<UserNetwork> {
    match &spec.network {
        Some(Network::User { .. }) => Some(UserNetwork { carrier, note: None }),
        Some(Network::Tap { .. }) | None => None,
    }
}

/// An error with its causes, for people.
fn in_words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The tap of the machine's card, if it has one.
fn tap(spec: &MachineSpec) -> Option<&str> {
    match &spec.network {
        Some(Network::Tap { name, .. }) => Some(name),
        Some(Network::User { .. }) | None => None,
    }
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> LaunchError {
    LaunchError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The sockets of one machine.
struct Sockets<'a> {
    qmp: PathBuf,
    vhost: PathBuf,
    vsock: &'a Path,
}

impl<'a> Sockets<'a> {
    const QMP: &'static str = "qmp.sock";
    const VHOST: &'static str = "vhost.sock";

    fn of(spec: &'a MachineSpec) -> Self {
        Self {
            qmp: spec.runtime_dir.join(Self::QMP),
            vhost: spec.runtime_dir.join(Self::VHOST),
            vsock: &spec.vsock.socket,
        }
    }

    fn all(&self) -> [&Path; 3] {
        [&self.qmp, &self.vhost, self.vsock]
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn describe(&self) -> VmmInfo {
        let network = |carrier, note| UserNetwork { carrier, note };
        let user_network = match self.find_passt() {
            Ok(_) => Some(network(Carrier::Passt, None)),
            Err(reason) => self.networks.slirp.then(|| network(Carrier::Slirp, Some(reason))),
        };
        VmmInfo {
            user_network,
            ..self.info.clone()
        }
    }

    fn check(&self, spec: &MachineSpec) -> Vec<SpecProblem> {
        check::check(
            spec,
            &Limits {
                // CPUs that q35 addresses without an IOMMU for interrupts; `u8` holds no more anyway.
                vcpus: 255,
                kernel: check::KernelFormats::PvhOrBzImage,
                command_line: &argv::command_line(spec),
                command_line_limit: argv::COMMAND_LINE_LIMIT,
                user_network: match (self.networks.slirp, self.find_passt()) {
                    (true, _) | (false, Ok(_)) => Ok(()),
                    (false, Err(reason)) => Err(check::NoUserNetwork {
                        message: format!("this QEMU has no user-mode network, and {reason}"),
                        hint: "install passt, or a QEMU with libslirp",
                    }),
                },
                sockets: &[Sockets::QMP, Sockets::VHOST],
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
        let tap = match tap(spec) {
            Some(tap) => {
                let counter = TapCounter::begin(tap, &spec.metrics).await;
                Some(counter.map_err(|source| file_error("write", &spec.metrics, source))?)
            }
            None => None,
        };
        let mut launching = Launching::new(log, &spec.log);
        match self.start(spec, &mut launching).await {
            Ok((qmp, network)) => {
                let supervised = launching.supervise(Self::cleanup(spec, &qmp));
                Ok(Arc::new(QemuMachine::new(spec, supervised, qmp, tap, network)))
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
        let qmp = Arc::new(Qmp::new(Sockets::of(spec).qmp));
        let roles = [ProcessRole::Vmm, ProcessRole::VsockDevice];
        let supervised = Supervised::adopt(spec, processes, &roles, Self::cleanup(spec, &qmp))?;
        // Connected early, to hear QEMU's last words; whether it answers is for `control_alive` to say.
        qmp.status(ADOPT_CONNECT).await.ok();
        let tap = tap(spec).map(|tap| TapCounter::adopt(tap, &spec.metrics));
        let carrier = carrier_of(processes);
        Ok(Arc::new(QemuMachine::new(
            spec,
            supervised,
            qmp,
            tap,
            user_network(spec, carrier),
        )))
    }
}

/// Who carries the packets of a machine that runs: its QEMU has been told, and says so in its arguments.
fn carrier_of(processes: &[ProcessRecord]) -> Carrier {
    let vmm = processes.iter().find(|record| record.role == ProcessRole::Vmm);
    let line = vmm.and_then(|record| command_line(record.id));
    match line.is_some_and(|line| argv::is_carried_by_passt(&line.args)) {
        true => Carrier::Passt,
        false => Carrier::Slirp,
    }
}

/// A machine under QEMU.
#[derive(Debug)]
struct QemuMachine {
    supervised: Supervised,
    qmp: Arc<Qmp>,
    disks: Vec<String>,
    /// As of QEMU's last answer.
    moved: Mutex<Moved>,
    tap: Option<TapCounter>,
    network: Option<UserNetwork>,
}

impl QemuMachine {
    fn new(
        spec: &MachineSpec,
        supervised: Supervised,
        qmp: Arc<Qmp>,
        tap: Option<TapCounter>,
        network: Option<UserNetwork>,
    ) -> Self {
        Self {
            supervised,
            qmp,
            disks: spec.disks.iter().map(|disk| disk.id.clone()).collect(),
            moved: Mutex::default(),
            tap,
            network,
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
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
        self.qmp.stop().await
    }

    async fn resume(&self) -> Result<(), ControlError> {
        self.qmp.resume().await
    }

    async fn control_alive(&self) -> Result<RunState, ControlError> {
        self.qmp.status(qmp::PATIENCE).await
    }

    async fn resize_disk(&self, id: &str, bytes: u64) -> Result<(), ControlError> {
        if !self.disks.iter().any(|disk| disk == id) {
            return Err(ControlError::NoDisk { id: id.to_owned() });
        }
        self.qmp.resize(&argv::node_name(id), bytes).await
    }

    async fn figures(&self) -> MachineFigures {
        let answer = self.qmp.moved(FIGURES).await;
        let network = match &self.tap {
            Some(tap) => Some(tap.moved().await),
            None => None,
        };
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(answer) = answer {
            // Two answers may arrive here in the other order.
            *moved = answer.at_least(*moved);
        }
        MachineFigures {
            disk: *moved,
            network,
            ..self.supervised.usage()
        }
    }

    fn stopped_processes(&self) -> Vec<ProcessRole> {
        self.supervised.stopped_processes()
    }

    fn user_network(&self) -> Option<UserNetwork> {
        self.network.clone()
    }

    fn network_lost(&self) -> bool {
        let carrier = self.network.as_ref().map(|network| network.carrier);
        carrier == Some(Carrier::Passt) && !self.supervised.runs(ProcessRole::Passt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_as_qemu_lists_them() {
        let list = |kinds: &str| Networks::listed(&format!("Available netdev backend types:\n{kinds}"));
        let both = list("socket\nstream\ndgram\ntap\nuser\n");
        assert!(both.slirp && both.stream);
        let without = list("socket\nstream\ntap\nvhost-user\n");
        assert!(!without.slirp && without.stream);
        let old = list("socket\ntap\nuser\n");
        assert!(old.slirp && !old.stream);
        let unknown = Networks::listed("what?");
        assert!(unknown.slirp && !unknown.stream);
    }
}
