//! An image's configuration: how what is in it wants to be run (image-spec `config.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use hostkit::digest::Digest;

use crate::LAYER_LIMIT;
use crate::error::Error;
use crate::platform::Platform;
use crate::text::tame;

/// How an image wants to be run. What it leaves open is empty.
///
/// Kept as JSON in the engine's database: fields may be added with a default, never renamed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `NAME=value` each. [`ImageConfig::variables`] takes them apart.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`, and mixtures.
    pub user: Option<String>,
    /// An absolute path, if the image follows the rules.
    pub workdir: Option<String>,
    /// What is run: `cmd` are its arguments, unless others are given.
    pub entrypoint: Vec<String>,
    /// See `entrypoint`; without one it is what is run.
    pub cmd: Vec<String>,
    /// `80/tcp` each, sorted.
    pub exposed: Vec<String>,
    /// Sorted paths.
    pub volumes: Vec<String>,
    /// By name.
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM` or a number.
    pub stop_signal: Option<String>,
    /// RFC 3339, as the image says it.
    pub created: Option<String>,
    /// `amd64`; may be empty in old images.
    pub architecture: String,
    /// `linux`; may be empty in old images.
    pub os: String,
    /// The architecture's.
    pub variant: Option<String>,
}

impl ImageConfig {
    /// The environment, taken apart. What no process can have is left out, so that an image cannot keep commands from its
    /// machines by it; of several with one name the last one counts, as the caller will see to by setting them in order.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.env.iter().filter_map(|entry| entry.split_once('='));
        pairs.filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
    }

    /// [`Self::variables`] by name, the last of each.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        self.variables().map(owned).collect()
    }

    /// What it is made for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }

    /// Reads a configuration, as it is in registries, with the digests of the uncompressed layers, lowest first.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, Vec<Digest>), Error> {
        let malformed = |reason: String| Error::Malformed {
            what: "image configuration",
            reason,
        };
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| malformed(tame(&error.to_string(), 200)))?;
        if wire.rootfs.kind != "layers" {
            return Err(malformed(
                "its root file system does not consist of layers".to_owned(),
            ));
        }
        if wire.rootfs.diff_ids.len() > LAYER_LIMIT {
            return Err(Error::TooManyLayers {
                count: wire.rootfs.diff_ids.len(),
                limit: LAYER_LIMIT,
            });
        }
        let diff_ids = wire
            .rootfs
            .diff_ids
            .iter()
            .map(|text| crate::reference::parse_digest(text).map_err(|reason| malformed(reason.to_owned())))
            .collect::<Result<_, _>>()?;
        let run = wire.config;
        let config = Self {
            env: run.env,
            user: some(run.user),
            workdir: some(run.working_dir),
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            exposed: run.exposed_ports.into_keys().collect(),
            volumes: run.volumes.into_keys().collect(),
            labels: run.labels,
            stop_signal: some(run.stop_signal),
            created: some(wire.created),
            architecture: wire.architecture,
            os: wire.os,
            variant: some(wire.variant),
        };
        Ok((config, diff_ids))
    }

    /// The document for a registry or archive.
    pub(crate) fn document(&self, diff_ids: &[Digest]) -> Vec<u8> {
        let set = |names: &[String]| {
            let entries = names.iter().map(|name| (name.clone(), Empty {}));
            entries.collect::<BTreeMap<_, _>>()
        };
        let wire = Wire {
            created: self.created.clone().unwrap_or_default(),
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone().unwrap_or_default(),
            config: Run {
                user: self.user.clone().unwrap_or_default(),
                exposed_ports: set(&self.exposed),
                env: self.env.clone(),
                entrypoint: self.entrypoint.clone(),
                cmd: self.cmd.clone(),
                volumes: set(&self.volumes),
                working_dir: self.workdir.clone().unwrap_or_default(),
                labels: self.labels.clone(),
                stop_signal: self.stop_signal.clone().unwrap_or_default(),
            },
            rootfs: RootFs {
                kind: "layers".to_owned(),
                diff_ids: diff_ids.iter().map(|digest| format!("sha256:{digest}")).collect(),
            },
        };
        // Maps with text for keys and plain structures: there is nothing in them that serde_json refuses.
        serde_json::to_vec(&wire).unwrap_or_default()
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Go writes `null` for what is empty.
fn nullable<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    created: String,
    #[serde(default, deserialize_with = "nullable")]
    architecture: String,
    #[serde(default, deserialize_with = "nullable")]
    os: String,
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    variant: String,
    #[serde(default, deserialize_with = "nullable")]
    config: Run,
    rootfs: RootFs,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(deserialize_with = "command", skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "command", skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    stop_signal: String,
}

/// Go's `struct{}`: whatever is in it does not matter.
#[derive(Serialize)]
struct Empty {}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self {})
    }
}

/// A list, or (very old images) one word.
fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Word(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        Some(Either::List(list)) => list,
        Some(Either::Word(word)) => vec![word],
        None => Vec::new(),
    })
}

#[derive(Serialize, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_what_a_process_can_have() {
        let config = ImageConfig {
            env: ["A=1", "B=x=y", "A=2", "=no", "C", "D=\0", "E="]
                .map(str::to_owned)
                .to_vec(),
            ..ImageConfig::default()
        };
        let pairs: Vec<_> = config.variables().collect();
        assert_eq!(pairs, [("A", "1"), ("B", "x=y"), ("A", "2"), ("E", "")]);
    }

    #[test]
    fn what_go_writes_is_read() {
        let digest = Digest::of_bytes(b"abc");
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","history":[{{}}],
            "config":{{"User":"app:app","Env":["PATH=/bin","A=b=c","X"],"Entrypoint":null,"Cmd":["sh","-c","x"],
            "ExposedPorts":{{"80/tcp":{{}},"53/udp":{{}}}},"Volumes":null,"WorkingDir":"/srv","Labels":{{"a":"b"}},
            "StopSignal":"SIGINT","OnBuild":null,"Image":"sha256:x"}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
        );
        let (config, diff_ids) = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(diff_ids, [digest]);
        assert_eq!(config.user.as_deref(), Some("app:app"));
        assert_eq!(config.entrypoint, [""; 0]);
        assert_eq!(config.cmd, ["sh", "-c", "x"]);
        assert_eq!(config.exposed, ["53/udp", "80/tcp"]);
        assert_eq!(
            config.variables().collect::<Vec<_>>(),
            [("PATH", "/bin"), ("A", "b=c")]
        );
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        // To a document and back, and to the database and back.
        assert_eq!(
            ImageConfig::parse(&config.document(&diff_ids)).unwrap(),
            (config.clone(), diff_ids)
        );
        let stored = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&stored).unwrap(), config);
        assert_eq!(
            serde_json::from_str::<ImageConfig>("{}").unwrap(),
            ImageConfig::default()
        );
    }

    #[test]
    fn what_is_no_configuration_is_said() {
        for (text, reason) in [
            ("", "EOF"),
            ("[]", "invalid"),
            ("{}", "rootfs"),
            (r#"{"rootfs":{"type":"tree"}}"#, "does not consist of layers"),
            (
                r#"{"rootfs":{"type":"layers","diff_ids":["sha512:00"]}}"#,
                "other than sha256",
            ),
            (
                r#"{"rootfs":{"type":"layers"},"config":{"Env":"x"}}"#,
                "invalid type",
            ),
        ] {
            let error = ImageConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let many = vec![format!("sha256:{}", Digest::of_bytes(b"")); LAYER_LIMIT + 1];
        let text = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": many}}).to_string();
        assert!(matches!(
            ImageConfig::parse(text.as_bytes()),
            Err(Error::TooManyLayers { count: 128, .. })
        ));
    }
}
