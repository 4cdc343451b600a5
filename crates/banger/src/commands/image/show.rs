//! `banger image show`: one image.

use banger_api::types::{Image, ImageRef};
use clap::Args;

use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// Show an image
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image show debian
")]
pub(crate) struct Show {
    /// Image, by name or id
    #[arg(value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    output: OutputArgs,
}

impl Show {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let image = context
            .client()
            .await?
            .image_show(ImageRef { image: self.image })
            .await?;
        self.output.print(&image, |image| vec![&image.name], render)
    }
}

fn render(image: &Image) -> String {
    table::fields([
        ("name", image.name.clone()),
        ("id", image.id.clone()),
        ("kernel", image.kernel.clone()),
        (
            "size",
            format!(
                "{}, {} on the host",
                format_size(image.size),
                format_size(image.used)
            ),
        ),
        ("sha256", image.sha256.clone()),
        ("source", image.source.clone()),
        (
            "used by",
            if image.used_by.is_empty() {
                "no machine".to_owned()
            } else {
                image.used_by.join(", ")
            },
        ),
        ("created", human::format_time(image.created)),
    ])
}
