//! `banger net`: the network of machines.

mod status;

use clap::Subcommand;

use crate::context::Context;
use crate::error::CliError;

/// What can be asked of the network.
#[derive(Debug, Subcommand)]
pub(crate) enum Net {
    Status(status::Status),
}

impl Net {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Status(command) => command.run(context).await,
        }
    }
}
