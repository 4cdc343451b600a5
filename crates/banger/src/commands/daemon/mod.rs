//! `banger daemon`: the daemon itself.

mod install;
mod logs;
mod run;
mod status;
mod stop;
mod uninstall;

pub(crate) use run::Run;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be done with the daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Daemon {
    Run(Run),
    Status(status::Status),
    Stop(stop::Stop),
    Logs(logs::Logs),
    Install(install::Install),
    Uninstall(uninstall::Uninstall),
}

impl Daemon {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Run(command) => command.run(),
            Self::Status(command) => command.run(context).await,
            Self::Stop(command) => command.run(context).await,
            Self::Logs(command) => command.run(context),
            Self::Install(command) => command.run(context).await,
            Self::Uninstall(command) => command.run(context).await,
        }
    }
}
