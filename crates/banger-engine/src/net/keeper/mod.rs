//! The task that keeps the host's network: it alone makes and removes links and rules, one thing after the other, so that
//! nothing here is locked and a burst of changes is one set of rules.
//!
//! ```text
//!   a change, a tap taken or given back, word from the kernel, now and then
//!     -> the bridge, where it is not up
//!     -> names; rules, where they are others than before; forwarding
//!     -> taps: those that came back, what is missing, what is too many
//! ```
//! - [`watch`]: word of links and rules that somebody else has changed, and of the host's networks;
//! - [`rules`]: what may pass, and nothing while that is not in force; [`forwarding`]: the host's part in it;
//! - [`taps`]: the pool's, and those in use.
//!
//! It ends when the network is closed, between two looks. What cannot be done is said, and tried again at the next change, and
//! without one soon, then ever later up to half a minute.

mod forwarding;
mod rules;
mod taps;
mod watch;

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use banger_store::vms::VmRow;
use tokio::time::Instant;

use super::allow::Allow;
use super::bridge;
use super::filter;
use super::hands::Hands;
use super::names::Named;
use super::prerequisites;
use super::{Bridge, Network, Obstacle};
use crate::error::{Error, chain};
use crate::ledger::{Object, Owner};
use watch::{Told, Watch};

/// Between two looks while machines are connected: what no word was had of.
const LOOK: Duration = Duration::from_secs(30);

/// Between two restorations of rules: whoever changes them again and again does not keep us busy.
const PACE: Duration = Duration::from_millis(100);

/// From word of one change of the host's networks to the look: an interface comes with several.
const SETTLING: Duration = Duration::from_millis(50);

/// After looks that have failed, the kernel's word of links, which may be of what they did themselves, is followed at least
/// so often.
const FAILING: Duration = Duration::from_secs(1);

/// How long after that many failed looks in a row, at least one, the next is.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    PACE.saturating_mul(1 << doublings).min(LOOK)
}

/// See the module.
pub(super) async fn run(network: Arc<Network>) {
    let mut keeper = Keeper {
        watch: Watch::open(&network),
        applied: None,
        are_open: false,
        thorough: true,
        restored: None,
        failures: 0,
        taken_over: false,
        isolated: HashMap::new(),
        told: BTreeSet::new(),
        network,
    };
    let mut changes = keeper.network.changes.subscribe();
    loop {
        let wanted = *changes.borrow_and_update();
        keeper.look(wanted).await;
        let standing = keeper.network.standing();
        keeper.failures = match (&standing.obstacle, &standing.problem) {
            (None, None) => 0,
            (Some(_), _) | (_, Some(_)) => keeper.failures.saturating_add(1),
        };
        if !keeper.wait(&mut changes).await {
            return;
        }
    }
}

struct Keeper {
    network: Arc<Network>,
    watch: Watch,
    /// The rules in force.
    applied: Option<String>,
    /// The machines' ports pass frames, as far as it was us who kept them from that.
    are_open: bool,
    /// Whether the rules are there is to be looked at, though nobody has said otherwise.
    thorough: bool,
    /// When rules that somebody else had changed were put back last.
    restored: Option<Instant>,
    /// Looks in a row that have found something in the way.
    failures: u32,
    /// The taps of the bridge that is up are those that the pool knows.
    taken_over: bool,
    /// Which taps are kept from each other, as far as that was set.
    isolated: HashMap<String, bool>,
    /// Taps of which it was said that they are gone, or held by somebody: once is enough.
    told: BTreeSet<String>,
}

/// A machine with its address, as it is now.
struct Machine {
    row: VmRow,
    address: Ipv4Addr,
}

impl Keeper {
    /// Until there is something to look at; `false` when the network is closed.
    async fn wait(&mut self, changes: &mut tokio::sync::watch::Receiver<u64>) -> bool {
        let network = self.network.clone();
        let pool = network.hands.pool.clone();
        let standing = network.standing();
        let failing = self.failures > 0;
        let looks_again = standing.connected > 0 || failing;
        let kept = network.keeps_bridge();
        let now = Instant::now();
        let mut next = now + if failing { pause(self.failures) } else { LOOK };
        let soon = now + pause(self.failures).min(FAILING);
        // The host's networks are others; however often, that is looked at with a pause.
        let mut moved = None;
        loop {
            // All are cancel-safe: a change is a number that stays, a notification that nobody waits for is kept, and so is
            // what the kernel has told of us.
            tokio::select! {
                () = network.ending.notified() => return false,
                changed = changes.changed() => return changed.is_ok(),
                () = pool.changed() => match failing && kept {
                    // Whoever waits for a tap asks for one after each look.
                    true => next = next.min(soon),
                    false => return true,
                },
                () = network.again.notified() => return true,
                told = self.watch.told(), if kept => match told {
                    Told::Rules => {
                        self.shut().await;
                        return true;
                    }
                    Told::Links if failing => next = next.min(soon),
                    Told::Links => if !self.are_links_in_order().await {
                        return true;
                    },
                    Told::Networks if failing => next = next.min(soon),
                    Told::Networks => moved = moved.or(Some(Instant::now() + SETTLING)),
                },
                () = tokio::time::sleep_until(moved.unwrap_or(next)), if looks_again && moved.is_some() => return true,
                () = tokio::time::sleep_until(next), if looks_again && kept => {
                    self.thorough = true;
                    return true;
                }
            }
        }
    }

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
        if !self.network.keeps_bridge() {
            // Of a daemon that had a bridge.
            self.network.bridge.send_if_modified(|up| up.take().is_some());
            self.network.take_down().await;
            self.stands(wanted, true, None, None);
            return;
        }
        let bridge = match self.bridge().await {
            Ok(bridge) => bridge,
            Err(obstacle) => {
                let told = self.network.standing().obstacle;
                if told.as_ref() != Some(&obstacle) {
                    tracing::error!(reason = %obstacle, fix = obstacle.fix(), "no bridge for machines");
                }
                self.stands(wanted, false, Some(obstacle), None);
                return;
            }
        };
        // Before any tap: one without rules is open.
        let rules = self.rules(&bridge, &machines).await;
        let rest = match &rules {
            Ok(()) => self.taps(&bridge, &machines).await,
            Err(_) => Ok(()),
        };
        let problem = rules.as_ref().err().or(rest.as_ref().err()).map(|e| chain(e));
        if let Some(problem) = &problem
            && self.network.standing().problem.as_ref() != Some(problem)
        {
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
        let network = self.network.clone();
        if let Some(missing) = prerequisites::missing(&network.hands).into_iter().next() {
            return Err(Obstacle::Missing {
                reason: missing.reason,
                fix: missing.fix,
            });
        }
        let up = network.bridge.borrow().clone();
        if let Some(bridge) = up {
            // That the kernel does not say is no word of a bridge that is gone.
            let found = Hands::links()?.get(&bridge.name).await?;
            if found.is_some_and(|link| link.index == bridge.index && link.up) {
                return Ok(bridge);
            }
            tracing::warn!(bridge = bridge.name, "the bridge is gone; it is made anew");
            network.bridge.send_replace(None);
        }
        self.retire().await?;
        let in_use = !network.hands.pool.used().is_empty();
        let bridge = bridge::bring_up(&network.ledger, &network.hands, &network.settings, in_use).await?;
        self.isolated.clear();
        self.taken_over = false;
        Ok(bridge)
    }

    /// Removes what there is of a bridge of another name, from before the configuration was changed, once no machine runs on
    /// it.
    async fn retire(&self) -> Result<(), Error> {
        let network = &self.network;
        let (pool, settings) = (&network.hands.pool, &network.settings);
        if pool.used().values().any(|tap| !pool.is_tap(tap)) {
            return Ok(());
        }
        for object in network.ledger.objects(&Owner::Host).await? {
            let former = match &object {
                Object::Bridge { name } => *name != settings.bridge,
                Object::Tap { name } => !pool.is_tap(name),
                Object::Table { name, .. } => *name != filter::table(&settings.bridge),
                Object::Sysctl { .. }
                | Object::Directory { .. }
                | Object::Processes { .. }
                | Object::Process { .. }
                | Object::Device { .. } => false,
            };
            if former {
                tracing::info!(?object, "removed: of a bridge that is configured no more");
                network.ledger.discard(&Owner::Host, &object).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
