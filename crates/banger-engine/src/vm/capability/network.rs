//! The guest's network: a tap on the host's bridge with an address of the machine's own, or, without privileges, a
//! user-mode network, outbound only, which passt carries or QEMU itself. Under Firecracker there is nothing without privileges, and without them a machine
//! without NAT gets no card at all; on the bridge it gets one whose way out is closed.
//!
//! On the bridge `prepare` takes a tap that is there already. `launched` asks for rules without waiting for them; until they
//! are in force, everything from the tap is dropped. `started` waits. Before the VMM runs nothing is asked for: programs and
//! durable writes for what the guest needs at its first packet would only take their time from the launch.

use std::sync::Arc;

use banger_vmm::{Carrier, MachineSpec, Network, UserNetwork, VmmKind};

use super::{Capability, Start};
use crate::doctor::Check;
use crate::error::{Error, chain};
use crate::host::Host;
use crate::net::allow::Allow;
use crate::net::hands::Hands;
use crate::net::scene::Scene;
use crate::net::{self, Mode, bridge, prerequisites};

/// The addresses of the user-mode network (QEMU's manual, "Using the user mode network stack"; passt is given the same): guest with prefix,
/// gateway, DNS server.
const GUEST: &str = "eth0,10.0.2.15/24,10.0.2.2,10.0.2.3";

/// Where a guest looks for a name without a dot: the zone of the DNS server on the bridge.
const SEARCH: &str = "vm";

pub(crate) struct GuestNetwork;

#[async_trait::async_trait]
impl Capability for GuestNetwork {
    fn name(&self) -> &'static str {
        "network"
    }

    async fn check(&self, start: &Start<'_>) -> Vec<Check> {
        let network = &start.host.network;
        if let Mode::User(why) = network.mode() {
            return vec![self.check_user(start, why).await];
        }
        let mut checks = vec![match network.obstacle().await {
            Some(obstacle) => Check::failure(self.name(), "bridge", obstacle.to_string(), obstacle.fix()),
            None => match network.standing().problem {
                Some(problem) => {
                    let fix = "see banger doctor and the daemon's log; `mode = \"user\"` under `[network]` does without a bridge";
                    Check::failure(self.name(), "bridge", problem, fix)
                }
                None => Check::fine(self.name(), "bridge", network.settings().bridge.clone()),
            },
        }];
        checks.push(match network.leased(&start.row.id, &start.row.name).await {
            Ok(Some(address)) => Check::fine(self.name(), "address", address.to_string()),
            Ok(None) => Check::fine(self.name(), "address", "leased when it starts"),
            Err(e) => {
                let report = e.report();
                Check::failure(
                    self.name(),
                    "address",
                    report.message,
                    report.hint.unwrap_or_default(),
                )
            }
        });
        checks.push(match start.row.nat {
            true => Check::fine(
                self.name(),
                "nat",
                "the guest reaches the internet by the host's address",
            ),
            false => Check::fine(
                self.name(),
                "nat",
                "none: the guest reaches nothing beyond the host",
            ),
        });
        checks
    }

    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error> {
        let network = &start.host.network;
        match network.mode() {
            Mode::User(_) => Ok(()),
            Mode::Bridge => {
                let address = network.lease(&start.row.id, &start.row.name).await?;
                // Kept for `contribute`, which cannot ask.
                start.address.get_or_init(|| address);
                if let Some(mtu) = bridge::narrowest().await {
                    start.mtu.get_or_init(|| mtu);
                }
                network.take_tap(&start.row.id).await.map(drop)
            }
        }
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        let network = &start.host.network;
        if let Some(tap) = network.tap_of(&start.row.id) {
            spec.network = Some(Network::Tap {
                name: tap,
                mac: net::mac(&start.row.id),
            });
            // Absent when adopting, where nothing boots.
            if let Some(address) = start.address.get() {
                let subnet = network.settings().subnet;
                let (prefix, gateway) = (subnet.prefix(), subnet.gateway());
                // The bridge passes no IPv6, so the guest is better off without.
                let mut parameter = format!(
                    "banger.net=eth0,{address}/{prefix},{gateway},{gateway},search={SEARCH},inet6=off"
                );
                if let Some(mtu) = start.mtu.get() {
                    parameter.push_str(&format!(",mtu={mtu}"));
                }
                spec.boot.args.push(parameter);
            }
            return;
        }
        match (network.mode(), start.vmm) {
            // Before its tap is taken: the specification is looked at again with it.
            (Mode::Bridge, _) if !start.adopts => {}
            (_, VmmKind::Qemu) if start.row.nat => {
                spec.network = Some(Network::User {
                    mac: net::mac(&start.row.id),
                });
                spec.boot.args.push(format!("banger.net={GUEST}"));
            }
            (_, VmmKind::Qemu | VmmKind::Firecracker) => {}
        }
    }

    fn launched(&self, start: &Start<'_>) {
        start.host.network.changed();
    }

    async fn started(&self, start: &Start<'_>) {
        let network = &start.host.network;
        if network.tap_of(&start.row.id).is_none() {
            let allow = Allow::of(&start.row.allow);
            if allow != Allow::default() {
                start.notice(format!(
                    "allow {allow} has no effect: it is a matter of the host's bridge, which this machine is not on"
                ));
            }
            return;
        }
        if let Err(reason) = network.applied(&start.row.id).await {
            let text = format!("the guest's network is closed: {reason}");
            tracing::error!(vm = start.row.name, reason, "the guest's network is closed");
            start.notice(text);
        }
    }

    async fn doctor(&self, host: &Arc<Host>) -> Vec<Check> {
        let (network, group) = (&host.network, prerequisites::GROUP);
        let settings = network.settings();
        let shown = format!("a bridge, {} with {}", settings.bridge, settings.subnet);
        let mut checks = vec![match network.mode() {
            Mode::Bridge => Check::fine(group, "mode", shown),
            Mode::User(why) => Check::fine(group, "mode", format!("without privileges, user mode: {why}")),
        }];
        // What a bridge would need is of interest where there is none because of that.
        for missing in prerequisites::missing(network.hands()) {
            checks.push(Check::warning(group, missing.name, missing.reason, missing.fix));
        }
        if *network.mode() != Mode::Bridge {
            // Without a QEMU nobody carries packets, which is said where QEMU is.
            let carried = host.vmms.user_network().await;
            checks.extend(carried.map(|network| Check::fine(group, "user network", in_words(&network))));
            return checks;
        }
        let standing = network.standing();
        match network.obstacle().await {
            Some(obstacle) => checks.push(Check::failure(
                group,
                "bridge",
                obstacle.to_string(),
                obstacle.fix(),
            )),
            None => checks.push(clash(host).await),
        }
        if let Some(problem) = standing.problem {
            let fix = "see the daemon's log; it is tried again at the next change";
            checks.push(Check::failure(group, "rules", problem, fix));
        }
        checks.push(prerequisites::forwarding(standing.forwarding));
        checks.extend(net::dns::checks(&network.dns(), settings.subnet.gateway()));
        checks.extend(prerequisites::other_rules(network.hands(), &settings.bridge).await);
        checks
    }
}

impl GuestNetwork {
    async fn check_user(&self, start: &Start<'_>, why: &str) -> Check {
        match (start.row.nat, start.vmm) {
            (false, VmmKind::Qemu | VmmKind::Firecracker) => {
                Check::fine(self.name(), "nat", "none: the guest has its loopback only")
            }
            (true, VmmKind::Qemu) => {
                let network = start.host.vmms.user_network().await;
                let whose =
                    network.map_or_else(|| "user-mode network".to_owned(), |network| in_words(&network));
                let text = format!("{whose}: the guest reaches what this host reaches");
                Check::fine(self.name(), "nat", text)
            }
            (true, VmmKind::Firecracker) => Check::warning(
                self.name(),
                "nat",
                format!(
                    "Firecracker has no network without privileges ({why}): the guest has its loopback only"
                ),
                "run it with QEMU where it needs a network: --vmm qemu",
            ),
        }
    }
}

/// A user-mode network, for people.
fn in_words(UserNetwork { carrier, note }: &UserNetwork) -> String {
    let whose = match carrier {
        Carrier::Passt => "passt",
        Carrier::Slirp => "QEMU's own user-mode network",
    };
    match note {
        Some(note) => format!("{whose} ({note})"),
        None => whose.to_owned(),
    }
}

/// A network that came up after the bridge, such as a VPN's.
async fn clash(host: &Host) -> Check {
    let (settings, group) = (host.network.settings(), prerequisites::GROUP);
    let look = async { Ok::<_, Error>(Scene::look(&Hands::links()?).await) };
    match look.await {
        Ok(Ok(scene)) => match scene.clash(settings) {
            Some(obstacle) => Check::warning(group, "bridge", obstacle.to_string(), obstacle.fix()),
            None => Check::fine(group, "bridge", format!("{} is up", settings.bridge)),
        },
        Ok(Err(e)) => Check::warning(group, "bridge", chain(&e), "see the daemon's log"),
        Err(e) => Check::warning(group, "bridge", chain(&e), "see the daemon's log"),
    }
}
