//! `banger vm unpublish`: ports of a guest are reached at the host no longer.

use banger_api::types::{HostPort, VmUnpublish};
use clap::Args;

use super::ports;
use crate::args::parse_host_port;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;

/// Take published ports back
///
/// Their connections are reset. Prints what was taken back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm unpublish dev 8080
  banger vm unpublish dev 127.0.0.1:8080 5353/udp
  banger vm unpublish dev --all
")]
pub(crate) struct Unpublish {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Ports of the host, or as they were published; /udp for datagrams
    #[arg(value_name = "[ADDRESS:]HOST[:GUEST][/udp]", required_unless_present = "all", value_parser = parse_host_port)]
    ports: Vec<HostPort>,
    /// All of the machine's
    #[arg(long, conflicts_with = "ports")]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Unpublish {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let Self {
            vm,
            ports,
            all,
            output,
        } = self;
        let ports = (!all).then_some(ports);
        let gone = client.vm_unpublish(VmUnpublish { vm, ports }).await?;
        ports::print(&output, &gone)
    }
}
