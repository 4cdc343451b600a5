//! `banger image register`: a root file system of the user's becomes an image.

use std::path::PathBuf;

use banger_api::types::ImageRegister;
use clap::Args;

use crate::args::absolute;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Make an image of a file of yours
///
/// An ext4 file system image stays where it is and yours: nothing is copied, Banger never writes to it, and removing the
/// image leaves it alone. It must stay as it is while machines use it; `image promote` makes a copy of Banger's own. A tar
/// archive, plain or compressed with gzip, xz or zstd, is unpacked and not needed any more; so is the root partition of a disk,
/// raw or qcow2 (which takes qemu-img). Which that is the disk says by its partition's type, or there is but one that can be.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image register alpine ./alpine-minirootfs.tar.gz
  banger image register mine rootfs.ext4 --kernel debian --replace
  banger image promote mine
  banger image register cloud debian-12-nocloud-amd64.qcow2
  banger image register router openwrt.img --partition 2
")]
pub(crate) struct Register {
    /// Name of the image
    #[arg(value_name = "NAME")]
    name: String,
    /// The file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Of a disk: the partition that is the root file system, by number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partition: Option<u32>,
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
            partition: self.partition,
            kernel: self.kernel,
            replace: self.replace,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.image_register(params))
            .await
    }
}
