//! Taps: those that are there taken over, missing ones made, those too many removed; and that those in use stay what they
//! are, whoever deletes or moves links by hand.

use std::collections::HashMap;

use hostkit::link::{Link, LinkError, Links};
use hostkit::tap;

use super::{Keeper, Machine};
use crate::error::Error;
use crate::ledger::{Object, Owner};
use crate::net::allow::Allow;
use crate::net::hands::Hands;
use crate::net::{Bridge, Mode};

fn fail(action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Host {
        action,
        source: source.into(),
    }
}

fn object(name: &str) -> Object {
    Object::Tap {
        name: name.to_owned(),
    }
}

/// In the bridge and switched on.
fn is_in_place(link: &Link, bridge: &Bridge) -> bool {
    link.master == Some(bridge.index) && link.up
}

impl Keeper {
    /// Brings the taps into agreement with the pool and the machines.
    pub(super) async fn taps(&mut self, bridge: &Bridge, machines: &[Machine]) -> Result<(), Error> {
        let network = self.network.clone();
        let pool = &network.hands.pool;
        let size = match network.mode {
            Mode::Bridge => usize::from(network.settings.pool),
            // For machines that run on it still.
            Mode::User(_) => 0,
        };
        let links = Hands::links()?;
        if !self.taken_over {
            self.take_over(&links, bridge).await?;
            self.taken_over = true;
        }
        self.mend(&links, bridge).await?;
        pool.ready();
        self.isolate(&links, machines).await?;
        // Making taps takes its time: what passes without rules goes first.
        while !self.watch.has_rules()
            && let Some(name) = pool.wants(size)
        {
            match self.make(&links, &name, bridge).await {
                Ok(true) => pool.add(&name),
                Ok(false) => pool.avoid(&name),
                Err(e) => {
                    pool.forget(&name);
                    return Err(e);
                }
            }
        }
        while !self.watch.has_rules()
            && let Some(name) = pool.surplus(size)
        {
            let removed = self.strike(&name).await;
            pool.forget(&name);
            removed?;
        }
        Ok(())
    }

    /// Whether bridge and taps are what they are said to be, and none is waited for.
    pub(super) async fn are_links_in_order(&self) -> bool {
        let pool = &self.network.hands.pool;
        let bridge = self.network.bridge.borrow().clone();
        let Some(bridge) = bridge else { return false };
        let look = async { Hands::links()?.list().await.map_err(|e| fail("look at links", e)) };
        let Ok(found) = look.await else { return false };
        let found: HashMap<&str, &Link> = found.iter().map(|link| (link.name.as_str(), link)).collect();
        let up = found
            .get(bridge.name.as_str())
            .is_some_and(|link| link.index == bridge.index && link.up);
        let in_place = |name: &String| {
            found
                .get(name.as_str())
                .is_some_and(|link| is_in_place(link, &bridge))
        };
        let held = |name: &String| found.get(name.as_str()).is_some_and(|link| link.carrier);
        up && pool.spare().iter().all(in_place)
            && pool
                .used()
                .iter()
                .all(|(vm, name)| in_place(name) || pool.is_lost(vm) || !pool.is_tap(name))
            && pool.returned().iter().all(held)
    }

    /// Takes over the taps that are there: in use, or left and nobody's.
    async fn take_over(&mut self, links: &Links, bridge: &Bridge) -> Result<(), Error> {
        let network = &self.network;
        let pool = &network.hands.pool;
        // What is there is found again below. Who has which is asked once nobody is given one any more.
        pool.begin();
        let used = pool.used();
        let entered = network.ledger.objects(&Owner::Host).await?;
        let found = links.list().await.map_err(|e| fail("look at links", e))?;
        for link in &found {
            let object = object(&link.name);
            let is_entered = entered.contains(&object);
            // Without an alias, but with a row, it is one that was being made.
            let ours = link.alias == *network.hands.alias || (link.alias.is_empty() && is_entered);
            if !pool.is_tap(&link.name) || link.kind != "tun" || !ours {
                continue;
            }
            if !is_entered {
                // Of a run whose daemon's state of the host's network was lost: it is ours all the same.
                network
                    .ledger
                    .enter(&Owner::Host, &object)
                    .await?
                    .nothing_to_make();
            }
            let connected = self.connect(links, link.index, &link.name, bridge).await;
            connected.map_err(|e| fail("take over a tap", e))?;
            if !used.values().any(|tap| *tap == link.name) {
                pool.found(&link.name);
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

    /// Makes true what is said of the taps that are there: what came back is spare once nobody has it open, what is gone is
    /// nobody's, and what was taken out of the bridge is put into it again.
    async fn mend(&mut self, links: &Links, bridge: &Bridge) -> Result<(), Error> {
        let network = self.network.clone();
        let pool = &network.hands.pool;
        let found = links.list().await.map_err(|e| fail("look at links", e))?;
        let found: HashMap<&str, &Link> = found.iter().map(|link| (link.name.as_str(), link)).collect();
        let found = |name: &str| found.get(name).copied();
        for name in pool.returned() {
            match found(&name) {
                Some(link) if link.carrier => {
                    if self.told.insert(name.clone()) {
                        tracing::warn!(
                            tap = name,
                            "still open, though its machine has ended: not used again yet"
                        );
                    }
                }
                Some(link) => {
                    self.put_in_place(links, link, bridge).await?;
                    self.told.remove(&name);
                    pool.add(&name);
                }
                None => {
                    pool.forget(&name);
                    self.strike(&name).await?;
                }
            }
        }
        for name in pool.spare() {
            match found(&name) {
                Some(link) => self.put_in_place(links, link, bridge).await?,
                None if pool.withdraw(&name) => {
                    tracing::warn!(tap = name, "a spare tap is gone: somebody has deleted it");
                    pool.forget(&name);
                    self.strike(&name).await?;
                }
                // Taken meanwhile.
                None => {}
            }
        }
        for (vm, name) in pool.used() {
            match found(&name) {
                // One of another bridge, from before the configuration was changed.
                Some(_) if !pool.is_tap(&name) => {}
                Some(link) => self.put_in_place(links, link, bridge).await?,
                None => {
                    // One that was given back meanwhile is looked at with those.
                    if pool.lose(&vm, &name) {
                        let machine = crate::id::token(&vm);
                        tracing::error!(
                            machine,
                            tap = name,
                            "its tap is gone: it has no network until it is restarted"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    async fn put_in_place(&mut self, links: &Links, link: &Link, bridge: &Bridge) -> Result<(), Error> {
        if is_in_place(link, bridge) {
            return Ok(());
        }
        // As it is made.
        self.isolated.remove(&link.name);
        let connected = self.connect(links, link.index, &link.name, bridge).await;
        connected.map_err(|e| fail("put a tap into its bridge", e))
    }

    /// Puts a tap into the bridge, kept from the others, and switches it on.
    async fn connect(&self, links: &Links, index: u32, name: &str, bridge: &Bridge) -> Result<(), LinkError> {
        links.set_alias(index, &self.network.hands.alias).await?;
        links.enslave(index, bridge.index, true).await?;
        links.set_up(index).await?;
        tracing::debug!(tap = name, "connected");
        Ok(())
    }

    /// Removes a tap, where it is there, and its row.
    async fn strike(&mut self, name: &str) -> Result<(), Error> {
        self.isolated.remove(name);
        self.told.remove(name);
        self.network.ledger.discard(&Owner::Host, &object(name)).await
    }

    /// `false` where somebody else has a link of that name, which is left alone.
    async fn make(&mut self, links: &Links, name: &str, bridge: &Bridge) -> Result<bool, Error> {
        let action = "make a tap";
        let object = object(name);
        let there = links.get(name).await.map_err(|e| fail(action, e))?;
        if there.is_some_and(|link| link.alias != *self.network.hands.alias || link.carrier) {
            tracing::warn!(tap = name, "not made: there is an interface of that name already");
            self.network.ledger.forget(&Owner::Host, &object).await?;
            return Ok(false);
        }
        let entered = self.network.ledger.enter(&Owner::Host, &object).await?;
        let made = async {
            let tap = name.to_owned();
            let made = tokio::task::spawn_blocking(move || tap::make(&tap, None)).await;
            made.map_err(|e| fail(action, e))?.map_err(|e| fail(action, e))?;
            let link = links.get(name).await.map_err(|e| fail(action, e))?;
            let link = link.ok_or_else(|| fail(action, "it vanished"))?;
            let connected = self.connect(links, link.index, name, bridge).await;
            connected.map_err(|e| fail(action, e))
        };
        match made.await {
            Ok(()) => {
                entered.made();
                Ok(true)
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
        let pool = self.network.hands.pool.clone();
        for (vm, tap) in &pool.used() {
            let guests = machines
                .iter()
                .any(|m| m.row.id == *vm && Allow::of(&m.row.allow).guests);
            self.set_isolated(links, tap, !guests).await?;
        }
        for tap in pool.spare() {
            self.set_isolated(links, &tap, true).await?;
        }
        Ok(())
    }

    async fn set_isolated(&mut self, links: &Links, tap: &str, isolated: bool) -> Result<(), Error> {
        // As they are made.
        if *self.isolated.get(tap).unwrap_or(&true) == isolated {
            return Ok(());
        }
        let action = "separate the machines";
        if let Some(link) = links.get(tap).await.map_err(|e| fail(action, e))? {
            let set = links.set_isolated(link.index, isolated).await;
            set.map_err(|e| fail(action, e))?;
            self.isolated.insert(tap.to_owned(), isolated);
        }
        Ok(())
    }
}
