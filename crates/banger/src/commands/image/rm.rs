//! `banger image rm`: removes images that no machine uses.

use banger_api::types::ImageRef;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::stdio;

/// Remove images that no machine uses
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image rm tiny
")]
pub(crate) struct Rm {
    /// Images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        for image in self.images {
            let removed = client.image_remove(ImageRef { image }).await?;
            stdio::print(&format!("{}\n", removed.name))?;
        }
        Ok(0)
    }
}
