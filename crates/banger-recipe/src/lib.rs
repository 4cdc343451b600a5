//! Build recipes: the text that says how an image is made, and the directory it copies files from.
//!
//! Two front ends, [`Kind::Dockerfile`] and [`Kind::Toml`], give the same [`Recipe`]: stages of steps. Everything that is
//! wrong with the text, or that Banger does not do, is found here and reported together, with line and column, before
//! anything is started. The one who builds goes through the steps with an [`Environment`], which settles each step's words
//! ([`Step::resolve`]), and takes the files for [`Action::Copy`] out of a [`Context`].
//!
//! Not here: what executes steps, images, caches, machines. This crate reads the text that it is given and the directory
//! that it is pointed to, and nothing else.

mod context;
mod dockerfile;
mod environment;
mod error;
mod plain;
mod recipe;
mod word;

use std::collections::BTreeMap;

pub use context::{Attributes, Compression, Context, ContextError, Entry, EntryKind, Selection};
pub use environment::{
    Action, Change, Config, DEFAULT_PATH, DEFAULT_SHELL, Environment, Program, ResolveError, ResolvedCopy,
    ResolvedRun, ResolvedSecret, ResolvedStep,
};
pub use error::{Errors, Place, Problem};
pub use recipe::{Arg, Base, Command, Copy, From, Inline, Recipe, Run, SecretMount, Stage, Step, StepKind};
pub use word::{Word, WordError};

/// Bytes that a recipe may have.
pub const MAX_TEXT: usize = 1 << 20;

/// A recipe's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// The file's name, for messages.
    pub name: &'a str,
    /// Its content.
    pub text: &'a str,
    /// What it is written in.
    pub kind: Kind,
    /// An image that takes the place of the one that the first `FROM` (`from` of the TOML form) names.
    pub base: Option<&'a str>,
}

/// What a recipe is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Dockerfile.
    Dockerfile,
    /// Banger's own form.
    Toml,
}

impl Kind {
    /// What a file of this name is written in: TOML if it says so, else a Dockerfile.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let extension = name.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
        match extension {
            Some((_, extension)) if extension.eq_ignore_ascii_case("toml") => Self::Toml,
            Some(_) | None => Self::Dockerfile,
        }
    }
}

/// Reads a recipe. `args` are the build arguments by name; `target` is a stage's name or number, the last stage if there is
/// none.
///
/// # Errors
/// All problems at once. A build argument that the recipe does not declare is one, unless it is a proxy's.
pub fn parse(
    source: &Source<'_>,
    args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Result<Recipe, Errors> {
    let mut problems = error::Problems::default();
    if source.text.len() > MAX_TEXT {
        problems.request(
            format!("the recipe has {} bytes", source.text.len()),
            format!("{MAX_TEXT} are allowed"),
        );
        return problems.finish(source.name, None);
    }
    let recipe = match source.kind {
        Kind::Dockerfile => dockerfile::parse(source, args, target, &mut problems),
        Kind::Toml => plain::parse(source, args, target, &mut problems),
    };
    problems.finish(source.name, recipe)
}
