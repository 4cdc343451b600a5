//! Ports: what listens in a guest, and what of it is published at the host.

use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What carries bytes to a port.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// A stream of bytes.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of a guest that is to be reached at the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishPort {
    /// What carries bytes there. Absent: TCP.
    #[serde(default)]
    pub protocol: Protocol,
    /// Address of the host. Absent: 127.0.0.1. `0.0.0.0` is all of IPv4, `::` all of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<IpAddr>,
    /// Port of the host. Absent or 0: one that is free, which it then keeps.
    #[serde(default)]
    pub host_port: u16,
    /// Port of the guest, from 1; reached on its loopback.
    pub guest_port: u16,
}

/// A port of a guest that is reached at the host while its machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Publication {
    /// What carries bytes there.
    pub protocol: Protocol,
    /// Address of the host.
    pub host_address: IpAddr,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the guest.
    pub guest_port: u16,
    /// Why nothing listens there although the machine runs; tried again every ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Parameters of `vm.publish`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmPublish {
    /// Name or id.
    pub vm: String,
    /// All of these, or none where one of them cannot be. At most 64 for a machine.
    pub ports: Vec<PublishPort>,
}

/// A published port, by its place at the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// What carries bytes there. Absent: TCP.
    #[serde(default)]
    pub protocol: Protocol,
    /// Address of the host. Absent: whichever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the guest it leads to, from 1; one that leads elsewhere is not meant. Absent: whichever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_port: Option<u16>,
}

/// Parameters of `vm.unpublish`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUnpublish {
    /// Name or id.
    pub vm: String,
    /// Which. Absent: all of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<HostPort>>,
}

/// Result of `vm.ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmPorts {
    /// Machine's name.
    pub vm: String,
    /// What listens in the guest, and what is published though nothing listens there; by port.
    pub ports: Vec<VmPort>,
    /// More listens than is told, which is 128 sockets.
    pub incomplete: bool,
}

/// A port of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmPort {
    /// What carries bytes there.
    pub protocol: Protocol,
    /// Where the guest listens; unspecified (`0.0.0.0`, `::`) on all its addresses. Absent: nothing listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Port of the guest.
    pub port: u16,
    /// The process that listens, as the guest knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Its arguments, cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// When that process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Where it is to be reached from the host, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where the host reaches it without a publication, on the bridge: `dev.vm:80`, `10.209.0.2:53`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_at: Option<String>,
    /// What of the host leads there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Publication>,
}
