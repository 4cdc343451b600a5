//! Which VMM runs a machine: finds the programs, probes each once, chooses by what the host can do.
//!
//! What was found stays; what was missing is looked for again at the next need, so that installing it suffices.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_vmm::{
    Facts, Firecracker, Preference, Qemu, QemuPaths, Vmm, VmmInfo, VmmKind, choose, host_virtualization,
};
use hostkit::exec::{ExecError, Tool};
use tokio::sync::Mutex;

use crate::error::{Error, chain};
use crate::settings::{Settings, VmmSettings};

/// QEMU's program for this architecture.
const QEMU: &str = "qemu-system-x86_64";

/// A VMM that was looked for.
#[derive(Debug, Clone)]
pub struct FoundVmm {
    /// Which.
    pub kind: VmmKind,
    /// What was found, or why it cannot be used.
    pub info: Result<VmmInfo, String>,
}

/// The VMM for a start.
pub(crate) struct Chosen {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) reason: String,
    /// Why guests will be slow.
    pub(crate) slow: Option<String>,
}

type Probed = Result<Arc<dyn Vmm>, String>;

/// All VMMs of this host.
pub(crate) struct Vmms {
    settings: VmmSettings,
    directories: Vec<PathBuf>,
    /// Held while probing, so that a VMM is probed once however many starts wait for it.
    probed: Mutex<Option<(Probed, Probed)>>,
}

impl Vmms {
    pub(crate) fn new(settings: &Settings) -> Self {
        let directories = settings.companion_dirs();
        Self {
            settings: settings.vmm.clone(),
            directories,
            probed: Mutex::new(None),
        }
    }

    /// Finds out what there is, keeping what was found before.
    pub(crate) async fn probe(&self) {
        // What is missing is said when something needs it.
        drop(self.drivers().await);
    }

    async fn drivers(&self) -> (Probed, Probed) {
        let mut probed = self.probed.lock().await;
        let (firecracker, qemu) = match probed.take() {
            Some((firecracker @ Ok(_), qemu @ Ok(_))) => (firecracker, qemu),
            Some((firecracker @ Ok(_), Err(_))) => (firecracker, self.probe_qemu().await),
            Some((Err(_), qemu @ Ok(_))) => (self.probe_firecracker().await, qemu),
            Some((Err(_), Err(_))) | None => tokio::join!(self.probe_firecracker(), self.probe_qemu()),
        };
        *probed = Some((firecracker.clone(), qemu.clone()));
        (firecracker, qemu)
    }

    async fn probe_firecracker(&self) -> Probed {
        let path = self.find("firecracker", self.settings.firecracker.as_deref())?;
        match Firecracker::probe(&path, &host_virtualization()).await {
            Ok(vmm) => Ok(Arc::new(vmm)),
            Err(e) => Err(chain(&e)),
        }
    }

    async fn probe_qemu(&self) -> Probed {
        let paths = QemuPaths {
            qemu: self.find(QEMU, self.settings.qemu.as_deref())?,
            vhost_device_vsock: self
                .find("vhost-device-vsock", self.settings.vhost_device_vsock.as_deref())?,
        };
        match Qemu::probe(&paths, &host_virtualization()).await {
            Ok(vmm) => Ok(Arc::new(vmm)),
            Err(e) => Err(chain(&e)),
        }
    }

    fn find(&self, name: &str, configured: Option<&Path>) -> Result<PathBuf, String> {
        let found = match configured {
            Some(path) => Tool::at(path),
            None => Tool::find(name, &self.directories),
        };
        found.map(|tool| tool.path().to_owned()).map_err(|e| match e {
            ExecError::NotFound { name, looked } => {
                let looked: Vec<_> = looked.iter().map(|dir| dir.display().to_string()).collect();
                format!("{name} was not found in {}", looked.join(", "))
            }
            // `Tool` only looks: whatever it says is that the program is not there or cannot be run.
            ExecError::Start { .. }
            | ExecError::Io { .. }
            | ExecError::Failed { .. }
            | ExecError::TimedOut { .. }
            | ExecError::TooMuchOutput { .. } => chain(&e),
        })
    }

    /// What was looked for.
    pub(crate) async fn found(&self) -> Vec<FoundVmm> {
        let (firecracker, qemu) = self.drivers().await;
        let found = |kind, probed: Probed| FoundVmm {
            kind,
            info: probed.map(|vmm| vmm.describe()),
        };
        vec![
            found(VmmKind::Firecracker, firecracker),
            found(VmmKind::Qemu, qemu),
        ]
    }

    /// The VMM for a start: the machine's own pin before the configured one before what the host suggests.
    pub(crate) async fn choose(&self, pin: Option<VmmKind>) -> Result<Chosen, Error> {
        let (firecracker, qemu) = self.drivers().await;
        let facts = Facts {
            virtualization: host_virtualization(),
            firecracker: firecracker.as_ref().map(drop).map_err(Clone::clone),
            qemu: qemu.as_ref().map(drop).map_err(Clone::clone),
        };
        let preference = match pin {
            Some(VmmKind::Firecracker) => Preference::Firecracker,
            Some(VmmKind::Qemu) => Preference::Qemu,
            None => self.settings.preference,
        };
        let choice = choose(preference, &facts).map_err(|no| Error::NoVmm {
            reason: format!("{} (fix: {})", no.reason, no.fix),
        })?;
        let probed = match choice.kind {
            VmmKind::Firecracker => firecracker,
            VmmKind::Qemu => qemu,
        };
        let vmm = probed.map_err(|reason| Error::NoVmm { reason })?;
        Ok(Chosen {
            vmm,
            reason: choice.reason,
            slow: choice.warning,
        })
    }

    /// The driver that launched a machine which may run still, whatever would be chosen today.
    pub(crate) async fn for_adoption(&self, kind: VmmKind) -> Result<Arc<dyn Vmm>, Error> {
        let (firecracker, qemu) = self.drivers().await;
        let probed = match kind {
            VmmKind::Firecracker => firecracker,
            VmmKind::Qemu => qemu,
        };
        probed.map_err(|reason| Error::NoVmm { reason })
    }
}
