//! `banger image find`: images by name, label, digest.

use banger_api::types::ImageFind;
use clap::Args;

use super::ls;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;

/// Find images by name, label or digest
///
/// An image is listed when it meets all that is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image find 'debian*'
  banger image find --label org.opencontainers.image.vendor
  banger image find --digest sha256:1a2b3c
")]
pub(crate) struct Find {
    /// A name, with `*` for anything and `?` for any one character
    #[arg(value_name = "NAME-GLOB")]
    name: Option<String>,
    /// Only images with this label; can be given several times, KEY alone matches any value
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = label)]
    label: Vec<(String, String)>,
    /// Only images with a digest that begins so: sha256: and six or more digits
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Labels of images are as free as those who built them wanted.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key {
        "" => Err("the key is empty".to_owned()),
        key => Ok((key.to_owned(), value.to_owned())),
    }
}

impl Find {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let search = ImageFind {
            name: self.name,
            labels: self.label.into_iter().collect(),
            digest: self.digest,
        };
        let images = context.client().await?.image_find(search).await?;
        ls::print(&self.output, &images)
    }
}
