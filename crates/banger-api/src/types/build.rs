//! Images built from recipes.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `image.build`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBuild {
    /// What the image is to be called; another one that is called so loses the name.
    pub name: String,
    /// The recipe's text.
    pub recipe: String,
    /// What the recipe's file is called, with its path below `context` where it is there: TOML by its ending, else a
    /// Dockerfile; and for messages.
    pub file: String,
    /// Absolute path of the directory that files are copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// An image to begin with, in place of the one that the recipe names first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Build arguments by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// Secrets by id. They are there while a command runs that mounts them, and kept nowhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, BuildSecret>,
    /// The stage whose disk becomes the image. Absent: the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Do every step again.
    #[serde(default)]
    pub no_cache: bool,
    /// Kernel, by name. Absent: the base image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Keep the machine in which a step fails, under this name, until the daemon's next start. Absent: it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_failed: Option<String>,
    /// Virtual processors of the build machine. Absent: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory of the build machine in bytes. Absent: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Disk of the build machine in bytes: what the image may grow to. Absent: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
}

/// A secret's value, which is not shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct BuildSecret(pub String);

impl fmt::Debug for BuildSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BuildSecret({} bytes)", self.0.len())
    }
}

/// Parameters of `image.build_log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildLog {
    /// The build's operation, by its id.
    pub operation: String,
    /// Go on as the log grows, until the build has ended or the client goes.
    #[serde(default)]
    pub follow: bool,
}

/// What was removed from the cache of builds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildCache {
    /// Steps.
    pub steps: u32,
    /// Bytes.
    pub bytes: u64,
}
