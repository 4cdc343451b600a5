//! `banger image pull`: an image from a registry.

use banger_api::types::ImagePull;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Get an image from a registry
///
/// What is there already is not fetched again, and what a pull that was broken off has fetched is kept for the next. Where
/// the registry has another image under that name by now, the name is given to that; machines keep what they have.
///
/// The registry's settings are in the daemon's configuration, credentials where `docker login` puts them for the daemon's
/// user.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image pull debian:12
  banger image pull ghcr.io/owner/tools@sha256:1a2b… --name tools
  banger image pull localhost:5000/app --kernel mine
")]
pub(crate) struct Pull {
    /// The image, as docker names it: [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    reference: String,
    /// Name of the image [default: the reference]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Kernel to boot with, by name [default: the configuration's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Pull {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let params = ImagePull {
            reference: self.reference,
            name: self.name,
            kernel: self.kernel,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.image_pull(params))
            .await
    }
}
