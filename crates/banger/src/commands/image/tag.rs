//! `banger image tag`: another name for an image.

use banger_api::types::ImageTag;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::stdio;

/// Give an image another name
///
/// Its other names stay. `banger image rm NAME` takes a name away again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image tag debian:12 base
  banger image tag sha256:1a2b3c base --replace
")]
pub(crate) struct Tag {
    /// Image, by name, id, or the beginning of its digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The name
    #[arg(value_name = "NAME")]
    name: String,
    /// Take the name from another image that has it; that one goes with its last name, unless a machine uses it
    #[arg(long)]
    replace: bool,
}

impl Tag {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Self { image, name, replace } = self;
        let tag = ImageTag { image, name, replace };
        let image = context.client().await?.image_tag(tag).await?;
        stdio::finish(&format!("{}\n", image.names.join(" ")))
    }
}
