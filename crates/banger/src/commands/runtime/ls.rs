//! `banger runtime ls`: what is installed.

use banger_api::types::{Empty, Runtime};
use clap::Args;
use jiff::Timestamp;

use super::word;
use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// List installed runtimes
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger runtime ls
  banger runtime ls -o json
")]
pub(crate) struct Ls {
    #[command(flatten)]
    output: OutputArgs,
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let runtimes = context.client().await?.runtime_list(Empty {}).await?;
        let now = Timestamp::now();
        self.output.print(
            &runtimes,
            |runtimes| runtimes.iter().map(|runtime| runtime.version.as_str()).collect(),
            |runtimes| render(runtimes, now),
        )
    }
}

fn render(runtimes: &[Runtime], now: Timestamp) -> String {
    let row = |runtime: &Runtime| {
        [
            word(runtime.runtime).to_owned(),
            runtime.version.clone(),
            format_size(runtime.size),
            if runtime.current { "yes" } else { "no" }.to_owned(),
            runtime.used_by.len().to_string(),
            runtime.sha256.chars().take(12).collect(),
            runtime.source.clone(),
            human::format_age(runtime.installed, now),
        ]
    };
    table::render(
        [
            "RUNTIME", "VERSION", "SIZE", "CURRENT", "USED BY", "SHA-256", "SOURCE", "AGE",
        ],
        runtimes.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use banger_api::types::RuntimeKind;

    use super::*;

    #[test]
    fn table() {
        let runtime = Runtime {
            runtime: RuntimeKind::Firecracker,
            version: "1.12.1".into(),
            path: "/x".into(),
            size: 3 << 20,
            sha256: "ab".repeat(32),
            source: "/root/firecracker.tgz".into(),
            source_sha256: "cd".repeat(32),
            current: true,
            used_by: vec!["dev".into()],
            installed: "2026-02-01T00:00:00Z".parse().unwrap(),
        };
        let now: Timestamp = "2026-02-01T00:01:00Z".parse().unwrap();
        insta::assert_snapshot!(render(&[runtime], now), @r"
        RUNTIME       VERSION   SIZE   CURRENT   USED BY   SHA-256        SOURCE                  AGE
        firecracker   1.12.1    3MiB   yes       1         abababababab   /root/firecracker.tgz   1m
        ");
    }
}
