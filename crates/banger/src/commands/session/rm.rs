//! `banger session rm`: forgets sessions.

use banger_api::types::SessionRemove;
use clap::Args;

use crate::context::Context;
use crate::each;
use crate::error::CliError;

/// Remove sessions that have ended, and what they wrote
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger session rm dev make
  banger session rm --force dev web worker
")]
pub(crate) struct Rm {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Sessions, by name
    #[arg(value_name = "SESSION", required = true)]
    sessions: Vec<String>,
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        each::in_turn(self.sessions, async |session| {
            let params = SessionRemove {
                vm: self.vm.clone(),
                session,
                force: self.force,
            };
            Ok(client.session_remove(params).await?.name)
        })
        .await
    }
}
