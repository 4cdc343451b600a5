//! `banger image register`: a root file system of the user's becomes an image.

use std::path::PathBuf;

use banger_api::types::ImageRegister;
use clap::Args;

use crate::args::absolute;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Make an image of an ext4 file system or a tar archive
///
/// The file is copied: an ext4 file system image, or a tar archive, plain or compressed with gzip, xz or zstd. The
/// daemon reads it with your rights.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image register alpine ./alpine-minirootfs.tar.gz
  banger image register mine rootfs.ext4 --kernel debian --replace
")]
pub(crate) struct Register {
    /// Name of the image
    #[arg(value_name = "NAME")]
    name: String,
    /// The file
    #[arg(value_name = "PATH")]
    path: PathBuf,
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

impl Register {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = absolute(&self.path)?;
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let params = ImageRegister {
            name: self.name,
            path,
            kernel: self.kernel,
            replace: self.replace,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.image_register(params))
            .await
    }
}
