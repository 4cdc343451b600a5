//! Which VMM runs a machine: finds the programs, probes each once, chooses by what the host can do.
//!
//! What was found stays; what was missing is looked for again at the next need, so that installing it suffices. So is all
//! when the host's virtualization has changed since, so that loading a module suffices.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_vmm::{
    Facts, Firecracker, HostVirtualization, Passt, Preference, Qemu, QemuPaths, UserNetwork, Vmm, VmmInfo,
    VmmKind, choose, host_virtualization,
};
use hostkit::exec::{ExecError, Tool};
use tokio::sync::Mutex;

use crate::error::{Error, chain};
use crate::runtime::{self, Origin};
use crate::settings::{PasstChoice, Settings, VmmSettings};

/// QEMU's program for this architecture.
const QEMU: &str = "qemu-system-x86_64";

/// A VMM that was looked for.
#[derive(Debug, Clone)]
pub struct FoundVmm {
    /// Which.
    pub kind: VmmKind,
    /// What was found, or why it cannot be used.
    pub info: Result<VmmInfo, String>,
    /// Where it came from, if it was installed here.
    pub origin: Option<Origin>,
}

/// The VMM for a start.
pub(crate) struct Chosen {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) reason: String,
    /// Why guests will be slow.
    pub(crate) slow: Option<String>,
}

type Probed = Result<Arc<dyn Vmm>, String>;

/// What a probe came to, and what it saw: a VMM is asked at its probe what it can do on this host.
struct Probes {
    host: HostVirtualization,
    firecracker: Probed,
    qemu: Probed,
}

/// All VMMs of this host.
pub(crate) struct Vmms {
    settings: VmmSettings,
    /// Where runtimes are installed.
    state: PathBuf,
    directories: Vec<PathBuf>,
    passt: Passt,
    /// Held while probing, so that a VMM is probed once however many starts wait for it.
    probed: Mutex<Option<Probes>>,
}

impl Vmms {
    pub(crate) fn new(settings: &Settings) -> Self {
        let directories = settings.companion_dirs();
        Self {
            settings: settings.vmm.clone(),
            state: settings.state_dir.clone(),
            directories,
            passt: match &settings.network.passt {
                PasstChoice::Off => Passt::Off,
                PasstChoice::At(path) => Passt::At(path.clone()),
                PasstChoice::Auto => Passt::In(settings.tool_dirs()),
            },
            probed: Mutex::new(None),
        }
    }

    /// Finds out what there is, keeping what was found before.
    pub(crate) async fn probe(&self) {
        // What is missing is said when something needs it.
        drop(self.drivers().await);
    }

    async fn drivers(&self) -> (Probed, Probed) {
        self.drivers_on(host_virtualization()).await
    }

    async fn drivers_on(&self, host: HostVirtualization) -> (Probed, Probed) {
        let mut probed = self.probed.lock().await;
        let before = probed.take().filter(|before| before.host == host);
        let (firecracker, qemu) = match before.map(|before| (before.firecracker, before.qemu)) {
            Some((firecracker @ Ok(_), qemu @ Ok(_))) => (firecracker, qemu),
            Some((firecracker @ Ok(_), Err(_))) => (firecracker, self.probe_qemu(&host).await),
            Some((Err(_), qemu @ Ok(_))) => (self.probe_firecracker(&host).await, qemu),
            Some((Err(_), Err(_))) | None => {
                tokio::join!(self.probe_firecracker(&host), self.probe_qemu(&host))
            }
        };
        *probed = Some(Probes {
            host,
            firecracker: firecracker.clone(),
            qemu: qemu.clone(),
        });
        (firecracker, qemu)
    }

    /// Has Firecracker looked for anew: another one is installed, or one is gone.
    pub(crate) async fn forget_firecracker(&self) {
        if let Some(probes) = &mut *self.probed.lock().await {
            probes.firecracker = Err("it was not looked for yet".to_owned());
        }
    }

    /// The configured one; else the installed one; else that of the host.
    async fn probe_firecracker(&self, host: &HostVirtualization) -> Probed {
        let installed = match &self.settings.firecracker {
            Some(_) => None,
            None => runtime::current(&self.state),
        };
        let path = match installed {
            Some(installed) => installed.path,
            None => self.find(runtime::FIRECRACKER, self.settings.firecracker.as_deref())?,
        };
        match Firecracker::probe(&path, host).await {
            Ok(vmm) => Ok(Arc::new(vmm)),
            Err(e) => Err(chain(&e)),
        }
    }

    async fn probe_qemu(&self, host: &HostVirtualization) -> Probed {
        let paths = QemuPaths {
            qemu: self.find(QEMU, self.settings.qemu.as_deref())?,
            vhost_device_vsock: self
                .find("vhost-device-vsock", self.settings.vhost_device_vsock.as_deref())?,
            passt: self.passt.clone(),
        };
        match Qemu::probe(&paths, host).await {
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
        let found = |kind, probed: Probed| {
            let info = probed.map(|vmm| vmm.describe());
            let installed = info.as_ref().ok().and_then(|info| {
                let all = runtime::installed(&self.state).unwrap_or_default();
                all.into_iter().find(|one| one.path == info.path)
            });
            FoundVmm {
                kind,
                info,
                origin: installed.map(|one| one.origin),
            }
        };
        vec![
            found(VmmKind::Firecracker, firecracker),
            found(VmmKind::Qemu, qemu),
        ]
    }

    /// Who would carry the packets of a machine under QEMU in user mode, as far as that is known before one is started.
    pub(crate) async fn user_network(&self) -> Option<UserNetwork> {
        let (_, qemu) = self.drivers().await;
        qemu.ok()?.describe().user_network
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

    /// Why no machine can be started under that one on this host, for who pins it.
    pub(crate) async fn missing(&self, pin: VmmKind) -> Option<String> {
        let reason = self.for_adoption(pin).await.err()?;
        let Error::NoVmm { reason } = reason else {
            return Some(chain(&reason));
        };
        Some(format!(
            "{} is pinned and cannot be used on this host: {reason}; `banger vm set VM --vmm auto` takes the pin away",
            pin.as_str()
        ))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_vmm_is_probed_again_when_the_host_can_do_something_else_than_before() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, says: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            Some(path)
        };
        let vmms = Vmms {
            settings: VmmSettings {
                preference: Preference::Auto,
                firecracker: Some(dir.path().join("none")),
                qemu: program("qemu", "QEMU emulator version 7.2.0"),
                vhost_device_vsock: program("device", "vhost-device-vsock 0.2.0"),
            },
            state: dir.path().to_owned(),
            directories: Vec::new(),
            passt: Passt::Off,
            probed: Mutex::new(None),
        };
        let without = HostVirtualization::Unusable {
            reason: "no module".to_owned(),
            fix: "load one".to_owned(),
        };
        let mut slow = Vec::new();
        for host in [without, HostVirtualization::Usable] {
            let (_, qemu) = vmms.drivers_on(host).await;
            slow.push(qemu.unwrap().describe().slow.is_some());
        }
        assert_eq!(slow, [true, false]);
    }
}
