//! What both front ends make of a recipe's text: stages of steps, in the order in which they are to be executed.
//!
//! Steps keep their words as written ([`Word`]): what a variable is worth is known when the step before it has been
//! executed, and the environment of a base image when that image is there. [`Step::resolve`] settles them.

use serde::Serialize;

use crate::word::Word;

/// A parsed recipe: what the target needs, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The stages, each after those that it needs; the last one is the target. At least one.
    pub stages: Vec<Stage>,
    /// Build arguments for proxies (`HTTP_PROXY` and the like) that were given and that no `ARG` declares: every command
    /// has them in its environment, nothing else has; no cache key should hold them.
    pub proxies: Vec<(String, String)>,
}

impl Recipe {
    /// The stage whose disk becomes the image.
    #[must_use]
    pub fn target(&self) -> Option<&Stage> {
        self.stages.last()
    }

    /// Every secret that some command mounts, each once, in order; and whether one of the commands requires it.
    #[must_use]
    pub fn secrets(&self) -> Vec<(&str, bool)> {
        let mut secrets: Vec<(&str, bool)> = Vec::new();
        for step in self.stages.iter().flat_map(|stage| &stage.steps) {
            let StepKind::Run(run) = &step.kind else { continue };
            for secret in &run.secrets {
                match secrets.iter_mut().find(|(id, _)| *id == secret.id) {
                    Some((_, required)) => *required |= secret.required,
                    None => secrets.push((&secret.id, secret.required)),
                }
            }
        }
        secrets
    }

    /// Whether some step copies out of the context directory.
    #[must_use]
    pub fn needs_context(&self) -> bool {
        let mut steps = self.stages.iter().flat_map(|stage| &stage.steps);
        steps.any(|step| match &step.kind {
            StepKind::Copy(copy) => copy.from == From::Context && !copy.sources.is_empty(),
            StepKind::Run(_)
            | StepKind::Env(_)
            | StepKind::Arg(_)
            | StepKind::User(_)
            | StepKind::Workdir(_)
            | StepKind::Entrypoint(_)
            | StepKind::Cmd(_)
            | StepKind::Expose(_)
            | StepKind::Label(_)
            | StepKind::Volume(_)
            | StepKind::Shell(_)
            | StepKind::StopSignal(_) => false,
        })
    }
}

/// A run of steps on one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its name, as written.
    pub name: Option<String>,
    /// The line that begins it.
    pub line: u32,
    /// What its disk is at first.
    pub base: Base,
    /// In order.
    pub steps: Vec<Step>,
}

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// An image, by the name that the recipe gives it (variables substituted).
    Image(String),
    /// An earlier stage, by its place in [`Recipe::stages`]: its disk, its configuration and its build arguments.
    Stage(usize),
    /// An empty file system.
    Scratch,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where it begins, counted from 1.
    pub line: u32,
    /// As written, on one line, for logs; a here-document's content is left out.
    pub text: String,
    /// What to do.
    pub kind: StepKind,
}

/// What a step does. Only [`StepKind::Run`] and [`StepKind::Copy`] touch the disk, and [`StepKind::Workdir`], which makes
/// the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// Runs a command.
    Run(Run),
    /// Copies files.
    Copy(Copy),
    /// Sets variables of the image, for the steps that follow as well.
    Env(Vec<(Word, Word)>),
    /// Declares build arguments, in order.
    Arg(Vec<Arg>),
    /// Whose process the following commands are, and the image's: `user`, `uid`, `user:group` …
    User(Word),
    /// Where the following commands run, and the image's; relative to the one before.
    Workdir(Word),
    /// The image's program.
    Entrypoint(Command),
    /// The image's arguments, or its program.
    Cmd(Command),
    /// Ports that the image's program listens on.
    Expose(Vec<Word>),
    /// Labels of the image.
    Label(Vec<(Word, Word)>),
    /// Directories whose content is the user's.
    Volume(Vec<Word>),
    /// What [`Command::Shell`] is given to from now on.
    Shell(Vec<String>),
    /// What ends the image's program.
    StopSignal(Word),
}

/// A command to run while building.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// Secrets that are there while it runs.
    pub secrets: Vec<SecretMount>,
}

/// A command as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// For the shell in force (`/bin/sh -c`, see [`StepKind::Shell`]), which also does the substitution.
    Shell(String),
    /// A program and its arguments, taken literally.
    Exec(Vec<String>),
    /// A here-document with an interpreter line (`#!`): a file to execute. Of [`StepKind::Run`] only.
    Script(String),
}

/// A secret that one command finds as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMount {
    /// Its name on the command line (`--secret id=…`).
    pub id: String,
    /// The file; `/run/secrets/ID` where the recipe does not say.
    pub target: Word,
    /// Without the secret the step fails; otherwise the file is not there.
    pub required: bool,
    /// The file's permissions, 0o400 unless given. The owner is root.
    pub mode: u32,
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Where the sources are.
    pub from: From,
    /// Patterns; may be empty when there are here-documents.
    pub sources: Vec<Word>,
    /// The destination; relative to the working directory.
    pub to: Word,
    /// `user`, `uid`, `user:group` …; root where it is not given.
    pub owner: Option<Word>,
    /// Permissions that every file and directory gets, of 0o7777; as in the source where it is not given.
    pub mode: Option<u32>,
    /// Unpack sources that are tar archives (of `ADD`).
    pub extract: bool,
    /// Here-documents: files whose content is in the recipe.
    pub inline: Vec<Inline>,
}

/// Where a copy's sources are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// In the context directory.
    Context,
    /// On the disk of an earlier stage, by its place in [`Recipe::stages`].
    Stage(usize),
    /// In an image.
    Image(String),
}

/// A file whose content is in the recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inline {
    /// Its name, for a destination that is a directory.
    pub name: String,
    /// Its content; literal when the delimiter was quoted.
    pub content: Word,
}

/// The declaration of a build argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// Its name.
    pub name: String,
    /// What it is worth where none was given.
    pub default: Option<Word>,
    /// What it is worth in any case: from the command line, from an `ARG` before the first `FROM`, or known beforehand
    /// (`TARGETARCH` and its like).
    pub given: Option<String>,
}
