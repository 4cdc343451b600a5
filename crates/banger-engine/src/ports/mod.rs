//! Published ports: a port of the host that leads to one of a machine, through the machine's agent, so that it needs
//! neither a network nor privileges.
//!
//! Place: the façade's `publish`, `unpublish` and `create` reserve ports in the store and tell [`Ports`]; a machine's
//! start binds them before anything else exists ([`capability::publish`](crate::vm::capability)); the machine's task says
//! when its guest comes and goes ([`Ports::follow`]), and with it its listeners do. A listener is the daemon's: one that
//! dies takes its connections with it, and the next daemon listens again for the machines that it adopts.
//!
//! - `bind`: a socket, or who has its port. `tcp`, `udp`: what comes there, carried to the guest.
//!
//! The table's lock is a leaf, and nothing waits under it. Long-lived tasks: one for each listener, which ends its
//! connections with itself.

mod bind;
mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use banger_agent_api::{AgentClient, Transport};
use banger_store::publications::PublicationRow;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::error::{Error, chain};
use bind::Problem;
pub(crate) use bind::{Bound, bind};

/// Connections of one machine at a time, below what its agent allows, so that those who wait do so in the kernel's queue.
const MAX_CONNECTIONS: usize = 200;

/// Ports that one machine may have published.
pub(crate) const MAX_PUBLICATIONS: usize = 64;

/// A port of the host that leads to one of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Publication {
    /// What carries bytes there.
    pub transport: Transport,
    /// Where the host listens. Port 0 where it is yet to be chosen, and nowhere else.
    pub host: SocketAddr,
    /// Where the guest does, on its loopback.
    pub guest_port: u16,
}

impl Publication {
    pub(crate) fn row(&self, vm: &str) -> PublicationRow {
        PublicationRow {
            vm: vm.to_owned(),
            protocol: self.transport.as_str().to_owned(),
            host: self.host,
            guest_port: self.guest_port,
        }
    }

    /// `None`: of a transport that this release does not know.
    fn of(row: &PublicationRow) -> Option<Self> {
        Some(Self {
            transport: Transport::from_name(&row.protocol)?,
            host: row.host,
            guest_port: row.guest_port,
        })
    }

    /// Whether it is the same place of the host.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        (self.transport, self.host) == (other.transport, other.host)
    }
}

impl fmt::Display for Publication {
    /// The host's side: `127.0.0.1:8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.transport.as_str())
    }
}

/// A publication as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Which.
    pub publication: Publication,
    /// Why nothing listens for it although its machine runs.
    pub problem: Option<String>,
}

/// All publications, and the listeners of the machines that run.
#[derive(Default)]
pub(crate) struct Ports {
    table: Mutex<BTreeMap<String, Entry>>,
    /// Held while the store and the table change together.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

/// One machine's.
#[derive(Default)]
struct Entry {
    published: Vec<Place>,
    /// The way to its guest, while it runs.
    guest: Option<Guest>,
}

/// Where the bytes go.
#[derive(Clone)]
struct Guest {
    agent: AgentClient,
    connections: Arc<Semaphore>,
    flows: Arc<udp::Flows>,
}

impl Guest {
    fn new(agent: AgentClient) -> Self {
        Self {
            agent,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            flows: Arc::default(),
        }
    }
}

struct Place {
    publication: Publication,
    listener: Option<Listener>,
    problem: Option<Problem>,
}

impl Place {
    fn new(publication: Publication) -> Self {
        Self {
            publication,
            listener: None,
            problem: None,
        }
    }

    /// Listens, where that is not done yet, with what was bound for it or by binding now.
    fn listen(&mut self, guest: &Guest, bound: Option<Bound>) {
        if self.listener.is_some() {
            return;
        }
        let bound = bound.map_or_else(|| bind(&self.publication), Ok);
        match bound {
            Ok(bound) => {
                self.listener = Some(Listener::serve(bound, self.publication.guest_port, guest));
                self.problem = None;
            }
            Err(failed) => {
                let problem = Problem::from(&failed);
                // Tried again and again, told once.
                if self.problem.as_ref() != Some(&problem) {
                    let problem = problem.in_words();
                    tracing::warn!(port = %self.publication, problem, "not published");
                }
                self.problem = Some(problem);
            }
        }
    }
}

/// A task that listens; dropping this ends it and its connections.
struct Listener(AbortHandle);

impl Listener {
    fn serve(bound: Bound, port: u16, guest: &Guest) -> Self {
        let guest = guest.clone();
        let task = match bound {
            Bound::Tcp(listener) => tokio::spawn(tcp::serve(listener, port, guest)),
            Bound::Udp(socket) => tokio::spawn(udp::serve(socket, port, guest)),
        };
        Self(task.abort_handle())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A port that is kept for a machine which is being started.
pub(crate) type Reserved = (Publication, Bound);

impl Ports {
    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        // Nothing panics while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the store has.
    pub(crate) fn load(&self, rows: &[PublicationRow]) {
        let mut table = self.table();
        for row in rows {
            match Publication::of(row) {
                Some(publication) => {
                    let entry = table.entry(row.vm.clone()).or_default();
                    entry.published.push(Place::new(publication));
                }
                None => tracing::warn!(vm = row.vm, protocol = row.protocol, "unknown publication"),
            }
        }
    }

    /// One machine's, in the order of the host's ports.
    pub(crate) fn of(&self, vm: &str) -> Vec<Published> {
        let table = self.table();
        let places = table.get(vm).map(|entry| entry.published.as_slice());
        places
            .unwrap_or_default()
            .iter()
            .map(|place| Published {
                publication: place.publication,
                problem: place.problem.as_ref().map(Problem::in_words),
            })
            .collect()
    }

    /// The same, with the names of those who have what is taken.
    pub(crate) async fn explained(&self, vm: &str) -> Vec<Published> {
        let places: Vec<_> = {
            let table = self.table();
            let places = table.get(vm).map(|entry| entry.published.as_slice());
            let places = places.unwrap_or_default().iter();
            places
                .map(|place| (place.publication, place.problem.clone()))
                .collect()
        };
        let mut published = Vec::with_capacity(places.len());
        for (publication, problem) in places {
            let problem = match problem {
                Some(problem) => Some(problem.explained(publication).await),
                None => None,
            };
            published.push(Published { publication, problem });
        }
        published
    }

    /// Whether the machine's guest is there to be reached.
    pub(crate) fn is_open(&self, vm: &str) -> bool {
        self.table().get(vm).is_some_and(|entry| entry.guest.is_some())
    }

    /// The store has them now: those of a machine that runs are listened for at once.
    pub(crate) fn add(&self, vm: &str, reserved: Vec<Reserved>) {
        let mut table = self.table();
        let entry = table.entry(vm.to_owned()).or_default();
        for (publication, bound) in reserved {
            let mut place = Place::new(publication);
            if let Some(guest) = &entry.guest {
                place.listen(guest, Some(bound));
            }
            entry.published.push(place);
        }
        let by_port = |place: &Place| (place.publication.host.port(), place.publication);
        entry.published.sort_by_key(by_port);
    }

    /// The store no longer has it.
    pub(crate) fn remove(&self, vm: &str, publication: &Publication) {
        if let Some(entry) = self.table().get_mut(vm) {
            entry
                .published
                .retain(|place| !place.publication.is_at(publication));
        }
    }

    /// The machine is no more.
    pub(crate) fn forget(&self, vm: &str) {
        self.table().remove(vm);
    }

    /// The machine's guest has come, with what its start has bound.
    pub(crate) fn open(&self, vm: &str, agent: &AgentClient, reserved: Vec<Reserved>) {
        let mut table = self.table();
        let entry = table.entry(vm.to_owned()).or_default();
        let guest = entry.guest.get_or_insert_with(|| Guest::new(agent.clone()));
        let mut reserved: BTreeMap<_, _> = reserved.into_iter().collect();
        for place in &mut entry.published {
            place.listen(guest, reserved.remove(&place.publication));
        }
    }

    /// The guest is there, or is not: listeners are as it is. Costs a look where nothing has changed.
    pub(crate) fn follow(&self, vm: &str, agent: Option<&AgentClient>) {
        match agent {
            Some(agent) if !self.is_open(vm) => self.open(vm, agent, Vec::new()),
            Some(_) => {}
            None => self.close(vm),
        }
    }

    fn close(&self, vm: &str) {
        let mut table = self.table();
        let Some(entry) = table.get_mut(vm) else { return };
        entry.guest = None;
        for place in &mut entry.published {
            (place.listener, place.problem) = (None, None);
        }
        if entry.published.is_empty() {
            table.remove(vm);
        }
    }

    /// Tries again to listen where that was not possible.
    pub(crate) fn retry(&self, vm: &str) {
        if let Some(Entry {
            published,
            guest: Some(guest),
        }) = self.table().get_mut(vm)
        {
            for place in published {
                place.listen(guest, None);
            }
        }
    }
}

/// Binds all of them, ports that are yet to be chosen included, or says why one cannot be had. The machine's name is told
/// by the store, which knows all machines' ports; here it is processes.
pub(crate) async fn reserve(wanted: &[Publication]) -> Result<Vec<Reserved>, Error> {
    let mut reserved = Vec::new();
    for publication in wanted {
        match bind(publication) {
            Ok(bound) => {
                let host = bound.address().unwrap_or(publication.host);
                reserved.push((Publication { host, ..*publication }, bound));
            }
            Err(failed) => {
                return Err(failed.explained(publication).await);
            }
        }
    }
    Ok(reserved)
}

/// A connection that could not be carried, for the log.
fn tell(port: u16, error: &(dyn std::error::Error + 'static)) {
    tracing::debug!(port, error = chain(error), "a connection was not carried");
}

#[cfg(test)]
mod carry_tests;
#[cfg(test)]
mod tests;
