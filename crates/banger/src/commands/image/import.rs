//! `banger image import`: images from a file or directory of other tools.

use std::path::PathBuf;

use banger_api::types::ImageImport;
use clap::Args;

use crate::args::absolute;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Make an image of an OCI layout or a docker archive
///
/// Takes what `docker save`, `podman save`, `skopeo copy` and `umoci` write: an OCI layout, as a directory or in a tar archive,
/// or a docker archive, plain or compressed. For a bare root file system there is `banger image register`. The daemon
/// reads it with your rights.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  docker save app:v1 -o app.tar && banger image import app.tar
  banger image import ./layout --select v2 --name app
")]
pub(crate) struct Import {
    /// The archive, or the directory of a layout
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Name of the image [default: the one in the archive]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Which image, where there are several: its tag or name in the archive
    #[arg(long, value_name = "TAG")]
    select: Option<String>,
    /// Kernel to boot with, by name [default: the configuration's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Take the name from another image that has it; its machines keep it
    #[arg(long)]
    replace: bool,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Import {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = absolute(&self.path)?;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let params = ImageImport {
            path,
            name: self.name,
            select: self.select,
            kernel: self.kernel,
            replace: self.replace,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.image_import(params))
            .await
    }
}
