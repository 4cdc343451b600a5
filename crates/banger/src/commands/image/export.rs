//! `banger image export`: an image as a file for other tools.

use std::path::PathBuf;

use banger_api::types::{ExportFormat, ImageExport};
use clap::{Args, ValueEnum};

use crate::args::absolute;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Write an image to an archive
///
/// An OCI archive, which `docker load` and `skopeo` read, with the layers that the image was pulled or imported with; any
/// other becomes one layer. As tar it is the root file system alone, with owners, attributes, devices and holes. The
/// file is written by the daemon, with your rights, and is there whole or not at all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image export debian:12 debian.tar
  banger image export debian --format tar rootfs.tar
  skopeo inspect oci-archive:debian.tar
")]
pub(crate) struct Export {
    /// Image, by name, id, or the beginning of its digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The file, which must not be there
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What to write
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Oci)]
    format: Format,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What there is to write.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// An OCI archive of one image
    Oci,
    /// The root file system
    Tar,
}

impl Export {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = absolute(&self.file)?;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let image = self.image;
        let format = match self.format {
            Format::Oci => ExportFormat::Oci,
            Format::Tar => ExportFormat::Tar,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(
                &client,
                &mut interrupts,
                client.image_export(ImageExport { image, path, format }),
            )
            .await
    }
}
