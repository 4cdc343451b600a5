//! `banger vm reset`: a new system disk.

use std::sync::Arc;

use banger_api::client::Client;
use banger_api::types::VmReset;
use clap::Args;

use super::many::{self, Following, Machines};
use crate::context::Context;
use crate::error::CliError;

/// Renew machines' system disks
///
/// Takes the same short time whatever the image's size. What was written to the system disk is gone; the work disk
/// stays. A machine that runs needs --force: it is stopped, and started again. Resetting all of them asks first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm reset dev
  banger vm reset --force dev ci
  banger vm reset dev --image debian-next
  banger vm reset --label team=infra
")]
pub(crate) struct Reset {
    #[command(flatten)]
    machines: Machines,
    /// Move them to this image [default: the one they have]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Stop those that run, and start them again
    #[arg(short, long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    following: Following,
}

impl Reset {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let (image, force, all) = (self.image, self.force, self.machines.all);
        let client = context.client().await?;
        let targets = self.machines.targets(&client).await?;
        if all {
            many::confirm("reset", &targets, self.yes).await?;
        }
        let reset = move |client: Arc<Client>, vm| {
            let image = image.clone();
            async move { client.vm_reset(VmReset { vm, image, force }).await }
        };
        self.following.run(client, targets, false, reset).await
    }
}
