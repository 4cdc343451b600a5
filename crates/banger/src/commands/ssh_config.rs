//! `banger ssh-config`: makes the user's own ssh know Banger's machines.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ssh::include::{self, Changed};
use crate::ssh::{self, Directory, home};
use crate::stdio::{self, say};

#[derive(Debug, Subcommand)]
pub(crate) enum SshConfig {
    Install(Install),
    Show(Show),
    Remove(Remove),
    Rotate(Rotate),
    #[command(hide = true)]
    Refresh(Refresh),
}

/// Let `ssh NAME.vm`, scp, rsync and editors reach machines
///
/// Adds one Include line at the top of ~/.ssh/config and changes nothing else there. What it includes is in Banger's own
/// directory below ~/.config. From then on NAME.vm is the machine of that name, without a network, a question about host
/// keys, or a key of yours.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger ssh-config install
  banger ssh-config install --file ~/.ssh/config.d/banger
")]
pub(crate) struct Install {
    #[command(flatten)]
    which: Which,
}

/// Print the ssh configuration for machines
///
/// It can be used as it is: `ssh -F FILE NAME.vm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger ssh-config show
  banger ssh-config show > banger.conf
")]
pub(crate) struct Show {}

/// Take the Include line out of ~/.ssh/config, and Banger's files away
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger ssh-config remove
")]
pub(crate) struct Remove {
    #[command(flatten)]
    which: Which,
}

/// Make the key anew with which one logs in to machines
///
/// From the next connection on, no machine takes the former. Connections that are open stay.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger ssh-config rotate
")]
pub(crate) struct Rotate {}

/// Bring the keys up to date, as ssh does before it reads them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger ssh-config refresh --directory ~/.config/banger/ssh -- dev.vm
")]
pub(crate) struct Refresh {
    /// Where they are
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Machine that will be connected to
    #[arg(value_name = "VM")]
    vm: Option<String>,
}

/// Which configuration of ssh.
#[derive(Debug, Args)]
struct Which {
    /// The configuration to change [default: ~/.ssh/config of the user database]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Which {
    fn path(&self) -> Result<PathBuf, CliError> {
        if let Some(file) = &self.file {
            return std::path::absolute(file).map_err(|error| ssh::failed("find", file, &error));
        }
        let home = home::of_this_user().ok_or_else(|| {
            CliError::new(
                Kind::Prerequisite,
                "the user database has no home for this user, where ssh would look",
            )
            .hint("name the configuration with --file")
        })?;
        let elsewhere = std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|other| *other != home);
        if let Some(other) = elsewhere {
            say!(
                "note: ssh looks in {}, the home of the user database, and not in {}, which HOME says",
                home.display(),
                other.display()
            );
        }
        Ok(home.join(".ssh/config"))
    }
}

impl SshConfig {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Install(command) => command.run(context).await,
            Self::Show(Show {}) => show(context).await,
            Self::Remove(command) => command.run(context),
            Self::Rotate(Rotate {}) => rotate(context).await,
            Self::Refresh(command) => command.run(context).await,
        }
    }
}

impl Install {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = self.which.path()?;
        let directory = Directory::of(context)?;
        let line = include::line(&directory.config())?;
        directory.write(&context.client().await?, None).await?;
        let changed = include::install(&path, &line)?;
        tell(&changed, "added to", "is already in", &line);
        say!("now: ssh NAME.vm");
        Ok(0)
    }
}

impl Remove {
    fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = self.which.path()?;
        let directory = Directory::of(context)?;
        let line = include::line(&directory.config())?;
        let changed = include::remove(&path, &line)?;
        tell(&changed, "removed from", "is not in", &line);
        directory.remove()?;
        Ok(0)
    }
}

fn tell(changed: &Changed, done: &str, nothing: &str, line: &str) {
    let what = if changed.changed { done } else { nothing };
    say!("{what} {}: {line}", shown(&changed.file));
    for notice in &changed.notices {
        say!("note: {notice}");
    }
}

fn shown(path: &Path) -> String {
    crate::error::printable(&path.to_string_lossy()).to_string()
}

async fn show(context: &Context) -> Result<u8, CliError> {
    let directory = Directory::of(context)?;
    directory.write(&context.client().await?, None).await?;
    stdio::finish(&directory.render()?)
}

async fn rotate(context: &Context) -> Result<u8, CliError> {
    let directory = Directory::of(context)?;
    directory.rotate(&context.client().await?).await?;
    say!(
        "the key is another from now on; what uses {} has it",
        shown(directory.path())
    );
    Ok(0)
}

impl Refresh {
    /// Says nothing of a daemon or a machine that is not there: the proxy will, a moment later.
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Ok(client) = context.client().await else {
            return Ok(1);
        };
        let directory = Directory::at(self.directory, context);
        let vm = self.vm.map(|host| ssh::machine(&host).to_owned());
        match directory.write_keys(&client, vm).await {
            Ok(()) => Ok(0),
            Err(error) => match error.kind {
                Kind::NotFound | Kind::Conflict | Kind::Unreachable => Ok(1),
                Kind::General
                | Kind::Usage
                | Kind::Permission
                | Kind::Prerequisite
                | Kind::Timeout
                | Kind::Guest
                | Kind::Interrupted
                | Kind::Exec
                | Kind::NotExecutable
                | Kind::CommandNotFound => Err(error),
            },
        }
    }
}
