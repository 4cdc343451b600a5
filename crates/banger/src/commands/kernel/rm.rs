//! `banger kernel rm`: removes kernels that neither image nor machine uses.

use banger_api::types::KernelRef;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::stdio;

/// Remove kernels that neither image nor machine uses
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
        for kernel in self.kernels {
            let removed = client.kernel_remove(KernelRef { kernel }).await?;
            stdio::print(&format!("{}\n", removed.name))?;
        }
        Ok(0)
    }
}
