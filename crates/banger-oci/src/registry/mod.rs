//! Registries: what is configured for them, and how to talk to one (OCI distribution specification 1.1, the pull side).
//!
//! ```text
//! Registries ─ sources ─► [Source]  mirrors in order, then the registry itself
//!                            ├─ Http      TLS, proxies, redirects, bounds (http, connect, proxy)
//!                            └─ Login     challenges, tokens; credentials looked up when they are asked for (auth, credentials)
//! ```

mod auth;
mod connect;
mod credentials;
mod http;
mod proxy;
mod source;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

#[cfg(feature = "fuzzing")]
pub(crate) use auth::read_challenge;
pub use connect::ConnectError;
pub(crate) use http::{Http, HttpError, Reply};
pub use proxy::Proxies;
pub(crate) use proxy::is_loopback;
pub(crate) use source::{Source, What, begins_at, retry_after};

use crate::reference::{DOCKER_HUB, Reference, check_registry, check_repository};

/// Where Docker Hub's registry really is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// What is configured. The default talks https to the registry that a name says, without credentials or proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    /// By host, with a port where names have one: `docker.io`, `localhost:5000`. Settings of a mirror's host are those
    /// below its own name.
    pub each: BTreeMap<String, Registry>,
    /// Docker's `config.json`, for credentials. It is read anew for each pull and need not exist.
    pub docker_config: Option<PathBuf>,
    /// A list of directories like `PATH`, for Docker's credential helpers.
    pub helper_path: Option<OsString>,
    /// Proxies for all registries.
    pub proxies: Proxies,
    /// How long to wait for what.
    pub timing: Timing,
}

/// What is configured for one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// Where to look first, in order: `https://HOST[:PORT][/PREFIX]`, or `http://` for a plain one. A prefix goes before
    /// the repository. Each is asked as long as it helps; then the next, at last the registry itself.
    pub mirrors: Vec<String>,
    /// Talk http without TLS. (Hosts on the loopback interface are tried with TLS and then without, as Docker does.)
    pub plain_http: bool,
    /// A file of PEM certificates to trust besides the host's.
    pub ca: Option<PathBuf>,
}

/// How long to wait for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// For a connection: name, TCP, proxy and TLS together.
    pub connect: Duration,
    /// For an answer to begin, and for the next 16 KiB of it.
    pub silence: Duration,
    /// Before something that failed is tried again; twice as long each time, at most 16 times.
    pub pause: Duration,
    /// How long to wait at most because a registry says so (Retry-After). What says more than that fails.
    pub patience: Duration,
    /// How often in a row something may fail. A mirror gets two attempts at most.
    pub attempts: u32,
}

impl Default for Timing {
    /// 15 s, 30 s, half a second, a minute, and six attempts.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(30),
            pause: Duration::from_millis(500),
            patience: Duration::from_secs(60),
            attempts: 6,
        }
    }
}

/// Something configured for a registry cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} of registry {registry:?}: {reason}")]
pub struct SettingError {
    /// The registry whose setting it is; `*` where it is all registries'.
    pub registry: String,
    /// Which setting.
    pub what: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// One place to ask for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// As people know it, and as settings and credentials are found.
    pub(crate) registry: String,
    /// Host and port to connect to.
    pub(crate) authority: String,
    /// With the mirror's prefix.
    pub(crate) repository: String,
    pub(crate) plain: bool,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) is_mirror: bool,
}

impl Registries {
    /// Whether everything configured can be; without asking anybody.
    pub fn check(&self) -> Result<(), SettingError> {
        for (name, registry) in &self.each {
            check_registry(name).map_err(|reason| SettingError {
                registry: name.clone(),
                what: "name",
                value: name.clone(),
                reason,
            })?;
            for mirror in &registry.mirrors {
                self.mirror(name, mirror, "x")?;
            }
        }
        self.proxies.check()
    }

    /// Where to look for an image, in order.
    pub(crate) fn places(&self, reference: &Reference) -> Result<Vec<Place>, SettingError> {
        let none = Registry::default();
        let name = reference.registry();
        let settings = self.each.get(name).unwrap_or(&none);
        let mut places = Vec::new();
        for mirror in &settings.mirrors {
            places.push(self.mirror(name, mirror, reference.repository())?);
        }
        let authority = if name == DOCKER_HUB { DOCKER_HUB_HOST } else { name };
        places.push(Place {
            registry: name.to_owned(),
            authority: authority.to_owned(),
            repository: reference.repository().to_owned(),
            plain: settings.plain_http,
            ca: settings.ca.clone(),
            is_mirror: false,
        });
        Ok(places)
    }

    fn mirror(&self, registry: &str, mirror: &str, repository: &str) -> Result<Place, SettingError> {
        let wrong = |reason| SettingError {
            registry: registry.to_owned(),
            what: "mirror",
            value: mirror.to_owned(),
            reason,
        };
        let (plain, rest) = match mirror.split_once("://") {
            Some(("https", rest)) => (false, rest),
            Some(("http", rest)) => (true, rest),
            Some(_) => return Err(wrong("it begins with neither https:// nor http://")),
            None => (false, mirror),
        };
        let rest = rest.trim_end_matches('/');
        let (host, prefix) = match rest.split_once('/') {
            Some((host, prefix)) => (host, Some(prefix)),
            None => (rest, None),
        };
        check_registry(host).map_err(wrong)?;
        if let Some(prefix) = prefix {
            check_repository(prefix).map_err(wrong)?;
        }
        let settings = self.each.get(host);
        Ok(Place {
            registry: host.to_owned(),
            authority: if host == DOCKER_HUB { DOCKER_HUB_HOST } else { host }.to_owned(),
            repository: match prefix {
                Some(prefix) => format!("{prefix}/{repository}"),
                None => repository.to_owned(),
            },
            plain: plain || settings.is_some_and(|settings| settings.plain_http),
            ca: settings.and_then(|settings| settings.ca.clone()),
            is_mirror: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(mirrors: &[&str]) -> Registries {
        let registry = Registry {
            mirrors: mirrors.iter().map(|&mirror| mirror.to_owned()).collect(),
            ..Registry::default()
        };
        Registries {
            each: [("docker.io".to_owned(), registry)].into(),
            ..Registries::default()
        }
    }

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let registries = with(&[
            "http://cache:5000/",
            "https://harbor.example/hub/proxy",
            "plain.example",
        ]);
        registries.check().unwrap();
        let places = registries.places(&"debian".parse().unwrap()).unwrap();
        let shown: Vec<_> = places
            .iter()
            .map(|place| {
                (
                    place.authority.as_str(),
                    place.repository.as_str(),
                    place.plain,
                    place.is_mirror,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("cache:5000", "library/debian", true, true),
                ("harbor.example", "hub/proxy/library/debian", false, true),
                ("plain.example", "library/debian", false, true),
                ("registry-1.docker.io", "library/debian", false, false),
            ]
        );
        assert_eq!(places.last().unwrap().registry, "docker.io");
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (mirror, reason) in [
            ("ftp://x", "neither"),
            ("https://", "no host name"),
            ("https://a b", "no host name"),
            ("https://user@host", "no host name"),
            ("https://host/UP", "lowercase"),
            ("https://host:0", "port"),
        ] {
            let error = with(&[mirror]).check().unwrap_err();
            assert_eq!((error.value.as_str(), error.what), (mirror, "mirror"));
            assert!(error.reason.contains(reason), "{error}");
        }
    }
}
