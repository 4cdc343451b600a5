//! The network of machines.

use banger_api::types;
use banger_engine::vm::state::RunNetwork;
use banger_engine::{Carrier, HostResolver, Names, NetworkMachine, NetworkStatus, UserNetwork};

use super::allow;

pub(crate) fn status(status: NetworkStatus) -> types::NetStatus {
    let NetworkStatus {
        user,
        user_network,
        bridge,
        up,
        problem,
        subnet,
        pool,
        spare,
        used,
        waiting,
        rules_current,
        forwarding,
        names: said,
        machines,
    } = status;
    let (problem, fix) = problem.unzip();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let names = user.is_none().then(|| names(said));
    types::NetStatus {
        mode: match user {
            None => types::NetworkMode::Bridge,
            Some(_) => types::NetworkMode::User,
        },
        reason: user,
        user_network: user_network.map(carried),
        bridge,
        up,
        problem,
        fix,
        subnet: subnet.to_string(),
        gateway: subnet.gateway(),
        taps: types::TapLevels {
            size: pool.into(),
            spare: count(spare),
            used: count(used),
            waiting: count(waiting),
        },
        rules_current,
        forwarding_by_us: forwarding,
        names,
        machines: machines.into_iter().map(machine).collect(),
    }
}

fn carried(UserNetwork { carrier, note }: UserNetwork) -> types::UserNetwork {
    let carrier = match carrier {
        Carrier::Passt => types::NetworkCarrier::Passt,
        Carrier::Slirp => types::NetworkCarrier::Slirp,
    };
    types::UserNetwork { carrier, note }
}

/// That of a run; none of a release that knew another.
pub(crate) fn of_run(RunNetwork { carrier, note }: RunNetwork) -> Option<types::UserNetwork> {
    let known = [Carrier::Passt, Carrier::Slirp];
    let carrier = known.into_iter().find(|known| known.as_str() == carrier)?;
    Some(carried(UserNetwork { carrier, note }))
}

fn names(names: Names) -> types::NetNames {
    let Names {
        served,
        problem,
        host,
        upstreams,
        answered,
        forwarded,
        dropped,
    } = names;
    let (host, domains, host_problem) = match host {
        HostResolver::Asking => (types::HostResolver::Asking, Vec::new(), None),
        HostResolver::Routed(domains) => (types::HostResolver::Routed, domains, None),
        HostResolver::NotRunning => (types::HostResolver::NotRunning, Vec::new(), None),
        HostResolver::Failed(words) => (types::HostResolver::Failed, Vec::new(), Some(words)),
    };
    types::NetNames {
        served: served.map(|address| address.to_string()),
        problem,
        host,
        host_problem,
        domains,
        upstreams: upstreams.iter().map(ToString::to_string).collect(),
        answered,
        forwarded,
        dropped,
    }
}

fn machine(machine: NetworkMachine) -> types::NetMachine {
    let NetworkMachine {
        vm,
        address,
        tap,
        nat,
        allow: allowed,
    } = machine;
    types::NetMachine {
        vm,
        address,
        tap,
        nat,
        allow: allow(allowed),
    }
}
