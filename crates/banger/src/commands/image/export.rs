//! `banger image export`: an image as a file for other tools.

use std::path::PathBuf;

use banger_api::types::ImageExport;
use clap::Args;

use crate::args::absolute;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Write an image to an OCI archive
///
/// What was pulled or imported can be exported, with all its layers; `docker load` and `skopeo` read it. The file is written
/// by the daemon, with your rights, and is there whole or not at all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image export debian:12 debian.tar
  skopeo inspect oci-archive:debian.tar
")]
pub(crate) struct Export {
    /// Image, by name, id, or the beginning of its digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The file, which must not be there
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Export {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = absolute(&self.file)?;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let image = self.image;
        Follow::cancelling(self.quiet, self.detach)
            .print(
                &client,
                &mut interrupts,
                client.image_export(ImageExport { image, path }),
            )
            .await
    }
}
