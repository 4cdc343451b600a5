//! `banger vm stop`: asks the guest to stop, then forces it.

use std::sync::Arc;

use banger_api::client::Client;
use banger_api::types::VmStop;
use clap::Args;

use super::many::{self, Following, Machines};
use crate::args::parse_seconds;
use crate::context::Context;
use crate::error::CliError;

/// Stop machines
///
/// Asks the guest to shut down, and forces it when the time is over. A machine that is stopped already is a success.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm stop dev
  banger vm stop dev ci --timeout 5
  banger vm stop --label team=infra
  banger vm stop --all
")]
pub(crate) struct Stop {
    #[command(flatten)]
    machines: Machines,
    /// Seconds, or a time such as 90s, that the guest has before it is forced; 0 forces at once [default: the configuration's]
    #[arg(short, long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<u32>,
    #[command(flatten)]
    following: Following,
}

impl Stop {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let timeout_seconds = self.timeout;
        let stop = move |client: Arc<Client>, vm| async move {
            client.vm_stop(VmStop { vm, timeout_seconds }).await
        };
        many::each(context, self.machines, self.following, true, stop).await
    }
}
