//! The host's side of machines' network: a bridge with an address for each machine, and what may pass over it.
//!
//! Place: under the capability `network`, which takes a tap for a run and hands its address to the guest; under the
//! engine, which says when machines come, go or are changed. The pieces:
//! - [`subnet`]: which addresses there are; [`leases`] of them are rows of the store, one for a machine's life;
//! - [`bridge`]: the bridge, made or taken over, where the [`scene`] allows it; [`pool`]: taps made ahead; [`filter`]: the
//!   rules, rendered from state;
//! - [`keeper`]: the one task that brings the host into agreement with all that;
//! - [`hands`]: how it is done, and undone by the ledger; [`strays`]: what neither speaks for;
//! - [`names`], [`dns`]: what machines are called, and who says so.
//!
//! Whether there is a bridge at all is decided once, when the daemon starts ([`Mode`]). Machines that run on one from before
//! keep it until they end, whatever is decided.

pub(crate) mod allow;
pub(crate) mod bridge;
pub(crate) mod dns;
pub(crate) mod filter;
pub(crate) mod hands;
mod keeper;
mod leases;
mod mode;
pub(crate) mod names;
pub(crate) mod pool;
pub(crate) mod prerequisites;
pub(crate) mod scene;
pub(crate) mod strays;
pub(crate) mod subnet;
#[cfg(test)]
mod wire_tests;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::error::{Error, chain};
use crate::ledger::{Ledger, Object, Owner};
use crate::rows::Rows;
use crate::settings::NetworkSettings;
use hands::Hands;
use names::Names;
use pool::Levels;

pub(crate) use bridge::Obstacle;
pub(crate) use mode::Mode;

/// How long a start waits for a tap, and whoever asks for rules to be in force for that: after a boot, for the kernel's
/// modules too.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long whoever asks how the network stands waits for it to be looked at for the first time.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How long the daemon's end waits for what the keeper is at.
const LEAVE: Duration = Duration::from_secs(30);

/// The bridge, once it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bridge {
    /// Its name.
    pub(crate) name: String,
    /// Its interface index.
    pub(crate) index: u32,
    /// The host's address on it.
    pub(crate) address: Ipv4Addr,
}

/// How the network stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Why there is no bridge, where there should be one.
    pub(crate) obstacle: Option<Obstacle>,
    /// What could not be done otherwise: rules, taps, forwarding.
    pub(crate) problem: Option<String>,
    /// The rules of this many changes are in force.
    pub(crate) applied: u64,
    /// The keeper has looked at this many changes, whatever came of it.
    pub(crate) seen: u64,
    /// Machines in the rules.
    pub(crate) connected: usize,
    /// It was this daemon that made the host forward packets.
    pub(crate) forwarding: bool,
}

/// The network of all machines.
pub(crate) struct Network {
    settings: NetworkSettings,
    mode: Mode,
    hands: Hands,
    ledger: Ledger,
    rows: Rows,
    names: Names,
    bridge: watch::Sender<Option<Bridge>>,
    standing: watch::Sender<Standing>,
    /// How many changes there were.
    changes: watch::Sender<u64>,
    /// The obstacle may be gone.
    again: Notify,
    /// The keeper is to end.
    ending: Notify,
    keeper: Mutex<Option<JoinHandle<()>>>,
    desk: dns::Desk,
}

impl Network {
    /// Decides how machines are connected, and learns from the ledger which run has which tap. Changes nothing on the host.
    pub(crate) async fn open(
        settings: NetworkSettings,
        hands: Hands,
        ledger: Ledger,
        rows: Rows,
    ) -> Result<Arc<Self>, Error> {
        // Before anything is taken for ours by its row.
        ledger.forget_before_boot().await?;
        let mode = Mode::decide(&settings, &hands, &ledger, &rows).await?;
        for owner in ledger.owners().await? {
            let Owner::Run(vm) = &owner else { continue };
            for object in ledger.objects(&owner).await? {
                if let Object::Tap { name } = object {
                    hands.pool.adopt(vm, &name);
                }
            }
        }
        Ok(Arc::new(Self {
            names: Names::new(settings.subnet),
            settings,
            mode,
            hands,
            ledger,
            rows,
            bridge: watch::Sender::new(None),
            standing: watch::Sender::default(),
            changes: watch::Sender::new(1),
            again: Notify::new(),
            ending: Notify::new(),
            keeper: Mutex::default(),
            desk: dns::Desk::default(),
        }))
    }

    /// Begins to keep the host in agreement. After the machines' runs were taken up.
    pub(crate) fn keep(self: &Arc<Self>) {
        let task = tokio::spawn(keeper::run(self.clone()));
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        self.desk.open(self.bridge(), self.names.subscribe());
    }

    /// Ends in order: where no machine is connected any more, nothing of it stays on the host.
    pub(crate) async fn close(&self) {
        let task = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut task) = task {
            // What it is making it finishes, so that it is there to be removed.
            self.ending.notify_one();
            if tokio::time::timeout(LEAVE, &mut task).await.is_err() {
                tracing::error!("the network's keeper does not end; what it is making may be left");
                task.abort();
                drop(task.await);
            }
        }
        self.desk.close().await;
        self.bridge.send_replace(None);
        self.take_down().await;
    }

    /// Removes everything from the host, unless a machine is connected.
    async fn take_down(&self) {
        if !self.hands.pool.used().is_empty() {
            return;
        }
        if let Err(e) = self.ledger.collect(&Owner::Host).await {
            tracing::error!(error = chain(&e), "the host's network was not taken down");
        }
    }

    /// How machines are connected.
    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    /// As configured.
    pub(crate) fn settings(&self) -> &NetworkSettings {
        &self.settings
    }

    /// What is done by the hand of.
    pub(crate) fn hands(&self) -> &Hands {
        &self.hands
    }

    /// How it stands.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// The same, but after the keeper's first look, which is a moment after the daemon's start; waits a little for that.
    pub(crate) async fn settled(&self) -> Standing {
        if self.keeps_bridge() {
            let mut standing = self.standing.subscribe();
            let seen = standing.wait_for(|standing| standing.seen > 0);
            // What has not come by then is shown as it stands.
            drop(tokio::time::timeout(FIRST_LOOK, seen).await);
        }
        self.standing()
    }

    /// The bridge, whenever it comes up.
    pub(crate) fn bridge(&self) -> watch::Receiver<Option<Bridge>> {
        self.bridge.subscribe()
    }

    /// Who answers for names, and to whom.
    pub(crate) fn dns(&self) -> dns::Standing {
        self.desk.standing()
    }

    /// Taps, counted.
    pub(crate) fn levels(&self) -> Levels {
        self.hands.pool.levels()
    }

    /// The tap of a machine's run.
    pub(crate) fn tap_of(&self, vm: &str) -> Option<String> {
        self.hands.pool.of(vm)
    }

    /// Whether somebody has deleted the tap of a machine that runs: it has no network until it is restarted.
    pub(crate) fn has_lost_tap(&self, vm: &str) -> bool {
        self.hands.pool.is_lost(vm)
    }

    /// A machine came, went or is another: rules and names are to follow. Returns at once.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether there is a bridge to be kept: the one that machines get, or one that some run on still, though the
    /// configuration has changed.
    fn keeps_bridge(&self) -> bool {
        self.mode == Mode::Bridge || !self.hands.pool.used().is_empty()
    }

    /// Waits until the rules of all changes so far are in force for a machine; an error says, for people, why they are not.
    pub(crate) async fn applied(&self, vm: &str) -> Result<(), String> {
        if !self.keeps_bridge() {
            return Ok(());
        }
        if let Some(tap) = self.hands.pool.of(vm).filter(|tap| !self.hands.pool.is_tap(tap)) {
            return Err(format!(
                "its tap {tap} is in a bridge that is configured no more, and whose rules stay as they are until the machine is \
                 restarted"
            ));
        }
        let wanted = *self.changes.borrow();
        let mut standing = self.standing.subscribe();
        let seen = standing.wait_for(|standing| standing.seen >= wanted);
        match tokio::time::timeout(PATIENCE, seen).await {
            Ok(Ok(standing)) if standing.applied >= wanted => Ok(()),
            Ok(Ok(standing)) => {
                let obstacle = standing.obstacle.as_ref().map(ToString::to_string);
                let problem = obstacle.or_else(|| standing.problem.clone());
                Err(problem.unwrap_or_else(|| "the rules were not applied".to_owned()))
            }
            Ok(Err(_)) => Err("the daemon is shutting down".to_owned()),
            Err(_) => Err(format!(
                "the rules were not applied within {} s",
                PATIENCE.as_secs()
            )),
        }
    }

    /// What stands against a bridge now, looked at anew where it was found wanting.
    pub(crate) async fn obstacle(&self) -> Option<Obstacle> {
        let before = {
            let standing = self.standing.borrow();
            if standing.obstacle.is_none() && standing.problem.is_none() {
                return None;
            }
            standing.obstacle.clone()
        };
        let wanted = {
            self.changed();
            self.again.notify_one();
            *self.changes.borrow()
        };
        let mut standing = self.standing.subscribe();
        let seen = standing.wait_for(|standing| standing.seen >= wanted);
        match tokio::time::timeout(PATIENCE, seen).await {
            Ok(Ok(standing)) => standing.obstacle.clone(),
            Ok(Err(_)) | Err(_) => before,
        }
    }

    /// Takes a tap for a run: entered in the run's ledger, so that collecting the run gives it back. Rules, and another tap in
    /// its place, come with the next change.
    pub(crate) async fn take_tap(&self, vm: &str) -> Result<String, Error> {
        let failed = |reason: String| Error::Host {
            action: "connect the machine to the bridge",
            source: reason.into(),
        };
        let pool = &self.hands.pool;
        let tap = match pool.take(vm) {
            Some(tap) => tap,
            None => match tokio::time::timeout(PATIENCE, pool.take_when_there_is_one(vm)).await {
                Ok(tap) => tap,
                Err(_) => {
                    let standing = self.standing();
                    let why = standing.obstacle.map(|o| o.to_string()).or(standing.problem);
                    let why = why.unwrap_or_else(|| format!("no tap within {} s", PATIENCE.as_secs()));
                    return Err(failed(why));
                }
            },
        };
        let row = Object::Tap { name: tap.clone() };
        match self.ledger.enter(&Owner::Run(vm.to_owned()), &row).await {
            Ok(entered) => entered.made(),
            Err(e) => {
                pool.give_back(vm, &tap);
                return Err(e);
            }
        }
        Ok(tap)
    }
}

/// A locally administered unicast address (IEEE 802, second-lowest bit of the first octet) that stays with the machine.
pub(crate) fn mac(id: &str) -> [u8; 6] {
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
