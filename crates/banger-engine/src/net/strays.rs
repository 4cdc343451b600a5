//! Links and tables that say they are this daemon's, and that nothing speaks for any more: left where the state was lost, or
//! by a daemon whose bridge had another name.
//!
//! Place: under the collection of garbage, which lists them before it asks who needs what. Whose a link is, its alias says,
//! whose a table is, its comment; a name alone makes nothing ours. What somebody has open, and the bridge and the rules of
//! that, are left: a machine runs on it.

use std::collections::BTreeSet;

use hostkit::link::Link;
use hostkit::nft::Family;

use super::hands::Hands;
use super::{Network, filter, prerequisites};
use crate::error::Error;
use crate::ledger::{Ledger, Object, Owner};

/// One thing of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stray {
    /// A bridge or a tap.
    Link {
        /// Its name.
        name: String,
    },
    /// A table of rules.
    Table {
        /// Of which sort.
        family: Family,
        /// Its name.
        name: String,
    },
}

impl Stray {
    /// For people.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Link { name } => name.clone(),
            Self::Table { family, name } => format!("{} {name}", family.as_str()),
        }
    }

    /// Removes it, if it still says that it is ours; one that is gone already is fine.
    pub(crate) async fn remove(&self, hands: &Hands) -> Result<(), Error> {
        match self {
            Self::Link { name } => hands.delete_link(name, None).await,
            Self::Table { family, name } => hands.remove_table(family.as_str(), name).await,
        }
    }
}

/// All that says that it is ours, needed or not.
#[derive(Debug, Default)]
pub(crate) struct Present {
    links: Vec<Link>,
    tables: Vec<(Family, String)>,
}

/// Looks. Without privileges nothing on the host can be ours.
pub(crate) async fn present(hands: &Hands) -> Result<Present, Error> {
    let fail = |action, source: Box<dyn std::error::Error + Send + Sync>| Error::Host { action, source };
    if prerequisites::missing(hands)
        .iter()
        .any(|missing| missing.name == "capability")
    {
        return Ok(Present::default());
    }
    let links = Hands::links()?.list().await;
    let mut links = links.map_err(|e| fail("look at the host's links", Box::new(e)))?;
    links.retain(|link| link.alias == *hands.alias);
    let mut tables = Vec::new();
    if let Ok(nft) = hands.nft() {
        let found = nft.tables().await;
        for table in found.map_err(|e| fail("look at the rules", Box::new(e)))? {
            let family = [Family::Bridge, Family::Inet]
                .into_iter()
                .find(|family| family.as_str() == table.family);
            if let Some(family) = family.filter(|_| filter::bridge_of(&table.name).is_some())
                && hands.is_our_table(family, &table.name).await?
            {
                tables.push((family, table.name));
            }
        }
    }
    Ok(Present { links, tables })
}

/// Those of them that nothing speaks for: neither the ledger, nor a machine, nor the bridge that is kept.
pub(crate) async fn unneeded(
    present: Present,
    network: &Network,
    ledger: &Ledger,
) -> Result<Vec<Stray>, Error> {
    let pool = &network.hands.pool;
    let mut needed: BTreeSet<String> = pool.used().into_values().collect();
    let mut rules = BTreeSet::new();
    for object in ledger.objects(&Owner::Host).await? {
        match object {
            Object::Bridge { name } | Object::Tap { name } => {
                needed.insert(name);
            }
            Object::Table { name, .. } => {
                rules.insert(name);
            }
            Object::Sysctl { .. }
            | Object::Directory { .. }
            | Object::Processes { .. }
            | Object::Process { .. }
            | Object::Device { .. } => {}
        }
    }
    if network.keeps_bridge() {
        needed.insert(network.settings.bridge.clone());
        rules.insert(filter::table(&network.settings.bridge));
    }
    let is_bridge = |link: &&Link| link.kind == "bridge";
    let is_needed = |link: &Link| {
        // The keeper's, who knows each.
        let kept = network.keeps_bridge() && pool.is_tap(&link.name);
        kept || needed.contains(&link.name) || (link.kind != "bridge" && link.carrier)
    };
    let mut strays = Vec::new();
    // Ports before their bridges.
    for link in present.links.iter().filter(|link| !is_bridge(link)) {
        if !is_needed(link) {
            strays.push(Stray::Link {
                name: link.name.clone(),
            });
        }
    }
    let mut bridges = BTreeSet::new();
    for link in present.links.iter().filter(is_bridge) {
        let mut ports = present
            .links
            .iter()
            .filter(|port| port.master == Some(link.index));
        if is_needed(link) || ports.any(is_needed) {
            bridges.insert(link.name.as_str());
        } else {
            strays.push(Stray::Link {
                name: link.name.clone(),
            });
        }
    }
    for (family, name) in present.tables {
        let has_bridge = filter::bridge_of(&name).is_some_and(|bridge| bridges.contains(bridge));
        if !rules.contains(&name) && !has_bridge {
            strays.push(Stray::Table { family, name });
        }
    }
    Ok(strays)
}
