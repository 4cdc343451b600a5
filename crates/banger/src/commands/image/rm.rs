//! `banger image rm`: takes names away from images, which go with their last one.

use banger_api::types::ImageRef;
use clap::Args;

use crate::context::Context;
use crate::each;
use crate::error::CliError;

/// Remove images that no machine uses
///
/// A name is taken away; the image goes with its last one, or at once where it is given by id or digest. One that cannot
/// be removed keeps no other from it; the exit code is the first failure's.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image rm tiny
  banger image ls -q | xargs -r banger image rm
")]
pub(crate) struct Rm {
    /// Images, by name, id, or the beginning of a digest
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        each::in_turn(self.images, async |image| {
            Ok(client.image_remove(ImageRef { image }).await?.name)
        })
        .await
    }
}
