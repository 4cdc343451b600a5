//! `banger vm kill`: ends machines at once.

use std::sync::Arc;

use banger_api::client::Client;
use banger_api::types::VmRef;
use clap::Args;

use super::many::{self, Following, Machines};
use crate::context::Context;
use crate::error::CliError;

/// End machines at once, as by pulling the plug
///
/// A machine that does not run already is a success.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm kill dev
  banger vm kill --label team=infra
  banger vm kill --all
")]
pub(crate) struct Kill {
    #[command(flatten)]
    machines: Machines,
    #[command(flatten)]
    following: Following,
}

impl Kill {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let kill = |client: Arc<Client>, vm| async move { client.vm_kill(VmRef { vm }).await };
        many::each(context, self.machines, self.following, true, kill).await
    }
}
