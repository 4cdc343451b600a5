//! `banger net status`: how machines are connected.

use banger_api::types::{Empty, HostResolver, NetNames, NetStatus, NetworkMode};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// Show how machines are connected
///
/// The bridge with its addresses, the taps that are ready, whether the rules are in force, who answers for names and
/// whether this host asks there, and every machine's address.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger net status
  banger net status -o json | jq -r '.machines[] | [.vm, .address] | @tsv'
")]
pub(crate) struct Status {
    #[command(flatten)]
    output: OutputArgs,
}

impl Status {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let status = context.client().await?.net_status(Empty {}).await?;
        self.output.print(&status, names, render)
    }
}

fn names(status: &NetStatus) -> Vec<&str> {
    status
        .machines
        .iter()
        .map(|machine| machine.vm.as_str())
        .collect()
}

fn render(status: &NetStatus) -> String {
    let mode = match (status.mode, &status.reason) {
        (NetworkMode::Bridge, _) => "bridge".to_owned(),
        (NetworkMode::User, Some(why)) => format!("user ({why})"),
        (NetworkMode::User, None) => "user".to_owned(),
    };
    let mut rows = vec![("mode", mode)];
    let user = status.user_network.iter();
    rows.extend(user.map(|network| ("user network", human::user_network(network))));
    if status.mode == NetworkMode::Bridge {
        let taps = &status.taps;
        rows.extend([
            (
                "bridge",
                format!("{}, {}", status.bridge, if status.up { "up" } else { "down" }),
            ),
            (
                "subnet",
                format!("{}, the host is {}", status.subnet, status.gateway),
            ),
            (
                "taps",
                format!("{} of {} spare, {} in use", taps.spare, taps.size, taps.used),
            ),
            (
                "rules",
                if status.rules_current {
                    "in force"
                } else {
                    "not in force"
                }
                .to_owned(),
            ),
            (
                "forwarding",
                if status.forwarding_by_us {
                    "switched on for machines with NAT; off after the last, unless others need it by then"
                } else {
                    "as the host has it"
                }
                .to_owned(),
            ),
        ]);
    }
    if let Some(names) = &status.names {
        rows.extend([("names", served(names)), ("host resolver", host(names))]);
    }
    rows.extend(status.problem.iter().map(|problem| ("problem", problem.clone())));
    rows.extend(status.fix.iter().map(|fix| ("fix", fix.clone())));
    for machine in &status.machines {
        let tap = machine.tap.as_deref().unwrap_or("not connected");
        let nat = if machine.nat { "NAT" } else { "no NAT" };
        let allow = human::allow(&machine.allow);
        rows.push((
            "machine",
            format!("{} {}, {tap}, {nat}, allow {allow}", machine.vm, machine.address),
        ));
    }
    table::fields(rows)
}

fn served(names: &NetNames) -> String {
    match (&names.served, &names.problem) {
        (Some(address), _) if names.upstreams.is_empty() => {
            format!("NAME.vm on {address}; nothing else, this host has no server to ask")
        }
        (Some(address), _) => format!("NAME.vm on {address}, others from {}", names.upstreams.join(", ")),
        (None, Some(problem)) => format!("not served: {problem}"),
        (None, None) => "not served yet".to_owned(),
    }
}

fn host(names: &NetNames) -> String {
    match names.host {
        HostResolver::Asking => "not known yet".to_owned(),
        HostResolver::Routed => "systemd-resolved asks for NAME.vm".to_owned(),
        HostResolver::NotRunning => "systemd-resolved does not run; see banger doctor".to_owned(),
        HostResolver::Failed => {
            let why = names.host_problem.as_deref().unwrap_or("for an unknown reason");
            format!("does not ask: {why}; see banger doctor")
        }
    }
}

#[cfg(test)]
mod tests {
    use banger_api::types::{NetMachine, NetworkCarrier, Reach, TapLevels, UserNetwork};

    use super::*;

    #[test]
    fn a_bridge_with_two_machines() {
        let machine = |vm: &str, last, tap: Option<&str>| NetMachine {
            vm: vm.into(),
            address: [10, 209, 0, last].into(),
            tap: tap.map(Into::into),
            nat: tap.is_some(),
            allow: tap.map(|_| Reach::Guests).into_iter().collect(),
        };
        let status = NetStatus {
            mode: NetworkMode::Bridge,
            reason: None,
            user_network: None,
            bridge: "bgr0".into(),
            up: true,
            problem: None,
            fix: None,
            subnet: "10.209.0.0/20".into(),
            gateway: [10, 209, 0, 1].into(),
            taps: TapLevels {
                size: 4,
                spare: 4,
                used: 1,
                waiting: 0,
            },
            rules_current: true,
            forwarding_by_us: true,
            names: Some(NetNames {
                served: Some("10.209.0.1:53".into()),
                problem: None,
                host: HostResolver::Routed,
                host_problem: None,
                domains: vec!["vm".into()],
                upstreams: vec!["127.0.0.53:53".into()],
                answered: 7,
                forwarded: 3,
                dropped: 0,
            }),
            machines: vec![machine("dev", 2, Some("bgr0t0")), machine("web", 3, None)],
        };
        insta::assert_snapshot!(render(&status));
        let user = NetStatus {
            mode: NetworkMode::User,
            reason: Some("/dev/net/tun: No such file or directory".into()),
            user_network: Some(UserNetwork {
                carrier: NetworkCarrier::Slirp,
                note: Some("passt is not installed".into()),
            }),
            names: None,
            machines: Vec::new(),
            ..status
        };
        assert_eq!(
            render(&user),
            "mode:          user (/dev/net/tun: No such file or directory)\n\
             user network:  QEMU's own (passt is not installed)\n"
        );
    }
}
