//! `banger op`: operations, which are everything that takes time.

mod cancel;
pub(crate) mod logs;
mod ls;
mod show;
mod watch;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be done with operations.
#[derive(Debug, Subcommand)]
pub(crate) enum Op {
    Ls(ls::Ls),
    Show(show::Show),
    Logs(logs::Logs),
    Watch(watch::Watch),
    Cancel(cancel::Cancel),
}

impl Op {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Ls(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Logs(command) => command.run(context).await,
            Self::Watch(command) => command.run(context).await,
            Self::Cancel(command) => command.run(context).await,
        }
    }
}
