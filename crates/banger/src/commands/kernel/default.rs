//! `banger kernel default`: the kernel of images that name none.

use banger_api::types::{DefaultKernel, Empty, KernelSetDefault};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Format;

/// Show or choose the kernel of images that name none
///
/// Without a name it is shown. Images and machines that are there keep theirs. A chosen kernel cannot be removed; without
/// a choice the configured one counts, which comes by itself with the first image.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger kernel default
  banger kernel default mine
  banger kernel default --reset
")]
pub(crate) struct Default {
    /// The kernel that is to be the default
    #[arg(value_name = "KERNEL", conflicts_with = "reset")]
    kernel: Option<String>,
    /// Take the choice back: the configured one counts again
    #[arg(long)]
    reset: bool,
    /// Format of the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl Default {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let default = if self.kernel.is_some() || self.reset {
            client
                .kernel_set_default(KernelSetDefault { kernel: self.kernel })
                .await?
        } else {
            client.kernel_default(Empty {}).await?
        };
        self.output.print(&default, render)
    }
}

fn render(default: &DefaultKernel) -> String {
    let note = match (default.chosen, default.there) {
        (true, true) => "",
        (true, false) => " (chosen; it is not there)",
        (false, true) => " (configured)",
        (false, false) => " (configured; it comes with the first image)",
    };
    format!("{}{note}\n", default.kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_is_said() {
        let shown = |chosen, there| {
            render(&DefaultKernel {
                kernel: "debian".into(),
                chosen,
                there,
            })
        };
        assert_eq!(shown(true, true), "debian\n");
        assert_eq!(shown(false, true), "debian (configured)\n");
        assert!(shown(false, false).contains("first image"));
    }
}
