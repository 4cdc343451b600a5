//! The task that keeps the host's network: it alone makes and removes links and rules, one thing after the other, so that
//! nothing here is locked and a burst of changes is one set of rules.
//!
//! ```text
//!   a change, a tap taken or given back, now and then
//!     -> the bridge, where it is not up
//!     -> names; rules, where they are others than before; forwarding
//!     -> taps: what is missing, what is too many
//! ```
//! It never ends by itself: what cannot be done is said, and tried again at the next change or half a minute later.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use banger_store::vms::VmRow;
use hostkit::link::{LinkError, Links};
use hostkit::nft::Family;
use hostkit::{sysctl, tap};

use super::allow::Allow;
use super::bridge::{self, Scene};
use super::filter::{self, Port, State};
use super::hands::Hands;
use super::names::Named;
use super::prerequisites::{self, FORWARD};
use super::{Bridge, Mode, Network, Obstacle, mac};
use crate::error::{Error, chain};
use crate::ledger::{Object, Owner};

/// Between two looks while machines are connected: somebody may have flushed the rules, a VPN come up.
const LOOK: Duration = Duration::from_secs(30);

/// See the module.
pub(super) async fn run(network: Arc<Network>) {
    let mut keeper = Keeper {
        applied: None,
        isolated: HashMap::new(),
        network,
    };
    let mut changes = keeper.network.changes.subscribe();
    loop {
        let wanted = *changes.borrow_and_update();
        keeper.look(wanted).await;
        let pool = keeper.network.hands.pool.clone();
        let standing = keeper.network.standing();
        let connected = standing.connected > 0 || standing.obstacle.is_some() || standing.problem.is_some();
        // All are cancel-safe: a change is a number that stays, a notification that nobody waits for is kept.
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = pool.changed() => {}
            () = keeper.network.again.notified() => {}
            () = tokio::time::sleep(LOOK), if connected && keeper.network.mode == Mode::Bridge => {}
        }
    }
}

struct Keeper {
    network: Arc<Network>,
    /// The rules in force.
    applied: Option<String>,
    /// Which taps are kept from each other, as far as that was set.
    isolated: HashMap<String, bool>,
}

/// A machine with its address, as it is now.
struct Machine {
    row: VmRow,
    address: Ipv4Addr,
}

impl Keeper {
    /// Brings everything into agreement once.
    async fn look(&mut self, wanted: u64) {
        let machines = match self.machines().await {
            Ok(machines) => machines,
            Err(e) => {
                self.stands(wanted, false, None, Some(chain(&e)));
                return;
            }
        };
        let named = machines.iter().map(|m| Named {
            name: m.row.name.clone(),
            address: m.address,
            guests: Allow::of(&m.row.allow).guests,
            out: m.row.nat || Allow::of(&m.row.allow).lan,
        });
        self.network.names.publish(named.collect());
        match self.network.mode {
            Mode::User(_) => {
                // Of a daemon that had a bridge.
                self.network.take_down().await;
                self.stands(wanted, true, None, None);
            }
            Mode::Bridge => {
                let bridge = match self.bridge().await {
                    Ok(bridge) => bridge,
                    Err(obstacle) => {
                        self.network.bridge.send_if_modified(|up| up.take().is_some());
                        let told = self.network.standing().obstacle;
                        if told.as_ref() != Some(&obstacle) {
                            tracing::error!(reason = %obstacle, fix = obstacle.fix(), "no bridge for machines");
                        }
                        self.stands(wanted, false, Some(obstacle), None);
                        return;
                    }
                };
                let rules = self.rules(&machines).await;
                let rest = match &rules {
                    Ok(()) => {
                        // Not before: a tap without rules is open.
                        self.network.hands.pool.ready();
                        self.taps(&bridge, &machines).await
                    }
                    Err(_) => Ok(()),
                };
                let problem = rules.as_ref().err().or(rest.as_ref().err()).map(|e| chain(e));
                if let Some(problem) = &problem {
                    tracing::error!(problem, "the network is not as it should be");
                }
                self.stands(wanted, rules.is_ok(), None, problem);
                self.network.bridge.send_if_modified(|up| {
                    let changed = up.as_ref() != Some(&bridge);
                    if changed {
                        *up = Some(bridge);
                    }
                    changed
                });
            }
        }
    }

    fn stands(&self, wanted: u64, applied: bool, obstacle: Option<Obstacle>, problem: Option<String>) {
        let connected = self.network.hands.pool.levels().used;
        self.network.standing.send_modify(|standing| {
            standing.obstacle = obstacle;
            standing.problem = problem;
            standing.connected = connected;
            standing.seen = wanted;
            if applied {
                standing.applied = wanted;
            }
        });
    }

    async fn machines(&self) -> Result<Vec<Machine>, Error> {
        let (rows, leases) = self
            .network
            .rows
            .read(|tx| Ok((banger_store::vms::list(tx)?.0, banger_store::leases::list(tx)?)))
            .await?;
        let leases: HashMap<_, _> = leases
            .into_iter()
            .map(|lease| (lease.vm, lease.address))
            .collect();
        let machines = rows.into_iter().filter_map(|row| {
            let address = *leases.get(&row.id)?;
            let usable = self.network.settings.subnet.is_machines(address);
            usable.then_some(Machine { row, address })
        });
        Ok(machines.collect())
    }

    /// The bridge, brought up where it is not.
    async fn bridge(&mut self) -> Result<Bridge, Obstacle> {
        let network = &self.network;
        if let Some(missing) = prerequisites::missing(&network.hands).into_iter().next() {
            return Err(Obstacle::Missing {
                reason: missing.reason,
                fix: missing.fix,
            });
        }
        let up = network.bridge.borrow().clone();
        if let Some(bridge) = up {
            let links = Hands::links()?;
            let found = links.get(&bridge.name).await?;
            if found.is_some_and(|link| link.index == bridge.index && link.up) {
                return Ok(bridge);
            }
            tracing::warn!(bridge = bridge.name, "the bridge is gone; it is made anew");
        }
        let bridge = bridge::bring_up(&network.ledger, &network.hands, &network.settings).await?;
        self.isolated.clear();
        self.take_over(&bridge).await?;
        Ok(bridge)
    }

    /// Takes over the taps that are there: in use, spare, or left and nobody's.
    async fn take_over(&mut self, bridge: &Bridge) -> Result<(), Obstacle> {
        let network = &self.network;
        let (pool, links) = (&network.hands.pool, Hands::links()?);
        let used = pool.used();
        // What is there is found again below.
        pool.begin();
        let entered = network.ledger.objects(&Owner::Host).await?;
        let found = links.list().await?;
        for link in &found {
            let ours = link.alias == *network.hands.alias || link.alias.is_empty();
            if !pool.is_tap(&link.name) || link.kind != "tun" || !ours {
                continue;
            }
            let object = Object::Tap {
                name: link.name.clone(),
            };
            if !entered.contains(&object) {
                // Of a run whose daemon's state of the host's network was lost: it is ours all the same.
                network
                    .ledger
                    .enter(&Owner::Host, &object)
                    .await?
                    .nothing_to_make();
            }
            self.connect(&links, link.index, &link.name, bridge).await?;
            if !used.values().any(|tap| *tap == link.name) {
                pool.add(&link.name);
            }
        }
        for object in entered {
            let gone =
                matches!(&object, Object::Tap { name } if !found.iter().any(|link| link.name == *name));
            if gone {
                network.ledger.discard(&Owner::Host, &object).await?;
            }
        }
        Ok(())
    }

    /// Puts a tap into the bridge, kept from the others, and switches it on.
    async fn connect(&self, links: &Links, index: u32, name: &str, bridge: &Bridge) -> Result<(), LinkError> {
        links.set_alias(index, &self.network.hands.alias).await?;
        links.enslave(index, bridge.index, true).await?;
        links.set_up(index).await?;
        tracing::debug!(tap = name, "connected");
        Ok(())
    }

    /// Puts the rules in force, where they are others than those that are.
    async fn rules(&mut self, machines: &[Machine]) -> Result<(), Error> {
        let network = &self.network;
        let settings = &network.settings;
        let fail = |action, source: Box<dyn std::error::Error + Send + Sync>| Error::Host { action, source };
        let scene = Scene::look(&Hands::links()?)
            .await
            .map_err(|e| fail("look at the host's networks", Box::new(e)))?;
        let used = network.hands.pool.used();
        let ports = ports(machines, &used);
        let forwards = ports.iter().any(|port| port.nat || port.allow.lan);
        let script = filter::render(&State {
            bridge: settings.bridge.clone(),
            subnet: settings.subnet,
            ports,
            on_link: scene.on_link(&settings.bridge),
        });
        let nft = network.hands.nft()?;
        let table = filter::table(&settings.bridge);
        let there = nft
            .tables()
            .await
            .map_err(|e| fail("look at the rules", Box::new(e)))?;
        let both = [Family::Bridge, Family::Inet];
        let there = both.map(|family| {
            there
                .iter()
                .any(|found| found.name == table && found.family == family.as_str())
        });
        if self.applied.as_ref() != Some(&script) || there != [true, true] {
            let entered = network.ledger.objects(&Owner::Host).await?;
            let mut made = Vec::new();
            for family in both {
                let object = Object::Table {
                    family: family.as_str().to_owned(),
                    name: table.clone(),
                };
                if !entered.contains(&object) {
                    made.push(network.ledger.enter(&Owner::Host, &object).await?);
                }
            }
            let applied = nft.apply(&script).await;
            applied.map_err(|e| fail("apply the rules for machines", Box::new(e)))?;
            for entered in made {
                entered.made();
            }
            self.applied = Some(script);
        }
        self.forwarding(forwards).await
    }

    /// Makes the host forward packets while a machine needs it, and not longer.
    async fn forwarding(&self, needed: bool) -> Result<(), Error> {
        let network = &self.network;
        let fail = |source| Error::Host {
            action: "let the host forward packets",
            source: Box::new(source),
        };
        let objects = network.ledger.objects(&Owner::Host).await?;
        let mut ours = objects
            .into_iter()
            .find(|object| matches!(object, Object::Sysctl { key, .. } if key == FORWARD));
        let current = crate::reconcile::boot_id()?;
        if let Some(object) =
            ours.take_if(|object| !matches!(object, Object::Sysctl { boot, .. } if *boot == current))
        {
            // What it was before the host's last boot is nothing to go back to.
            network.ledger.discard(&Owner::Host, &object).await?;
        }
        let now = sysctl::read(FORWARD).map_err(fail)?;
        let ours = match (ours, needed) {
            (Some(object), false) => {
                network.ledger.discard(&Owner::Host, &object).await?;
                false
            }
            (Some(_), true) => {
                if now != "1" {
                    sysctl::write(FORWARD, "1").map_err(fail)?;
                }
                true
            }
            (None, true) if now != "1" => {
                let object = Object::Sysctl {
                    key: FORWARD.to_owned(),
                    before: now,
                    boot: current,
                };
                let entered = network.ledger.enter(&Owner::Host, &object).await?;
                sysctl::write(FORWARD, "1").map_err(fail)?;
                entered.made();
                true
            }
            (None, _) => false,
        };
        network.standing.send_if_modified(|standing| {
            let changed = standing.forwarding != ours;
            standing.forwarding = ours;
            changed
        });
        Ok(())
    }

    /// Makes the taps that are missing, removes those that are too many, and keeps from each other what shall be.
    async fn taps(&mut self, bridge: &Bridge, machines: &[Machine]) -> Result<(), Error> {
        let network = self.network.clone();
        let (pool, size) = (&network.hands.pool, usize::from(network.settings.pool));
        let links = Hands::links()?;
        self.isolate(&links, machines).await?;
        while let Some(name) = pool.wants(size) {
            match self.make(&links, &name, bridge).await {
                Ok(()) => pool.add(&name),
                Err(e) => {
                    pool.forget(&name);
                    return Err(e);
                }
            }
        }
        while let Some(name) = pool.surplus(size) {
            self.isolated.remove(&name);
            let object = Object::Tap { name: name.clone() };
            let removed = network.ledger.discard(&Owner::Host, &object).await;
            pool.forget(&name);
            removed?;
        }
        Ok(())
    }

    async fn make(&self, links: &Links, name: &str, bridge: &Bridge) -> Result<(), Error> {
        let action = "make a tap";
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| Error::Host { action, source };
        let object = Object::Tap {
            name: name.to_owned(),
        };
        let entered = self.network.ledger.enter(&Owner::Host, &object).await?;
        let made = async {
            let tap = name.to_owned();
            let made = tokio::task::spawn_blocking(move || tap::make(&tap, None)).await;
            made.map_err(|e| fail(Box::new(e)))?
                .map_err(|e| fail(Box::new(e)))?;
            let link = links.get(name).await.map_err(|e| fail(Box::new(e)))?;
            let link = link.ok_or_else(|| fail("it vanished".into()))?;
            let connected = self.connect(links, link.index, name, bridge).await;
            connected.map_err(|e| fail(Box::new(e)))
        };
        match made.await {
            Ok(()) => {
                entered.made();
                Ok(())
            }
            Err(e) => {
                entered.nothing_to_make();
                self.network.ledger.discard(&Owner::Host, &object).await?;
                Err(e)
            }
        }
    }

    /// Ports that may not see each other exchange no frames whatever the rules say.
    async fn isolate(&mut self, links: &Links, machines: &[Machine]) -> Result<(), Error> {
        let used = self.network.hands.pool.used();
        for (vm, tap) in &used {
            let guests = machines
                .iter()
                .any(|m| m.row.id == *vm && Allow::of(&m.row.allow).guests);
            self.set_isolated(links, tap, !guests).await?;
        }
        for tap in self.network.hands.pool.spare() {
            self.set_isolated(links, &tap, true).await?;
        }
        Ok(())
    }

    async fn set_isolated(&mut self, links: &Links, tap: &str, isolated: bool) -> Result<(), Error> {
        // As they are made.
        if *self.isolated.get(tap).unwrap_or(&true) == isolated {
            return Ok(());
        }
        let fail = |source| Error::Host {
            action: "separate the machines",
            source: Box::new(source),
        };
        if let Some(link) = links.get(tap).await.map_err(fail)? {
            links.set_isolated(link.index, isolated).await.map_err(fail)?;
            self.isolated.insert(tap.to_owned(), isolated);
        }
        Ok(())
    }
}

fn ports(machines: &[Machine], used: &BTreeMap<String, String>) -> Vec<Port> {
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
