//! The network of machines.

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How machines are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A tap each, on a bridge of the host.
    Bridge,
    /// Without privileges, outbound only, under QEMU.
    User,
}

/// Who carries the packets of a machine in user mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserNetwork {
    /// Who.
    pub carrier: NetworkCarrier,
    /// What there is to say about it: why it is not passt, or what this passt lets through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A user-mode network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkCarrier {
    /// `passt`, beside the VMM.
    Passt,
    /// QEMU itself.
    Slirp,
}

/// Result of `net.status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetStatus {
    /// How machines that are started now are connected.
    pub mode: NetworkMode,
    /// Why not by a bridge, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who carries the packets of machines under QEMU that are started now in user mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_network: Option<UserNetwork>,
    /// The bridge's name.
    pub bridge: String,
    /// Whether it is up.
    pub up: bool,
    /// Why it is not, where it should be; or what else could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The machines' network, `10.209.0.0/20`.
    pub subnet: String,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// Taps that are made ahead, and in use.
    pub taps: TapLevels,
    /// The rules that are in force are those of the machines as they are.
    pub rules_current: bool,
    /// The daemon has made the host forward packets, and takes that back when no machine needs it.
    pub forwarding_by_us: bool,
    /// Machines' names, where there is a bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<NetNames>,
    /// Every machine with an address, by name.
    pub machines: Vec<NetMachine>,
}

/// Whether this host asks for machines' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostResolver {
    /// Not known yet.
    Asking,
    /// systemd-resolved asks for them.
    Routed,
    /// systemd-resolved does not run; it is told when it does.
    NotRunning,
    /// It cannot be told.
    Failed,
}

/// Who says what machines are called, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetNames {
    /// Where they are served, `10.209.0.1:53`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<String>,
    /// Why they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether this host asks there.
    pub host: HostResolver,
    /// Why it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_problem: Option<String>,
    /// What it asks there for, and nowhere else: these domains and all below them.
    pub domains: Vec<String>,
    /// The host's servers, of which guests' other questions are asked.
    pub upstreams: Vec<String>,
    /// Questions answered from machines' names since the daemon began.
    pub answered: u64,
    /// Questions passed on.
    pub forwarded: u64,
    /// Not answered: of strangers, no questions at all, too many at once.
    pub dropped: u64,
}

/// Taps, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TapLevels {
    /// How many shall be spare.
    pub size: u32,
    /// How many are.
    pub spare: u32,
    /// In use by machines.
    pub used: u32,
    /// Starts that wait for one.
    pub waiting: u32,
}

/// A machine with an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetMachine {
    /// Its name.
    pub vm: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its tap, while it runs on the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The guest may reach what its host reaches.
    pub nat: bool,
    /// What else it may reach.
    #[serde(default, skip_serializing_if = "std::collections::BTreeSet::is_empty")]
    pub allow: std::collections::BTreeSet<super::Reach>,
}
