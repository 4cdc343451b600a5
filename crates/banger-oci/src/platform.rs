//! What an image is to run on, and which entry of an index that is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and its variant, in Go's words (`GOOS`, `GOARCH`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `v7` of `arm`; none where the architecture's usual one is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on an architecture.
    #[must_use]
    pub fn linux(architecture: &str) -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// What this program was built for: the guests' platform too.
    #[must_use]
    pub fn host() -> Self {
        Self::linux(match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        })
    }

    /// Whether an image for `other` is one for this. What `other` leaves empty fits: old images do not say. A variant
    /// above the usual one does not fit, because it may use instructions that the guest's processor lacks.
    #[must_use]
    pub fn takes(&self, other: &Self) -> bool {
        let same = |mine: &str, theirs: &str| theirs.is_empty() || mine == theirs;
        same(&self.os, &other.os)
            && same(&self.architecture, &other.architecture)
            && (other.architecture.is_empty() || self.usual_variant() == other.usual_variant())
    }

    /// The variant, with the architecture's usual one said (containerd, `platforms/database.go`).
    fn usual_variant(&self) -> &str {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("amd64", None | Some("")) => "v1",
            ("arm64", None | Some("")) => "v8",
            ("arm", None | Some("")) => "v7",
            (_, variant) => variant.unwrap_or_default(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |part: &str| if part.is_empty() { "unknown" } else { part }.to_owned();
        write!(f, "{}/{}", or_unknown(&self.os), or_unknown(&self.architecture))?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn usual_variants_are_the_same_as_none() {
        for (wanted, there, fits) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v1", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/amd64/v3", "linux/amd64/v3", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm", "linux/arm/v6", false),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "unknown/unknown", false),
            ("linux/amd64", "/", true),
        ] {
            assert_eq!(platform(wanted).takes(&platform(there)), fits, "{wanted} {there}");
        }
        assert_eq!(platform("linux/arm/v6").to_string(), "linux/arm/v6");
        assert_eq!(platform("/").to_string(), "unknown/unknown");
    }
}
