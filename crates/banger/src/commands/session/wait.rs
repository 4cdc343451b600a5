//! `banger session wait`: until a session ends.

use banger_api::types::SessionRef;
use clap::Args;

use super::Which;
use crate::context::Context;
use crate::error::CliError;
use crate::stdio::say;

/// What is said of a session of which nobody knows how it ended.
const LOST: u8 = 125;

/// Wait until a session ends
///
/// Its exit code is this command's: 128 + N where signal N ended it, 125 where it ended with its machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger session wait dev make
")]
pub(crate) struct Wait {
    #[command(flatten)]
    which: Which,
}

impl Wait {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Which { vm, session } = self.which;
        let params = SessionRef { vm, session };
        let ended = context.client().await?.session_wait(params).await?;
        Ok(match (ended.exit_code, ended.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => signal.saturating_add(128),
            (None, None) => {
                let reason = ended.reason.as_deref().unwrap_or("unknown");
                say!("nobody knows how it ended: {reason}");
                LOST
            }
        })
    }
}
