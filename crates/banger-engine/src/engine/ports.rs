//! Published ports, and what listens in a guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use banger_agent_api::{Listener, Transport};
use banger_store::publications;

use super::Engine;
use crate::crash::Write;
use crate::error::Error;
use crate::guest;
use crate::net::dns;
use crate::ports::{self, MAX_PUBLICATIONS, Publication, Published, Reserved};

/// For a guest to say what listens in it. One with thousands of processes under emulation takes a while.
const LISTENING: Duration = Duration::from_secs(15);

/// Ports of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPorts {
    /// Machine's name.
    pub vm: String,
    /// What listens in its guest, by port.
    pub listeners: Vec<Listener>,
    /// More listens than is told.
    pub incomplete: bool,
    /// What is published, by the host's port.
    pub published: Vec<Published>,
    /// Where the host reaches it itself.
    pub direct: Option<Direct>,
}

/// A machine on the bridge, as the host reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direct {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its name, where the host resolves it: `dev.vm`.
    pub name: Option<String>,
}

impl Engine {
    /// What listens in a guest, and what is published of it.
    pub async fn ports(&self, reference: &str) -> Result<VmPorts, Error> {
        let handle = self.machines.find(reference)?;
        let agent = guest::client(&handle)?;
        let listening = agent.listening(LISTENING).await.map_err(|e| Error::Agent {
            vm: handle.name(),
            source: Box::new(e),
        })?;
        let direct = self.direct(&handle.id, &handle.name()).await?;
        Ok(VmPorts {
            vm: handle.name(),
            direct,
            listeners: listening.listeners,
            incomplete: listening.incomplete,
            published: self.host.ports.explained(&handle.id).await,
        })
    }

    /// Where the host reaches a machine without a publication: nowhere, unless its run is on the bridge.
    async fn direct(&self, vm: &str, name: &str) -> Result<Option<Direct>, Error> {
        let network = &self.host.network;
        if network.tap_of(vm).is_none() {
            return Ok(None);
        }
        let id = vm.to_owned();
        let address = self
            .host
            .store
            .read(move |tx| banger_store::leases::find(tx, &id))
            .await?;
        let named = dns::resolves_on_host(&network.dns().host);
        Ok(address.map(|address| Direct {
            address,
            name: named.then(|| format!("{name}.{}", dns::ZONE)),
        }))
    }

    /// Publishes ports: all of them or none. Those that are published as asked for already stay. Port 0 of the host is
    /// any that is free, and from then on that one. Gives them, with the ports that they have.
    pub async fn publish(&self, reference: &str, wanted: &[Publication]) -> Result<Vec<Published>, Error> {
        let handle = self.machines.find(reference)?;
        let (id, name) = (handle.id.clone(), handle.name());
        let ports = &self.host.ports;
        let _changing = ports.changing.lock().await;
        let there = ports.of(&id);
        let is_there = |wanted: &Publication| there.iter().any(|there| there.publication == *wanted);
        let new = distinct(wanted)?;
        let (old, new): (Vec<_>, Vec<_>) = new.into_iter().partition(is_there);
        check_number(there.len() + new.len())?;
        let reserved = self.reserve_ports(&id, &new).await?;
        let rows: Vec<_> = reserved
            .iter()
            .map(|(publication, _)| publication.row(&id))
            .collect();
        let written = self.host.store.write(Write::Publish, move |tx| {
            rows.iter().try_for_each(|row| publications::insert(tx, row))
        });
        written.await?;
        for (publication, _) in &reserved {
            tracing::info!(vm = name, port = %publication, guest = publication.guest_port, "published");
        }
        let made = reserved.iter().map(|(publication, _)| *publication);
        let asked: Vec<Publication> = old.into_iter().chain(made).collect();
        ports.add(&id, reserved);
        let mut published = ports.explained(&id).await;
        published.retain(|published| asked.contains(&published.publication));
        Ok(published)
    }

    /// Binds ports that no machine has.
    pub(super) async fn reserve_ports(
        &self,
        vm: &str,
        wanted: &[Publication],
    ) -> Result<Vec<Reserved>, Error> {
        // The store knows the ports of machines that do not run, and whose those are that the daemon itself has.
        let rows: Vec<_> = wanted.iter().map(|publication| publication.row(vm)).collect();
        let checked = self.host.store.read(move |tx| {
            rows.iter()
                .try_for_each(|row| publications::check(tx, row).map(drop))
        });
        checked.await?;
        ports::reserve(wanted).await
    }

    /// Takes publications back and ends their connections: those that are named, or all. Gives those that were.
    pub async fn unpublish(&self, reference: &str, which: &Unpublish) -> Result<Vec<Publication>, Error> {
        let handle = self.machines.find(reference)?;
        let id = handle.id.clone();
        let ports = &self.host.ports;
        let _changing = ports.changing.lock().await;
        let there = ports.of(&id).into_iter().map(|there| there.publication);
        let gone = which.of(there.collect())?;
        let rows: Vec<_> = gone.iter().map(|publication| publication.row(&id)).collect();
        let written = self.host.store.write(Write::Unpublish, move |tx| {
            rows.iter().try_for_each(|row| publications::remove(tx, row))
        });
        written.await?;
        for publication in &gone {
            tracing::info!(vm = handle.name(), port = %publication, "unpublished");
            ports.remove(&id, publication);
        }
        Ok(gone)
    }
}

/// Which publications are taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpublish {
    /// All of the machine's.
    All,
    /// Those at these places of the host.
    At(Vec<HostPort>),
}

/// A port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// What carries bytes there.
    pub transport: Transport,
    /// Absent: at whatever address.
    pub address: Option<IpAddr>,
    /// Its number.
    pub port: u16,
    /// Port of the guest it leads to. Absent: whichever.
    pub guest_port: Option<u16>,
}

impl HostPort {
    fn has(&self, publication: &Publication) -> bool {
        self.guest_port.is_none_or(|port| port == publication.guest_port) && self.is_at(publication)
    }

    fn is_at(&self, publication: &Publication) -> bool {
        let Publication { transport, host, .. } = publication;
        *transport == self.transport
            && host.port() == self.port
            && self.address.is_none_or(|address| address == host.ip())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}", SocketAddr::new(address, self.port))?,
            None => write!(f, "{}", self.port)?,
        }
        if let Some(port) = self.guest_port {
            write!(f, ":{port}")?;
        }
        write!(f, "/{}", self.transport.as_str())
    }
}

impl Unpublish {
    /// Those of the machine's that are meant; an error for one that is not there.
    fn of(&self, there: Vec<Publication>) -> Result<Vec<Publication>, Error> {
        let places = match self {
            Self::All => return Ok(there),
            Self::At(places) => places,
        };
        if let Some(missing) = places
            .iter()
            .find(|place| !there.iter().any(|there| place.has(there)))
        {
            // There, but it leads elsewhere, or carries the other protocol.
            let leads = |publication: &Publication| HostPort {
                guest_port: Some(publication.guest_port),
                ..*missing
            };
            let elsewhere = there.iter().find(|there| missing.is_at(there)).map(leads);
            let other = || {
                let carried = |there: &Publication| HostPort {
                    transport: there.transport,
                    ..*missing
                };
                there
                    .iter()
                    .map(|there| (there, carried(there)))
                    .find(|(there, place)| place.has(there))
            };
            let near = elsewhere.or_else(|| other().map(|(_, place)| place));
            return Err(Error::Missing {
                what: "published port",
                name: missing.to_string(),
                near: near.map(|near| near.to_string()),
            });
        }
        let is_meant = |there: &Publication| places.iter().any(|place| place.has(there));
        Ok(there.into_iter().filter(is_meant).collect())
    }
}

/// Each once; a port of the host that is to lead to two places is a mistake.
pub(super) fn distinct(wanted: &[Publication]) -> Result<Vec<Publication>, Error> {
    let mut all: Vec<Publication> = Vec::new();
    for one in wanted {
        let fixed = |other: &&Publication| one.host.port() != 0 && other.is_at(one);
        match all.iter().find(fixed) {
            Some(other) if other != one => {
                return Err(Error::Contradiction {
                    problem: format!(
                        "port {one} of the host cannot lead to both {} and {} of the guest",
                        other.guest_port, one.guest_port
                    ),
                    hint: "give each a port of its own".to_owned(),
                });
            }
            Some(_) => {}
            None => all.push(*one),
        }
    }
    Ok(all)
}

/// Whether a machine may have that many.
pub(super) fn check_number(number: usize) -> Result<(), Error> {
    if number > MAX_PUBLICATIONS {
        return Err(Error::OutOfRange {
            field: "publish",
            value: format!("{number} ports"),
            problem: format!("above the maximum of {MAX_PUBLICATIONS} for a machine"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(transport: Transport, host: &str, guest_port: u16) -> Publication {
        Publication {
            transport,
            host: host.parse().unwrap(),
            guest_port,
        }
    }

    #[test]
    fn one_port_leads_to_one_place() {
        let web = publication(Transport::Tcp, "127.0.0.1:80", 80);
        let any = publication(Transport::Tcp, "127.0.0.1:0", 80);
        assert_eq!(distinct(&[web, web]).unwrap(), [web]);
        // Two free ones are two.
        assert_eq!(distinct(&[any, any]).unwrap(), [any, any]);
        let error = distinct(&[web, publication(Transport::Tcp, "127.0.0.1:80", 81)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "port 127.0.0.1:80/tcp of the host cannot lead to both 80 and 81 of the guest"
        );
        let dns = publication(Transport::Udp, "127.0.0.1:80", 81);
        assert_eq!(distinct(&[web, dns]).unwrap(), [web, dns]);
    }

    #[test]
    fn what_is_taken_back_was_there() {
        let there = vec![
            publication(Transport::Tcp, "127.0.0.1:80", 80),
            publication(Transport::Tcp, "[::1]:80", 80),
            publication(Transport::Udp, "127.0.0.1:80", 80),
        ];
        let leading = |address: Option<&str>, port, guest_port| {
            let address = address.map(|text| text.parse().unwrap());
            let transport = Transport::Tcp;
            Unpublish::At(vec![HostPort {
                transport,
                address,
                port,
                guest_port,
            }])
        };
        let at = |address: Option<&str>, port| leading(address, port, None);
        assert_eq!(Unpublish::All.of(there.clone()).unwrap(), there);
        assert_eq!(at(None, 80).of(there.clone()).unwrap(), there[..2]);
        assert_eq!(at(Some("::1"), 80).of(there.clone()).unwrap(), there[1..2]);
        let missing = at(Some("::2"), 80).of(there.clone()).unwrap_err();
        assert_eq!(missing.to_string(), "no published port \"[::2]:80/tcp\"");
        assert_eq!(
            leading(Some("::1"), 80, Some(80)).of(there.clone()).unwrap(),
            there[1..2]
        );
        let elsewhere = leading(None, 80, Some(81)).of(there.clone()).unwrap_err();
        assert_eq!(elsewhere.to_string(), "no published port \"80:81/tcp\"");
        let other = at(None, 80).of(there[2..].to_vec()).unwrap_err();
        assert_eq!(other.report().hint.as_deref(), Some("did you mean \"80/udp\"?"));
        assert_eq!(
            elsewhere.report().hint.as_deref(),
            Some("did you mean \"80:80/tcp\"?")
        );
    }
}
