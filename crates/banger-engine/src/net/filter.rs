//! What may pass: the rules of the machines' network, rendered whole from state as a script for `nft`, which replaces the
//! two tables in one transaction.
//!
//! ```text
//!   tap -> table bridge, prerouting: is the frame its sender's?  (MAC, IPv4, ARP; nothing else at all)
//!            -> another port: table bridge, forward: do both machines see guests?
//!   host -> table bridge, output: to the tap of whose it is, and not to all while the bridge has yet to learn which
//!            -> the host:     table inet, input: DNS and ping of the bridge's address; more where allowed
//!            -> elsewhere:    table inet, forward: where to?  -> postrouting: behind the host's address
//! ```
//!
//! Everything a tap sends is dropped until its machine is in the sets: a tap that is nobody's has no way out. An accept of
//! these tables is no other table's: what Docker's or a firewall's rules drop stays dropped.
//!
//! Nothing is logged and nothing is asked here. What goes into the script is made here or checked before: interface
//! names of the form `BRIDGEtN`, addresses, hardware addresses.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::allow::Allow;
use super::subnet::Subnet;

// What a tap sends reaches the host by the bridge. That it came past it, as frames to certain group addresses would if ports
// were not told otherwise, is what the chain `early` is for.

/// New connections of one guest in a second, and how many more at once: beyond that it only fills the host's table of
/// connections.
const CONNECTIONS: (u32, u32) = (1000, 5000);

/// Connections of one guest that the host keeps in mind at once.
const CONNECTIONS_AT_ONCE: u32 = 8192;

/// What is nobody's on the internet, or not what is meant by it: RFC 6890, multicast, and what is reserved.
const INSIDE: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// A machine that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// Its tap.
    pub(crate) tap: String,
    /// Its card's hardware address.
    pub(crate) mac: [u8; 6],
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// It may reach the internet.
    pub(crate) nat: bool,
    /// What else it may reach.
    pub(crate) allow: Allow,
}

/// What the rules are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The bridge's name.
    pub(crate) bridge: String,
    /// Whose the tables are: what the aliases of our links say.
    pub(crate) owner: String,
    /// The machines' network.
    pub(crate) subnet: Subnet,
    /// The machines, in any order.
    pub(crate) ports: Vec<Port>,
    /// The host's own networks: address and prefix.
    pub(crate) on_link: Vec<(Ipv4Addr, u8)>,
}

/// The name of both tables. A bridge of another name has its own.
pub(crate) fn table(bridge: &str) -> String {
    match bridge {
        "bgr0" => "banger".to_owned(),
        other => format!("banger_{other}"),
    }
}

/// The bridge whose table has this name.
pub(crate) fn bridge_of(table: &str) -> Option<&str> {
    match table {
        "banger" => Some("bgr0"),
        other => other.strip_prefix("banger_"),
    }
}

/// The script.
pub(crate) fn render(state: &State) -> String {
    let mut ports: Vec<&Port> = state.ports.iter().collect();
    ports.sort_by(|a, b| a.tap.cmp(&b.tap));
    let table = table(&state.bridge);
    let mut text = String::new();
    for family in ["bridge", "inet"] {
        // Made first, because only what is there can be deleted.
        line(&mut text, format_args!("add table {family} {table}"));
        line(&mut text, format_args!("delete table {family} {table}"));
    }
    bridge(&mut text, state, &table, &ports);
    inet(&mut text, state, &table, &ports);
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    writeln!(text, "{arguments}").unwrap_or_default();
}

/// A set; without elements where there are none, which nft wants left out.
fn set(text: &mut String, name: &str, kind: &str, flags: &str, elements: &[String]) {
    line(text, format_args!("\tset {name} {{"));
    line(text, format_args!("\t\ttype {kind}"));
    if !flags.is_empty() {
        line(text, format_args!("\t\t{flags}"));
    }
    if !elements.is_empty() {
        line(text, format_args!("\t\telements = {{ {} }}", elements.join(", ")));
    }
    line(text, format_args!("\t}}"));
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn bridge(text: &mut String, state: &State, table: &str, ports: &[&Port]) {
    let sources: Vec<_> = ports
        .iter()
        .map(|p| format!("\"{}\" . {} . {}", p.tap, mac(p.mac), p.address))
        .collect();
    let guests: Vec<_> = ports
        .iter()
        .filter(|p| p.allow.guests)
        .map(|p| format!("\"{}\"", p.tap))
        .collect();
    let sinks: Vec<_> = ports
        .iter()
        .map(|p| format!("\"{}\" . {}", p.tap, mac(p.mac)))
        .collect();
    let taps = format!("\"{}t*\"", state.bridge);
    line(text, format_args!("table bridge {table} {{"));
    line(text, format_args!("\tcomment \"{}\"", state.owner));
    set(text, "sources", "ifname . ether_addr . ipv4_addr", "", &sources);
    set(text, "guests", "ifname", "", &guests);
    set(text, "sinks", "ifname . ether_addr", "", &sinks);
    text.push_str(&format!(
        "\tchain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname {taps} goto sent
	}}
	chain sent {{
		ether type ip iifname . ether saddr . ip saddr @sources accept
		ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @sources iifname . arp saddr ether . arp saddr ip @sources accept
		drop
	}}
	chain forward {{
		type filter hook forward priority -300; policy accept;
		iifname {taps} oifname {taps} iifname @guests oifname @guests accept
		iifname {taps} drop
		oifname {taps} drop
	}}
	chain output {{
		type filter hook output priority -300; policy accept;
		oifname != {taps} accept
		ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 accept
		oifname . ether daddr @sinks accept
		drop
	}}
}}
"
    ));
}

fn inet(text: &mut String, state: &State, table: &str, ports: &[&Port]) {
    let of = |wanted: &dyn Fn(&Port) -> bool| -> Vec<String> {
        let chosen = ports.iter().filter(|p| wanted(p));
        chosen.map(|p| p.address.to_string()).collect()
    };
    let mut inside: Vec<String> = INSIDE.iter().map(|net| (*net).to_owned()).collect();
    let mut on_link: Vec<String> = state
        .on_link
        .iter()
        // A network of everything is a default route by another name, and so is a half of it (OpenVPN's `redirect-gateway
        // def1`).
        .filter(|(_, prefix)| (2..=32).contains(prefix))
        .map(|(address, prefix)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            format!("{}/{prefix}", Ipv4Addr::from_bits(address.to_bits() & mask))
        })
        .collect();
    on_link.sort();
    on_link.dedup();
    inside.extend(on_link);
    let (name, gateway) = (&state.bridge, state.subnet.gateway());
    let (rate, burst) = CONNECTIONS;
    let most = CONNECTIONS_AT_ONCE;
    line(text, format_args!("table inet {table} {{"));
    line(text, format_args!("\tcomment \"{}\"", state.owner));
    set(text, "guests", "ipv4_addr", "", &of(&|p| p.allow.guests));
    set(text, "host", "ipv4_addr", "", &of(&|p| p.allow.host));
    set(text, "lan", "ipv4_addr", "", &of(&|p| p.allow.lan));
    set(text, "nat", "ipv4_addr", "", &of(&|p| p.nat));
    set(text, "out", "ipv4_addr", "", &of(&|p| p.nat || p.allow.lan));
    set(text, "inside", "ipv4_addr", "flags interval; auto-merge", &inside);
    set(
        text,
        "new",
        "ipv4_addr",
        "size 8192; flags dynamic; timeout 1m",
        &[],
    );
    set(text, "busy", "ipv4_addr", "size 8192; flags dynamic", &[]);
    text.push_str(&format!(
        "\tchain early {{
		type filter hook prerouting priority -300; policy accept;
		iifname \"{name}t*\" drop
	}}
	chain input {{
		type filter hook input priority -10; policy accept;
		iifname \"{name}\" goto to_host
	}}
	chain to_host {{
		ct state established ct direction reply accept
		ct state related accept
		ct state new update @new {{ ip saddr limit rate over {rate}/second burst {burst} packets }} drop
		ct state new add @busy {{ ip saddr ct count over {most} }} drop
		ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
		ip daddr {gateway} icmp type echo-request limit rate 100/second burst 200 packets accept
		ip saddr @host accept
		limit rate 50/second burst 50 packets reject with icmpx admin-prohibited
		drop
	}}
	chain forward {{
		type filter hook forward priority -10; policy accept;
		iifname \"{name}\" goto from_guest
		oifname \"{name}\" goto to_guest
	}}
	chain from_guest {{
		ct state invalid drop
		ct state new update @new {{ ip saddr limit rate over {rate}/second burst {burst} packets }} drop
		ct state new add @busy {{ ip saddr ct count over {most} }} drop
		oifname \"{name}\" ip saddr @guests ip daddr @guests accept
		oifname \"{name}\" drop
		ip daddr @inside ip saddr @lan accept
		ip saddr @nat ip daddr != @inside accept
		limit rate 50/second burst 50 packets reject with icmpx admin-prohibited
		drop
	}}
	chain to_guest {{
		ct state established ct direction reply accept
		ct state related accept
		drop
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @out oifname != \"{name}\" masquerade
	}}
}}
"
    ));
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
