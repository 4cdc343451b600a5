//! That the host forwards packets: switched on while a machine needs it, and not longer.
//!
//! Docker, libvirt and others switch it on too, or find it on, which leaves no trace. So it is switched off again only where
//! no bridge and no table of rules is there that was not when we switched it on, and no machine on another Banger's bridge
//! (`Hands::restore`); what is left on is the host's from then on.

use hostkit::sysctl;

use super::Keeper;
use crate::error::Error;
use crate::ledger::{Object, Owner};
use crate::net::prerequisites::FORWARD;

impl Keeper {
    /// Makes the host forward packets while a machine needs it.
    pub(super) async fn forwarding(&self, needed: bool) -> Result<(), Error> {
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
                    others: network.hands.forwarders().await?,
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
}
