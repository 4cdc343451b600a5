//! Images and kernels.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Name or id.
    pub image: String,
}

/// Parameters of `image.register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRegister {
    /// The image's name: 1 to 128 characters of `a-z0-9`, with `.`, `_`, `-` and `/` between them, as in OCI.
    pub name: String,
    /// Absolute path of an ext4 file system image or a tar archive (plain, gzip, xz, zstd). It is copied.
    pub path: String,
    /// Kernel, by name. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Replace an image of that name that no machine uses.
    #[serde(default)]
    pub replace: bool,
}

/// What `image.bootstrap` can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BootstrapSource {
    /// Debian 12 with systemd, sshd, git and curl.
    Debian,
    /// A static busybox; the agent stays init.
    Busybox,
}

/// Parameters of `image.bootstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBootstrap {
    /// What to make.
    pub source: BootstrapSource,
    /// The image's name. Absent: the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kernel, by name. Absent: the configured default, added first where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Make it anew where it exists and no machine uses it. Otherwise an existing one is a success.
    #[serde(default)]
    pub replace: bool,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// 10 characters.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Kernel's name.
    pub kernel: String,
    /// SHA-256 of the root file system, hexadecimal.
    pub sha256: String,
    /// Size of the root file system in bytes.
    pub size: u64,
    /// Bytes it takes on the host.
    pub used: u64,
    /// Where it came from: `bootstrap:debian`, `file:NAME`.
    pub source: String,
    /// Names of the machines that use it.
    pub used_by: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
}

/// Names a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelRef {
    /// Name.
    pub kernel: String,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KernelSource {
    /// An absolute path of a vmlinux (ELF) or vmlinuz (bzImage) file with everything built in.
    File(String),
    /// A Debian package: its name, fetched with the host's apt, or the absolute path of a `.deb` file.
    Debian(String),
}

/// Parameters of `kernel.add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelAdd {
    /// Name, by the rules of machine names and with `.` allowed.
    pub name: String,
    /// Where it comes from.
    pub source: KernelSource,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// Unique name.
    pub name: String,
    /// Release, as far as known (`6.1.0-…-cloud-amd64`).
    pub version: String,
    /// SHA-256 of the file it came from, hexadecimal.
    pub sha256: String,
    /// Bytes it takes on the host, modules included.
    pub size: u64,
    /// How many modules go into its initramfs at most.
    pub modules: u32,
    /// Where it came from.
    pub source: String,
    /// Used when nothing else is named.
    pub default: bool,
    /// When it was added.
    pub created: Timestamp,
}
