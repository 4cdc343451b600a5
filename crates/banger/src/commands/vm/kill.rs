//! `banger vm kill`: ends machines at once.

use banger_api::types::VmRef;
use clap::Args;

use super::many::Many;
use crate::context::Context;
use crate::error::CliError;

/// End machines at once, as by pulling the plug
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm kill dev
")]
pub(crate) struct Kill {
    #[command(flatten)]
    many: Many,
}

impl Kill {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let begin = |client: std::sync::Arc<banger_api::client::Client>, vm| async move {
            client.vm_kill(VmRef { vm }).await
        };
        self.many.run(context, begin).await
    }
}
