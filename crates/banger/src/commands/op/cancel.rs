//! `banger op cancel`: cancels an operation and waits for its clean-up.

use banger_api::types::{Operation, OperationRef, OperationState};
use clap::Args;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::{each, human};

/// Cancel operations, and wait until they have cleaned up
///
/// One that cannot be cancelled keeps no other from it; the exit code is the first failure's.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger op cancel k3v9x0q2ab
")]
pub(crate) struct Cancel {
    /// Operations, by id
    #[arg(value_name = "ID", required = true)]
    operations: Vec<String>,
}

impl Cancel {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        each::in_turn(self.operations, async |operation| {
            let operation = client.op_cancel(OperationRef { operation }).await?;
            match operation.state {
                OperationState::Cancelled => Ok(operation.id),
                OperationState::Succeeded | OperationState::Failed => Err(had_ended(&operation)),
                OperationState::Running | OperationState::Cancelling => Err(CliError::general(format!(
                    "{} of {} did not end",
                    operation.kind, operation.subject
                ))),
            }
        })
        .await
    }
}

/// It was too late. What the operation made is there, so the way to undo it is another.
fn had_ended(operation: &Operation) -> CliError {
    let state = human::operation_state(operation.state);
    let ago = operation
        .ended
        .map(|ended| format!(" {} ago", human::format_age(ended, Timestamp::now())))
        .unwrap_or_default();
    CliError::new(
        Kind::Conflict,
        format!(
            "{} of {} has ended already: it {state}{ago}",
            operation.kind, operation.subject
        ),
    )
    .hint(match (operation.state, operation.kind.as_str()) {
        (OperationState::Succeeded, "vm.create") => {
            format!("`banger vm rm {}` removes what it made", operation.subject)
        }
        (_, _) => format!("`banger op show {}` says how", operation.id),
    })
}
