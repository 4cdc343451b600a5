//! `banger image bootstrap`: an image from packages.

use banger_api::types::{BootstrapSource, ImageBootstrap};
use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::{Args, ValueEnum};

use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;

/// Make an image from packages
///
/// Debian is bookworm (12) where no suite is named, trixie (13) or sid; Ubuntu is noble (24.04), jammy or resolute, and needs its key
/// on the host (package ubuntu-keyring). Both come with systemd, sshd, git and curl. An image that is there already is left
/// as it is, unless --replace is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image bootstrap debian
  banger image bootstrap debian:trixie --package jq --package build-essential
  banger image bootstrap debian --mirror http://127.0.0.1:3142/debian
  banger image bootstrap busybox --name tiny
  banger image bootstrap debian --replace
")]
pub(crate) struct Bootstrap {
    /// What to make, with the suite where it has several: debian:trixie
    #[arg(value_parser = SuiteParser, value_name = "SOURCE[:SUITE]")]
    source: Suite,
    /// Fetch packages from here; the image has the usual sources all the same
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Install this package as well; may be given several times
    #[arg(long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Name of the image [default: the source's, with its suite]
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
    /// Debian, 12 (bookworm) unless a suite is named
    Debian,
    /// Ubuntu, 24.04 (noble) unless a suite is named
    Ubuntu,
    /// A static busybox and nothing else
    Busybox,
}

/// A source, and one of its suites.
#[derive(Debug, Clone)]
struct Suite {
    source: Source,
    name: Option<String>,
}

/// Reads a source by its name, so that a mistake in it is told as any value's, and leaves its suite to the daemon.
#[derive(Debug, Clone, Copy)]
struct SuiteParser;

impl TypedValueParser for SuiteParser {
    type Value = Suite;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Suite, clap::Error> {
        let text = value.to_string_lossy();
        let (source, name) = match text.split_once(':') {
            Some((source, name)) => (source.to_owned(), Some(name.to_owned())),
            None => (text.into_owned(), None),
        };
        let sources = EnumValueParser::<Source>::new();
        let source = sources.parse_ref(command, argument, source.as_ref())?;
        Ok(Suite { source, name })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            Source::value_variants()
                .iter()
                .filter_map(ValueEnum::to_possible_value),
        ))
    }
}

impl Bootstrap {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let source = match self.source.source {
            Source::Debian => BootstrapSource::Debian,
            Source::Ubuntu => BootstrapSource::Ubuntu,
            Source::Busybox => BootstrapSource::Busybox,
        };
        let params = ImageBootstrap {
            source,
            suite: self.source.name,
            mirror: self.mirror,
            packages: self.packages,
            name: self.name,
            kernel: self.kernel,
            replace: self.replace,
        };
        Follow::cancelling(self.quiet, self.detach)
            .print(&client, &mut interrupts, client.image_bootstrap(params))
            .await
    }
}
