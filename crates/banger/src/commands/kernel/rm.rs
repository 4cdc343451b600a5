//! `banger kernel rm`: removes kernels that neither image nor machine uses.

use banger_api::types::KernelRef;
use clap::Args;

use crate::context::Context;
use crate::each;
use crate::error::CliError;

/// Remove kernels that neither image nor machine uses
///
/// One that cannot be removed keeps no other from it; the exit code is the first failure's.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger kernel rm tiny
")]
pub(crate) struct Rm {
    /// Kernels, by name
    #[arg(value_name = "KERNEL", required = true)]
    kernels: Vec<String>,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        each::in_turn(self.kernels, async |kernel| {
            Ok(client.kernel_remove(KernelRef { kernel }).await?.name)
        })
        .await
    }
}
