//! `banger image build`: images from recipes.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use banger_api::types::{BuildLog, BuildSecret, ExecOpen, ImageBuild, OperationRef, VmRemove};
use clap::{Args, ValueEnum};

use crate::args::{EnvVar, absolute, parse_size};
use crate::commands::op::logs;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::interrupt::Interrupts;
use crate::operation::{End, Follow, detached};
use crate::session::{self, Streams};
use crate::stdio::{self, say};
use crate::terminal;

/// Bytes of a recipe, and of a secret.
const LIMIT: u64 = 1 << 20;
/// What a directory's recipe is looked for as.
const RECIPES: [&str; 3] = ["Banger.toml", "Dockerfile", "Containerfile"];

/// Build an image from a recipe, in a machine
///
/// A recipe is a Dockerfile, or TOML with the same steps. Each stage is built in a machine of its own; what it leaves on its
/// disk is the image. Steps that were done before, on the same disk and with the same files, are taken from a cache. What
/// the recipe asks for that Banger does not do is said, with its line, before anything starts. The daemon reads the
/// directory with your rights.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger image build --name app .
  banger image build -f ci.toml --name ci --from debian:12 .
  banger image build --name app --build-arg VERSION=2 --secret id=token,src=./token .
  banger image build --name app --on-failure shell .
")]
pub(crate) struct Build {
    /// Directory that files are copied from, and where the recipe is looked for
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Name of the image; another one that has it loses it
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The recipe [default: Banger.toml, Dockerfile or Containerfile in DIR]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Begin with this image instead of the one that the recipe names first
    #[arg(long, value_name = "IMAGE")]
    from: Option<String>,
    /// Set a build argument; KEY alone takes this shell's value
    #[arg(long = "build-arg", value_name = "KEY[=VALUE]")]
    args: Vec<EnvVar>,
    /// Give a secret to the commands that mount it: id=ID,src=FILE or id=ID,env=VAR
    #[arg(long = "secret", value_name = "SECRET")]
    secrets: Vec<SecretArg>,
    /// Build this stage [default: the last]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// What becomes of the machine in which a step fails: shell opens one in it
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_failure: OnFailure,
    /// Kernel to boot with, by name [default: the base image's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Virtual processors of the build machine
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory of the build machine
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Disk of the build machine: what the image may grow to
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk: Option<u64>,
    /// Do not wait: print the operation's id and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print nothing of what the build says
    #[arg(short, long)]
    quiet: bool,
}

/// What becomes of the machine in which a step fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum OnFailure {
    /// It is removed
    #[default]
    Remove,
    /// A shell is opened in it; it is removed afterwards
    Shell,
    /// It stays, until the daemon's next start
    Keep,
}

/// `id=ID,src=FILE`, `id=ID,env=VAR`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SecretArg {
    id: String,
    from: SecretFrom,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SecretFrom {
    File(PathBuf),
    Variable(String),
}

impl FromStr for SecretArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form id=ID,src=FILE or id=ID,env=VAR");
        let (mut id, mut from) = (None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            match key {
                "id" => id = Some(value.to_owned()),
                "src" | "source" => from = Some(SecretFrom::File(PathBuf::from(value))),
                "env" => from = Some(SecretFrom::Variable(value.to_owned())),
                "type" if value == "file" || value == "env" => {}
                _ => return Err(wrong()),
            }
        }
        match (id.filter(|id| !id.is_empty()), from) {
            (Some(id), Some(from)) => Ok(Self { id, from }),
            // As docker does: a variable of that name.
            (Some(id), None) => Ok(Self {
                from: SecretFrom::Variable(id.clone()),
                id,
            }),
            (None, _) => Err(wrong()),
        }
    }
}

impl SecretArg {
    fn read(self) -> Result<(String, BuildSecret), CliError> {
        let value = match &self.from {
            SecretFrom::File(path) => read(path)?,
            SecretFrom::Variable(name) => std::env::var(name)
                .map_err(|error| CliError::usage(format!("the secret {}: {name}: {error}", self.id)))?,
        };
        Ok((self.id, BuildSecret(value)))
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    let wrong = |error: std::io::Error| CliError::usage(format!("cannot read {}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(wrong)?;
    let mut text = String::new();
    file.take(LIMIT + 1).read_to_string(&mut text).map_err(wrong)?;
    if text.len() as u64 > LIMIT {
        let message = format!("{} has more than {LIMIT} bytes", path.display());
        return Err(CliError::usage(message));
    }
    Ok(text)
}

impl Build {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let file = self.recipe()?;
        let keeps = self.on_failure != OnFailure::Remove;
        let machine = keeps.then(|| format!("build-{}", std::process::id()));
        let args = self.args.into_iter();
        let params = ImageBuild {
            name: self.name,
            recipe: read(&file)?,
            file: shown(&file, &self.directory),
            context: Some(absolute(&self.directory)?),
            base: self.from,
            args: args.filter_map(|arg| Some((arg.key, arg.value?))).collect(),
            secrets: self
                .secrets
                .into_iter()
                .map(SecretArg::read)
                .collect::<Result<BTreeMap<_, _>, _>>()?,
            target: self.target,
            no_cache: self.no_cache,
            kernel: self.kernel,
            keep_failed: machine.clone(),
            vcpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
        };
        let client = context.client().await?;
        let begun = client.image_build(params).await?;
        if self.detach {
            return detached(&begun);
        }
        let mut interrupts = Interrupts::listen()?;
        let log = BuildLog {
            operation: begun.id.clone(),
            follow: true,
        };
        let mut said = Box::pin(async {
            if !self.quiet {
                logs::copy(&client, log, rustix::stdio::stderr()).await?;
            }
            Ok::<_, CliError>(())
        });
        let operation = OperationRef {
            operation: begun.id.clone(),
        };
        let begin = async { Ok(begun) };
        let following = Follow::cancelling(true, false);
        let watching = context.client().await?;
        let mut end = Box::pin(following.to_end(&watching, &mut interrupts, begin));
        // The log ends with the operation; what is still to be read of it then is read.
        let ended = tokio::select! {
            ended = &mut end => {
                said.await?;
                ended
            }
            shown = &mut said => {
                shown?;
                end.as_mut().await
            }
        };
        drop(end);
        match ended {
            Ok(End::Done(operation)) => stdio::finish(&format!("{}\n", operation.subject)),
            Ok(End::Detached(operation)) => detached(&operation),
            Ok(End::TooLate(operation)) => stdio::finish(&format!("{}\n", operation.subject)),
            Err(error) => {
                if let Some(machine) = machine.filter(|_| error.kind != Kind::Interrupted) {
                    let entering = self.on_failure == OnFailure::Shell;
                    enter(context, &mut interrupts, &operation, machine, entering).await?;
                }
                Err(error)
            }
        }
    }

    fn recipe(&self) -> Result<PathBuf, CliError> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let found = RECIPES
            .iter()
            .map(|name| self.directory.join(name))
            .find(|path| path.is_file());
        found.ok_or_else(|| {
            let looked = RECIPES.join(", ");
            CliError::usage(format!("{} has no recipe: no {looked}", self.directory.display()))
                .hint("say which file it is: -f FILE")
        })
    }
}

/// The recipe's path as messages have it.
fn shown(file: &Path, directory: &Path) -> String {
    file.strip_prefix(directory)
        .unwrap_or(file)
        .to_string_lossy()
        .into_owned()
}

/// A shell in the machine of a failed step, which is removed afterwards; or only its name.
async fn enter(
    context: &Context,
    interrupts: &mut Interrupts,
    operation: &OperationRef,
    machine: String,
    entering: bool,
) -> Result<(), CliError> {
    let client = context.client().await?;
    let there = client
        .vm_show(banger_api::types::VmRef { vm: machine.clone() })
        .await;
    if there.is_err() {
        // It failed before there was one, or after.
        return Ok(());
    }
    if !entering {
        say!("{machine} is as the failed step left it: banger exec -it {machine} -- sh");
        return Ok(());
    }
    say!(
        "a shell in {machine}, as the failed step of {} left it; its end removes it",
        operation.operation
    );
    let streams = Streams {
        stdin: true,
        terminal: terminal::stdin_is_terminal(),
    };
    let open = ExecOpen {
        vm: machine.clone(),
        command: vec!["/bin/sh".to_owned()],
        env: Default::default(),
        workdir: None,
        user: None,
        stdin: false,
        terminal: None,
    };
    let entered = session::run(&client, interrupts, streams, open).await;
    let remove = VmRemove {
        vm: machine,
        force: true,
    };
    let begin = client.vm_remove(remove);
    Follow::leaving(true).run(&client, interrupts, begin).await?;
    entered.map(|_code| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_as_docker_reads_them() {
        let file = |id: &str, path: &str| SecretArg {
            id: id.to_owned(),
            from: SecretFrom::File(PathBuf::from(path)),
        };
        assert_eq!("id=a,src=/b".parse(), Ok(file("a", "/b")));
        assert_eq!("type=file,source=c,id=a".parse(), Ok(file("a", "c")));
        for (text, variable) in [("id=a,env=B", "B"), ("id=a", "a"), ("type=env,id=a", "a")] {
            let from = SecretFrom::Variable(variable.to_owned());
            let id = "a".to_owned();
            assert_eq!(text.parse(), Ok(SecretArg { id, from }), "{text}");
        }
        for text in ["", "a", "src=/b", "id=,src=/b", "id=a,where=b", "type=ssh,id=a"] {
            assert!(text.parse::<SecretArg>().is_err(), "{text}");
        }
    }
}
