//! Changing a machine that exists.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Reach, RestartPolicy, Vm};

/// Parameters of `vm.set`: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSet {
    /// Name or id.
    pub vm: String,
    /// Virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in bytes, a multiple of 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Size of the system disk in bytes; only growing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Size of the work disk in bytes; only growing. A machine without one gets one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk: Option<u64>,
    /// Kernel, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Pin the VMM, or no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmPin>,
    /// Labels to set; null removes one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// The guest may reach what its host reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
    /// All that the guest may reach on the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<BTreeSet<Reach>>,
    /// Start it when the host has booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// When to start it again after it ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Remove it at this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Never remove it by time. Not together with `expires`.
    #[serde(default)]
    pub no_expiry: bool,
}

/// Which VMM a machine is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmPin {
    /// Whichever fits at each start.
    Auto,
    /// This one.
    Firecracker,
    /// This one.
    Qemu,
}

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Applies {
    /// It has.
    Now,
    /// When the machine is started next.
    NextStart,
}

/// One setting that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmChange {
    /// The parameter's name, `memory`; of a label, `label KEY`.
    pub setting: String,
    /// Before, for people.
    pub from: String,
    /// Since, for people.
    pub to: String,
    /// When it takes effect.
    pub applies: Applies,
    /// Why not now, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Result of `vm.set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmSetReply {
    /// As it is now.
    pub vm: Vm,
    /// What changed, not what was so already; so it may be empty.
    pub changes: Vec<VmChange>,
    /// What is to be known beside: that the machine cannot be started as it is now, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// Parameters of `vm.reset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmReset {
    /// Name or id.
    pub vm: String,
    /// Move it to this image, by name or id. Absent: the image it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where it runs: stop it, and start it again afterwards.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `vm.rename`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRename {
    /// Name or id.
    pub vm: String,
    /// The new name. The guest's host name follows at its next start.
    pub name: String,
}

/// Parameters of `vm.restart`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRestart {
    /// Name or id. One that does not run is started.
    pub vm: String,
    /// Seconds the guest has to stop by itself before it is forced; 0 forces at once. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}
