//! Names of images, as people type them.
//!
//! The rules are Docker's (`github.com/distribution/reference`): what has no registry is Docker Hub's, what has no
//! namespace there is of `library`, what has neither tag nor digest is `latest`.

use std::fmt;
use std::str::FromStr;

use hostkit::digest::Digest;

/// The registry of names that name none.
pub(crate) const DOCKER_HUB: &str = "docker.io";
const OFFICIAL: &str = "library/";
const LATEST: &str = "latest";
const NAME_LIMIT: usize = 255;
const TAG_LIMIT: usize = 128;

/// Which image: a registry, a repository in it, and a tag or a digest or both (then the digest decides).
///
/// Displayed in full (`docker.io/library/debian:12`), which parses to the same again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name of an image: {reason}")]
pub struct ReferenceError {
    /// What was to be parsed, cut where it is very long.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Reference {
    /// Parses what somebody typed: `debian`, `debian:12`, `ghcr.io/owner/name:tag`, `localhost:5000/name@sha256:…`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError {
            text: text.chars().take(NAME_LIMIT).collect(),
            reason,
        })
    }

    /// The registry's host, with its port where one was given: `docker.io`, `localhost:5000`, `[::1]:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry: `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. None where only a digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, where one was given.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository's image of this digest, whatever the tag.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// As Docker shows it: without what [`Reference::parse`] would add. Parses to the same again.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_repository();
        match (&self.tag, &self.digest) {
            (Some(tag), None) if tag == LATEST => {}
            (Some(tag), _) => text.push_str(&format!(":{tag}")),
            (None, _) => {}
        }
        if let Some(digest) = &self.digest {
            text.push_str(&format!("@sha256:{digest}"));
        }
        text
    }

    /// The familiar form with the tag, also where that is `latest`, and without digest: Docker's `RepoTags`.
    pub(crate) fn familiar_tagged(&self) -> String {
        format!("{}:{}", self.familiar_repository(), self.tag().unwrap_or(LATEST))
    }

    /// The familiar form without tag and digest.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        let full = format!("{}/{}", self.registry, self.repository);
        if self.registry != DOCKER_HUB {
            return full;
        }
        let short = self
            .repository
            .strip_prefix(OFFICIAL)
            .filter(|name| !name.contains('/'))
            .unwrap_or(&self.repository);
        // What would be read as something else keeps its whole name.
        match parse(short) {
            Ok(again) if again.registry == self.registry && again.repository == self.repository => {
                short.to_owned()
            }
            Ok(_) | Err(_) => full,
        }
    }

    /// What to ask a registry for below `manifests/`.
    pub(crate) fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, Some(tag)) => tag.clone(),
            (None, None) => LATEST.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@sha256:{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.contains("://") {
        return Err("it begins with a scheme; leave that away");
    }
    if text.len() == 64 && text.parse::<Digest>().is_ok() {
        return Err("it is a digest alone; write NAME@sha256:DIGEST");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(parse_tag(tag)?)),
        Some(_) | None => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        Some(_) | None => (DOCKER_HUB, name),
    };
    check_registry(registry)?;
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        other => other,
    };
    check_repository(path)?;
    let repository = if registry == DOCKER_HUB && !path.contains('/') {
        format!("{OFFICIAL}{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > NAME_LIMIT {
        return Err("it is longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(LATEST.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag,
        digest,
    })
}

/// Whether the part before the first slash is a host and not a namespace of Docker Hub.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

pub(crate) fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or("the registry's address has no ]")?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("the registry's address in brackets is no IPv6 address");
        }
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err("something follows the registry's address"),
        };
        (None, port)
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    if let Some(port) = port
        && (!port.bytes().all(|b| b.is_ascii_digit()) || !matches!(port.parse::<u16>(), Ok(1..)))
    {
        return Err("the registry's port is no port");
    }
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(label) => Err("the registry is no host name"),
        Some(_) | None => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, joined by slashes.
pub(crate) fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repositories are in lowercase");
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("a part of the repository is empty");
        }
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if !part.bytes().all(|b| alphanumeric(b) || b"._-".contains(&b)) {
            return Err("repositories have letters, digits, '.', '_', '-' and '/' only");
        }
        let separators = part
            .split(|c: char| c.is_ascii_alphanumeric())
            .filter(|run| !run.is_empty());
        let bounded = part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric());
        let proper = |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-');
        if !bounded || !separators.into_iter().all(proper) {
            return Err(
                "each part of the repository begins and ends with a letter or digit, with one '.', '_', '__' or dashes between",
            );
        }
    }
    Ok(())
}

fn parse_tag(tag: &str) -> Result<&str, &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if tag.is_empty() {
        Err("the tag is empty")
    } else if tag.len() > TAG_LIMIT {
        Err("the tag is longer than 128 characters")
    } else if !tag.bytes().all(|b| word(b) || b".-".contains(&b)) || !tag.bytes().next().is_some_and(word) {
        Err("tags have letters, digits, '_', '.' and '-' only, and begin with none of the last two")
    } else {
        Ok(tag)
    }
}

/// `sha256:HEX`; other algorithms are not supported.
pub(crate) fn parse_digest(text: &str) -> Result<Digest, &'static str> {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return Err("a digest is sha256: and 64 hexadecimal digits");
    };
    if algorithm != "sha256" {
        return Err("digests other than sha256 are not supported");
    }
    hex.parse()
        .map_err(|_| "a digest is sha256: and 64 lowercase hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn names_are_read_as_docker_reads_them() {
        for (text, canonical, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("library/debian:12", "docker.io/library/debian:12", "debian:12"),
            ("docker.io/debian", "docker.io/library/debian:latest", "debian"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c", "a/b:c"),
            ("a/b", "docker.io/a/b:latest", "a/b"),
            ("localhost/x", "localhost/x:latest", "localhost/x"),
            ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x"),
            ("[::1]:5000/x:y", "[::1]:5000/x:y", "[::1]:5000/x:y"),
            ("GHCR.io/o/n:T", "GHCR.io/o/n:T", "GHCR.io/o/n:T"),
            ("f/a__b-c--d.e", "docker.io/f/a__b-c--d.e:latest", "f/a__b-c--d.e"),
            ("docker.io/x.y/z", "docker.io/x.y/z:latest", "docker.io/x.y/z"),
            (
                "docker.io/localhost/z:1",
                "docker.io/localhost/z:1",
                "docker.io/localhost/z:1",
            ),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
        let by_digest = Reference::parse(&format!("debian@{DIGEST}")).unwrap();
        assert_eq!(
            by_digest.to_string(),
            format!("docker.io/library/debian@{DIGEST}")
        );
        assert_eq!(by_digest.familiar(), format!("debian@{DIGEST}"));
        assert_eq!(by_digest.tag(), None);
        let both = Reference::parse(&format!("debian:12@{DIGEST}")).unwrap();
        assert_eq!(both.target(), DIGEST);
        assert_eq!(both.familiar(), format!("debian:12@{DIGEST}"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("https://ghcr.io/x", "scheme"),
            (&DIGEST[7..], "digest alone"),
            ("Debian", "lowercase"),
            ("a//b", "part of the repository is empty"),
            ("/a", "part of the repository is empty"),
            ("ghcr.io/", "part of the repository is empty"),
            ("a:", "tag is empty"),
            ("a:-b", "begin with none"),
            ("a:b c", "letters, digits"),
            ("-a", "begins and ends"),
            ("a..b", "begins and ends"),
            ("a___b", "begins and ends"),
            ("a b", "letters, digits"),
            ("../etc", "no host name"),
            ("x:0/y", "port"),
            ("x:99999/y", "port"),
            ("x:+1/y", "port"),
            ("[::1/y", "no ]"),
            ("[::g]:1/y", "IPv6"),
            ("a@md5:00", "other than sha256"),
            ("a@sha256:00", "64 lowercase"),
            ("a@", "sha256: and 64"),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert!(error.reason.contains(reason), "{text}: {error}");
        }
        assert!(Reference::parse(&format!("a/{}", "b".repeat(255))).is_err());
        assert!(Reference::parse(&format!("a:{}", "b".repeat(129))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }

        #[test]
        fn both_forms_parse_to_the_same(
            text in "((localhost|[a-c]{1,2}\\.[a-c]|X|docker\\.io|library)(:[1-9][0-9]{0,3})?/)?([a-f0-9]{1,3}|library|localhost|a\\.b|[a-f0-9]{64})(/[a-f0-9]{1,64}|/a\\.b){0,2}(:[a-zA-Z0-9_.-]{1,5})?(@sha256:[0-9a-f]{64})?",
        ) {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference.clone());
                prop_assert_eq!(Reference::parse(&reference.familiar()).unwrap(), reference);
            }
        }
    }
}
