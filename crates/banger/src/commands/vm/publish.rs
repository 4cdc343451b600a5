//! `banger vm publish`: ports of a guest, reached at the host.

use banger_api::types::{PublishPort, VmPublish};
use clap::Args;

use super::ports;
use crate::args::parse_publish;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;

/// Make ports of a machine reachable at the host
///
/// From now on, and whenever the machine runs: the host listens at HOST and what comes there goes to GUEST on the guest's
/// loopback. This needs no network and no privileges. At 127.0.0.1, unless an address of the host is given. Prints where
/// they are: with -q, the ports of the host alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm publish dev 8080:80
  banger vm publish dev 0.0.0.0:8080:80 [::1]:8080:80
  banger vm publish dev 5353:53/udp
  banger vm publish dev 80                 at any free port of the host, which it keeps
")]
pub(crate) struct Publish {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Ports; /udp for datagrams
    #[arg(value_name = "[[ADDRESS:]HOST:]GUEST[/udp]", required = true, value_parser = parse_publish)]
    ports: Vec<PublishPort>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Publish {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let Self { vm, ports, output } = self;
        let published = client.vm_publish(VmPublish { vm, ports }).await?;
        ports::print(&output, &published)
    }
}
