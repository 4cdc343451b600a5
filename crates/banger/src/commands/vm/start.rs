//! `banger vm start`: boots machines.

use banger_api::types::VmStart;
use clap::Args;

use super::many::Many;
use crate::context::Context;
use crate::error::CliError;

/// Start machines
///
/// Waits until the guest answers. A machine that runs already is a success.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm start dev
  banger vm start dev ci --timeout 300
")]
pub(crate) struct Start {
    #[command(flatten)]
    many: Many,
    /// Seconds to wait for the guest [default: the configuration's]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
}

impl Start {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_seconds = self.timeout;
        let begin = |client: std::sync::Arc<banger_api::client::Client>, vm| async move {
            client.vm_start(VmStart { vm, timeout_seconds }).await
        };
        self.many.run(context, begin).await
    }
}
