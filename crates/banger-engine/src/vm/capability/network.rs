//! The network without privileges: QEMU's user-mode network, outbound only. Firecracker has none, and a machine without
//! NAT gets no card at all.

use banger_vmm::{MachineSpec, Network, VmmKind};

use super::{Capability, Start};
use crate::doctor::Check;

/// The addresses of QEMU's user-mode network (QEMU's manual, "Using the user mode network stack"): guest with prefix,
/// gateway, DNS server.
const GUEST: &str = "eth0,10.0.2.15/24,10.0.2.2,10.0.2.3";

pub(crate) struct UserNetwork;

#[async_trait::async_trait]
impl Capability for UserNetwork {
    fn name(&self) -> &'static str {
        "network"
    }

    async fn check(&self, start: &Start<'_>) -> Vec<Check> {
        let check = match (start.row.nat, start.vmm) {
            (false, VmmKind::Qemu | VmmKind::Firecracker) => {
                Check::fine(self.name(), "nat", "none: the guest has its loopback only")
            }
            (true, VmmKind::Qemu) => Check::fine(
                self.name(),
                "nat",
                "QEMU's user-mode network: the guest reaches what this host reaches",
            ),
            (true, VmmKind::Firecracker) => Check::warning(
                self.name(),
                "nat",
                "Firecracker has no network without privileges: the guest has its loopback only",
                "run it with QEMU where it needs a network: --vmm qemu",
            ),
        };
        vec![check]
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        match start.vmm {
            VmmKind::Qemu if start.row.nat => {
                spec.network = Some(Network::User {
                    mac: mac(&start.row.id),
                });
                spec.boot.args.push(format!("banger.net={GUEST}"));
            }
            VmmKind::Qemu | VmmKind::Firecracker => {}
        }
    }
}

/// A locally administered unicast address (IEEE 802, second-lowest bit of the first octet) that stays with the machine.
fn mac(id: &str) -> [u8; 6] {
    let digest = hostkit::digest::Digest::of_bytes(id.as_bytes());
    let bytes = digest.as_bytes();
    [0x02, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_mac_is_local_unicast_and_stays() {
        let mac = super::mac("abcdefghij");
        assert_eq!(mac[0] & 0b11, 0b10);
        assert_eq!(mac, super::mac("abcdefghij"));
        assert_ne!(mac, super::mac("abcdefghik"));
    }
}
