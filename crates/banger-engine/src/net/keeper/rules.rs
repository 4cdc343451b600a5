//! The rules in force: those that the machines need, put back when somebody else has changed them.
//!
//! Between somebody's `nft flush ruleset` and our rules a guest could reach what it must not. So the machines' ports are
//! closed in the bridge at the kernel's word of it, a request of netlink each, and opened again when the rules are back. What
//! passes is what was sent within a millisecond or so, and nothing from one isolated port to another; while the keeper is at
//! something else, until it has done that: it asks before each tap that it makes, but not while the kernel or `nft` is at work.

use hostkit::link::LinkError;
use hostkit::nft::{Family, Nft};
use tokio::time::Instant;

use super::{Keeper, Machine, PACE};
use crate::error::{Error, chain};
use crate::ledger::{Object, Owner};
use crate::net::allow::Allow;
use crate::net::filter::{self, Port, State};
use crate::net::hands::Hands;
use crate::net::scene::Scene;
use crate::net::{Bridge, mac};

const BOTH: [Family; 2] = [Family::Bridge, Family::Inet];

fn fail(action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Host {
        action,
        source: source.into(),
    }
}

impl Keeper {
    /// Puts the rules in force, where they are others than those that are.
    pub(super) async fn rules(&mut self, bridge: &Bridge, machines: &[Machine]) -> Result<(), Error> {
        let network = self.network.clone();
        let settings = &network.settings;
        let scene = Scene::look(&Hands::links()?)
            .await
            .map_err(|e| fail("look at the host's networks", e))?;
        let ports = self.ports(machines);
        let forwards = ports.iter().any(|port| port.nat || port.allow.lan);
        let script = filter::render(&State {
            bridge: settings.bridge.clone(),
            owner: network.hands.alias.to_string(),
            subnet: settings.subnet,
            ports,
            on_link: scene.on_link(&settings.bridge),
        });
        let nft = network.hands.nft()?;
        let table = filter::table(&settings.bridge);
        if self.applied.as_ref() != Some(&script) || !self.are_there(&nft, &table).await? {
            let entered = network.ledger.objects(&Owner::Host).await?;
            let mut made = Vec::new();
            for family in BOTH {
                let object = Object::Table {
                    family: family.as_str().to_owned(),
                    name: table.clone(),
                };
                if !entered.contains(&object) {
                    made.push(network.ledger.enter(&Owner::Host, &object).await?);
                }
            }
            let applied = nft.apply(&script).await;
            applied.map_err(|e| fail("apply the rules for machines", e))?;
            self.watch.was_ours();
            for entered in made {
                entered.made();
            }
            self.applied = Some(script);
        }
        if !self.are_open {
            let opened = set_open(self, bridge, true).await;
            opened.map_err(|e| fail("open the machines' ports", e))?;
            self.are_open = true;
        }
        self.forwarding(forwards).await
    }

    /// Nothing passes any more until the rules are in force again.
    pub(super) async fn shut(&mut self) {
        self.are_open = false;
        self.applied = None;
        let bridge = self.network.bridge.borrow().clone();
        // Without a bridge of ours the rules are another daemon's, or nobody's.
        let Some(bridge) = bridge else { return };
        match set_open(self, &bridge, false).await {
            Ok(()) => {}
            Err(e) => tracing::error!(error = chain(&e), "machines' ports stay open without rules"),
        }
        tracing::warn!("the rules for machines were changed by somebody else; they are put back");
        if let Some(restored) = self.restored {
            tokio::time::sleep_until(restored + PACE).await;
        }
        self.restored = Some(Instant::now());
    }

    /// Whether both tables are there; where changes are told, only now and then.
    async fn are_there(&mut self, nft: &Nft, table: &str) -> Result<bool, Error> {
        if self.watch.hears_rules() && !self.thorough {
            return Ok(true);
        }
        let there = nft.tables().await.map_err(|e| fail("look at the rules", e))?;
        self.thorough = false;
        let is_there = |family: Family| {
            there
                .iter()
                .any(|found| found.name == table && found.family == family.as_str())
        };
        Ok(BOTH.into_iter().all(is_there))
    }

    fn ports(&self, machines: &[Machine]) -> Vec<Port> {
        let used = self.network.hands.pool.used();
        let port = |machine: &Machine| {
            Some(Port {
                tap: used.get(&machine.row.id)?.clone(),
                mac: mac(&machine.row.id),
                address: machine.address,
                nat: machine.row.nat,
                allow: Allow::of(&machine.row.allow),
            })
        };
        machines.iter().filter_map(port).collect()
    }
}

/// Lets frames pass at all ports of the bridge that have somebody at their other end, or none. One that cannot be dealt with
/// keeps no other from it; the first error is told.
async fn set_open(keeper: &Keeper, bridge: &Bridge, open: bool) -> Result<(), Error> {
    let links = Hands::links()?;
    let done: Result<(), LinkError> = async {
        let mut first = Ok(());
        for link in links.list().await? {
            let is_port = link.master == Some(bridge.index) && link.carrier;
            if is_port && keeper.network.hands.pool.is_tap(&link.name) {
                first = match links.set_forwarding(link.index, open).await {
                    // It went meanwhile, and passes nothing.
                    Ok(()) | Err(LinkError::NoLink { .. }) => first,
                    Err(e) => first.and(Err(e)),
                };
            }
        }
        first
    }
    .await;
    done.map_err(|e| fail("open or close machines' ports", e))
}
