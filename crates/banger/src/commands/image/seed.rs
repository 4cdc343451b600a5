//! `banger image seed`: what new work disks are made of.

use banger_api::types::{ImageSeed, ImageSeeds};
use clap::{Args, Subcommand};

use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// What new work disks are made of
///
/// Every image has a work seed: your template (`[seed]` in the daemon's configuration), a shell's set-up, and the key of
/// `banger ssh`. A work disk is a copy of it, to which the image's own home is added when the machine boots first; what the
/// image has wins. It is made anew by itself when template or key have changed. Work disks that exist never change.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  banger image seed show
  banger image seed refresh --all
")]
pub(crate) enum Seed {
    Show(Show),
    Refresh(Refresh),
}

/// Show whether images have a work seed, what it is made of, and whether it is current
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image seed show
  banger image seed show debian
  banger image seed show -o json | jq '.[] | select(.stale)'
")]
pub(crate) struct Show {
    /// Images, by name, id, or the beginning of a digest [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Make work seeds anew now
///
/// Nobody has to: one that is stale is made anew before it is used. Here it is done ahead, or with one that is damaged.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image seed refresh debian
  banger image seed refresh --all
")]
pub(crate) struct Refresh {
    /// Images, by name, id, or the beginning of a digest
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
    /// All images
    #[arg(long, conflicts_with = "images")]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Seed {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let (seeds, output) = match self {
            Self::Show(Show { images, output }) => {
                (client.image_seed_show(ImageSeeds { images }).await?, output)
            }
            // Without `--all` there are names, as the arguments demand.
            Self::Refresh(Refresh {
                images,
                all: _,
                output,
            }) => (client.image_seed_refresh(ImageSeeds { images }).await?, output),
        };
        output.print(
            &seeds,
            |seeds| seeds.iter().map(|seed| seed.image.as_str()).collect(),
            |seeds| render(seeds),
        )
    }
}

fn render(seeds: &[ImageSeed]) -> String {
    match seeds {
        [seed] => one(seed),
        seeds => table::render(
            ["IMAGE", "SEED", "SIZE", "MADE", "STATE"],
            seeds.iter().map(|seed| {
                let made = seed.made.as_ref();
                [
                    seed.image.clone(),
                    made.map_or_else(|| "-".to_owned(), |made| made.fingerprint.fingerprint.clone()),
                    made.map_or_else(|| "-".to_owned(), |made| format_size(made.used)),
                    made.map_or_else(|| "-".to_owned(), |made| human::format_time(made.created)),
                    state(seed),
                ]
            }),
        ),
    }
}

fn state(seed: &ImageSeed) -> String {
    match (&seed.problem, &seed.made, seed.stale.as_slice()) {
        (Some(problem), _, _) => problem.clone(),
        (None, None, _) => "made when it is needed first".to_owned(),
        (None, Some(_), []) => "current".to_owned(),
        (None, Some(_), stale) => format!("stale: {}", stale.join(", ")),
    }
}

fn one(seed: &ImageSeed) -> String {
    let mut rows = vec![("image", seed.image.clone()), ("state", state(seed))];
    if let Some(made) = &seed.made {
        rows.extend([
            ("seed", made.fingerprint.fingerprint.clone()),
            ("file", made.path.clone()),
            ("size", format_size(made.used)),
            ("made", human::format_time(made.created)),
        ]);
    }
    if let Some(wanted) = &seed.wanted {
        let template = match (&seed.template, &wanted.template) {
            (Some(path), Some(digest)) => format!("{path} ({digest})"),
            (Some(path), None) => path.clone(),
            (None, _) => "none: what the image's /etc/skel has".to_owned(),
        };
        let key = wanted.key.as_ref();
        rows.extend([
            ("template", template),
            (
                "ssh key",
                key.map_or_else(|| "none".to_owned(), |digest| format!("the daemon's ({digest})")),
            ),
            ("set-up", format!("this release's ({})", wanted.setup)),
        ]);
    }
    table::fields(rows)
}
