//! `banger image bootstrap`: an image from packages.

use banger_api::types::{BootstrapSource, ImageBootstrap};
use clap::{Args, ValueEnum};

use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Make an image from packages
///
/// An image that is there already is left as it is, unless --replace is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image bootstrap debian
  banger image bootstrap busybox --name tiny
  banger image bootstrap debian --replace
")]
pub(crate) struct Bootstrap {
    /// What to make
    #[arg(value_enum, value_name = "SOURCE")]
    source: Source,
    /// Name of the image [default: the source's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Kernel to boot with, by name [default: the configuration's, added where it is missing]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Make it anew where it exists; machines keep the former
    #[arg(long)]
    replace: bool,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What there is to make.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Source {
    /// Debian 12 with systemd, sshd, git and curl
    Debian,
    /// A static busybox and nothing else
    Busybox,
}

impl Bootstrap {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let source = match self.source {
            Source::Debian => BootstrapSource::Debian,
            Source::Busybox => BootstrapSource::Busybox,
        };
        let params = ImageBootstrap {
            source,
            name: self.name,
            kernel: self.kernel,
            replace: self.replace,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.image_bootstrap(params))
            .await
    }
}
