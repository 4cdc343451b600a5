//! `banger image ls`: all images.

use banger_api::types::{Empty, Image, RegisteredFile};
use clap::Args;
use jiff::Timestamp;

use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// Users of an image that are named in the table; of more, how many.
const USERS: usize = 3;
/// Digits of a digest that are shown. They name the image as long as no other begins so.
const DIGITS: usize = 12;

/// List images
///
/// SIZE is what an image takes on this host, SHARED what of that others have as well: blocks, and layers that they were pulled
/// with. One that is a file of yours takes nothing ("yours"), and cannot be used ("yours (!)") while that is missing or
/// changed. An image whose name was given to another has none ("-") and stays as long as a machine uses it.
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
        print(&self.output, &images)
    }
}

/// Prints images: a line a name.
pub(super) fn print(output: &OutputArgs, images: &Vec<Image>) -> Result<u8, CliError> {
    let now = Timestamp::now();
    output.print(
        images,
        |images| images.iter().flat_map(names).collect(),
        |images| render(images, now),
    )
}

/// What an image is called: each name, or its id.
fn names(image: &Image) -> Vec<&str> {
    match image.names.as_slice() {
        [] => vec![&image.id],
        names => names.iter().map(String::as_str).collect(),
    }
}

fn render(images: &[Image], now: Timestamp) -> String {
    let row = |name: &str, image: &Image| {
        [
            name.to_owned(),
            image.id.clone(),
            short_digest(image),
            match &image.registered {
                Some(RegisteredFile { problem: None, .. }) => "yours".to_owned(),
                Some(RegisteredFile { problem: Some(_), .. }) => "yours (!)".to_owned(),
                None => format_size(image.used.saturating_add(image.blobs)),
            },
            match image.shared.saturating_add(image.shared_blocks.unwrap_or(0)) {
                0 => "-".to_owned(),
                shared => format_size(shared),
            },
            users(&image.used_by),
            format!("{} ago", human::format_age(image.created, now)),
        ]
    };
    let rows = images.iter().flat_map(|image| {
        let names = match image.names.as_slice() {
            [] => vec!["-"],
            names => names.iter().map(String::as_str).collect(),
        };
        names.into_iter().map(move |name| row(name, image))
    });
    table::render(
        ["NAME", "ID", "DIGEST", "SIZE", "SHARED", "USED BY", "CREATED"],
        rows,
    )
}

/// The beginning of an image's digest: of its manifest, or else of its root file system.
fn short_digest(image: &Image) -> String {
    let digest = image.digest.as_ref().unwrap_or(&image.sha256);
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    let digits: String = digits.chars().take(DIGITS).collect();
    format!("sha256:{digits}")
}

fn users(names: &[String]) -> String {
    match names {
        [] => "-".to_owned(),
        names if names.len() <= USERS => names.join(", "),
        names => format!("{} machines", names.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let debian = Image {
            id: "a1b2c3d4e5".into(),
            name: "debian".into(),
            names: vec!["debian".into(), "debian:12".into()],
            kernel: "debian".into(),
            digest: Some(format!("sha256:{}", "1a2b".repeat(16))),
            sha256: "00".repeat(32),
            size: 1 << 30,
            used: 370 << 20,
            blobs: 50 << 20,
            shared: 48 << 20,
            source: "registry:docker.io/library/debian:12".into(),
            used_by: vec!["dev".into(), "ci".into()],
            created: "2026-02-01T00:00:00Z".parse().unwrap(),
            ..Image::default()
        };
        let former = Image {
            id: "f1b2c3d4e5".into(),
            name: "f1b2c3d4e5".into(),
            sha256: "00".repeat(32),
            used: 5 << 20,
            used_by: ["a", "b", "c", "d"].map(String::from).into(),
            created: "2026-01-01T00:00:00Z".parse().unwrap(),
            ..Image::default()
        };
        let file = |problem: Option<&str>| Image {
            id: "c1b2c3d4e5".into(),
            names: vec!["mine".into()],
            sha256: "00".repeat(32),
            registered: Some(RegisteredFile {
                path: "/home/me/root.ext4".into(),
                problem: problem.map(String::from),
            }),
            created: "2026-01-31T00:01:00Z".parse().unwrap(),
            ..Image::default()
        };
        assert_eq!(names(&debian), ["debian", "debian:12"]);
        assert_eq!(names(&former), ["f1b2c3d4e5"]);
        let now: Timestamp = "2026-02-01T00:01:00Z".parse().unwrap();
        insta::assert_snapshot!(render(&[debian, file(None), file(Some("is missing")), former], now), @r"
        NAME        ID           DIGEST                SIZE        SHARED   USED BY      CREATED
        debian      a1b2c3d4e5   sha256:1a2b1a2b1a2b   420MiB      48MiB    dev, ci      1m ago
        debian:12   a1b2c3d4e5   sha256:1a2b1a2b1a2b   420MiB      48MiB    dev, ci      1m ago
        mine        c1b2c3d4e5   sha256:000000000000   yours       -        -            1d ago
        mine        c1b2c3d4e5   sha256:000000000000   yours (!)   -        -            1d ago
        -           f1b2c3d4e5   sha256:000000000000   5MiB        -        4 machines   4w ago
        ");
    }
}
