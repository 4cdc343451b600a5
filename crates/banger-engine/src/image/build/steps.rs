//! Going through the steps: what the cache has is taken from it, the rest is done by the stage's machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use banger_agent_api::{ExitStatus, proto};
use banger_recipe::{
    Action, Base, Context, Environment, From, Program, Recipe, ResolvedCopy, ResolvedRun, ResolvedStep, Step,
};
use banger_store::StoreError;
use hostkit::digest::Digest;
use serde_json::json;

use super::bench::{Bench, Plan, ended};
use super::cache::Cache;
use super::files::{self, Files};
use super::log::Log;
use super::result::{self, Disk};
use super::{Build, Secret};
use crate::engine::Engine;
use crate::error::{Error, io};
use crate::id;
use crate::image::registry;
use crate::operation::Progress;

/// Where a command's own files are while it runs: memory.
const SCRIPT: &str = "/run/banger-script";

/// A build under way.
pub(super) struct Builder<'a> {
    engine: &'a Engine,
    build: &'a Build,
    recipe: &'a Recipe,
    progress: &'a Progress,
    log: &'a mut Log,
    cache: Cache,
    context: Option<Arc<Context>>,
    /// Stages that are done.
    done: Vec<Stage>,
    /// The machine of the stage at work.
    bench: Option<Bench>,
    machine: String,
    steps: usize,
    /// What is at work, for people.
    said: String,
}

/// What has become of a stage.
pub(super) struct Stage {
    pub(super) disk: Disk,
    environment: Environment,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        build: &'a Build,
        recipe: &'a Recipe,
        progress: &'a Progress,
        log: &'a mut Log,
    ) -> Result<Self, Error> {
        let state = &engine.host().settings.state_dir;
        let cache = Cache::open(state).map_err(io("open the cache of builds in", state))?;
        let context = match &build.context {
            Some(directory) if recipe.needs_context() => {
                let opened = Context::open(directory, Some(&directory.join(&build.file)));
                Some(Arc::new(opened.map_err(|e| files::unusable(directory, &e))?))
            }
            Some(_) | None => None,
        };
        let made_up = || format!("build-{}", id::new().chars().take(8).collect::<String>());
        Ok(Self {
            engine,
            build,
            recipe,
            progress,
            log,
            cache,
            context,
            done: Vec::new(),
            bench: None,
            machine: build.keep_failed.clone().unwrap_or_else(made_up),
            steps: 0,
            said: String::new(),
        })
    }

    /// Builds everything. However it ends, there is no machine left but the one that is to be kept.
    pub(super) async fn build(mut self) -> Result<(), Error> {
        let built = self.stages().await;
        let keep = built.is_err() && self.build.keep_failed.is_some() && !self.progress.is_cancelled();
        match self.bench.take() {
            Some(bench) if keep => self.log.line(&format!(
                "the machine of the failed step is kept: {}",
                bench.name()
            )),
            Some(bench) => bench.remove().await,
            None => {}
        }
        if let Err(error) = self.cache.trim() {
            tracing::warn!(%error, "cache of builds not trimmed");
        }
        built
    }

    async fn stages(&mut self) -> Result<(), Error> {
        for (number, stage) in self.recipe.stages.iter().enumerate() {
            let what = match &stage.base {
                Base::Image(image) => format!("FROM {image}"),
                Base::Stage(of) => format!("FROM stage {of}"),
                Base::Scratch => "FROM scratch".to_owned(),
            };
            self.say(stage.line, &what, "");
            let begun = self.begin(&stage.base).await?;
            self.done.push(begun);
            for step in &stage.steps {
                self.step(number, step).await?;
            }
            if let Some(bench) = self.bench.take() {
                bench.remove().await;
            }
        }
        let Some(last) = self.done.last() else {
            return Ok(());
        };
        let (name, kernel) = (&self.build.name, self.build.kernel.as_deref());
        let config = last.environment.config().clone();
        let there = result::make(self.engine, &last.disk, &config, kernel, name, self.progress).await?;
        if there {
            self.log.line("the image was built before: it gets the name");
        }
        Ok(())
    }

    /// What a stage begins with.
    async fn begin(&mut self, base: &Base) -> Result<Stage, Error> {
        let reference = match base {
            Base::Stage(of) => {
                let former = self.done.get(*of).ok_or_else(|| no_stage(*of))?;
                return Ok(Stage {
                    disk: Disk {
                        image: former.disk.image.clone(),
                        differences: former.disk.differences.clone(),
                        state: former.disk.state,
                    },
                    environment: Environment::on_stage(&former.environment),
                });
            }
            Base::Image(reference) => reference,
            // Refused before.
            Base::Scratch => return Err(no_stage(0)),
        };
        let image = self.image(reference).await?;
        let config = result::config_of(&image);
        let state = Digest::of_parts([image.sha256.as_bytes()]);
        Ok(Stage {
            disk: Disk {
                image,
                differences: Vec::new(),
                state,
            },
            environment: Environment::on_image(config),
        })
    }

    /// An image that is here, or comes from its registry.
    async fn image(&mut self, reference: &str) -> Result<banger_store::images::ImageRow, Error> {
        let host = self.engine.host();
        let missing = match registry::find(host, reference).await {
            Ok(found) => return Ok(found.row),
            Err(e @ (Error::Missing { .. } | Error::Store(StoreError::Missing { .. }))) => e,
            Err(e) => return Err(e),
        };
        if !reference.contains(['/', ':', '@']) {
            return Err(missing);
        }
        self.log.line(&format!("pulling {reference}"));
        let begun = self.engine.pull_image(reference, None, None).await?;
        let pulling = begun.id.clone();
        let pulled = self.progress.or_cancelled(ended(self.engine, begun)).await;
        if self.progress.is_cancelled() {
            self.engine
                .cancel_operation(&pulling, "the build it was for")
                .await?;
        }
        pulled?;
        Ok(registry::find(host, reference).await?.row)
    }

    fn say(&mut self, line: u32, text: &str, how: &str) {
        self.steps += 1;
        let said = format!("#{} line {line}: {how}{text}", self.steps);
        self.progress.message(&said);
        self.log.line(&said);
        self.said = said;
    }

    async fn step(&mut self, stage: usize, step: &Step) -> Result<(), Error> {
        if self.progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let at = self.at(stage)?;
        let resolved = step.resolve(&at.environment).map_err(|e| self.wrong(&e))?;
        let key = match &resolved.action {
            Action::Configure(_) | Action::Arg(_) => None,
            Action::Workdir(path) if path == "/" => None,
            Action::Workdir(_) | Action::Run(_) | Action::Copy(_) => Some(()),
        };
        if key.is_none() {
            self.say(step.line, &step.text, "");
        } else {
            self.disk_step(stage, step, &resolved).await?;
        }
        let at = self.done.get_mut(stage).ok_or_else(|| no_stage(stage))?;
        at.environment.apply(&resolved);
        Ok(())
    }

    /// A step that is on the disk afterwards.
    async fn disk_step(&mut self, stage: usize, step: &Step, resolved: &ResolvedStep) -> Result<(), Error> {
        let files = match &resolved.action {
            Action::Copy(copy) => Some(self.files(copy, step.line).await?),
            Action::Run(_) | Action::Workdir(_) | Action::Configure(_) | Action::Arg(_) => None,
        };
        let at = self.at(stage)?;
        let before = at.disk.state;
        let key = key(
            &before,
            resolved,
            &at.environment,
            files.as_ref().map(Files::digest),
        );
        if !self.build.no_cache
            && self.bench.is_none()
            && let Some(made) = self.cache.find(&key)
        {
            self.say(step.line, &step.text, "cached: ");
            let at = self.done.get_mut(stage).ok_or_else(|| no_stage(stage))?;
            at.disk.differences.push(made.difference);
            at.disk.state = made.state;
            return Ok(());
        }
        self.say(step.line, &step.text, "");
        let doing = self.doing(stage, step, resolved, files);
        doing.await?;
        let to = self.cache.new_difference();
        let (progress, bench) = (self.progress, self.bench.as_mut());
        let Some(bench) = bench else {
            return Err(no_stage(stage));
        };
        let made = progress.or_cancelled(bench.difference(before, to)).await?;
        if let Err(error) = self.cache.keep(&key, &made) {
            tracing::warn!(%error, "step of a build not kept");
        }
        let at = self.done.get_mut(stage).ok_or_else(|| no_stage(stage))?;
        at.disk.differences.push(made.difference);
        at.disk.state = made.state;
        Ok(())
    }

    /// Does a step in the stage's machine.
    async fn doing(
        &mut self,
        stage: usize,
        step: &Step,
        resolved: &ResolvedStep,
        files: Option<Files>,
    ) -> Result<(), Error> {
        if self.bench.is_none() {
            self.bench = Some(self.machine(stage).await?);
        }
        let environment = self.at(stage)?.environment.clone();
        let (progress, build, recipe) = (self.progress, self.build, self.recipe);
        let (Some(bench), log) = (&self.bench, &mut *self.log) else {
            return Err(no_stage(stage));
        };
        let done = async {
            match &resolved.action {
                Action::Run(run) => {
                    let command = Command {
                        run,
                        environment: &environment,
                        proxies: &recipe.proxies,
                        secrets: &build.secrets,
                    };
                    command.execute(bench, log, step).await
                }
                Action::Copy(copy) => match files {
                    Some(files) => files.put(bench, copy).await,
                    None => Ok(()),
                },
                Action::Workdir(path) => files::make_directories(bench, path).await,
                Action::Configure(_) | Action::Arg(_) => Ok(()),
            }
        };
        // Dropping it ends the command, or what is being unpacked.
        progress.or_cancelled(done).await
    }

    /// Starts the stage's machine on its disk so far.
    async fn machine(&self, stage: usize) -> Result<Bench, Error> {
        let disk = &self.at(stage)?.disk;
        self.progress.stage_now("machine");
        self.progress.message(&self.said);
        let plan = Plan {
            name: &self.machine,
            operation: self.progress.id(),
            image: &disk.image.id,
            kernel: self.build.kernel.clone(),
            vcpus: self.build.vcpus,
            memory: self.build.memory,
            disk: self.build.disk,
            differences: disk.differences.clone(),
        };
        // Not dropped in the middle: what it makes is to be known here.
        let bench = Bench::start(self.engine, plan).await?;
        self.progress.stage_now("steps");
        self.progress.message(&self.said);
        Ok(bench)
    }

    async fn files(&mut self, copy: &ResolvedCopy, line: u32) -> Result<Files, Error> {
        let source = match &copy.from {
            From::Context => files::Source::Context(self.context.as_ref()),
            From::Stage(of) => {
                let disk = &self.done.get(*of).ok_or_else(|| no_stage(*of))?.disk;
                files::Source::Disk(disk)
            }
            From::Image(reference) => {
                let image = self.image(&reference.clone()).await?;
                files::Source::Image(Box::new(image))
            }
        };
        let to = self.cache.new_difference();
        files::gather(self.engine, source, copy, line, to).await
    }

    fn at(&self, stage: usize) -> Result<&Stage, Error> {
        self.done.get(stage).ok_or_else(|| no_stage(stage))
    }

    fn wrong(&self, error: &banger_recipe::ResolveError) -> Error {
        Error::Contradiction {
            problem: format!("{}: {}", self.build.file, crate::error::chain(error)),
            hint: "the variable's value is what the base image and the steps before it make it".to_owned(),
        }
    }
}

/// What a step depends on.
fn key(before: &Digest, step: &ResolvedStep, environment: &Environment, files: Option<&Digest>) -> Digest {
    let surroundings = match &step.action {
        Action::Run(_) => json!({
            "variables": environment.variables(),
            "user": environment.config().user,
            "workdir": environment.workdir(),
        }),
        Action::Copy(_) | Action::Workdir(_) | Action::Configure(_) | Action::Arg(_) => json!(null),
    };
    let what = json!({
        "format": 1,
        "before": before.to_string(),
        "step": step,
        "surroundings": surroundings,
        "files": files.map(Digest::to_string),
    });
    Digest::of_parts([what.to_string().as_bytes()])
}

/// A command of a recipe.
struct Command<'a> {
    run: &'a ResolvedRun,
    environment: &'a Environment,
    proxies: &'a [(String, String)],
    secrets: &'a BTreeMap<String, Secret>,
}

impl Command<'_> {
    async fn execute(&self, bench: &Bench, log: &mut Log, step: &Step) -> Result<(), Error> {
        for secret in &self.run.secrets {
            if !secret.target.starts_with("/run/") {
                return Err(Error::Contradiction {
                    problem: format!(
                        "line {}: the secret {:?} would be on the disk, at {}",
                        step.line, secret.id, secret.target
                    ),
                    hint: "mount it below /run, which is memory".to_owned(),
                });
            }
            if let Some(value) = self.secrets.get(&secret.id) {
                let path = PathBuf::from(&secret.target);
                files::put_bytes(bench, &path, secret.mode, &value.0, &self.owner()).await?;
            }
        }
        let argv = match &self.run.program {
            Program::Argv(argv) => argv.clone(),
            Program::Script(text) => {
                let path = PathBuf::from(SCRIPT);
                files::put_bytes(bench, &path, 0o755, text.as_bytes(), "").await?;
                vec![SCRIPT.to_owned()]
            }
        };
        let mut env = self.environment.variables();
        for (name, value) in self.proxies {
            env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let start = proto::ExecStart {
            argv,
            env: env.into_iter().collect(),
            workdir: self.environment.workdir().to_owned(),
            user: self.owner(),
            stdin: false,
            terminal: None,
        };
        let status = bench.run(start, log).await;
        for secret in &self.run.secrets {
            // It is memory, and the next step is not to see it.
            let path = PathBuf::from(&secret.target);
            files::put_bytes(bench, &path, 0o000, b"", "").await?;
        }
        match status? {
            ExitStatus::Code(0) => Ok(()),
            status @ (ExitStatus::Code(_) | ExitStatus::Signal { .. }) => Err(Error::Step {
                line: step.line,
                text: step.text.clone(),
                code: status.shell_code(),
            }),
        }
    }

    fn owner(&self) -> String {
        self.environment.config().user.clone().unwrap_or_default()
    }
}

fn no_stage(number: usize) -> Error {
    Error::Host {
        action: "build",
        source: format!("stage {number} is not there").into(),
    }
}
