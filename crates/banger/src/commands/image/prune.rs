//! `banger image prune`: removes what images nobody can start from take.

use banger_api::types::{BuildCache, Empty, GcReport, GcRun};
use clap::Args;

use crate::args::format_size;
use crate::commands::gc;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::stdio::say;

/// Remove images that have no name and no machine, and layers that no image needs
///
/// An image loses its name to a newer one, by pull or --replace, and stays as long as a machine uses it. Layers that no
/// image needs are those of pulls that were broken off. With --builds the cache of the steps of builds is emptied instead.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image prune --dry-run
  banger image prune
  banger image prune --builds
")]
pub(crate) struct Prune {
    /// Only say what would be removed, and why
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Empty the cache of steps that builds have done: they are all done anew
    #[arg(long, conflicts_with = "dry_run")]
    builds: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Prune {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let dry_run = self.dry_run;
        let client = context.client().await?;
        if self.builds {
            let BuildCache { steps, bytes } = client.image_build_prune(Empty {}).await?;
            say!("removed {steps} steps of builds, {}", format_size(bytes));
            return Ok(0);
        }
        let GcReport { garbage } = client.image_prune(GcRun { dry_run }).await?;
        gc::print(&self.output, &garbage, dry_run)
    }
}
