//! `banger session signal`: a signal to a session.

use banger_api::types::SessionSignal;
use clap::Args;

use super::Which;
use crate::args::parse_signal;
use crate::context::Context;
use crate::error::CliError;

/// Send a signal to a session, all of its process group
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger session signal dev make
  banger session signal dev web HUP
")]
pub(crate) struct Signal {
    #[command(flatten)]
    which: Which,
    /// Signal by name or number
    #[arg(value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    signal: u8,
}

impl Signal {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Which { vm, session } = self.which;
        let params = SessionSignal {
            vm,
            session,
            signal: self.signal,
        };
        context.client().await?.session_signal(params).await?;
        Ok(0)
    }
}
