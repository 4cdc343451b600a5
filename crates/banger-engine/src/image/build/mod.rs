//! Images built from recipes: each stage in a machine of its own, whose disk becomes the image.
//!
//! ```text
//! recipe ─ banger-recipe ─► steps ─┬─ in the cache: its difference is put onto the disk
//!                                  └─ else: the stage's machine does it, comes to rest, and its disk's difference is kept
//! the last stage's disk ─ shrunk ─► rootfs.ext4 ─ make::enter ─► row, name
//! ```
//!
//! A build machine is an ordinary one, created, started and removed the ways of all others, with three peculiarities that
//! its label ([`LABEL`]) brings: its disk is a plain copy of the base image (so that what is on it is a file system by itself), the agent
//! is its init, and it leaves no trace of itself on the disk. It runs only from the first step that is not in the cache to the last of its stage.
//!
//! The cache ([`cache`]) knows a step by what it was done on, to the byte, and by everything that it can depend on. What
//! becomes of a build is known by the log that it keeps ([`log`]).

mod bench;
pub(crate) mod cache;
mod files;
pub(crate) mod log;
mod result;
mod steps;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use banger_recipe::{Base, Kind, Recipe, Source};

use super::make::MAKERS;
use crate::engine::Engine;
use crate::error::Error;
use crate::name;
use crate::operation::{Operation, Progress};
use log::Log;

/// The label of build machines; its value is the operation's id.
pub(crate) const LABEL: &str = "banger.build";

/// Labels beginning so are not the users'.
pub(crate) const RESERVED: &str = "banger.";

/// The operation's kind.
const KIND: &str = "image.build";

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct Build {
    /// What the image is to be called; another one that is called so loses the name.
    pub name: String,
    /// The recipe's text.
    pub recipe: String,
    /// What its file is called: TOML by its ending, else a Dockerfile; and for messages.
    pub file: String,
    /// An image to begin with, in place of the one that the recipe names first.
    pub base: Option<String>,
    /// The directory that files are copied from; absolute.
    pub context: Option<PathBuf>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Secrets by their ids.
    pub secrets: BTreeMap<String, Secret>,
    /// The stage whose disk becomes the image. Absent: the last.
    pub target: Option<String>,
    /// Do every step again.
    pub no_cache: bool,
    /// What the image boots with. Absent: what its base does.
    pub kernel: Option<String>,
    /// What the machine is called in which a step fails: it is kept. Absent: it is removed.
    pub keep_failed: Option<String>,
    /// Of the build machine. Absent: the defaults.
    pub vcpus: Option<u32>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes.
    pub disk: Option<u64>,
}

/// What is mounted for a command and kept nowhere.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// Begins a build. What is wrong with the recipe, or missing for it, is said at once.
pub(crate) async fn begin(engine: &Engine, mut build: Build) -> Result<Operation, Error> {
    name::image(&build.name)?;
    build.name = name::familiar(&build.name);
    if let Some(machine) = &build.keep_failed {
        name::machine(machine)?;
    }
    let source = Source {
        name: &build.file,
        text: &build.recipe,
        kind: Kind::of_name(&build.file),
        base: build.base.as_deref(),
    };
    let parsed = banger_recipe::parse(&source, &build.args, build.target.as_deref());
    let recipe = parsed.map_err(|errors| Error::Recipe(Box::new(errors)))?;
    check(&build, &recipe)?;
    let host = engine.host();
    if let Some(kernel) = &build.kernel {
        super::kernels::find_kernel(host, kernel).await?;
    }
    log::forget_old(&host.settings.state_dir);
    let (subject, building) = (build.name.clone(), engine.clone());
    host.operations
        .begin_alone(KIND, MAKERS, &subject, move |progress| async move {
            run(&building, &build, &recipe, &progress).await
        })
        .await
}

/// What can be said before anything begins.
fn check(build: &Build, recipe: &Recipe) -> Result<(), Error> {
    let refuse = |problem: String, hint: &str| {
        Err(Error::Contradiction {
            problem,
            hint: hint.to_owned(),
        })
    };
    for stage in &recipe.stages {
        if stage.base == Base::Scratch {
            return refuse(
                format!(
                    "{}, line {}: a machine cannot run on an empty disk",
                    build.file, stage.line
                ),
                "begin with a small image: `banger image bootstrap busybox`, then FROM busybox",
            );
        }
    }
    if recipe.needs_context() && build.context.is_none() {
        return refuse(
            format!(
                "{} copies files, and there is no directory to copy from",
                build.file
            ),
            "give it: banger image build … DIR",
        );
    }
    for (id, required) in recipe.secrets() {
        if required && !build.secrets.contains_key(id) {
            return refuse(
                format!("{} needs the secret {id:?}", build.file),
                "give it: --secret id=NAME,src=FILE",
            );
        }
    }
    Ok(())
}

async fn run(engine: &Engine, build: &Build, recipe: &Recipe, progress: &Progress) -> Result<(), Error> {
    let mut log = Log::create(&engine.host().settings.state_dir, progress)?;
    let built = steps::Builder::new(engine, build, recipe, progress, &mut log)?
        .build()
        .await;
    match &built {
        Ok(()) => log.line(&format!("built {}", build.name)),
        Err(e) => log.line(&format!("error: {}", e.report().message)),
    }
    built
}
