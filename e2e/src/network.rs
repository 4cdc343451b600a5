//! What a daemon has of the host's network, where the test has a network namespace of its own: then whatever is there of
//! Banger's is that daemon's. In the machine's own namespace daemons of tests have none, and others' may be there.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Banger;

/// What stands before an object's name.
const LINK: &str = "link ";
const TABLE: &str = "table ";
const FORWARDS: &str = "ip_forward";

/// Links and tables that say that they are a daemon's, and whether the namespace forwards packets; `None` in the machine's
/// own namespace.
pub(crate) fn objects() -> Option<BTreeSet<String>> {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
    if namespace("thread-self") == namespace("1") {
        return None;
    }
    let run = |program: &str, arguments: &[&str]| {
        let path = std::env::var("PATH").unwrap_or_default();
        let command = Banger::new(program).env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command.args(arguments.iter().copied()).ok()
    };
    let links: Value = serde_json::from_str(&run("ip", &["-json", "link"])).expect("JSON of ip");
    let ours = |link: &&Value| {
        link["ifalias"]
            .as_str()
            .is_some_and(|alias| alias.starts_with("banger "))
    };
    let links = links.as_array().expect("a list").iter().filter(ours);
    let mut all: BTreeSet<_> = links
        .map(|link| format!("{LINK}{}", link["ifname"].as_str().unwrap_or_default()))
        .collect();
    let tables = run("nft", &["list", "tables"]);
    let named = |line: &&str| {
        line.split(' ')
            .nth(2)
            .is_some_and(|name| name.starts_with("banger"))
    };
    all.extend(tables.lines().filter(named).map(ToOwned::to_owned));
    let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("read a setting");
    all.extend((forwards.trim() == "1").then(|| FORWARDS.to_owned()));
    Some(all)
}

/// What is not as `net.status` and the machines that run have it, a line each.
pub(crate) fn lies(status: &Value, vms: &[Value]) -> Vec<String> {
    let Some(found) = objects() else { return Vec::new() };
    let mut lies = Vec::new();
    let is_bridged = status["mode"] == "bridge";
    let bridge = status["bridge"].as_str().unwrap_or_default();
    let (mut taps, mut expected) = (BTreeSet::new(), BTreeSet::new());
    let mut forwards = false;
    for vm in vms {
        if let Some(tap) = vm["running"]["tap"].as_str() {
            taps.insert(format!("{LINK}{tap}"));
            forwards |= vm["nat"] == true
                || vm["allow"]
                    .as_array()
                    .is_some_and(|a| a.iter().any(|a| a == "lan"));
        }
    }
    if is_bridged || !taps.is_empty() {
        expected.insert(format!("{LINK}{bridge}"));
        let suffix = match bridge {
            "bgr0" => String::new(),
            other => format!("_{other}"),
        };
        expected.extend(["bridge", "inet"].map(|family| format!("{TABLE}{family} banger{suffix}")));
    }
    let is_tap = |name: &&String| name.starts_with(&format!("{LINK}{bridge}t"));
    let there: BTreeSet<_> = found.iter().filter(is_tap).cloned().collect();
    let count = |key: &str| usize::try_from(status["taps"][key].as_u64().unwrap_or_default()).expect("few");
    if !there.is_superset(&taps) {
        lies.push(format!("taps of machines: {taps:?}, there are {there:?}"));
    }
    if there.len() != count("spare") + count("used") || count("used") != taps.len() {
        lies.push(format!("taps: {there:?}, said to be {}", status["taps"]));
    }
    let others: BTreeSet<_> = found
        .iter()
        .filter(|name| !is_tap(name) && *name != FORWARDS)
        .cloned()
        .collect();
    if others != expected {
        lies.push(format!("links and tables: {others:?}, expected {expected:?}"));
    }
    if forwards && !found.contains(FORWARDS) {
        lies.push("the host does not forward packets".to_owned());
    }
    if !forwards && status["forwarding_by_us"] == true {
        lies.push("the host is made to forward packets for nobody".to_owned());
    }
    lies
}
