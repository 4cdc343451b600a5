//! The configuration file: TOML, read once at the start. `config.default.toml` beside this crate documents every key.
//!
//! A mistake in a value is an error that names file, line and key. An unknown key is a warning with its exact path, so
//! that a file written for a newer release still works.

pub(crate) mod units;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use banger_engine::{Proxies, Registries};
use serde::Deserialize;
use units::{AbsolutePath, BridgeName, MaybeSize, Network4, PasstPlace, PoolSize, Seconds, Size};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The whole file. Absent keys have their defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) daemon: Daemon,
    pub(crate) vm: Vm,
    pub(crate) vmm: Vmm,
    pub(crate) network: Network,
    pub(crate) kernel: Kernel,
    pub(crate) agent: Agent,
    pub(crate) images: Images,
    pub(crate) seed: Seed,
    pub(crate) registries: BTreeMap<String, Registry>,
}

/// `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Daemon {
    pub(crate) state_dir: Option<AbsolutePath>,
    pub(crate) runtime_dir: Option<AbsolutePath>,
    pub(crate) group: Option<String>,
    pub(crate) log_level: LogLevel,
    pub(crate) log_format: LogFormat,
    pub(crate) space_floor: MaybeSize,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            state_dir: None,
            runtime_dir: None,
            group: None,
            log_level: LogLevel::default(),
            log_format: LogFormat::default(),
            space_floor: MaybeSize(1 << 30),
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[vm]`: defaults of new machines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Vm {
    pub(crate) vcpus: NonZeroU32,
    pub(crate) memory: Size,
    pub(crate) disk: Size,
    pub(crate) system_disk: SystemDiskChoice,
    pub(crate) work_disk: MaybeSize,
    pub(crate) start_timeout: Seconds,
    pub(crate) stop_timeout: Seconds,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            vcpus: NonZeroU32::MIN.saturating_add(1),
            memory: Size(1 << 30),
            disk: Size(10 << 30),
            system_disk: SystemDiskChoice::Auto,
            work_disk: MaybeSize(0),
            start_timeout: Seconds(std::time::Duration::from_secs(120)),
            stop_timeout: Seconds(std::time::Duration::from_secs(30)),
        }
    }
}

/// How system disks are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SystemDiskChoice {
    #[default]
    Auto,
    Overlay,
    Reflink,
    Dm,
}

/// `[vmm]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Vmm {
    pub(crate) choice: VmmChoice,
    pub(crate) firecracker: Option<AbsolutePath>,
    pub(crate) qemu: Option<AbsolutePath>,
    pub(crate) vhost_device_vsock: Option<AbsolutePath>,
}

/// Which VMM runs machines that pin none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VmmChoice {
    #[default]
    Auto,
    Firecracker,
    Qemu,
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Network {
    pub(crate) mode: NetworkChoice,
    pub(crate) bridge: BridgeName,
    pub(crate) subnet: Network4,
    pub(crate) pool: PoolSize,
    pub(crate) passt: PasstPlace,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mode: NetworkChoice::default(),
            bridge: BridgeName("bgr0".to_owned()),
            subnet: Network4(banger_engine::Subnet::DEFAULT),
            pool: PoolSize(4),
            passt: PasstPlace::default(),
        }
    }
}

/// How machines are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkChoice {
    #[default]
    Auto,
    Bridge,
    User,
}

/// `[kernel]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Kernel {
    pub(crate) default: String,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            default: "debian".to_owned(),
        }
    }
}

/// `[agent]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Agent {
    pub(crate) path: Option<AbsolutePath>,
}

/// `[images]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Images {
    pub(crate) docker_config: Option<AbsolutePath>,
}

/// `[seed]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Seed {
    pub(crate) template: Option<AbsolutePath>,
}

/// `[registries."HOST[:PORT]"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Registry {
    pub(crate) mirrors: Vec<String>,
    pub(crate) plain_http: bool,
    pub(crate) ca: Option<AbsolutePath>,
}

impl Config {
    /// Where images are pulled from: what is set here, with what the environment says.
    pub(crate) fn registries(
        &self,
        docker_config: Option<PathBuf>,
        helper_path: Option<OsString>,
        proxies: Proxies,
    ) -> Registries {
        let each = self.registries.iter().map(|(name, registry)| {
            let Registry {
                mirrors,
                plain_http,
                ca,
            } = registry.clone();
            let registry = banger_engine::Registry {
                mirrors,
                plain_http,
                ca: ca.map(|ca| ca.0),
            };
            (name.clone(), registry)
        });
        let set = self.images.docker_config.as_ref().map(|path| path.0.clone());
        Registries {
            each: each.collect(),
            docker_config: set.or(docker_config),
            helper_path,
            proxies,
            ..Registries::default()
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// It is no configuration file.
    #[error("read the configuration {}: it is larger than 1 MiB", path.display())]
    TooLarge { path: PathBuf },
    /// What is set for a registry cannot be.
    #[error("understand the configuration: {}", path.display())]
    Registry {
        path: PathBuf,
        source: banger_engine::SettingError,
    },
    /// A line is wrong.
    #[error("understand the configuration: {}", place(path, *line, text, problem))]
    Invalid {
        path: PathBuf,
        /// Line, from 1, where it is known.
        line: Option<usize>,
        /// That line.
        text: String,
        problem: String,
    },
}

/// `FILE:LINE: TEXT: PROBLEM`, with what is known of it.
fn place(path: &Path, line: Option<usize>, text: &str, problem: &str) -> String {
    let mut place = path.display().to_string();
    // Writing to a string does not fail.
    if let Some(line) = line {
        write!(place, ":{line}").unwrap_or_default();
    }
    if !text.is_empty() {
        write!(place, ": `{text}`").unwrap_or_default();
    }
    format!("{place}: {problem}")
}

/// A configuration and what it came from.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// The file, if one was read.
    pub(crate) file: Option<PathBuf>,
    /// Unknown keys, to be warned about once there is a log.
    pub(crate) unknown_keys: Vec<String>,
}

impl Loaded {
    /// Reads a file. One that is missing is an error only where it `must_exist`, that is, was named by the user.
    pub(crate) fn read(path: &Path, must_exist: bool) -> Result<Self, ConfigError> {
        let fail = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        match std::fs::metadata(path) {
            Ok(found) if found.len() > MAX_FILE => Err(ConfigError::TooLarge {
                path: path.to_owned(),
            }),
            Ok(_) => Self::parse(path, &std::fs::read_to_string(path).map_err(fail)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(Self::default()),
            Err(e) => Err(fail(e)),
        }
    }

    /// Parses a file's text; `path` is for messages.
    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut unknown_keys = Vec::new();
        let config = toml::Deserializer::parse(text)
            .and_then(|toml| serde_ignored::deserialize(toml, |key| unknown_keys.push(key.to_string())))
            .map_err(|error| invalid(path, text, &error))?;
        let config: Config = config;
        let registries = config.registries(None, None, Proxies::default());
        registries.check().map_err(|source| ConfigError::Registry {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            config,
            file: Some(path.to_owned()),
            unknown_keys,
        })
    }
}

/// One line for a TOML error, which by itself takes several.
fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map(|span| span.start.min(text.len()));
    let line = start.map(|start| text[..start].matches('\n').count());
    let shown = line.and_then(|line| text.lines().nth(line)).unwrap_or("").trim();
    ConfigError::Invalid {
        path: path.to_owned(),
        line: line.map(|line| line + 1),
        text: shown
            .chars()
            .take(120)
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect(),
        problem: error.message().lines().collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = include_str!("../config.default.toml");

    fn parse(text: &str) -> Result<Loaded, String> {
        Loaded::parse(Path::new("/etc/banger/config.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_file_says_the_defaults() {
        let loaded = parse(DEFAULT).unwrap();
        assert_eq!(loaded.unknown_keys, [""; 0]);
        assert_eq!(loaded.config, Config::default());
    }

    #[test]
    fn the_shipped_file_names_every_key() {
        // With the examples uncommented nothing is absent and nothing unknown.
        let all: String = DEFAULT
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(example) if !example.starts_with(' ') => example,
                Some(_) | None => line,
            })
            .fold(String::new(), |text, line| text + line + "\n");
        let loaded = parse(&all).unwrap();
        assert_eq!(loaded.unknown_keys, [""; 0]);
        let Config {
            daemon,
            vm: _,
            vmm,
            network: _,
            kernel: _,
            agent,
            images,
            seed,
            registries,
        } = loaded.config;
        let Daemon {
            state_dir,
            runtime_dir,
            group,
            log_level: _,
            log_format: _,
            space_floor: _,
        } = daemon;
        let Vmm {
            choice: _,
            firecracker,
            qemu,
            vhost_device_vsock,
        } = vmm;
        let Agent { path } = agent;
        let Images { docker_config } = images;
        let Seed { template } = seed;
        let mut registries = registries.into_values();
        let (
            Some(Registry {
                mirrors,
                plain_http,
                ca,
            }),
            Some(local),
        ) = (registries.next(), registries.next())
        else {
            panic!("two registries are examples");
        };
        assert!(!mirrors.is_empty() && !plain_http && local.plain_http);
        for (key, value) in [
            ("state_dir", state_dir),
            ("runtime_dir", runtime_dir),
            ("firecracker", firecracker),
            ("qemu", qemu),
            ("vhost_device_vsock", vhost_device_vsock),
            ("agent.path", path),
            ("docker_config", docker_config),
            ("template", template),
            ("ca", ca.or(local.ca)),
        ] {
            assert!(value.is_some(), "{key} is not in the default file");
        }
        assert!(group.is_some());
    }

    #[test]
    fn the_readme_s_example_is_a_configuration() {
        let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        let begin = readme.find("    [daemon]\n").unwrap();
        let example = readme[begin..]
            .lines()
            .take_while(|line| line.is_empty() || line.starts_with("    "));
        let example: String = example.flat_map(|line| [line.trim_start(), "\n"]).collect();
        let loaded = parse(&example).unwrap();
        assert_eq!(loaded.unknown_keys, [""; 0]);
        assert_eq!(loaded.config.daemon.group.as_deref(), Some("banger"));
        assert_eq!(loaded.config.vmm.choice, VmmChoice::Qemu);
    }

    #[test]
    fn unknown_keys_are_told_with_their_path() {
        let loaded = parse("colour = 1\n[vm]\nmemroy = \"1GiB\"\nvcpus = 4\n[vm.nested]\na = 1\n").unwrap();
        assert_eq!(loaded.unknown_keys, ["colour", "vm.memroy", "vm.nested"]);
        assert_eq!(loaded.config.vm.vcpus.get(), 4);
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        let refusals: Vec<String> = [
            "[vm]\nmemory = \"1GB\"",
            "[vm]\n\nvcpus = 0",
            "[vm]\nvcpus = \"2\"",
            "[vm]\nvcpus = -1",
            "[vm]\nstart_timeout = 120",
            "[vm]\nsystem_disk = \"zfs\"",
            "[vm]\nwork_disk = \"none\"",
            "[vm]\nwork_disk = 0",
            "[vmm]\nchoice = \"xen\"",
            "[vmm]\nqemu = \"qemu\"",
            "[network]\nmode = \"vpn\"",
            "[network]\nbridge = \"bridge-of-mine\"",
            "[network]\nbridge = \"0\"",
            "[network]\nsubnet = \"10.209.0.1/20\"",
            "[network]\nsubnet = \"10.0.0.0/30\"",
            "[network]\nsubnet = \"fd00::/64\"",
            "[network]\npool = 65",
            "[network]\npasst = \"yes\"",
            "[images]\ndocker_config = \"config.json\"",
            "[registries]\nplain_http = true",
            "[registries.\"localhost:5000\"]\nplain_http = \"yes\"",
            "[registries.\"localhost:5000/x\"]\nplain_http = true",
            "[registries.\"docker.io\"]\nmirrors = [\"ftp://mirror\"]",
            "[daemon]\nlog_level = \"loud\"",
            "[daemon]\nlog_level = \"info\"\nlog_level = \"info\"",
            "[daemon\n",
            "vm = 1",
            "\u{0}",
        ]
        .into_iter()
        .map(|text| parse(text).unwrap_err())
        .collect();
        insta::assert_snapshot!(refusals.join("\n"));
        assert!(refusals.iter().all(|refusal| !refusal.contains('\n')));
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.toml");
        assert_eq!(Loaded::read(&path, false).unwrap().file, None);
        assert!(matches!(Loaded::read(&path, true), Err(ConfigError::Read { .. })));
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(matches!(
            Loaded::read(&path, true),
            Err(ConfigError::TooLarge { .. })
        ));
        assert!(matches!(
            Loaded::read(dir.path(), true),
            Err(ConfigError::Read { .. })
        ));
    }
}
