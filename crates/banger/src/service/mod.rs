//! Banger as a service of systemd: what `banger daemon install` writes, and how a service that is there is used.
//!
//! ```text
//! install    release (bin/, libexec/banger/) ──► prefix, file by file through a rename ──► units ──► enable, start
//! any command that finds no daemon ──► a service is installed? systemctl start : spawn
//! ```
//!
//! The unit file is the record of an installation: its `ExecStart=` names the prefix. Two daemons on one state
//! directory are kept apart by the daemon's own lock, not here.

pub(crate) mod files;
mod systemctl;
pub(crate) mod units;

use std::path::{Path, PathBuf};

pub(crate) use systemctl::{Activity, Systemctl, systemd_runs};

use crate::error::{CliError, Kind, chain};
use crate::paths::Paths;

/// The daemon's unit.
pub(crate) const DAEMON: &str = "bangerd.service";

/// The unit that stops machines in order before the host goes down.
pub(crate) const MACHINES: &str = "banger-machines.service";

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The host's: root's machines.
    System,
    /// One user's, run by their own service manager.
    User,
}

impl Scope {
    /// The scope whose daemon this process would use.
    pub(crate) fn of_this_process() -> Self {
        match rustix::process::geteuid().is_root() {
            true => Self::System,
            false => Self::User,
        }
    }

    /// Where units of one's own belong (systemd.unit(5)).
    pub(crate) fn unit_directory(self) -> Result<PathBuf, CliError> {
        match self {
            Self::System => Ok("/etc/systemd/system".into()),
            Self::User => match variable("XDG_CONFIG_HOME") {
                Some(base) => Ok(base.join("systemd/user")),
                None => Ok(home()?.join(".config/systemd/user")),
            },
        }
    }

    /// Where programs go unless told otherwise.
    pub(crate) fn prefix(self) -> Result<PathBuf, CliError> {
        match self {
            Self::System => Ok("/usr/local".into()),
            Self::User => Ok(home()?.join(".local")),
        }
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn home() -> Result<PathBuf, CliError> {
    variable("HOME").ok_or_else(|| {
        CliError::new(
            Kind::Prerequisite,
            "failed to find your home directory: HOME is not set",
        )
    })
}

/// A service that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) scope: Scope,
    /// The daemon's unit file.
    pub(crate) unit: PathBuf,
    /// The daemon's program, as the unit names it.
    pub(crate) program: PathBuf,
}

impl Installed {
    /// The service of a scope, if one is installed.
    pub(crate) fn find(scope: Scope) -> Result<Option<Self>, CliError> {
        Self::find_in(scope, &scope.unit_directory()?)
    }

    fn find_in(scope: Scope, directory: &Path) -> Result<Option<Self>, CliError> {
        let unit = directory.join(DAEMON);
        let text = match std::fs::read_to_string(&unit) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(CliError::new(
                    Kind::of_io(&error),
                    format!("failed to read {}: {}", unit.display(), chain(&error)),
                ));
            }
        };
        let Some(program) = units::program(&text) else {
            return Err(CliError::general(format!(
                "{} is not a unit that `banger daemon install` wrote",
                unit.display()
            ))
            .hint("move it away, or edit it by hand"));
        };
        Ok(Some(Self { scope, unit, program }))
    }

    /// The prefix it is installed under: the program is `bin/bangerd` below it.
    pub(crate) fn prefix(&self) -> Option<&Path> {
        self.program.parent().and_then(Path::parent)
    }
}

/// The service whose daemon serves the default socket of this process: installed, run by a systemd that runs, and with
/// nothing in the environment that would have this process's daemon elsewhere.
pub(crate) fn in_charge(paths: &Paths) -> Option<Installed> {
    if !paths.is_plain || !paths.socket_is_default || !systemd_runs() {
        return None;
    }
    // A unit that cannot be read, or is not ours, is not relied on.
    Installed::find(Scope::of_this_process()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_is_known_by_its_unit() {
        let directory = tempfile::tempdir().unwrap();
        let find = || Installed::find_in(Scope::System, directory.path());
        assert_eq!(find().unwrap(), None);
        let unit = directory.path().join(DAEMON);
        std::fs::write(
            &unit,
            units::daemon(Scope::System, Path::new("/opt/b/bin/bangerd"), None),
        )
        .unwrap();
        let installed = find().unwrap().unwrap();
        assert_eq!(installed.program, Path::new("/opt/b/bin/bangerd"));
        assert_eq!(installed.prefix(), Some(Path::new("/opt/b")));
        std::fs::write(&unit, "[Service]\nExecStart=/bin/true\n").unwrap();
        assert!(find().unwrap_err().message.contains("bangerd.service"));
    }
}
