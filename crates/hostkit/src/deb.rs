//! Debian packages: fetching one with `apt-get download`, looking into it and unpacking it with `dpkg-deb`.
//!
//! Nothing is installed and no privileges are needed: the package lists that `apt-get update` left are only read, and
//! apt checks what it fetches against them. Resolving a whole set of packages is not done here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::{ExecError, Stream, Tool};

/// Mirrors may be slow; a kernel is 30 to 100 MB.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const UNPACK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Why a package could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a package's name, by Debian policy 5.6.1.
    #[error("invalid package name {name:?}")]
    InvalidName {
        /// The name as given.
        name: String,
    },
    /// apt's lists do not have it.
    #[error("apt knows no package {name} (its lists may be missing or old: run `apt-get update` as root)")]
    Unknown {
        /// The name, perhaps with `=version`.
        name: String,
    },
    /// A command failed.
    #[error("failed to {action}")]
    Command {
        /// What it was for.
        action: String,
        /// The cause.
        #[source]
        source: Box<ExecError>,
    },
    /// The download left no file, or several.
    #[error("download of {name} left {count} packages in {}", dir.display())]
    Result {
        /// The name, perhaps with `=version`.
        name: String,
        /// Where it should be.
        dir: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// A directory could not be made or read.
    #[error("failed to use {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The two programs needed, both essential parts of a Debian system.
#[derive(Debug, Clone)]
pub struct DebTools {
    apt_get: Tool,
    dpkg_deb: Tool,
}

impl DebTools {
    /// Finds them in `dirs`.
    pub fn find<D: AsRef<Path>>(dirs: &[D]) -> Result<Self, ExecError> {
        Ok(Self {
            apt_get: Tool::find("apt-get", dirs)?,
            dpkg_deb: Tool::find("dpkg-deb", dirs)?,
        })
    }

    /// Fetches `name` or `name=version` into the empty directory `dir`, made if missing.
    pub async fn download(
        &self,
        name: &str,
        dir: &Path,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<PathBuf, Error> {
        check_name(name)?;
        let io_error = |source| Error::Io {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(io_error)?;
        self.apt_get
            .command()
            // As root, apt would hand the download to its own user, who may not be able to write here.
            .args(["-o", "APT::Sandbox::User=root", "-q", "download", name])
            .dir(dir)
            .timeout(DOWNLOAD_TIMEOUT)
            .on_line(move |stream: Stream, line: &str| match stream {
                Stream::Stdout => on_line(line),
                // Warnings; an error is in the result.
                Stream::Stderr => {}
            })
            .run()
            .await
            .map_err(|source| {
                if is_unknown(&source) {
                    Error::Unknown {
                        name: name.to_owned(),
                    }
                } else {
                    Error::Command {
                        action: format!("download package {name}"),
                        source: Box::new(source),
                    }
                }
            })?;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_error)? {
            let path = entry.map_err(io_error)?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                found.push(path);
            }
        }
        match (found.pop(), found.len()) {
            (Some(path), 0) => Ok(path),
            (last, others) => Err(Error::Result {
                name: name.to_owned(),
                dir: dir.to_owned(),
                count: others + usize::from(last.is_some()),
            }),
        }
    }

    /// One of a package's control fields, such as `Version` or `Depends`; empty where it has none.
    pub async fn field(&self, deb: &Path, field: &str) -> Result<String, Error> {
        let output = self
            .dpkg_deb
            .command()
            .arg("--field")
            .arg(absolute(deb)?)
            .arg(field)
            .timeout(UNPACK_TIMEOUT)
            .run()
            .await
            .map_err(|source| Error::Command {
                action: format!("read package {}", deb.display()),
                source: Box::new(source),
            })?;
        Ok(output.text())
    }

    /// Unpacks a package's files below `dir`, made if missing. Owners are kept only as root.
    pub async fn unpack(&self, deb: &Path, dir: &Path) -> Result<(), Error> {
        self.dpkg_deb
            .command()
            .arg("--extract")
            .arg(absolute(deb)?)
            .arg(absolute(dir)?)
            .timeout(UNPACK_TIMEOUT)
            .run()
            .await
            .map_err(|source| Error::Command {
                action: format!("unpack package {}", deb.display()),
                source: Box::new(source),
            })?;
        Ok(())
    }
}

/// So that no path is taken for an option.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

fn is_unknown(error: &ExecError) -> bool {
    const SAYS: [&str; 3] = ["Unable to locate package", "Can't find a source", "Can't select"];
    let ExecError::Failed { stderr, .. } = error else {
        return false;
    };
    stderr
        .iter()
        .any(|line| line.starts_with("E:") && SAYS.iter().any(|text| line.contains(text)))
}

fn check_name(name: &str) -> Result<(), Error> {
    let (package, version) = match name.split_once('=') {
        Some((package, version)) => (package, Some(version)),
        None => (name, None),
    };
    let part = |text: &str, extra: &str| {
        text.len() <= 200
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    if part(package, "+-.") && version.is_none_or(|version| part(version, "+-.~:")) {
        Ok(())
    } else {
        Err(Error::InvalidName {
            name: name.to_owned(),
        })
    }
}

/// The packages in a `Depends` field that must be there, each as `name` or, where one version is asked for exactly,
/// `name=version`. Of alternatives the first is taken.
#[must_use]
pub fn dependencies(field: &str) -> Vec<String> {
    field
        .split(',')
        .filter_map(|group| {
            let first = group.split('|').next()?.trim();
            let (name, rest) = match first.split_once('(') {
                Some((name, rest)) => (name.trim(), rest.trim_end_matches(')').trim()),
                None => (first, ""),
            };
            let name = name.split(':').next().filter(|name| !name.is_empty())?;
            Some(match rest.strip_prefix('=') {
                Some(version) => format!("{name}={}", version.trim()),
                None => name.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_mean_something_else_are_refused() {
        for name in [
            "linux-image-cloud-amd64",
            "g++",
            "linux-image-6.1.0-56=6.1.192-2+deb~1",
            "a=1:2",
        ] {
            check_name(name).unwrap();
        }
        for name in [
            "",
            "-o",
            "--reinstall",
            "a b",
            "a/testing",
            "a;b",
            "a=",
            "=1",
            "../a",
            "a=-1",
        ] {
            assert!(
                matches!(check_name(name), Err(Error::InvalidName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn dependencies_are_read() {
        assert_eq!(
            dependencies("linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), kmod, a (>= 2) | b, c:any"),
            ["linux-image-6.1.0-56-cloud-amd64=6.1.192-2", "kmod", "a", "c"]
        );
        assert!(dependencies("").is_empty());
    }
}
