//! Credentials, where Docker keeps them: `config.json` and credential helpers.
//!
//! Looked up when a registry asks for some, and anew for each pull, so that a `docker login` counts at once. Helpers
//! are programs of the user's (`docker-credential-NAME get`); they have a bounded time.
//!
//! Sources: docker/cli `cli/config/`, docker/docker-credential-helpers `README.md`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hostkit::exec::{ExecError, Stream, Tool};
use serde::Deserialize;

use crate::error::Error;
use crate::reference::DOCKER_HUB;
use crate::text::tame;

const CONFIG_LIMIT: u64 = 1 << 20;
const HELPER_LIMIT: Duration = Duration::from_secs(30);
/// What Docker calls its hub in `config.json`.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The name of the user in a helper's answer whose secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers say when they know nothing of a registry (`credentials/error.go`).
const NOT_FOUND: &str = "credentials not found";

/// What a registry may be shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    Password {
        user: String,
        secret: String,
    },
    /// To get tokens with ("refresh token").
    Identity(String),
    /// To be used as it is.
    Registry(String),
}

/// Without secrets.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::Identity(_) => "Identity",
            Self::Registry(_) => "Registry",
        })
    }
}

/// Where to look.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    pub(super) config: Option<PathBuf>,
    pub(super) helper_path: Option<OsString>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl Store {
    /// The credentials for a registry, if there are any.
    pub(super) async fn look_up(&self, registry: &str) -> Result<Option<Credential>, Error> {
        let Some(path) = &self.config else { return Ok(None) };
        let wrong = |reason: String| Error::DockerConfig {
            path: path.clone(),
            reason,
        };
        let Some(text) = read(path).map_err(|error| wrong(error.to_string()))? else {
            return Ok(None);
        };
        let config: Config = serde_json::from_slice(&text)
            // The message has no part of the text, which has secrets, but for names of fields.
            .map_err(|error| wrong(format!("line {}, column {}", error.line(), error.column())))?;
        let helper = config
            .cred_helpers
            .iter()
            .find(|(key, _)| is_for(key, registry))
            .map(|(_, helper)| helper)
            .or(Some(&config.creds_store))
            .filter(|helper| !helper.is_empty());
        if let Some(helper) = helper
            && let Some(found) = self.ask(helper, registry).await?
        {
            return Ok(Some(found));
        }
        config
            .auths
            .iter()
            .filter(|(key, _)| is_for(key, registry))
            .find_map(|(key, entry)| {
                let damaged = || wrong(format!("the entry of {key:?} is damaged"));
                entry.credential().map_err(|()| damaged()).transpose()
            })
            .transpose()
    }

    async fn ask(&self, helper: &str, registry: &str) -> Result<Option<Credential>, Error> {
        let program = format!("docker-credential-{helper}");
        let failed = |message: String, source: ExecError| Error::Helper {
            registry: registry.to_owned(),
            helper: program.clone(),
            message,
            source: Box::new(source),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !helper.chars().all(plain) {
            return Err(Error::DockerConfig {
                path: self.config.clone().unwrap_or_default(),
                reason: "the name of a credential helper is no name of a program".to_owned(),
            });
        }
        let path: Option<&OsStr> = self.helper_path.as_deref();
        let tool = Tool::find_in_path(&program, path).map_err(|error| failed(String::new(), error))?;
        let key = if registry == DOCKER_HUB {
            DOCKER_HUB_KEY
        } else {
            registry
        };
        // Helpers say on their standard output what is wrong.
        let said = Mutex::new(String::new());
        let outcome = tool
            .command()
            .arg("get")
            .input(format!("{key}\n"))
            .timeout(HELPER_LIMIT)
            .on_line(|stream, line| {
                if stream == Stream::Stdout {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    *said = tame(line, 200);
                }
            })
            .run()
            .await;
        let said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(output) => {
                let answer: HelperAnswer =
                    serde_json::from_slice(&output.stdout).map_err(|_| Error::DockerConfig {
                        path: tool.path().to_owned(),
                        reason: "its answer is not what a credential helper answers".to_owned(),
                    })?;
                Ok(Some(if answer.username == TOKEN_USER {
                    Credential::Identity(answer.secret)
                } else {
                    Credential::Password {
                        user: answer.username,
                        secret: answer.secret,
                    }
                }))
            }
            Err(ExecError::Failed { .. }) if said.starts_with(NOT_FOUND) => Ok(None),
            Err(error) => Err(failed(said, error)),
        }
    }
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, ()> {
        /// With or without padding: both are seen.
        const BASE64: GeneralPurpose = GeneralPurpose::new(
            &alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::Identity(self.identitytoken.clone())));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::Registry(self.registrytoken.clone())));
        }
        if !self.auth.is_empty() {
            let bytes = BASE64.decode(self.auth.trim()).map_err(|_| ())?;
            let text = String::from_utf8(bytes).map_err(|_| ())?;
            // Docker wrote a NUL at the end at times.
            let (user, secret) = text.trim_end_matches('\0').split_once(':').ok_or(())?;
            return Ok(Some(Credential::Password {
                user: user.to_owned(),
                secret: secret.to_owned(),
            }));
        }
        if self.username.is_empty() {
            // An empty entry says that a helper knows.
            return Ok(None);
        }
        Ok(Some(Credential::Password {
            user: self.username.clone(),
            secret: self.password.clone(),
        }))
    }
}

/// Whether an entry of `config.json` is a registry's: keys are hosts, or URLs from the days of version 1.
fn is_for(key: &str, registry: &str) -> bool {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    if registry == DOCKER_HUB {
        matches!(host, DOCKER_HUB | "index.docker.io" | "registry-1.docker.io")
    } else {
        host == registry
    }
}

fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(CONFIG_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > CONFIG_LIMIT {
        return Err(std::io::Error::other("it is longer than a megabyte"));
    }
    Ok(Some(text))
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
