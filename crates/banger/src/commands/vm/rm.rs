//! `banger vm rm`: removes machines and their disks.

use banger_api::types::VmRemove;
use clap::Args;

use super::many::Many;
use crate::context::Context;
use crate::error::CliError;

/// Remove machines and their disks
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm rm dev
  banger vm rm --force dev ci
")]
pub(crate) struct Rm {
    #[command(flatten)]
    many: Many,
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let force = self.force;
        let begin = |client: std::sync::Arc<banger_api::client::Client>, vm| async move {
            client.vm_remove(VmRemove { vm, force }).await
        };
        self.many.run(context, begin).await
    }
}
