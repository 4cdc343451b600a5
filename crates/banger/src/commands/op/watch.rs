//! `banger op watch`: follows an operation that somebody began.

use banger_api::types::OperationRef;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Follow an operation to its end
///
/// Ctrl-C leaves it to itself; `banger op cancel` cancels it. Fails as the operation does.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger op watch k3v9x0q2ab
")]
pub(crate) struct Watch {
    /// Operation, by id
    #[arg(value_name = "ID")]
    operation: String,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Watch {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let operation = client.op_show(OperationRef {
            operation: self.operation,
        });
        Follow::watching(self.quiet)
            .run(&client, &mut interrupts, operation)
            .await?;
        Ok(0)
    }
}
