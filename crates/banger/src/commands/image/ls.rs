//! `banger image ls`: all images.

use banger_api::types::{Empty, Image};
use clap::Args;
use jiff::Timestamp;

use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// List images
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image ls
  banger image ls -o yaml
")]
pub(crate) struct Ls {
    #[command(flatten)]
    output: OutputArgs,
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let images = context.client().await?.image_list(Empty {}).await?;
        let now = Timestamp::now();
        self.output.print(
            &images,
            |images| images.iter().map(|image| image.name.as_str()).collect(),
            |images| render(images, now),
        )
    }
}

fn render(images: &[Image], now: Timestamp) -> String {
    let row = |image: &Image| {
        [
            image.name.clone(),
            image.id.clone(),
            image.kernel.clone(),
            format_size(image.size),
            format_size(image.used),
            image.source.clone(),
            image.used_by.len().to_string(),
            human::format_age(image.created, now),
        ]
    };
    table::render(
        ["NAME", "ID", "KERNEL", "SIZE", "ON HOST", "SOURCE", "VMS", "AGE"],
        images.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let image = Image {
            id: "a1b2c3d4e5".into(),
            name: "debian".into(),
            kernel: "debian".into(),
            sha256: "00".repeat(32),
            size: 1 << 30,
            used: 370 << 20,
            source: "bootstrap:debian".into(),
            used_by: vec!["dev".into(), "ci".into()],
            created: "2026-02-01T00:00:00Z".parse().unwrap(),
        };
        let now: Timestamp = "2026-02-01T00:01:00Z".parse().unwrap();
        insta::assert_snapshot!(render(&[image], now), @r"
        NAME     ID           KERNEL   SIZE   ON HOST   SOURCE             VMS   AGE
        debian   a1b2c3d4e5   debian   1GiB   370MiB    bootstrap:debian   2     1m
        ");
    }
}
