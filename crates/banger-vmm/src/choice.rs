//! Which VMM runs the machines of this host: a pure function of what was found.

use crate::virtualization::HostVirtualization;
use crate::vmm::{Accelerator, VmmKind};

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// Whatever is best here.
    #[default]
    Auto,
    /// Firecracker or nothing.
    Firecracker,
    /// QEMU or nothing.
    Qemu,
}

/// What was found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What [`crate::host_virtualization`] says.
    pub virtualization: HostVirtualization,
    /// Whether Firecracker can be started, or else why not.
    pub firecracker: Result<(), String>,
    /// Whether QEMU and its companion can be started, or else why not.
    pub qemu: Result<(), String>,
}

/// What is to be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The VMM.
    pub kind: VmmKind,
    /// What will execute guests.
    pub accelerator: Accelerator,
    /// Why this one, for doctor and the log.
    pub reason: String,
    /// What the user should know, to be said aloud once.
    pub warning: Option<String>,
}

/// Nothing fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("choose a VMM: {reason}")]
pub struct NoChoice {
    /// What is in the way.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

/// Chooses: Firecracker where `/dev/kvm` is truly usable, QEMU with KVM where only Firecracker is missing, QEMU without
/// KVM elsewhere. Where the processor's features are in doubt, `Auto` does not count on KVM, but Firecracker can be
/// pinned: guest kernels exist that run there.
pub fn choose(preference: Preference, facts: &Facts) -> Result<Choice, NoChoice> {
    match preference {
        Preference::Auto => automatic(facts),
        Preference::Firecracker => pinned_firecracker(facts),
        Preference::Qemu => match &facts.qemu {
            Ok(()) => Ok(qemu(facts, "pinned")),
            Err(missing) => Err(NoChoice {
                reason: format!("QEMU is pinned, but {missing}"),
                fix: "install QEMU and vhost-device-vsock, or pin Firecracker: --vmm firecracker".to_owned(),
            }),
        },
    }
}

fn automatic(facts: &Facts) -> Result<Choice, NoChoice> {
    match (&facts.virtualization, &facts.firecracker, &facts.qemu) {
        (HostVirtualization::Usable, Ok(()), _) => Ok(Choice {
            kind: VmmKind::Firecracker,
            accelerator: Accelerator::Kvm,
            reason: "/dev/kvm is usable".to_owned(),
            warning: None,
        }),
        (HostVirtualization::Usable, Err(missing), Ok(())) => Ok(qemu(facts, &format!("Firecracker: {missing}"))),
        (HostVirtualization::Doubtful { reason }, _, Ok(()))
        | (HostVirtualization::Unusable { reason, .. }, _, Ok(())) => Ok(qemu(facts, reason)),
        (HostVirtualization::Usable, Err(firecracker), Err(qemu)) => Err(NoChoice {
            reason: format!("neither VMM can be started: Firecracker: {firecracker}; QEMU: {qemu}"),
            fix: "install Firecracker, or QEMU and vhost-device-vsock".to_owned(),
        }),
        (HostVirtualization::Doubtful { reason }, Ok(()), Err(qemu)) => Err(NoChoice {
            reason: format!("{reason}, and QEMU cannot be started: {qemu}"),
            fix: "install QEMU and vhost-device-vsock, or pin Firecracker with a guest kernel made for such hosts"
                .to_owned(),
        }),
        (HostVirtualization::Doubtful { reason }, Err(_), Err(qemu)) => Err(NoChoice {
            reason: format!("{reason}, and QEMU cannot be started: {qemu}"),
            fix: "install QEMU and vhost-device-vsock".to_owned(),
        }),
        (HostVirtualization::Unusable { reason, fix }, _, Err(qemu)) => Err(NoChoice {
            reason: format!("{reason}, and QEMU cannot be started: {qemu}"),
            fix: format!("install QEMU and vhost-device-vsock, or {fix}"),
        }),
    }
}

fn pinned_firecracker(facts: &Facts) -> Result<Choice, NoChoice> {
    if let Err(missing) = &facts.firecracker {
        return Err(NoChoice {
            reason: format!("Firecracker is pinned, but {missing}"),
            fix: "install Firecracker, or pin QEMU: --vmm qemu".to_owned(),
        });
    }
    let warning = match &facts.virtualization {
        HostVirtualization::Usable => None,
        HostVirtualization::Doubtful { reason } => Some(reason.clone()),
        HostVirtualization::Unusable { reason, fix } => {
            return Err(NoChoice {
                reason: format!("Firecracker is pinned, but {reason}"),
                fix: format!("{fix}; or pin QEMU, which emulates the processor: --vmm qemu"),
            });
        }
    };
    Ok(Choice {
        kind: VmmKind::Firecracker,
        accelerator: Accelerator::Kvm,
        reason: "pinned".to_owned(),
        warning,
    })
}

fn qemu(facts: &Facts, reason: &str) -> Choice {
    let accelerator = accelerator(&facts.virtualization);
    Choice {
        kind: VmmKind::Qemu,
        accelerator,
        reason: reason.to_owned(),
        warning: slow(&facts.virtualization),
    }
}

/// What QEMU uses on such a host.
pub(crate) fn accelerator(virtualization: &HostVirtualization) -> Accelerator {
    match virtualization {
        HostVirtualization::Usable => Accelerator::Kvm,
        HostVirtualization::Doubtful { .. } | HostVirtualization::Unusable { .. } => Accelerator::Tcg,
    }
}

/// Why guests under QEMU are slow on such a host, where they are.
pub(crate) fn slow(virtualization: &HostVirtualization) -> Option<String> {
    let (reason, fix) = match virtualization {
        HostVirtualization::Usable => return None,
        HostVirtualization::Doubtful { reason } => (reason, None),
        HostVirtualization::Unusable { reason, fix } => (reason, Some(fix)),
    };
    let fix = fix
        .map(|fix| format!("; to change that: {fix}"))
        .unwrap_or_default();
    Some(format!(
        "guests are emulated and several times slower than the host: {reason}{fix}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virtualizations() -> [HostVirtualization; 3] {
        [
            HostVirtualization::Usable,
            HostVirtualization::Doubtful {
                reason: "no vmx".to_owned(),
            },
            HostVirtualization::Unusable {
                reason: "no kvm".to_owned(),
                fix: "load it".to_owned(),
            },
        ]
    }

    fn found(there: bool) -> Result<(), String> {
        if there {
            Ok(())
        } else {
            Err("not found".to_owned())
        }
    }

    /// The whole table, written down as a person would.
    #[test]
    fn every_combination() {
        use Preference::{Auto, Firecracker, Qemu};
        let mut table = Vec::new();
        for (virtualization, level) in virtualizations().into_iter().zip(["kvm", "doubt", "none"]) {
            for (firecracker, qemu) in [(true, true), (true, false), (false, true), (false, false)] {
                let facts = Facts {
                    virtualization: virtualization.clone(),
                    firecracker: found(firecracker),
                    qemu: found(qemu),
                };
                let cell = |preference| match choose(preference, &facts) {
                    Ok(choice) => format!(
                        "{}/{}{}",
                        choice.kind,
                        choice.accelerator,
                        if choice.warning.is_some() { "!" } else { "" }
                    ),
                    Err(none) => {
                        assert!(!none.fix.is_empty());
                        "-".to_owned()
                    }
                };
                let have = format!(
                    "{}{}",
                    if firecracker { "F" } else { "" },
                    if qemu { "Q" } else { "" }
                );
                table.push([level.into(), have, cell(Auto), cell(Firecracker), cell(Qemu)].join(" "));
            }
        }
        assert_eq!(
            table,
            [
                "kvm FQ firecracker/kvm firecracker/kvm qemu/kvm",
                "kvm F firecracker/kvm firecracker/kvm -",
                "kvm Q qemu/kvm - qemu/kvm",
                "kvm  - - -",
                "doubt FQ qemu/tcg! firecracker/kvm! qemu/tcg!",
                "doubt F - firecracker/kvm! -",
                "doubt Q qemu/tcg! - qemu/tcg!",
                "doubt  - - -",
                "none FQ qemu/tcg! - qemu/tcg!",
                "none F - - -",
                "none Q qemu/tcg! - qemu/tcg!",
                "none  - - -",
            ]
        );
    }

    #[test]
    fn reasons_name_the_cause() {
        let [usable, _, unusable] = virtualizations();
        let facts = Facts {
            virtualization: usable,
            firecracker: found(false),
            qemu: found(true),
        };
        assert_eq!(
            choose(Preference::Auto, &facts).unwrap().reason,
            "Firecracker: not found"
        );
        let facts = Facts {
            virtualization: unusable,
            firecracker: found(true),
            qemu: found(false),
        };
        let none = choose(Preference::Auto, &facts).unwrap_err();
        assert_eq!(
            none.to_string(),
            "choose a VMM: no kvm, and QEMU cannot be started: not found"
        );
        assert_eq!(none.fix, "install QEMU and vhost-device-vsock, or load it");
    }
}
