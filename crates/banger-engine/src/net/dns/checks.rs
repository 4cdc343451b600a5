//! What doctor says of names: whether they are served, and whether the host's programs come to ask.

use std::net::Ipv4Addr;
use std::path::Path;

use super::desk::Standing;
use super::routing::{State, host_asks_resolved};
use crate::doctor::Check;
use crate::net::prerequisites::GROUP;

/// The host's files that say whom its programs ask.
struct Files {
    /// resolv.conf(5)
    resolv: String,
    /// nsswitch.conf(5)
    nsswitch: String,
}

impl Files {
    fn read() -> Self {
        let read = |path| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self {
            resolv: read("/etc/resolv.conf"),
            nsswitch: read("/etc/nsswitch.conf"),
        }
    }
}

/// Whether programs of this host that look up `NAME.vm` come to ask us.
pub(crate) fn resolves_on_host(host: &State) -> bool {
    match host {
        State::Routed { .. } => {
            let files = Files::read();
            host_asks_resolved(&files.resolv, &files.nsswitch)
        }
        State::Asking | State::NotRunning | State::Failed(_) => false,
    }
}

/// With the bridge up: names served on it, and asked for by the host.
pub(crate) fn checks(standing: &Standing, server: Ipv4Addr) -> Vec<Check> {
    vec![serving(standing), asking(&standing.host, server, &Files::read())]
}

fn serving(standing: &Standing) -> Check {
    let name = "names";
    match (&standing.problem, standing.address) {
        (Some(problem), _) => Check::failure(
            GROUP,
            name,
            problem.clone(),
            "let that program serve its own addresses only (dnsmasq: bind-dynamic, named: listen-on); it is tried again \
             by itself",
        ),
        (None, Some(_)) if standing.upstreams.is_empty() => Check::warning(
            GROUP,
            name,
            "guests resolve no names but machines': /etc/resolv.conf names no server",
            "give the host a DNS server",
        ),
        (None, Some(address)) => Check::fine(GROUP, name, format!("served on {address}")),
        (None, None) => Check::fine(GROUP, name, "served once the bridge is up"),
    }
}

fn asking(host: &State, server: Ipv4Addr, files: &Files) -> Check {
    let name = "resolver";
    let by_hand = format!(
        "install and start systemd-resolved; or let the host's own resolver ask {server} for vm (dnsmasq: \
         server=/vm/{server})"
    );
    match host {
        State::Routed { .. } if host_asks_resolved(&files.resolv, &files.nsswitch) => {
            Check::fine(GROUP, name, "systemd-resolved asks for NAME.vm")
        }
        State::Routed { .. } => Check::warning(
            GROUP,
            name,
            "systemd-resolved knows machines' names, and this host's programs do not ask it",
            "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf (or install libnss-resolve)",
        ),
        State::Asking => Check::fine(GROUP, name, "asked once the bridge is up"),
        State::NotRunning => Check::warning(
            GROUP,
            name,
            "systemd-resolved does not run, so this host does not resolve NAME.vm",
            by_hand,
        ),
        State::Failed(words) => Check::warning(
            GROUP,
            name,
            format!("this host does not resolve NAME.vm: {words}"),
            by_hand,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Outcome;

    #[test]
    fn whatever_is_wrong_has_a_fix() {
        let server = Ipv4Addr::new(10, 209, 0, 1);
        let files = |resolv: &str| Files {
            resolv: resolv.to_owned(),
            nsswitch: "hosts: files dns\n".to_owned(),
        };
        let stub = files("nameserver 127.0.0.53\n");
        let other = files("nameserver 192.0.2.1\n");
        let routed = State::Routed {
            domains: vec!["vm".to_owned()],
        };
        assert_eq!(asking(&routed, server, &stub).outcome, Outcome::Fine);
        for (state, files) in [
            (&routed, &other),
            (&State::NotRunning, &stub),
            (&State::Failed("refused".to_owned()), &stub),
        ] {
            let check = asking(state, server, files);
            assert_eq!(check.outcome, Outcome::Warning);
            assert!(check.fix.is_some_and(|fix| !fix.is_empty()));
        }
        assert!(
            asking(&State::NotRunning, server, &other)
                .fix
                .unwrap()
                .contains("server=/vm/10.209.0.1")
        );
    }
}
