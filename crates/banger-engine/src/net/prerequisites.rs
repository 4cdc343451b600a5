//! What a bridge needs of the host, and what of the host keeps guests from getting through: looked at, never changed.

use std::path::Path;

use hostkit::{nft, sysctl, tap};

use super::hands::Hands;
use crate::doctor::Check;
use crate::error::chain;

/// The group of doctor's checks.
pub(crate) const GROUP: &str = "network";
/// Whether the host forwards packets between its interfaces.
pub(crate) const FORWARD: &str = "net/ipv4/ip_forward";
/// `CAP_NET_ADMIN` (capabilities(7)), a bit of `CapEff` in proc_pid_status(5).
const NET_ADMIN: u32 = 12;

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// A stable name.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) fix: String,
}

/// All that a bridge needs and this host does not give.
pub(crate) fn missing(hands: &Hands) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !is_net_admin() {
        missing.push(Missing {
            name: "capability",
            reason: "the daemon does not have the capability CAP_NET_ADMIN".to_owned(),
            fix: "run the daemon as root (banger daemon install); without it machines have the VMM's own network".to_owned(),
        });
    } else if let Err(e) = tap::usable() {
        missing.push(Missing {
            name: "tun",
            reason: chain(&e),
            fix: "modprobe tun".to_owned(),
        });
    }
    if let Err(e) = hands.nft() {
        missing.push(Missing {
            name: "nft",
            reason: chain(&e),
            fix: "apt-get install nftables".to_owned(),
        });
    }
    missing
}

fn is_net_admin() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << NET_ADMIN) != 0)
}

/// Whether the host forwards.
pub(crate) fn forwards() -> bool {
    sysctl::read(FORWARD).is_ok_and(|value| value == "1")
}

/// Whether the host forwards, and whether that is our doing.
pub(crate) fn forwarding(ours: bool) -> Check {
    let name = "ip_forward";
    match sysctl::read(FORWARD).as_deref() {
        Ok("1") if ours => Check::fine(
            GROUP,
            name,
            "switched on for machines with NAT; off again when the last one stops",
        ),
        Ok("1") => Check::fine(GROUP, name, "the host forwards packets"),
        Ok(_) => Check::fine(GROUP, name, "off; switched on while a machine with NAT runs"),
        Err(e) => Check::warning(
            GROUP,
            name,
            chain(e),
            "guests reach nothing beyond the host; see the kernel's settings",
        ),
    }
}

/// Programs whose rules drop what guests send through the host, and what lets it through. An accept of our tables is no
/// accept of theirs.
pub(crate) async fn other_rules(hands: &Hands, bridge: &str) -> Vec<Check> {
    let tables = match hands.nft() {
        Ok(nft) => nft.tables().await,
        Err(_) => return Vec::new(),
    };
    let tables = match tables {
        Ok(tables) => tables,
        Err(e) => {
            let fix = "see that nftables works: nft list tables";
            return vec![Check::warning(GROUP, "firewall", chain(&e), fix)];
        }
    };
    let facts = Others {
        firewalld: has(&tables, "firewalld"),
        iptables: has(&tables, "filter"),
        docker: Path::new("/sys/class/net/docker0").exists(),
        ufw: std::fs::read_to_string("/etc/ufw/ufw.conf")
            .is_ok_and(|text| text.lines().any(|l| l.trim() == "ENABLED=yes")),
    };
    facts.checks(bridge)
}

fn has(tables: &[nft::Table], name: &str) -> bool {
    tables.iter().any(|table| table.name == name)
}

/// Who else has rules.
#[derive(Debug, Clone, Copy, Default)]
struct Others {
    firewalld: bool,
    /// A table of the name that iptables-nft uses.
    iptables: bool,
    docker: bool,
    ufw: bool,
}

impl Others {
    fn checks(self, bridge: &str) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut found = |who: &str, fix: String| {
            checks.push(Check::warning(
                GROUP,
                "firewall",
                format!("{who} may drop what guests send through this host"),
                fix,
            ));
        };
        if self.firewalld {
            found(
                "firewalld",
                format!(
                    "firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload"
                ),
            );
        }
        if self.docker && self.iptables {
            found(
                "Docker's rules",
                format!(
                    "iptables -I DOCKER-USER -i {bridge} -j ACCEPT; iptables -I DOCKER-USER -o {bridge} -m conntrack \
                     --ctstate RELATED,ESTABLISHED -j ACCEPT"
                ),
            );
        }
        if self.ufw {
            found(
                "ufw",
                format!("ufw route allow in on {bridge}; ufw allow in on {bridge} to any port 53"),
            );
        }
        if checks.is_empty() {
            checks.push(Check::fine(
                GROUP,
                "firewall",
                "no rules of Docker, firewalld or ufw",
            ));
        }
        checks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_firewall_has_its_fix() {
        let said = |others: Others| -> Vec<String> {
            let checks = others.checks("bgr0");
            checks.into_iter().map(|c| c.fix.unwrap_or(c.reason)).collect()
        };
        assert_eq!(said(Others::default()), ["no rules of Docker, firewalld or ufw"]);
        let all = Others {
            firewalld: true,
            iptables: true,
            docker: true,
            ufw: true,
        };
        let all = said(all);
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|fix| fix.contains("bgr0")), "{all:?}");
        // Its bridge alone is no rule.
        let docker = Others {
            docker: true,
            ..Others::default()
        };
        assert_eq!(said(docker).len(), 1);
    }
}
