//! Images and kernels.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Name, id, or `sha256:` with the first six or more digits of its digest.
    pub image: String,
}

/// Parameters of `image.tag`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageTag {
    /// Name, id, or `sha256:` with the first six or more digits of its digest.
    pub image: String,
    /// Another name for it.
    pub name: String,
    /// Take the name from another image that has it. That one goes with its last name, unless a machine uses it.
    #[serde(default)]
    pub replace: bool,
}

/// Parameters of `image.find`: an image must meet all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFind {
    /// One of its names, with `*` for anything and `?` for any one character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels it has. One without a value matches any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The beginning of its digest: `sha256:` and six or more digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Parameters of `image.register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRegister {
    /// The image's name: a reference as in OCI, of up to 255 characters. `debian`, `debian:latest` and
    /// `docker.io/library/debian` are the same.
    pub name: String,
    /// Absolute path of an ext4 file system image, which stays where it is and the caller's, or of a tar archive (plain,
    /// gzip, xz, zstd), of a raw disk with partitions, or of a qcow2, whose root file system is copied.
    pub path: String,
    /// The partition of a disk that is the root file system. Absent: the one that says so, or the only one it can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Kernel, by name. Absent: the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Take the name from another image that has it. That one goes with its last name, unless a machine uses it.
    #[serde(default)]
    pub replace: bool,
}

/// Parameters of `image.pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePull {
    /// `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`, as docker reads it.
    pub reference: String,
    /// The image's name, which another image loses if it has it. Absent: the reference's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kernel, by name. Absent: the configured default, added first where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// Parameters of `image.import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageImport {
    /// Absolute path of an OCI layout (a directory, or a tar archive of one) or of a docker archive, plain or compressed.
    pub path: String,
    /// The image's name. Absent: the one it has there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which image, where there are several: a name, a tag, or a digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<String>,
    /// Kernel, by name. Absent: the configured default, added first where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Take the name from another image that has it. That one goes with its last name, unless a machine uses it.
    #[serde(default)]
    pub replace: bool,
}

/// Parameters of `image.export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageExport {
    /// Name, id, or `sha256:` with the first six or more digits of its digest.
    pub image: String,
    /// Absolute path of the archive, which must not be there.
    pub path: String,
    /// What is written.
    #[serde(default)]
    pub format: ExportFormat,
}

/// What an image is written as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// An OCI archive, which `docker load` reads as well. Layers are those that the image came with, or one of all of it.
    #[default]
    Oci,
    /// Its root file system as a tar archive.
    Tar,
}

/// Parameters of `image.verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageVerify {
    /// Images, by name, id, or the beginning of a digest. None: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
}

/// Parameters of `image.seed_show` and `image.seed_refresh`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSeeds {
    /// Images, by name, id, or the beginning of a digest. None: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
}

/// An image's work seed: what new work disks of its machines are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageSeed {
    /// The image's name, its id where it has none.
    pub image: String,
    /// The image's id.
    pub id: String,
    /// What a work disk made now would be made of. Absent: see `problem`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<SeedFingerprint>,
    /// The seed that there is. Absent: it is made when it is needed first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<SeedMade>,
    /// Why the one that there is will be made anew before it is used again. None: it is current.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<String>,
    /// The configured template, a directory of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Why none can be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A seed on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedMade {
    /// What it was made of.
    pub fingerprint: SeedFingerprint,
    /// Its file.
    pub path: String,
    /// Bytes that it takes on the host.
    pub used: u64,
    /// When it was made.
    pub created: Timestamp,
}

/// What a seed is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedFingerprint {
    /// All of it, which is also its file's name.
    pub fingerprint: String,
    /// Of the daemon's ssh key. Absent: it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Of the template: names, kinds, modes, contents. Absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Of what Banger brings along itself.
    pub setup: String,
}

/// What `image.bootstrap` can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BootstrapSource {
    /// Debian with systemd, sshd, git and curl.
    Debian,
    /// The same of Ubuntu; the host needs its key (package `ubuntu-keyring`).
    Ubuntu,
    /// A static busybox; the agent stays init.
    Busybox,
}

/// Parameters of `image.bootstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBootstrap {
    /// What to make.
    pub source: BootstrapSource,
    /// Of Debian and Ubuntu: the release, by its codename. Absent: Debian 12, Ubuntu 24.04.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Of Debian and Ubuntu: where packages are fetched from. The image has the usual sources whatever this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Of Debian and Ubuntu: packages beyond the usual ones, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// The image's name. Absent: the source's, with the suite as its tag where one is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Kernel, by name. Absent: the configured default, added first where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Make it anew where it exists; machines go on with the former. Otherwise an existing one is a success.
    #[serde(default)]
    pub replace: bool,
}

/// An image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// 10 characters.
    pub id: String,
    /// Its first name, or its id where it has none.
    pub name: String,
    /// All its names, in order. Each is this image's alone; another image may have taken them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Kernel's name.
    pub kernel: String,
    /// Digest of its manifest (`sha256:…`), where it is of OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest of the index of platforms that led to the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_digest: Option<String>,
    /// What it says of the processes in it, where it is of OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// SHA-256 of the root file system, hexadecimal.
    pub sha256: String,
    /// Size of the root file system in bytes.
    pub size: u64,
    /// Bytes that the root file system takes on the host.
    pub used: u64,
    /// Bytes of the layers and the like that are kept of what it came as.
    #[serde(default)]
    pub blobs: u64,
    /// Of these, what other images have as well.
    #[serde(default)]
    pub shared: u64,
    /// Bytes of `used` that other files have as well, where the host's file system keeps them once and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_blocks: Option<u64>,
    /// The caller's file that it is, where it is not the daemon's own: see `image.register` and `image.promote`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<RegisteredFile>,
    /// Where it came from: `bootstrap:debian`, `file:NAME`, `path:PATH` of a registered file, `registry:REFERENCE`.
    pub source: String,
    /// Names of the machines that use it.
    pub used_by: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
}

/// A file that an image is, and that its owner may do with as they like. Nothing can be made of the image while the file is
/// not what was registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegisteredFile {
    /// Absolute.
    pub path: String,
    /// Why the image cannot be used, in words that follow the path: `is missing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What an image says of the processes in it. What it does not say is empty or absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageConfig {
    /// Environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User, by name or number, perhaps with `:GROUP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// What is run, before the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, or the entrypoint's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Ports that something in it listens at: `80/tcp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<String>,
    /// Directories that are to be kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// When it was built, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
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
    /// A file on a server: an image with everything built in, or a `.deb` with a kernel in it.
    Url {
        /// `https://…`; plain http from this host, and from hosts that are configured so.
        url: String,
        /// Its SHA-256, hexadecimal.
        sha256: String,
    },
}

/// Parameters of `kernel.set_default`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelSetDefault {
    /// Kernel, by name. Absent: the configured one counts again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// The kernel that images get which name none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DefaultKernel {
    /// Its name.
    pub kernel: String,
    /// It was chosen; else it is the configured one.
    pub chosen: bool,
    /// Whether it is there. The configured one comes with the first image that needs it.
    pub there: bool,
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
