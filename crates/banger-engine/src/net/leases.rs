//! Machines' addresses: rows of the store, one for a machine's life.

use std::net::Ipv4Addr;

use super::{Mode, Network};
use crate::crash::Write;
use crate::error::Error;

impl Network {
    /// The first and the last address that a machine may have, where machines have any.
    pub(crate) fn addresses(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let subnet = self.settings.subnet;
        (self.mode == Mode::Bridge).then(|| (subnet.first(), subnet.last()))
    }

    /// A machine's address: the one that it has, or the next free one. An address outside the configured network, from
    /// before the configuration was changed, is an error.
    pub(crate) async fn lease(&self, vm: &str, name: &str) -> Result<Ipv4Addr, Error> {
        let id = vm.to_owned();
        if let Some(address) = self
            .rows
            .read(move |tx| banger_store::leases::find(tx, &id))
            .await?
        {
            return self.usable(name, address);
        }
        let (id, subnet) = (vm.to_owned(), self.settings.subnet);
        let taken = self.rows.write(Write::LeaseTake, move |tx| {
            banger_store::leases::take(tx, &id, subnet.first(), subnet.last())
        });
        Ok(taken.await?)
    }

    /// The address that a machine has, if any, as [`Self::lease`] would give it.
    pub(crate) async fn leased(&self, vm: &str, name: &str) -> Result<Option<Ipv4Addr>, Error> {
        let id = vm.to_owned();
        match self
            .rows
            .read(move |tx| banger_store::leases::find(tx, &id))
            .await?
        {
            Some(address) => self.usable(name, address).map(Some),
            None => Ok(None),
        }
    }

    fn usable(&self, name: &str, address: Ipv4Addr) -> Result<Ipv4Addr, Error> {
        let subnet = self.settings.subnet;
        if subnet.is_machines(address) {
            return Ok(address);
        }
        Err(Error::Unavailable {
            what: format!("the address {address} of machine {name:?}"),
            reason: format!("the machines' network is {subnet} by now"),
            fix: "set `subnet` under `[network]` in the configuration to one that has the address, or make the machine anew"
                .to_owned(),
        })
    }
}
