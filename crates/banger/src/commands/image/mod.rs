//! `banger image`: what machines start from.

mod bootstrap;
mod ls;
mod register;
mod rm;
mod show;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    Ls(ls::Ls),
    Show(show::Show),
    Register(register::Register),
    Bootstrap(bootstrap::Bootstrap),
    Rm(rm::Rm),
}

impl Image {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Ls(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Register(command) => command.run(context).await,
            Self::Bootstrap(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
        }
    }
}
