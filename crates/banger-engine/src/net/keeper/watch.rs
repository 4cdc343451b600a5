//! Word from the kernel: that our rules were changed by somebody else, or one of our links, or what networks the host has.
//!
//! Where it cannot be had, the keeper's look now and then has to do.

use std::future::pending;

use hostkit::{link, nft};

use crate::error::chain;
use crate::net::pool::Pool;
use crate::net::{Network, filter};

/// What the kernel has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Rules of ours were changed, and not by us.
    Rules,
    /// A link of ours has come, gone or changed, by whomever.
    Links,
    /// The host's addresses or routes are others: what is inside, and kept from guests, may be more.
    Networks,
}

/// See the module.
pub(super) struct Watch {
    rules: Option<nft::Watch>,
    links: Option<link::Watch>,
    networks: Option<link::NetworkWatch>,
    bridge: String,
    pool: Pool,
}

impl Watch {
    /// Begins to listen, where there is a bridge to be kept.
    pub(super) fn open(network: &Network) -> Self {
        let bridge = network.settings.bridge.clone();
        let kept = network.keeps_bridge();
        let rules = kept.then(|| nft::Watch::open(&filter::table(&bridge)));
        let links = kept.then(link::Watch::open);
        let networks = kept.then(link::NetworkWatch::open);
        Self {
            rules: rules.and_then(|opened| opened.map_err(|e| deaf(&e)).ok()),
            links: links.and_then(|opened| opened.map_err(|e| deaf(&e)).ok()),
            networks: networks.and_then(|opened| opened.map_err(|e| deaf(&e)).ok()),
            bridge,
            pool: network.hands.pool.clone(),
        }
    }

    /// Waits for word. Dropping it loses nothing that is about us.
    pub(super) async fn told(&mut self) -> Told {
        let rules = async {
            match &mut self.rules {
                Some(watch) => watch.changed().await,
                None => pending().await,
            }
        };
        let links = async {
            match &mut self.links {
                Some(watch) => {
                    let ours = |name: &str| name == self.bridge || self.pool.is_tap(name);
                    watch.changed(ours).await
                }
                None => pending().await,
            }
        };
        let networks = async {
            match &mut self.networks {
                Some(watch) => watch.changed().await,
                None => pending().await,
            }
        };
        // All are cancel-safe. Rules go first: what passes without them is open.
        tokio::select! {
            biased;
            changed = rules => {
                if let Err(e) = changed {
                    deaf(&e);
                    self.rules = None;
                }
                Told::Rules
            }
            changed = links => {
                if let Err(e) = changed {
                    deaf(&e);
                    self.links = None;
                }
                Told::Links
            }
            changed = networks => {
                if let Err(e) = changed {
                    deaf(&e);
                    self.networks = None;
                }
                Told::Networks
            }
        }
    }

    /// Whether changes of rules are told.
    pub(super) fn hears_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// Whether a change of rules is told already, and [`Self::told`] would say so at once.
    pub(super) fn has_rules(&mut self) -> bool {
        match &mut self.rules {
            // What cannot be heard here is found out there.
            Some(watch) => watch.has_changed().unwrap_or(true),
            None => false,
        }
    }

    /// One of the changes of rules until now was ours.
    pub(super) fn was_ours(&mut self) {
        if let Some(watch) = &mut self.rules
            && let Err(e) = watch.was_mine()
        {
            deaf(&e);
            self.rules = None;
        }
    }
}

fn deaf(e: &(dyn std::error::Error + 'static)) {
    tracing::warn!(error = chain(e), "what others change is noticed late");
}
