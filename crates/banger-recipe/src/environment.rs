//! What a step finds: the image's configuration so far and the build arguments in force. Steps are settled against it
//! ([`Step::resolve`]) and change it ([`Environment::apply`]), also those whose result comes from a cache.
//!
//! ```text
//! Environment::on_image(config of the base) ─┐      for each step:  resolved = step.resolve(&environment)?
//! Environment::on_stage(that of the parent) ─┴─►                    execute resolved, or find it in the cache
//!                                                                   environment.apply(&resolved)
//! ```

use std::cell::Cell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::recipe::{Arg, Command, Copy, From, Inline, Run, SecretMount, Step, StepKind};
use crate::word::{Word, WordError};

/// Where programs are looked for in images that do not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What shell commands are given to, unless the recipe says otherwise.
pub const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Variables, labels, ports and volumes that one image may have, each.
const MAX_ENTRIES: usize = 4096;
/// Bytes that all variables, all labels of an image may have, and that the words of one step may become.
const MAX_BYTES: usize = 2 << 20;

/// What an image says about how it is run: the part of its configuration that recipes change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Variables, in the order in which they were first set.
    pub env: Vec<(String, String)>,
    /// `user`, `uid`, `user:group` …
    pub user: Option<String>,
    /// An absolute path.
    pub workdir: Option<String>,
    /// The program with its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments; without `entrypoint` the program.
    pub cmd: Vec<String>,
    /// `80/tcp` each, sorted.
    pub exposed: Vec<String>,
    /// Sorted.
    pub volumes: Vec<String>,
    /// By name.
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM` or a number.
    pub stop_signal: Option<String>,
    /// What shell commands are given to; empty: [`DEFAULT_SHELL`].
    pub shell: Vec<String>,
}

/// What the next step of a stage finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    config: Config,
    /// Where a variable is in `config.env`; of several with one name, the last.
    index: BTreeMap<String, usize>,
    /// Declared arguments that are worth something.
    args: BTreeMap<String, String>,
    /// This stage has a `CMD`: an `ENTRYPOINT` after it leaves it alone.
    cmd_is_ours: bool,
}

/// A step with everything settled. As JSON it is a stable description of what is to be done, for a cache's key: two steps
/// with the same description, the same files and, for commands, the same [`Environment::variables`], user, workdir do the
/// same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResolvedStep {
    /// Where it begins; no part of the description.
    #[serde(skip)]
    pub line: u32,
    /// What to do.
    pub action: Action,
}

/// What to do, with all words substituted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Run a command, with [`Environment::variables`], as [`Config::user`], in [`Config::workdir`].
    Run(ResolvedRun),
    /// Copy files.
    Copy(ResolvedCopy),
    /// Make this directory (absolute), if it is not there; later commands run in it.
    Workdir(String),
    /// The configuration changes, and nothing on the disk.
    Configure(Change),
    /// Build arguments come into force, in order; those without value are declared only.
    Arg(Vec<(String, Option<String>)>),
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResolvedRun {
    /// What to execute.
    pub program: Program,
    /// Secrets that are there meanwhile.
    pub secrets: Vec<ResolvedSecret>,
}

/// What to execute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A program, looked for in `PATH`, and its arguments. Never empty.
    Argv(Vec<String>),
    /// The content of a file that begins with `#!`: to be put somewhere for the time of the step, and executed.
    Script(String),
}

/// See [`SecretMount`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResolvedSecret {
    /// Its name on the command line.
    pub id: String,
    /// An absolute path.
    pub target: String,
    /// Whether the step fails without it.
    pub required: bool,
    /// Permissions.
    pub mode: u32,
}

/// See [`Copy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResolvedCopy {
    /// Where the sources are.
    pub from: From,
    /// Patterns.
    pub sources: Vec<String>,
    /// An absolute path without `.` and `..` and without a slash at its end; `/` for the root.
    pub to: String,
    /// The destination is a directory, whether it is there or not: it was written with a slash at its end, or there are
    /// several sources. Otherwise a single file gets this path, unless there is a directory; a directory's content always
    /// goes into it.
    pub into_directory: bool,
    /// `user`, `uid`, `user:group` …; root's otherwise.
    pub owner: Option<String>,
    /// Permissions for everything that is copied.
    pub mode: Option<u32>,
    /// Unpack sources that are tar archives.
    pub extract: bool,
    /// Files whose content is here, by name.
    pub inline: Vec<(String, String)>,
}

/// A change of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Variables.
    Env(Vec<(String, String)>),
    /// The user.
    User(String),
    /// The program.
    Entrypoint(Vec<String>),
    /// The arguments.
    Cmd(Vec<String>),
    /// Ports: `80/tcp`, `53/udp`.
    Expose(Vec<String>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// Absolute paths.
    Volume(Vec<String>),
    /// What shell commands are given to.
    Shell(Vec<String>),
    /// The signal.
    StopSignal(String),
}

/// Why a step cannot be settled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A word cannot be substituted.
    #[error("line {line}: cannot substitute variables in `{word}`")]
    Word {
        /// The step's line.
        line: u32,
        /// The word as written.
        word: String,
        /// Why.
        #[source]
        source: WordError,
    },
    /// A word is not what is needed, with its variables substituted.
    #[error("line {line}: {what}")]
    Value {
        /// The step's line.
        line: u32,
        /// What is wrong with which value.
        what: String,
    },
}

impl Environment {
    /// That of a stage on an image, or on an empty file system (with [`Config::default`]).
    #[must_use]
    pub fn on_image(mut config: Config) -> Self {
        if !config.env.iter().any(|(name, _)| name == "PATH") {
            config.env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        let names = config.env.iter().enumerate();
        let index = names.map(|(place, (name, _))| (name.clone(), place)).collect();
        Self {
            config,
            index,
            args: BTreeMap::new(),
            cmd_is_ours: false,
        }
    }

    /// That of a stage on another one, which ended with `parent`: it has its build arguments as well.
    #[must_use]
    pub fn on_stage(parent: &Self) -> Self {
        Self {
            config: parent.config.clone(),
            index: parent.index.clone(),
            args: parent.args.clone(),
            cmd_is_ours: false,
        }
    }

    /// The configuration so far; at the end, the image's.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where commands run: an absolute path.
    #[must_use]
    pub fn workdir(&self) -> &str {
        self.config.workdir.as_deref().unwrap_or("/")
    }

    /// What a variable is worth: the environment's, else the build argument's.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.env(name).or_else(|| self.args.get(name).map(String::as_str))
    }

    /// What a variable of the image is worth.
    fn env(&self, name: &str) -> Option<&str> {
        let (_, value) = self.config.env.get(*self.index.get(name)?)?;
        Some(value)
    }

    /// The environment of a command: the image's variables, and the build arguments in force that none of them hides.
    #[must_use]
    pub fn variables(&self) -> BTreeMap<String, String> {
        let mut variables = self.args.clone();
        variables.extend(self.config.env.iter().cloned());
        variables
    }

    /// Goes past a step that has been executed.
    pub fn apply(&mut self, step: &ResolvedStep) {
        match &step.action {
            Action::Run(_) | Action::Copy(_) => {}
            Action::Workdir(path) => self.config.workdir = Some(path.clone()),
            Action::Arg(args) => {
                for (name, value) in args {
                    if let Some(value) = value {
                        self.args.insert(name.clone(), value.clone());
                    }
                }
            }
            Action::Configure(change) => self.change(change),
        }
    }

    fn change(&mut self, change: &Change) {
        let config = &mut self.config;
        match change {
            Change::Env(pairs) => {
                for (name, value) in pairs {
                    match self.index.get(name).and_then(|place| config.env.get_mut(*place)) {
                        Some((_, old)) => old.clone_from(value),
                        None => {
                            self.index.insert(name.clone(), config.env.len());
                            config.env.push((name.clone(), value.clone()));
                        }
                    }
                }
            }
            Change::User(user) => config.user = Some(user.clone()),
            Change::Entrypoint(argv) => {
                config.entrypoint.clone_from(argv);
                // The base's arguments were meant for the base's program.
                if !self.cmd_is_ours {
                    config.cmd.clear();
                }
            }
            Change::Cmd(argv) => {
                config.cmd.clone_from(argv);
                self.cmd_is_ours = true;
            }
            Change::Expose(ports) => merge(&mut config.exposed, ports),
            Change::Label(pairs) => config.labels.extend(pairs.iter().cloned()),
            Change::Volume(paths) => merge(&mut config.volumes, paths),
            Change::Shell(argv) => config.shell.clone_from(argv),
            Change::StopSignal(signal) => config.stop_signal = Some(signal.clone()),
        }
    }
}

impl Step {
    /// Settles the step's words with what is known when all steps before it have been executed.
    pub fn resolve(&self, environment: &Environment) -> Result<ResolvedStep, ResolveError> {
        let settle = Settle {
            line: self.line,
            environment,
            spent: Cell::new(0),
        };
        let action = settle.action(&self.kind)?;
        Ok(ResolvedStep {
            line: self.line,
            action,
        })
    }
}

/// One step's resolution.
struct Settle<'a> {
    line: u32,
    environment: &'a Environment,
    /// Bytes that the words so far became.
    spent: Cell<usize>,
}

impl Settle<'_> {
    fn action(&self, kind: &StepKind) -> Result<Action, ResolveError> {
        let change = match kind {
            StepKind::Run(run) => return self.run(run).map(Action::Run),
            StepKind::Copy(copy) => return self.copy(copy).map(Action::Copy),
            StepKind::Workdir(word) => {
                let path = self.filled(word, "WORKDIR")?;
                return Ok(Action::Workdir(absolute(self.environment.workdir(), &path)));
            }
            StepKind::Arg(args) => return self.args(args).map(Action::Arg),
            StepKind::Env(pairs) => {
                let pairs = self.pairs(pairs)?;
                for (name, value) in &pairs {
                    if name.is_empty() || name.contains('=') || name.contains('\0') || value.contains('\0') {
                        return Err(self.value(format!("`{name}` cannot be a variable's name")));
                    }
                }
                let old = self
                    .environment
                    .config
                    .env
                    .iter()
                    .map(|(name, value)| (name, value));
                self.fits(old, &pairs, "variables")?;
                Change::Env(pairs)
            }
            StepKind::User(word) => Change::User(self.filled(word, "USER")?),
            StepKind::Entrypoint(command) => Change::Entrypoint(self.argv(command)),
            StepKind::Cmd(command) => Change::Cmd(self.argv(command)),
            StepKind::Expose(words) => {
                let mut ports = Vec::new();
                for word in words {
                    for port in self.word(word)?.split_whitespace() {
                        ports.extend(self.ports(port)?);
                    }
                }
                self.bounded(self.environment.config.exposed.len() + ports.len(), "ports")?;
                Change::Expose(ports)
            }
            StepKind::Label(pairs) => {
                let pairs = self.pairs(pairs)?;
                if pairs.iter().any(|(name, _)| name.is_empty()) {
                    return Err(self.value("a label has no name".to_owned()));
                }
                self.fits(self.environment.config.labels.iter(), &pairs, "labels")?;
                Change::Label(pairs)
            }
            StepKind::Volume(words) => {
                let mut paths = Vec::with_capacity(words.len());
                for word in words {
                    paths.push(absolute("/", &self.filled(word, "VOLUME")?));
                }
                self.bounded(self.environment.config.volumes.len() + paths.len(), "volumes")?;
                Change::Volume(paths)
            }
            StepKind::Shell(argv) => Change::Shell(argv.clone()),
            StepKind::StopSignal(word) => Change::StopSignal(self.filled(word, "STOPSIGNAL")?),
        };
        Ok(Action::Configure(change))
    }

    fn run(&self, run: &Run) -> Result<ResolvedRun, ResolveError> {
        let program = match &run.command {
            Command::Script(script) => Program::Script(script.clone()),
            command @ (Command::Shell(_) | Command::Exec(_)) => Program::Argv(self.argv(command)),
        };
        let mut secrets = Vec::with_capacity(run.secrets.len());
        for SecretMount {
            id,
            target,
            required,
            mode,
        } in &run.secrets
        {
            secrets.push(ResolvedSecret {
                id: id.clone(),
                target: absolute(self.environment.workdir(), &self.filled(target, "target")?),
                required: *required,
                mode: *mode,
            });
        }
        Ok(ResolvedRun { program, secrets })
    }

    fn copy(&self, copy: &Copy) -> Result<ResolvedCopy, ResolveError> {
        let mut sources = Vec::with_capacity(copy.sources.len());
        for word in &copy.sources {
            let source = self.filled(word, "a source")?;
            if copy.from == From::Context && is_remote(&source) {
                return Err(self.value(format!(
                    "`{source}` is not in the context: downloads are not supported here, `RUN` can do them"
                )));
            }
            sources.push(source);
        }
        let to = self.filled(&copy.to, "the destination")?;
        let mut inline = Vec::with_capacity(copy.inline.len());
        for Inline { name, content } in &copy.inline {
            inline.push((name.clone(), self.word(content)?));
        }
        let several = sources.len() + inline.len() > 1;
        Ok(ResolvedCopy {
            from: copy.from.clone(),
            sources,
            into_directory: several || is_directory_path(&to),
            to: absolute(self.environment.workdir(), &to),
            owner: copy
                .owner
                .as_ref()
                .map(|word| self.filled(word, "the owner"))
                .transpose()?,
            mode: copy.mode,
            extract: copy.extract,
            inline,
        })
    }

    /// Each argument sees those before it.
    fn args(&self, args: &[Arg]) -> Result<Vec<(String, Option<String>)>, ResolveError> {
        let mut settled: Vec<(String, Option<String>)> = Vec::with_capacity(args.len());
        let mut earlier: BTreeMap<String, String> = BTreeMap::new();
        for Arg { name, default, given } in args {
            let value = match (given, default) {
                (Some(given), _) => Some(given.clone()),
                (None, None) => None,
                (None, Some(word)) => {
                    let lookup = |wanted: &str| {
                        let env = self.environment.env(wanted);
                        env.or_else(|| earlier.get(wanted).map(String::as_str))
                            .or_else(|| self.environment.get(wanted))
                    };
                    Some(self.expand(word, &lookup)?)
                }
            };
            if let Some(value) = &value {
                earlier.insert(name.clone(), value.clone());
            }
            settled.push((name.clone(), value));
        }
        Ok(settled)
    }

    /// A command as argument vector.
    fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.clone(),
            Command::Shell(line) | Command::Script(line) => {
                let shell = &self.environment.config.shell;
                let mut argv = match shell.is_empty() {
                    true => DEFAULT_SHELL.map(str::to_owned).to_vec(),
                    false => shell.clone(),
                };
                argv.push(line.clone());
                argv
            }
        }
    }

    /// `80`, `80/tcp`, `8000-8010/udp`: one entry for each port.
    fn ports(&self, text: &str) -> Result<Vec<String>, ResolveError> {
        let wrong = || {
            self.value(format!(
                "`{text}` is not a port: `80`, `80/tcp`, `53/udp`, `8000-8010`"
            ))
        };
        let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(wrong());
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let (Some(first), Some(last)) = (port(first), port(last)) else {
            return Err(wrong());
        };
        if first > last || usize::from(last - first) >= MAX_ENTRIES {
            return Err(wrong());
        }
        Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
    }

    fn pairs(&self, pairs: &[(Word, Word)]) -> Result<Vec<(String, String)>, ResolveError> {
        // All of one instruction see the variables as they were before it.
        pairs
            .iter()
            .map(|(name, value)| Ok((self.word(name)?, self.word(value)?)))
            .collect()
    }

    /// A word that must not be empty, nor hold a NUL byte.
    fn filled(&self, word: &Word, what: &str) -> Result<String, ResolveError> {
        let value = self.word(word)?;
        if value.is_empty() {
            return Err(self.value(format!("{what} is empty (`{}`)", word.raw())));
        }
        if value.contains('\0') {
            return Err(self.value(format!("{what} has a NUL byte in it")));
        }
        Ok(value)
    }

    fn word(&self, word: &Word) -> Result<String, ResolveError> {
        self.expand(word, &|name| self.environment.get(name))
    }

    fn expand<'v>(
        &self,
        word: &Word,
        lookup: &dyn Fn(&str) -> Option<&'v str>,
    ) -> Result<String, ResolveError> {
        let error = |source| ResolveError::Word {
            line: self.line,
            word: word.raw().chars().take(80).collect(),
            source,
        };
        let value = word.expand(lookup).map_err(error)?;
        self.spent.set(self.spent.get() + value.len());
        match self.spent.get() > MAX_BYTES {
            true => Err(error(WordError::Long)),
            false => Ok(value),
        }
    }

    fn bounded(&self, count: usize, what: &str) -> Result<(), ResolveError> {
        match count > MAX_ENTRIES {
            true => Err(self.value(format!("more than {MAX_ENTRIES} {what}"))),
            false => Ok(()),
        }
    }

    /// Whether variables or labels, those that are there and those that come, are not too much.
    fn fits<'e>(
        &self,
        old: impl Iterator<Item = (&'e String, &'e String)>,
        new: &'e [(String, String)],
        what: &str,
    ) -> Result<(), ResolveError> {
        let sizes = |(count, bytes): (usize, usize), (name, value): (&String, &String)| {
            (count + 1, bytes + name.len() + value.len())
        };
        let new = new.iter().map(|(name, value)| (name, value));
        let (count, bytes) = old.chain(new).fold((0, 0), sizes);
        if bytes > MAX_BYTES {
            return Err(self.value(format!("more than {MAX_BYTES} bytes of {what}")));
        }
        self.bounded(count, what)
    }

    fn value(&self, what: String) -> ResolveError {
        let line = self.line;
        ResolveError::Value { line, what }
    }
}

/// Whether `COPY` and `ADD` of Docker would take this from elsewhere.
pub(crate) fn is_remote(source: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@"]
        .iter()
        .any(|scheme| source.starts_with(scheme))
}

/// Whether a path says of itself that it is a directory.
fn is_directory_path(path: &str) -> bool {
    path.ends_with('/') || path == "." || path == ".." || path.ends_with("/.") || path.ends_with("/..")
}

/// A path made absolute, without `.`, `..`, doubled slashes, and a slash at its end.
fn absolute(workdir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { workdir };
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Sorted, each once.
fn merge(into: &mut Vec<String>, more: &[String]) {
    into.extend(more.iter().cloned());
    into.sort();
    into.dedup();
}
