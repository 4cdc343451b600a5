//! `banger daemon`: the daemon itself.

mod run;
mod status;
mod stop;

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
}

impl Daemon {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Run(command) => command.run(),
            Self::Status(command) => command.run(context).await,
            Self::Stop(command) => command.run(context).await,
        }
    }
}
