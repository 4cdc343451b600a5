//! `banger image`: what machines start from.

mod bootstrap;
mod find;
mod ls;
mod register;
mod rm;
mod show;
mod tag;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    Ls(ls::Ls),
    Show(show::Show),
    Find(find::Find),
    Register(register::Register),
    Bootstrap(bootstrap::Bootstrap),
    Tag(tag::Tag),
    Rm(rm::Rm),
}

impl Image {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Ls(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Find(command) => command.run(context).await,
            Self::Register(command) => command.run(context).await,
            Self::Bootstrap(command) => command.run(context).await,
            Self::Tag(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
        }
    }
}
