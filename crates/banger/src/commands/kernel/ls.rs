//! `banger kernel ls`: all kernels.

use banger_api::types::{Empty, Kernel};
use clap::Args;
use jiff::Timestamp;

use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// List kernels
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger kernel ls
")]
pub(crate) struct Ls {
    #[command(flatten)]
    output: OutputArgs,
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let kernels = context.client().await?.kernel_list(Empty {}).await?;
        let now = Timestamp::now();
        self.output.print(
            &kernels,
            |kernels| kernels.iter().map(|kernel| kernel.name.as_str()).collect(),
            |kernels| render(kernels, now),
        )
    }
}

fn render(kernels: &[Kernel], now: Timestamp) -> String {
    let row = |kernel: &Kernel| {
        [
            kernel.name.clone(),
            kernel.version.clone(),
            format_size(kernel.size),
            kernel.modules.to_string(),
            if kernel.default { "yes" } else { "no" }.to_owned(),
            kernel.source.clone(),
            human::format_age(kernel.created, now),
        ]
    };
    table::render(
        ["NAME", "VERSION", "SIZE", "MODULES", "DEFAULT", "SOURCE", "AGE"],
        kernels.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let kernel = Kernel {
            name: "debian".into(),
            version: "6.1.0-42-cloud-amd64".into(),
            sha256: "00".repeat(32),
            size: 60 << 20,
            modules: 14,
            source: "deb:linux-image-cloud-amd64".into(),
            default: true,
            created: "2026-02-01T00:00:00Z".parse().unwrap(),
        };
        let now: Timestamp = "2026-02-01T00:01:00Z".parse().unwrap();
        insta::assert_snapshot!(render(&[kernel], now), @r"
        NAME     VERSION                SIZE    MODULES   DEFAULT   SOURCE                        AGE
        debian   6.1.0-42-cloud-amd64   60MiB   14        yes       deb:linux-image-cloud-amd64   1m
        ");
    }
}
