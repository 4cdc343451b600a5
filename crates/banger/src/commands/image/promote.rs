//! `banger image promote`: a registered file becomes an image of Banger's own.

use banger_api::types::ImageRef;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Copy a registered file, so that it is not needed any more
///
/// The copy must have the digest that the file had when it was registered. Machines of the image go on. The file itself
/// stays as it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image register mine rootfs.ext4
  banger image promote mine
")]
pub(crate) struct Promote {
    /// Image, by name, id, or the beginning of its digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Promote {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let params = ImageRef { image: self.image };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.image_promote(params))
            .await
    }
}
