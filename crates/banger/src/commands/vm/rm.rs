//! `banger vm rm`: removes machines and their disks.

use banger_api::ErrorKind;
use banger_api::client::{Client, ClientError};
use banger_api::types::VmRemove;
use clap::Args;

use super::many::Many;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

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

/// Removes a machine, running or not; one that stopped by itself is gone already.
pub(crate) async fn force(client: &Client, interrupts: &mut Interrupts, vm: String) -> Result<(), CliError> {
    let gone =
        |error: &ClientError| matches!(error, ClientError::Rpc(error) if error.kind == ErrorKind::NotFound);
    match client.vm_remove(VmRemove { vm, force: true }).await {
        Ok(operation) => {
            let follow = Follow::leaving(true).run(client, interrupts, async { Ok(operation) });
            follow.await.map(|_| ())
        }
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
