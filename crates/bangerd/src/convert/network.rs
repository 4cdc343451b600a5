//! The network of machines.

use banger_api::types;
use banger_engine::{NetworkMachine, NetworkStatus};

use super::allow;

pub(crate) fn status(status: NetworkStatus) -> types::NetStatus {
    let NetworkStatus {
        user,
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
        machines,
    } = status;
    let (problem, fix) = problem.unzip();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    types::NetStatus {
        mode: match user {
            None => types::NetworkMode::Bridge,
            Some(_) => types::NetworkMode::User,
        },
        reason: user,
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
        machines: machines.into_iter().map(machine).collect(),
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
