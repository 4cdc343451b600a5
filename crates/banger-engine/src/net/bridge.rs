//! The bridge: made, or taken over from an earlier daemon; and what stands against one, for people.

use std::net::{IpAddr, Ipv4Addr};

use hostkit::link::LinkError;
use ipnet::{IpNet, Ipv4Net};

use super::Bridge;
use super::hands::Hands;
use super::scene::Scene;
use super::subnet::Subnet;
use crate::error::Error;
use crate::ledger::{Ledger, Object, Owner};
use crate::settings::NetworkSettings;

/// The largest packet of the bridge and its taps, in bytes.
const ETHERNET: u32 = 1500;

/// Why there is no bridge. For people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Obstacle {
    /// The name is taken.
    #[error("there is an interface {name} already, which is not this daemon's ({what})")]
    Foreign {
        /// Its name.
        name: String,
        /// What it is.
        what: String,
    },
    /// The addresses are taken.
    #[error("the subnet {subnet} overlaps {what} of {interface}")]
    Clash {
        /// Ours.
        subnet: Subnet,
        /// `the address 10.209.0.7/24`, `the route 10.0.0.0/8`.
        what: String,
        /// Whose that is.
        interface: String,
    },
    /// The host lacks something.
    #[error("{reason}")]
    Missing {
        /// What.
        reason: String,
        /// How to get it.
        fix: String,
    },
    /// The host refused.
    #[error("{0}")]
    Refused(String),
}

impl Obstacle {
    /// What to do.
    pub(crate) fn fix(&self) -> String {
        match self {
            Self::Missing { fix, .. } => fix.clone(),
            Self::Foreign { .. } => {
                "set another name as `bridge` under `[network]` in the configuration, or remove that \
                                     interface"
                    .to_owned()
            }
            Self::Clash { .. } => {
                "set other addresses as `subnet` under `[network]` in the configuration, or take down \
                                   what uses them"
                    .to_owned()
            }
            Self::Refused(_) => {
                "see the daemon's log; `mode = \"user\"` under `[network]` does without a bridge".to_owned()
            }
        }
    }

    fn refused(e: &(dyn std::error::Error + 'static)) -> Self {
        Self::Refused(crate::error::chain(e))
    }
}

impl From<LinkError> for Obstacle {
    fn from(e: LinkError) -> Self {
        Self::refused(&e)
    }
}

impl From<Error> for Obstacle {
    fn from(e: Error) -> Self {
        Self::refused(&e)
    }
}

/// The largest packet that leaves the host for the internet, in bytes, where it is smaller than the bridge's: behind a
/// VPN, say. A guest that knows need not find out by what is lost. Nothing, if the host does not say.
pub(crate) async fn narrowest() -> Option<u32> {
    // TEST-NET-1 (RFC 5737): an address like any on the internet, and nobody's. Nothing is sent.
    let anywhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let way = Hands::links().ok()?.outgoing(anywhere).await.ok()??;
    // Every IPv4 host takes 576 bytes (RFC 791); an interface of less is a mistake not to spread.
    (576..ETHERNET).contains(&way.mtu).then_some(way.mtu)
}

/// Makes the bridge, or takes over the one that is there. One that machines run on (`in_use`) and that is up with its
/// address is kept though another network, a VPN's say, has come to overlap it: taking it from them would mend nothing.
pub(crate) async fn bring_up(
    ledger: &Ledger,
    hands: &Hands,
    settings: &NetworkSettings,
    in_use: bool,
) -> Result<Bridge, Obstacle> {
    let links = Hands::links()?;
    let scene = Scene::look(&links).await?;
    let object = Object::Bridge {
        name: settings.bridge.clone(),
    };
    let entered = ledger.objects(&Owner::Host).await?.contains(&object);
    let ours = scene
        .ours(settings, &hands.alias, entered)?
        .map(|link| link.index);
    let stands = ours.is_some_and(|index| scene.stands(settings, index));
    if let Some(clash) = scene.clash(settings).filter(|_| !(in_use && stands)) {
        return Err(clash);
    }
    let index = match ours {
        Some(index) => {
            if !entered {
                ledger.enter(&Owner::Host, &object).await?.nothing_to_make();
            }
            links.set_alias(index, &hands.alias).await?;
            index
        }
        None => {
            if entered {
                // Gone with the host's boot, or by somebody's hand.
                ledger.discard(&Owner::Host, &object).await?;
            }
            let entered = ledger.enter(&Owner::Host, &object).await?;
            let index = links.make_bridge(&settings.bridge, &hands.alias).await?;
            entered.made();
            index
        }
    };
    let address = settings.subnet.gateway();
    let net = Ipv4Net::new(address, settings.subnet.prefix()).map_err(|e| Obstacle::refused(&e))?;
    links.add_address(index, IpNet::V4(net)).await?;
    links.set_up(index).await?;
    Ok(Bridge {
        name: settings.bridge.clone(),
        index,
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_way_out_of_the_host() {
        testkit::in_network_namespace_async(async || {
            assert_eq!(narrowest().await, None);
            let links = hostkit::link::Links::connect().unwrap();
            let index = links.make_bridge("out", "").await.unwrap();
            links
                .add_address(index, "192.0.2.9/24".parse().unwrap())
                .await
                .unwrap();
            links.set_up(index).await.unwrap();
            for (mtu, told) in [(1500, None), (1420, Some(1420)), (300, None), (576, Some(576))] {
                links.set_mtu(index, mtu).await.unwrap();
                assert_eq!(narrowest().await, told);
            }
        });
    }
}
