//! `banger kernel`: what images boot with.

mod add;
mod default;
mod ls;
mod rm;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be done with kernels.
#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    Ls(ls::Ls),
    Add(add::Add),
    Rm(rm::Rm),
    Default(default::Default),
}

impl Kernel {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Ls(command) => command.run(context).await,
            Self::Add(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
            Self::Default(command) => command.run(context).await,
        }
    }
}
