//! `banger image`: what machines start from.

mod bootstrap;
mod build;
mod export;
mod find;
mod import;
mod ls;
mod promote;
mod prune;
mod pull;
mod register;
mod rm;
mod seed;
mod show;
mod tag;
mod verify;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    Ls(ls::Ls),
    Show(show::Show),
    Find(find::Find),
    Pull(pull::Pull),
    Import(import::Import),
    Register(register::Register),
    Promote(promote::Promote),
    Bootstrap(bootstrap::Bootstrap),
    Build(build::Build),
    Export(export::Export),
    Tag(tag::Tag),
    Rm(rm::Rm),
    Prune(prune::Prune),
    Verify(verify::Verify),
    #[command(subcommand)]
    Seed(seed::Seed),
}

impl Image {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Ls(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Find(command) => command.run(context).await,
            Self::Pull(command) => command.run(context).await,
            Self::Import(command) => command.run(context).await,
            Self::Register(command) => command.run(context).await,
            Self::Promote(command) => command.run(context).await,
            Self::Bootstrap(command) => command.run(context).await,
            Self::Build(command) => command.run(context).await,
            Self::Export(command) => command.run(context).await,
            Self::Tag(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
            Self::Prune(command) => command.run(context).await,
            Self::Verify(command) => command.run(context).await,
            Self::Seed(command) => command.run(context).await,
        }
    }
}
