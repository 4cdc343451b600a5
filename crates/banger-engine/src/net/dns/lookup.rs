//! The zone, found by name and by address. Who may see whom is decided here, how it is said in `answer`.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::net::names::{Named, Zone};
use crate::net::subnet::Subnet;

/// The zone's name, a single label: names in it are `NAME.vm`.
pub(crate) const ZONE: &str = "vm";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// The host itself.
    Host,
    /// A guest, by its address, which the filter has made sure of.
    Guest(Ipv4Addr),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lookup {
    subnet: Subnet,
    names: HashMap<String, Named>,
    addresses: HashMap<Ipv4Addr, String>,
}

impl Lookup {
    /// Of a zone.
    pub(crate) fn new(zone: &Zone) -> Self {
        let key = |machine: &Named| machine.name.to_ascii_lowercase();
        Self {
            subnet: zone.subnet,
            names: zone.machines.iter().map(|m| (key(m), m.clone())).collect(),
            addresses: zone.machines.iter().map(|m| (m.address, key(m))).collect(),
        }
    }

    /// Who asks from that address; `None`: somebody whom the server does not answer.
    pub(crate) fn asker(&self, source: Ipv4Addr) -> Option<Asker> {
        if source == self.subnet.gateway() || source.is_loopback() {
            Some(Asker::Host)
        } else if self.subnet.contains(source) {
            Some(Asker::Guest(source))
        } else {
            None
        }
    }

    /// The address of a machine by its label, in any case, for one who may see it.
    pub(crate) fn address_of(&self, label: &str, asker: Asker) -> Option<Ipv4Addr> {
        let machine = self.names.get(&label.to_ascii_lowercase())?;
        self.sees(asker, machine).then_some(machine.address)
    }

    /// The label of a machine by its address, for one who may see it.
    pub(crate) fn name_of(&self, address: Ipv4Addr, asker: Asker) -> Option<&str> {
        let machine = self.names.get(self.addresses.get(&address)?)?;
        self.sees(asker, machine).then_some(&*machine.name)
    }

    /// Whether others' names are asked of the host's servers for the asker. For one who is shut in they are not: by names
    /// and answers anything can be carried.
    pub(crate) fn forwards(&self, asker: Asker) -> bool {
        match asker {
            Asker::Host => true,
            Asker::Guest(address) => {
                let asking = self.addresses.get(&address).and_then(|name| self.names.get(name));
                asking.is_some_and(|machine| machine.out)
            }
        }
    }

    /// Whether an address is of this network, so that nobody else is asked for its name.
    pub(crate) fn owns(&self, address: Ipv4Addr) -> bool {
        self.subnet.contains(address)
    }

    fn sees(&self, asker: Asker, other: &Named) -> bool {
        match asker {
            Asker::Host => true,
            Asker::Guest(address) if address == other.address => true,
            Asker::Guest(address) => {
                let asking = self.addresses.get(&address).and_then(|name| self.names.get(name));
                other.guests && asking.is_some_and(|host| host.guests)
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn lookup() -> Lookup {
        let named = |name: &str, last, guests| Named {
            name: name.to_owned(),
            address: Ipv4Addr::new(10, 209, 0, last),
            guests,
            out: guests,
        };
        Lookup::new(&Zone {
            subnet: Subnet::DEFAULT,
            machines: vec![
                named("alone", 2, false),
                named("web", 3, true),
                named("db", 4, true),
            ],
        })
    }

    #[test]
    fn the_host_sees_all_and_guests_those_who_see_them() {
        let zone = lookup();
        let [alone, web, db] = [2, 3, 4].map(|last| Ipv4Addr::new(10, 209, 0, last));
        assert_eq!(zone.address_of("ALONE", Asker::Host), Some(alone));
        assert_eq!(zone.address_of("db", Asker::Guest(web)), Some(db));
        assert_eq!(zone.name_of(web, Asker::Guest(db)), Some("web"));
        assert_eq!(zone.address_of("alone", Asker::Guest(web)), None);
        assert_eq!(zone.address_of("web", Asker::Guest(alone)), None);
        assert_eq!(zone.address_of("alone", Asker::Guest(alone)), Some(alone));
        let unknown = Asker::Guest(Ipv4Addr::new(10, 209, 9, 9));
        assert_eq!(zone.address_of("web", unknown), None);
    }

    #[test]
    fn who_asks_is_told_by_the_address() {
        let zone = lookup();
        let asker = |text: &str| zone.asker(text.parse().unwrap());
        assert_eq!(asker("10.209.0.1"), Some(Asker::Host));
        assert_eq!(asker("127.0.0.1"), Some(Asker::Host));
        assert_eq!(
            asker("10.209.15.255"),
            Some(Asker::Guest(Ipv4Addr::new(10, 209, 15, 255)))
        );
        assert_eq!(asker("10.209.16.0"), None);
        assert_eq!(asker("8.8.8.8"), None);
    }
}
