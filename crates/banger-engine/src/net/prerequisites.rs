//! What a bridge needs of the host, and what of the host keeps guests from getting through: looked at, never changed.

use hostkit::nft::Family;
use hostkit::{sysctl, tap};

use super::hands::Hands;
use super::scene::Scene;
use crate::doctor::Check;
use crate::error::chain;
use crate::settings::NetworkSettings;

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
            "switched on for machines with NAT; off again when the last one stops, unless others have come to need it",
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

/// A network of the host's that came up after the bridge and has its addresses, such as a VPN's: what it is, and what to
/// do. Where that cannot be known, nothing.
pub(crate) async fn clash(settings: &NetworkSettings) -> Option<(String, String)> {
    let scene = Scene::look(&Hands::links().ok()?).await.ok()?;
    scene
        .clash(settings)
        .map(|clash| (clash.to_string(), clash.fix()))
}

/// Programs whose rules drop what guests send through the host, and what lets it through. An accept of our tables is no
/// accept of theirs.
pub(crate) async fn other_rules(hands: &Hands, bridge: &str) -> Vec<Check> {
    let name = "firewall";
    let others = match Others::look(hands).await {
        Ok(Some(others)) => others,
        // That it is missing is said already.
        Ok(None) => return Vec::new(),
        Err(e) => {
            let fix = "see that nftables works: nft list tables";
            return vec![Check::warning(GROUP, name, chain(&e), fix)];
        }
    };
    let mut checks: Vec<_> = others
        .findings(bridge)
        .into_iter()
        .map(|(reason, fix)| Check::warning(GROUP, name, reason, fix))
        .collect();
    if checks.is_empty() {
        let reason = "no rules of Docker, firewalld or ufw are in the guests' way";
        checks.push(Check::fine(GROUP, name, reason));
    }
    checks
}

/// What others have in force.
#[derive(Debug, Clone, Default)]
struct Others {
    /// firewalld's table.
    firewalld: Option<Rules>,
    /// The table that iptables' nft variant has for IPv4: ufw's and Docker's rules.
    iptables: Option<Rules>,
    /// Rules of iptables' older variant, which nothing but itself can show, are looked at before others.
    legacy: bool,
    /// There is Docker's bridge.
    docker: bool,
    /// ufw is to have rules.
    ufw: bool,
}

impl Others {
    async fn look(hands: &Hands) -> Result<Option<Self>, crate::error::Error> {
        let fail = |action, source: Box<dyn std::error::Error + Send + Sync>| crate::error::Error::Host {
            action,
            source,
        };
        let Ok(nft) = hands.nft() else { return Ok(None) };
        let table = async |family, name| {
            let listed = nft.table(family, name).await;
            let listed = listed.map_err(|e| fail("look at others' rules", Box::new(e)))?;
            Ok::<_, crate::error::Error>(listed.map(Rules))
        };
        let docker = Hands::links()?.get("docker0").await;
        // `ip_tables_names` (the kernel's net/netfilter/x_tables.c): tables of the older variant, in this namespace.
        let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        let ufw = std::fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
        Ok(Some(Self {
            firewalld: table(Family::Inet, "firewalld").await?,
            iptables: table(Family::Ip, "filter").await?,
            legacy: legacy.lines().any(|line| line == "filter"),
            docker: docker
                .map_err(|e| fail("look at the host's links", Box::new(e)))?
                .is_some(),
            ufw: ufw.lines().any(|line| line.trim() == "ENABLED=yes"),
        }))
    }

    /// What is wrong, with what to do about it.
    fn findings(&self, bridge: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let drops = |who: &str| format!("{who} drops what guests send through this host");
        let (incoming, outgoing) = (format!("iifname \"{bridge}\""), format!("oifname \"{bridge}\""));
        if let Some(rules) = &self.firewalld
            && !rules.has(|rule| rule.starts_with(&incoming) && rule.contains("goto filter_FWD_"))
        {
            let add = format!("firewall-cmd --permanent --zone=trusted --add-interface={bridge}");
            found.push((drops("firewalld"), format!("{add} && firewall-cmd --reload")));
        }
        let ufw = format!("ufw route allow in on {bridge} && ufw allow in on {bridge} to any port 53");
        let accept = |of: &str| {
            format!(
                "iptables -I {of} -i {bridge} -j ACCEPT && iptables -I {of} -o {bridge} -m conntrack --ctstate \
                 RELATED,ESTABLISHED -j ACCEPT"
            )
        };
        if let Some(rules) = &self.iptables {
            let lets = |chain: &str, start: &str, part: &str| {
                rules.chain(chain).is_some_and(|mut rules| {
                    rules.any(|r| r.starts_with(start) && r.contains(part) && r.ends_with("accept"))
                })
            };
            // Whoever accepts a packet accepts it for all of the table.
            let docker = lets("DOCKER-USER", &incoming, "") && lets("DOCKER-USER", &outgoing, "");
            let plain = lets("FORWARD", &incoming, "") && lets("FORWARD", &outgoing, "");
            let through = docker || plain || lets("ufw-user-forward", &incoming, "");
            let asks = lets("ufw-user-input", &incoming, "dport 53");
            if rules.is_ufw() {
                let shut = rules.drops("FORWARD") && !through || rules.drops("INPUT") && !asks;
                found.extend(shut.then(|| (drops("ufw"), ufw.clone())));
            } else if rules.drops("FORWARD") && !through {
                let (who, chain) = match rules.chain("DOCKER-USER") {
                    Some(_) => ("Docker", "DOCKER-USER"),
                    None => ("iptables", "FORWARD"),
                };
                // Unlike the others iptables remembers nothing.
                let reason = format!("{} (the fix is to be repeated after a boot)", drops(who));
                found.push((reason, accept(chain)));
            }
        }
        if self.legacy {
            let may =
                |who: &str| format!("{who}, by iptables-legacy, may drop what guests send through this host");
            found.extend(self.docker.then(|| (may("Docker"), accept("DOCKER-USER"))));
            found.extend(self.ufw.then(|| (may("ufw"), ufw)));
        }
        found
    }
}

/// A table, as `nft` lists it.
#[derive(Debug, Clone)]
struct Rules(String);

impl Rules {
    fn has(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.0.lines().any(|line| wanted(line.trim()))
    }

    /// The lines of a chain.
    fn chain(&self, name: &str) -> Option<impl Iterator<Item = &str>> {
        let head = format!("chain {name} {{");
        let mut lines = self.0.lines().map(str::trim);
        lines.find(|line| *line == head)?;
        Some(lines.take_while(|line| *line != "}"))
    }

    /// Whether a chain drops what no rule accepts.
    fn drops(&self, chain: &str) -> bool {
        self.chain(chain).is_some_and(|mut lines| {
            lines.any(|line| line.starts_with("type filter hook ") && line.ends_with("policy drop;"))
        })
    }

    /// Whether ufw has rules in force: switched off it leaves its chains, and nothing leads to them.
    fn is_ufw(&self) -> bool {
        self.chain("FORWARD")
            .is_some_and(|mut lines| lines.any(|line| line.ends_with("jump ufw-before-forward")))
    }
}

#[cfg(test)]
#[path = "prerequisites_tests.rs"]
mod tests;
