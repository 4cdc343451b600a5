//! The network, as `net.status` shows it.

use std::net::{Ipv4Addr, SocketAddr};

use banger_vmm::UserNetwork;

use super::Engine;
use crate::error::Error;
use crate::net::allow::Allow;
use crate::net::subnet::Subnet;
use crate::net::{Mode, dns, prerequisites};

/// The network of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Why machines are not on a bridge; absent where they are.
    pub user: Option<String>,
    /// Who carries the packets of machines under QEMU that are started now without a bridge; absent where they are on one,
    /// and where there is nobody.
    pub user_network: Option<UserNetwork>,
    /// The bridge's name.
    pub bridge: String,
    /// It is there.
    pub up: bool,
    /// What is wrong, with what to do.
    pub problem: Option<(String, String)>,
    /// The machines' network.
    pub subnet: Subnet,
    /// How many spare taps there shall be.
    pub pool: u16,
    /// How many there are.
    pub spare: usize,
    /// In use by machines.
    pub used: usize,
    /// Starts that wait for one.
    pub waiting: usize,
    /// The rules in force are those of the machines as they are.
    pub rules_current: bool,
    /// This daemon has made the host forward packets.
    pub forwarding: bool,
    /// Who says what machines are called.
    pub names: Names,
    /// Machines with an address, by name.
    pub machines: Vec<NetworkMachine>,
}

/// Who says what machines are called, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Where they are served.
    pub served: Option<SocketAddr>,
    /// Why they are not, where there is a bridge.
    pub problem: Option<String>,
    /// Whether the host asks.
    pub host: HostResolver,
    /// Whom guests' other questions are asked of.
    pub upstreams: Vec<SocketAddr>,
    /// Questions answered, passed on, dropped, since the daemon began.
    pub answered: u64,
    /// See `answered`.
    pub forwarded: u64,
    /// See `answered`.
    pub dropped: u64,
}

/// Whether the host asks for machines' names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostResolver {
    /// Not known yet.
    Asking,
    /// It asks for these domains.
    Routed(Vec<String>),
    /// systemd-resolved does not run.
    NotRunning,
    /// It cannot be told, in words.
    Failed(String),
}

/// A machine with an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkMachine {
    /// Its name.
    pub vm: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its tap, while it runs on the bridge.
    pub tap: Option<String>,
    /// It may reach the internet.
    pub nat: bool,
    /// What else it may reach.
    pub allow: Allow,
}

impl Engine {
    /// The network as it stands.
    pub async fn network(&self) -> Result<NetworkStatus, Error> {
        let network = &self.host.network;
        let standing = network.settled().await;
        let (rows, leases) = self
            .host
            .store
            .read(|tx| Ok((banger_store::vms::list(tx)?.0, banger_store::leases::list(tx)?)))
            .await?;
        let lost = rows.iter().find_map(|row| {
            let tap = network
                .tap_of(&row.id)
                .filter(|_| network.has_lost_tap(&row.id))?;
            Some((row.name.clone(), tap))
        });
        let machines = rows.into_iter().filter_map(|row| {
            let lease = leases.iter().find(|lease| lease.vm == row.id)?;
            Some(NetworkMachine {
                address: lease.address,
                tap: network.tap_of(&row.id),
                nat: row.nat,
                allow: Allow::of(&row.allow),
                vm: row.name,
            })
        });
        let settings = network.settings();
        let levels = network.levels();
        let obstacle = standing.obstacle.as_ref().map(|o| (o.to_string(), o.fix()));
        let problem = standing
            .problem
            .map(|problem| (problem, "see the daemon's log and `banger doctor`".to_owned()));
        let machines: Vec<NetworkMachine> = machines.collect();
        let cut_off = lost.map(|(vm, tap)| {
            let reason = format!(
                "the tap {tap} of machine {vm:?} is gone, somebody has deleted it: it has no network"
            );
            (reason, format!("banger vm restart {vm}"))
        });
        let up = network.bridge().borrow().is_some();
        // What stands against nothing that is there, and is in machines' way all the same.
        let later = match up {
            true => stranded(&machines, settings.subnet).or(prerequisites::clash(settings).await),
            false => None,
        };
        Ok(NetworkStatus {
            user: match network.mode() {
                Mode::Bridge => None,
                Mode::User(why) => Some(why.clone()),
            },
            user_network: match network.mode() {
                Mode::Bridge => None,
                Mode::User(_) => self.host.vmms.user_network().await,
            },
            bridge: settings.bridge.clone(),
            up,
            problem: obstacle.or(problem).or(cut_off).or(later),
            subnet: settings.subnet,
            pool: settings.pool,
            spare: levels.spare,
            used: levels.used,
            waiting: levels.waiting,
            rules_current: standing.applied == standing.seen && standing.seen > 0,
            forwarding: standing.forwarding && prerequisites::forwards(),
            names: names(network.dns()),
            machines,
        })
    }
}

/// A machine that runs with an address from before the configuration was changed: no rules let it through.
fn stranded(machines: &[NetworkMachine], subnet: Subnet) -> Option<(String, String)> {
    let machine = machines
        .iter()
        .find(|machine| machine.tap.is_some() && !subnet.is_machines(machine.address))?;
    Some((
        format!(
            "machine {:?} runs with the address {}, which is none of the subnet {subnet}: its network is closed",
            machine.vm, machine.address
        ),
        "set `subnet` under `[network]` in the configuration to one that has the address, or make the machine anew"
            .to_owned(),
    ))
}

fn names(standing: dns::Standing) -> Names {
    Names {
        served: standing.address,
        problem: standing.problem,
        host: match standing.host {
            dns::HostNamesState::Asking => HostResolver::Asking,
            dns::HostNamesState::Routed { domains } => HostResolver::Routed(domains),
            dns::HostNamesState::NotRunning => HostResolver::NotRunning,
            dns::HostNamesState::Failed(words) => HostResolver::Failed(words),
        },
        upstreams: standing.upstreams,
        answered: standing.count.answered,
        forwarded: standing.count.forwarded,
        dropped: standing.count.dropped,
    }
}
