//! systemd, through its own command line: systemctl(1) is its stable interface and needs no bus library here.

use std::path::Path;

use tokio::process::Command;

use super::{DAEMON, Scope};
use crate::error::{CliError, Kind};

/// Whether systemd is this host's init (sd_booted(3)).
pub(crate) fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The service manager of a scope.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Systemctl {
    scope: Scope,
}

/// What the service manager says of the daemon's unit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Activity {
    /// `active`, `inactive`, `failed`, `activating`.
    pub(crate) state: String,
    /// Starts with the host, or with the user's session.
    pub(crate) enabled: bool,
    /// The daemon's process, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
}

impl Systemctl {
    pub(crate) fn new(scope: Scope) -> Self {
        Self { scope }
    }

    /// Runs systemctl, and gives what it printed.
    pub(crate) async fn run(self, arguments: &[&str]) -> Result<String, CliError> {
        let shown = self.shown(arguments);
        let mut command = Command::new("systemctl");
        if self.scope == Scope::User {
            command.arg("--user");
        }
        let output = command.args(arguments).output().await.map_err(|error| {
            CliError::new(Kind::Prerequisite, format!("failed to run `{shown}`: {error}"))
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut error = CliError::general(format!("`{shown}` failed: {}", output.status))
            .hint("`banger daemon logs` has what the daemon said");
        error.details = String::from_utf8_lossy(&output.stderr)
            .lines()
            .map(str::to_owned)
            .collect();
        Err(error)
    }

    /// The command as a user would type it.
    pub(crate) fn shown(self, arguments: &[&str]) -> String {
        let user = match self.scope {
            Scope::System => "",
            Scope::User => "--user ",
        };
        format!("systemctl {user}{}", arguments.join(" "))
    }

    /// How the daemon's unit fares.
    pub(crate) async fn activity(self) -> Result<Activity, CliError> {
        let properties = "--property=ActiveState,UnitFileState,MainPID";
        Ok(parse(&self.run(&["show", properties, DAEMON]).await?))
    }
}

fn parse(text: &str) -> Activity {
    let value = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next()
            .unwrap_or_default()
    };
    Activity {
        state: value("ActiveState").to_owned(),
        enabled: value("UnitFileState") == "enabled",
        pid: value("MainPID").parse().ok().filter(|pid| *pid > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties() {
        assert_eq!(
            parse("MainPID=77\nActiveState=active\nUnitFileState=enabled\n"),
            Activity {
                state: "active".into(),
                enabled: true,
                pid: Some(77)
            }
        );
        assert_eq!(
            parse("MainPID=0\nActiveState=failed\nUnitFileState=disabled\n"),
            Activity {
                state: "failed".into(),
                enabled: false,
                pid: None
            }
        );
    }

    #[test]
    fn as_a_user_would_type_it() {
        assert_eq!(
            Systemctl::new(Scope::User).shown(&["start", DAEMON]),
            "systemctl --user start bangerd.service"
        );
    }
}
