//! `banger vm restart`: stops machines and starts them again.

use std::sync::Arc;

use banger_api::client::Client;
use banger_api::types::VmRestart;
use clap::Args;

use super::many::{self, Following, Machines};
use crate::args::parse_seconds;
use crate::context::Context;
use crate::error::CliError;

/// Restart machines
///
/// Asks the guest to shut down, forces it when the time is over, and starts it again with all its settings. A machine
/// that does not run is started.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm restart dev
  banger vm restart dev ci --timeout 5
  banger vm restart --label team=infra
")]
pub(crate) struct Restart {
    #[command(flatten)]
    machines: Machines,
    /// Seconds, or a time such as 90s, that the guest has to stop before it is forced; 0 forces at once [default: the configuration's]
    #[arg(short, long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<u32>,
    #[command(flatten)]
    following: Following,
}

impl Restart {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_seconds = self.timeout;
        let restart = move |client: Arc<Client>, vm| async move {
            client.vm_restart(VmRestart { vm, timeout_seconds }).await
        };
        many::each(context, self.machines, self.following, false, restart).await
    }
}
