//! `banger daemon install`: makes the daemon a service of systemd.

use std::path::{Path, PathBuf};

use banger_api::types::Empty;
use clap::Args;

use super::stop;
use crate::args::absolute;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::service::files::{self, Content, InstallFile, Put};
use crate::service::{DAEMON, Installed, MACHINES, Scope, Systemctl, systemd_runs, units};
use crate::spawn;
use crate::stdio::{self, say};

/// Install the daemon as a service of systemd
///
/// Copies this release's programs below a prefix, writes the units, and enables and starts the service: it starts with
/// the host, and machines are stopped in order before the host goes down. Machines that run go on, also when it replaces
/// an older release: installing again is how to upgrade. With --no-start the service is enabled and not started.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger daemon install --dry-run
  banger daemon install
  banger daemon install --prefix /opt/banger
  banger daemon install --user
")]
pub(crate) struct Install {
    /// Install for this user only, with the user's own service manager
    #[arg(long)]
    user: bool,
    /// Where the release goes: PREFIX/bin, PREFIX/libexec/banger, PREFIX/share/banger [default: /usr/local, for a user ~/.local]
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Only print what would be written and run
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl Install {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let scope = match self.user {
            true => Scope::User,
            false => Scope::System,
        };
        let prefix = match &self.prefix {
            Some(prefix) => absolute(prefix)?.into(),
            None => scope.prefix()?,
        };
        // Root's default state directory may be a file system of its own; a user's home is there before the session.
        let state =
            (scope == Scope::System && Scope::of_this_process() == scope).then(|| context.paths().state());
        let files = plan(scope, &prefix, state)?;
        if self.dry_run {
            return stdio::finish(&describe(scope, &files, !context.no_start()));
        }
        check(scope)?;
        let replaced = Installed::find(scope)?;
        let mut changed = false;
        for file in &files {
            match files::put(file)? {
                Put::Written => {
                    changed = true;
                    stdio::print(&format!("{}\n", file.path.display()))?;
                }
                Put::Unchanged => say!("unchanged: {}", file.path.display()),
            }
        }
        let manager = Systemctl::new(scope);
        manager.run(&["daemon-reload"]).await?;
        manager.run(&["enable", "--quiet", DAEMON]).await?;
        if context.no_start() {
            say!(
                "{DAEMON} is enabled; `{}` starts it",
                manager.shown(&["start", DAEMON])
            );
        } else {
            start(context, manager, changed).await?;
        }
        // What an installation under another prefix has left would only be found by mistake.
        if let Some(old) = replaced.as_ref().and_then(Installed::prefix)
            && old != prefix
        {
            say!("note: the release below {} is not used any more", old.display());
        }
        if scope == Scope::User {
            say!("note: it ends with your last session, unless you run `loginctl enable-linger`");
        }
        Ok(0)
    }
}

/// What is written, programs first.
fn plan(scope: Scope, prefix: &Path, state: Option<&Path>) -> Result<Vec<InstallFile>, CliError> {
    let mut files = files::release(prefix)?;
    let directory = scope.unit_directory()?;
    let unit = |name: &str, text: String| InstallFile {
        path: directory.join(name),
        content: Content::Text(text),
    };
    files.push(unit(
        DAEMON,
        units::daemon(scope, &prefix.join("bin/bangerd"), state),
    ));
    files.push(unit(MACHINES, units::machines(&prefix.join("bin/banger"))));
    Ok(files)
}

/// What would be done, for people.
fn describe(scope: Scope, files: &[InstallFile], start: bool) -> String {
    let mut text = String::new();
    for file in files {
        let path = file.path.display();
        match &file.content {
            Content::Program(source) | Content::Data(source) => {
                text.push_str(&format!("copy {} to {path}\n", source.display()));
            }
            Content::Text(content) => {
                text.push_str(&format!("write {path}:\n"));
                for line in content.lines() {
                    text.push_str(format!("    {line}").trim_end());
                    text.push('\n');
                }
            }
        }
    }
    let manager = Systemctl::new(scope);
    let mut commands = vec![
        manager.shown(&["daemon-reload"]),
        manager.shown(&["enable", DAEMON]),
    ];
    if start {
        commands.push(manager.shown(&["restart", DAEMON]));
        commands.push(manager.shown(&["start", MACHINES]));
    }
    for command in commands {
        text.push_str(&format!("run {command}\n"));
    }
    text
}

/// Whether it can be done at all, before anything is written.
pub(super) fn check(scope: Scope) -> Result<(), CliError> {
    if !systemd_runs() {
        return Err(CliError::new(
            Kind::Prerequisite,
            "failed to find a service manager: systemd does not run on this host",
        )
        .hint(
            "commands start the daemon when they need it; `banger daemon run` is for other service managers",
        ));
    }
    if scope == Scope::System && Scope::of_this_process() != Scope::System {
        return Err(CliError::new(
            Kind::Permission,
            "the host's service is root's to install and to remove",
        )
        .hint("use sudo; or --user, for a service of your own"));
    }
    Ok(())
}

/// Starts the service, or restarts it where it runs something else than what is installed now. Machines go on running.
async fn start(context: &Context, manager: Systemctl, changed: bool) -> Result<(), CliError> {
    let before = manager.activity().await?;
    // One that a command has started would keep the service's from its state.
    if before.pid.is_none() && context.paths().socket_is_default && spawn::listens(context.socket()) {
        let client = context.running_client().await?;
        let pid = client.daemon_status(Empty {}).await?.pid;
        stop::shut_down(context, &client, pid).await?;
        say!("the daemon that ran by itself (process {pid}) was stopped");
    }
    match (before.pid.is_some(), changed) {
        (true, false) => say!("{DAEMON} runs already"),
        (true, true) => {
            manager.run(&["restart", DAEMON]).await?;
            say!("{DAEMON} was restarted");
        }
        (false, _) => {
            // Also where systemd is about to start it again after a failure: with what is installed now.
            manager.run(&["restart", DAEMON]).await?;
            say!("{DAEMON} runs");
        }
    }
    manager.run(&["start", MACHINES]).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_done() {
        let files = [
            InstallFile {
                path: "/usr/local/bin/bangerd".into(),
                content: Content::Program("/opt/release/bin/bangerd".into()),
            },
            InstallFile {
                path: "/etc/systemd/system/bangerd.service".into(),
                content: Content::Text("[Unit]\n\n[Service]\n".into()),
            },
        ];
        insta::assert_snapshot!(describe(Scope::System, &files, true), @r"
        copy /opt/release/bin/bangerd to /usr/local/bin/bangerd
        write /etc/systemd/system/bangerd.service:
            [Unit]

            [Service]
        run systemctl daemon-reload
        run systemctl enable bangerd.service
        run systemctl restart bangerd.service
        run systemctl start banger-machines.service
        ");
    }
}
