//! What the network does to the host: links, rules, settings of the kernel, each by the program or the call that the host
//! has for it. Here is also how each is undone, for the ledger.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use hostkit::link::{Link, Links};
use hostkit::nft::{Family, Nft};
use hostkit::sysctl;

use super::filter;
use super::pool::Pool;
use crate::error::Error;

/// How the aliases of our links begin; the scope of the state directory follows.
const ALIAS: &str = "banger ";

/// A bridge of some daemon's, perhaps of this one.
fn is_bangers(link: &Link) -> bool {
    link.kind == "bridge" && link.alias.starts_with(ALIAS)
}

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

    /// Removes a link of ours; one that is gone is fine, and one that is another's is left alone. Where there is a row of this
    /// boot of the host for a link of a kind (`entered`), one that has no alias may be what was being made.
    pub(crate) async fn delete_link(&self, name: &str, entered: Option<&str>) -> Result<(), Error> {
        let links = Self::links()?;
        let action = "remove a link";
        match links.get(name).await.map_err(|e| fail(action, e))? {
            None => Ok(()),
            Some(link)
                if link.alias == *self.alias
                    || (link.alias.is_empty() && entered == Some(link.kind.as_str())) =>
            {
                links.delete(name).await.map_err(|e| fail(action, e))
            }
            Some(link) => {
                tracing::warn!(name, alias = link.alias, "left alone: a link of somebody else's");
                Ok(())
            }
        }
    }

    /// Removes a table of ours with its rules; one that is gone is fine, and one that does not say that it is ours is left
    /// alone.
    pub(crate) async fn remove_table(&self, family: &str, name: &str) -> Result<(), Error> {
        let family = match family {
            "bridge" => Family::Bridge,
            _ => Family::Inet,
        };
        if !self.is_our_table(family, name).await? {
            return Ok(());
        }
        let removed = self.nft()?.remove_table(family, name).await;
        removed.map_err(|e| fail("remove the rules", e))
    }

    /// Whether there is a table of that name that says that it is ours.
    pub(crate) async fn is_our_table(&self, family: Family, name: &str) -> Result<bool, Error> {
        let listed = self.nft()?.table(family, name).await;
        let listed = listed.map_err(|e| fail("look at the rules", e))?;
        let comment = format!("comment \"{}\"", self.alias);
        Ok(listed.is_some_and(|rules| rules.lines().any(|line| line.trim() == comment)))
    }

    /// Sets a setting to what it was, unless somebody has come to need it since, who was not among `before_us`: whoever finds
    /// packets forwarded leaves no trace of needing that, but has rules or a bridge.
    pub(crate) async fn restore(&self, key: &str, before: &str, before_us: &[String]) -> Result<(), Error> {
        let others = self.forwarders().await?;
        // Another Banger's whose machines were there before ours need it no less.
        let links = Self::links()?.list().await;
        let links = links.map_err(|e| fail("look at the host's links", e))?;
        if let Some(link) = links
            .iter()
            .find(|link| link.alias != *self.alias && is_bangers(link) && link.carrier)
        {
            tracing::info!(
                key,
                bridge = link.name,
                "left as it is: another daemon's machines need it"
            );
            return Ok(());
        }
        if let Some(other) = others.iter().find(|other| !before_us.contains(other)) {
            tracing::info!(key, other, "left as it is: somebody else may need it by now");
            return Ok(());
        }
        sysctl::write(key, before).map_err(|e| fail("restore a setting of the kernel", e))
    }

    /// Who else may have the host forward packets: bridges and tables of rules that are no Banger's.
    pub(crate) async fn forwarders(&self) -> Result<Vec<String>, Error> {
        let links = Self::links()?.list().await;
        let links = links.map_err(|e| fail("look at the host's links", e))?;
        let bridges = links
            .into_iter()
            .filter(|link| link.kind == "bridge" && !is_bangers(link));
        let mut found: Vec<_> = bridges.map(|link| format!("bridge {}", link.name)).collect();
        if let Ok(nft) = self.nft() {
            let tables = nft.tables().await.map_err(|e| fail("look at the rules", e))?;
            let tables = tables
                .into_iter()
                .filter(|table| filter::bridge_of(&table.name).is_none());
            found.extend(tables.map(|table| format!("table {} {}", table.family, table.name)));
        }
        // Of iptables' older variant, which nft does not see (the kernel's net/netfilter/x_tables.c).
        let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        found.extend(legacy.lines().map(|name| format!("iptables {name}")));
        Ok(found)
    }
}
