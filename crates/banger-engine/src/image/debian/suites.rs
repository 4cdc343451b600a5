//! What is made of packages: distributions, their releases, where these come from, and how they are known to be theirs.

use std::path::Path;

use super::DebianError;

/// A distribution whose packages are Debian's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Debian.
    Debian,
    /// Ubuntu.
    Ubuntu,
}

impl Distribution {
    /// Its word, in names and rows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }

    /// As people call it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Debian => "Debian",
            Self::Ubuntu => "Ubuntu",
        }
    }

    /// The releases that can be made, the one that is made when none is named first.
    #[must_use]
    pub fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &["bookworm", "trixie", "sid"],
            Self::Ubuntu => &["noble", "jammy", "resolute"],
        }
    }

    /// The release of that name.
    pub(super) fn suite(self, wanted: Option<&str>) -> Result<&'static str, DebianError> {
        let mut known = self.suites().iter();
        let found = match wanted {
            None => known.next(),
            Some(wanted) => known.find(|suite| **suite == wanted),
        };
        found.copied().ok_or_else(|| DebianError::Suite {
            distribution: self.title(),
            suite: wanted.unwrap_or_default().to_owned(),
            known: self.suites(),
        })
    }

    /// What the usual packages are in.
    pub(super) fn components(self) -> &'static str {
        match self {
            Self::Debian => "main",
            Self::Ubuntu => "main universe",
        }
    }

    /// Lines of sources.list(5) for the image; none where mmdebstrap knows them by the release's name, and the key as well.
    pub(super) fn sources(self, suite: &str) -> Vec<String> {
        match self {
            Self::Debian => Vec::new(),
            Self::Ubuntu => [
                ("http://archive.ubuntu.com/ubuntu", ""),
                ("http://archive.ubuntu.com/ubuntu", "-updates"),
                ("http://security.ubuntu.com/ubuntu", "-security"),
            ]
            .map(|(mirror, of)| {
                let (key, components) = (self.key_option(), self.components());
                format!("deb {key}{mirror} {suite}{of} {components}")
            })
            .into(),
        }
    }

    /// What a line of sources.list(5) says of the key that packages are signed with: nothing where the host's apt trusts it. In
    /// the image it is at the same place.
    pub(super) fn key_option(self) -> String {
        match self.keyring() {
            Some((path, _)) => format!("[signed-by={path}] "),
            None => String::new(),
        }
    }

    /// The file with the key, and the package that it is in. Debian's is part of every host with its apt.
    fn keyring(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Debian => None,
            Self::Ubuntu => Some(("/usr/share/keyrings/ubuntu-archive-keyring.gpg", "ubuntu-keyring")),
        }
    }

    /// Refuses a distribution whose packages cannot be verified here.
    pub(super) fn check_key(self) -> Result<(), DebianError> {
        match self.keyring() {
            Some((path, package)) if !Path::new(path).is_file() => Err(DebianError::NoKeyring {
                distribution: self.title(),
                path,
                package,
            }),
            Some(_) | None => Ok(()),
        }
    }
}
