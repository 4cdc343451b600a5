//! What the network does to the host: links, rules, settings of the kernel, each by the program or the call that the host
//! has for it. Here is also how each is undone, for the ledger.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use hostkit::link::Links;
use hostkit::nft::{Family, Nft};
use hostkit::sysctl;

use super::filter;
use super::pool::Pool;
use crate::error::Error;

/// How the aliases of our links begin; the scope of the state directory follows.
const ALIAS: &str = "banger ";

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    /// The taps.
    pub(crate) pool: Pool,
    /// What our links say of whose they are.
    pub(crate) alias: Arc<str>,
    /// As in the variable `PATH`.
    path: Arc<OsString>,
}

fn fail(action: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Host {
        action,
        source: Box::new(source),
    }
}

impl Hands {
    /// For a bridge of that name and a state directory of that scope.
    pub(crate) fn new(bridge: &str, scope: &str, path: &[PathBuf]) -> Self {
        // A directory with a colon in its name cannot be in a `PATH`, and came out of one.
        let path = std::env::join_paths(path).unwrap_or_default();
        Self {
            pool: Pool::new(bridge),
            alias: format!("{ALIAS}{scope}").into(),
            path: Arc::new(path),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::new("bgr0", "test", &[])
    }

    /// The host's links. Connected anew each time: nothing here is frequent, and a descriptor is kept for nothing.
    pub(crate) fn links() -> Result<Links, Error> {
        Links::connect().map_err(|e| fail("look at the host's links", e))
    }

    /// The program for rules.
    pub(crate) fn nft(&self) -> Result<Nft, Error> {
        Nft::find(Some(&self.path)).map_err(|e| fail("find nft", e))
    }

    /// Removes a link of ours; one that is gone is fine, and one that says that it is another's is left alone.
    pub(crate) async fn delete_link(&self, name: &str) -> Result<(), Error> {
        let links = Self::links()?;
        let action = "remove a link";
        match links.get(name).await.map_err(|e| fail(action, e))? {
            None => Ok(()),
            // Without an alias it is one that was being made.
            Some(link) if link.alias == *self.alias || link.alias.is_empty() => {
                links.delete(name).await.map_err(|e| fail(action, e))
            }
            Some(link) => {
                tracing::warn!(name, alias = link.alias, "left alone: a link of somebody else's");
                Ok(())
            }
        }
    }

    /// Removes a table with its rules; one that is gone is fine.
    pub(crate) async fn remove_table(&self, family: &str, name: &str) -> Result<(), Error> {
        let family = match family {
            "bridge" => Family::Bridge,
            _ => Family::Inet,
        };
        let removed = self.nft()?.remove_table(family, name).await;
        removed.map_err(|e| fail("remove the rules", e))
    }

    /// Sets a setting to what it was, unless somebody has come to need it since, who was not among `before_us`: whoever finds
    /// packets forwarded leaves no trace of needing that, but has rules or a bridge.
    pub(crate) async fn restore(&self, key: &str, before: &str, before_us: &[String]) -> Result<(), Error> {
        let others = self.forwarders().await?;
        if let Some(other) = others.iter().find(|other| !before_us.contains(other)) {
            tracing::info!(key, other, "left as it is: somebody else may need it by now");
            return Ok(());
        }
        sysctl::write(key, before).map_err(|e| fail("restore a setting of the kernel", e))
    }

    /// Who else may have the host forward packets: bridges and tables of rules that are not ours.
    pub(crate) async fn forwarders(&self) -> Result<Vec<String>, Error> {
        let links = Self::links()?.list().await;
        let links = links.map_err(|e| fail("look at the host's links", e))?;
        let bridges = links
            .into_iter()
            .filter(|link| link.kind == "bridge" && link.alias != *self.alias);
        let mut found: Vec<_> = bridges.map(|link| format!("bridge {}", link.name)).collect();
        if let Ok(nft) = self.nft() {
            let ours = filter::table(self.pool.bridge());
            let tables = nft.tables().await.map_err(|e| fail("look at the rules", e))?;
            let tables = tables.into_iter().filter(|table| table.name != ours);
            found.extend(tables.map(|table| format!("table {} {}", table.family, table.name)));
        }
        // Of iptables' older variant, which nft does not see (the kernel's net/netfilter/x_tables.c).
        let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        found.extend(legacy.lines().map(|name| format!("iptables {name}")));
        Ok(found)
    }
}
