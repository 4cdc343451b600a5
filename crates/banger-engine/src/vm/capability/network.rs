//! The network without privileges: QEMU's user-mode network, outbound only. Firecracker has none.

use banger_vmm::{MachineSpec, Network, VmmKind};

use super::{Capability, Start};
use crate::error::{Error, Problem};

/// The addresses of QEMU's user-mode network (QEMU's manual, "Using the user mode network stack"): guest with prefix,
/// gateway, DNS server.
const GUEST: &str = "eth0,10.0.2.15/24,10.0.2.2,10.0.2.3";

pub(crate) struct UserNetwork;

#[async_trait::async_trait]
impl Capability for UserNetwork {
    async fn check(&self, _start: &Start<'_>) -> Vec<Problem> {
        Vec::new()
    }

    async fn prepare(&self, _start: &Start<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        match start.vmm.kind() {
            VmmKind::Qemu => {
                spec.network = Some(Network::User {
                    mac: mac(&start.row.id),
                });
                spec.boot.args.push(format!("banger.net={GUEST}"));
            }
            VmmKind::Firecracker => {}
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
