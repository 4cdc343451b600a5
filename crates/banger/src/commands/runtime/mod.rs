//! `banger runtime`: VMMs that Banger installs itself.

mod install;
mod ls;
mod rm;

use banger_api::types::RuntimeKind;
use clap::{Subcommand, ValueEnum};

use crate::context::Context;
use crate::error::CliError;

/// What can be done with runtimes.
#[derive(Debug, Subcommand)]
pub(crate) enum Runtime {
    Ls(ls::Ls),
    Install(install::Install),
    Rm(rm::Rm),
}

impl Runtime {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Ls(command) => command.run(context).await,
            Self::Install(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
        }
    }
}

/// What can be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArg {
    Firecracker,
}

impl From<KindArg> for RuntimeKind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Firecracker => Self::Firecracker,
        }
    }
}

/// Its word.
fn word(kind: RuntimeKind) -> &'static str {
    match kind {
        RuntimeKind::Firecracker => "firecracker",
    }
}
