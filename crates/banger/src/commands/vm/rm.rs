//! `banger vm rm`: removes machines and their disks.

use std::sync::Arc;

use banger_api::ErrorKind;
use banger_api::client::{Client, ClientError};
use banger_api::types::VmRemove;
use clap::Args;

use super::many::{self, Following, Machines};
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Remove machines and their disks
///
/// A machine that runs needs --force. Removing all of them asks first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm rm dev
  banger vm rm --force dev ci
  banger vm rm --force --label team=infra
  banger vm rm --all --force --yes
")]
pub(crate) struct Rm {
    #[command(flatten)]
    machines: Machines,
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    following: Following,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let (force, all) = (self.force, self.machines.all);
        let client = context.client().await?;
        let targets = self.machines.targets(&client).await?;
        if all {
            many::confirm("remove", &targets, self.yes).await?;
        }
        let remove =
            move |client: Arc<Client>, vm| async move { client.vm_remove(VmRemove { vm, force }).await };
        self.following.run(client, targets, true, remove).await
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
