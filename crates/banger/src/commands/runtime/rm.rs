//! `banger runtime rm`: removes a version that no machine runs on.

use banger_api::types::RuntimeRef;
use clap::Args;

use super::{KindArg, word};
use crate::context::Context;
use crate::error::CliError;
use crate::stdio::say;

/// Remove an installed runtime that no machine runs on
///
/// New runs get the one that was installed before it, or the host's.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger runtime rm firecracker
  banger runtime rm firecracker --version 1.12.1
")]
pub(crate) struct Rm {
    /// What to remove
    #[arg(value_name = "RUNTIME")]
    runtime: KindArg,
    /// Which version, where there are several
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let params = RuntimeRef {
            runtime: self.runtime.into(),
            version: self.version,
        };
        let removed = context.client().await?.runtime_remove(params).await?;
        say!("{} {}", word(removed.runtime), removed.version);
        Ok(0)
    }
}
