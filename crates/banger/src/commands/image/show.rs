//! `banger image show`: one image.

use std::collections::BTreeMap;

use banger_api::types::{Image, ImageConfig, ImageRef};
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
    /// Image, by name, id, or the beginning of its digest
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
    let list = |names: &[String], none: &str| match names {
        [] => none.to_owned(),
        names => names.join(", "),
    };
    let mut rows = vec![
        ("name", list(&image.names, "none: another image has it")),
        ("id", image.id.clone()),
        ("kernel", image.kernel.clone()),
        (
            "size",
            format!(
                "{}, {} on the host{}",
                format_size(image.size),
                format_size(image.used),
                match image.shared_blocks {
                    None | Some(0) => String::new(),
                    Some(shared) => format!(", {} of it shared with others", format_size(shared)),
                }
            ),
        ),
    ];
    if let Some(file) = &image.registered {
        let state = file
            .problem
            .as_deref()
            .unwrap_or("is yours; `banger image promote` copies it");
        rows.push(("file", format!("{} {state}", file.path)));
    }
    if image.blobs > 0 {
        let shared = match image.shared {
            0 => String::new(),
            shared => format!(", {} of it shared with other images", format_size(shared)),
        };
        rows.push(("layers", format!("{}{shared}", format_size(image.blobs))));
    }
    let digests = [("digest", &image.digest), ("index", &image.index_digest)];
    rows.extend(
        digests
            .into_iter()
            .filter_map(|(name, digest)| Some((name, digest.clone()?))),
    );
    rows.extend([
        ("sha256", image.sha256.clone()),
        ("source", image.source.clone()),
        ("used by", list(&image.used_by, "no machine")),
        ("created", human::format_time(image.created)),
    ]);
    rows.extend(image.config.iter().flat_map(config));
    table::fields(rows)
}

/// What the image says of its processes, as far as it says anything.
fn config(config: &ImageConfig) -> Vec<(&'static str, String)> {
    let words = |words: &[String]| (!words.is_empty()).then(|| format!("{words:?}"));
    let pairs = |pairs: &BTreeMap<String, String>| -> Vec<String> {
        pairs
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect()
    };
    let mut rows = Vec::new();
    let mut say = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    say("entrypoint", words(&config.entrypoint));
    say("command", words(&config.cmd));
    say("user", config.user.clone());
    say("workdir", config.workdir.clone());
    let exposed = (!config.exposed.is_empty()).then(|| config.exposed.join(", "));
    say("exposed", exposed);
    for (name, lines) in [("env", pairs(&config.env)), ("label", pairs(&config.labels))] {
        // Named once, the others below it.
        for (index, line) in lines.into_iter().enumerate() {
            say(if index == 0 { name } else { "" }, Some(line));
        }
    }
    rows
}
