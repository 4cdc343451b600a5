//! `banger image verify`: whether images are still what they were made as.

use banger_api::types::ImageVerify;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Read images again and compare them with their digests
///
/// All of them, unless some are named. What is damaged is named, and the exit code is 1.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image verify
  banger image verify debian:12
")]
pub(crate) struct Verify {
    /// Images, by name, id, or the beginning of a digest [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Verify {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let images = self.images;
        Follow::cancelling(self.quiet, self.detach)
            .print(
                &client,
                &mut interrupts,
                client.image_verify(ImageVerify { images }),
            )
            .await
    }
}
