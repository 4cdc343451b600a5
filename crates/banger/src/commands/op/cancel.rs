//! `banger op cancel`: cancels an operation and waits for its clean-up.

use banger_api::types::{OperationRef, OperationState};
use clap::Args;

use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::stdio;

/// Cancel an operation, and wait until it has cleaned up
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger op cancel k3v9x0q2ab
")]
pub(crate) struct Cancel {
    /// Operation, by id
    #[arg(value_name = "ID")]
    operation: String,
}

impl Cancel {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let operation = client
            .op_cancel(OperationRef {
                operation: self.operation,
            })
            .await?;
        match operation.state {
            OperationState::Cancelled => stdio::finish(&format!("{}\n", operation.id)),
            OperationState::Succeeded | OperationState::Failed => Err(CliError::new(
                Kind::Conflict,
                format!("{} of {} had ended already", operation.kind, operation.subject),
            )
            .hint(format!("`banger op show {}` says how", operation.id))),
            OperationState::Running | OperationState::Cancelling => Err(CliError::general(format!(
                "{} of {} did not end",
                operation.kind, operation.subject
            ))),
        }
    }
}
