//! Banger's own front end: a TOML file with one stage.
//!
//! ```toml
//! from = "debian:${RELEASE}"
//!
//! [args]                       # what `--build-arg` can change; in words `${NAME}`, in commands a variable
//! RELEASE = "12"
//!
//! [[step]]                     # each does one thing
//! run = "apt-get update"       # for the shell; or ["program", "argument"]
//! secrets = ["token"]          # /run/secrets/token meanwhile; or { id = …, target = …, required = …, mode = … }
//!
//! [[step]]
//! copy = ["app", "*.conf"]     # or "app"; out of the context, as `COPY` has it
//! to = "/srv/"
//! owner = "www-data"           # root otherwise
//! mode = "0644"                # or 0o644
//!
//! [[step]]
//! env = { LANG = "C.UTF-8" }   # or user = "…", workdir = "…"
//!
//! [config]                     # of the image, when all steps are done
//! cmd = ["/srv/app"]           # entrypoint, cmd, env, user, workdir, expose, labels, volumes, stop_signal
//! expose = [80, "53/udp"]
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::Source;
use crate::dockerfile::{check_secret_id, octal, report_unknown};
use crate::environment::is_remote;
use crate::error::{Place, Problems, quote};
use crate::recipe::{Arg, Base, Command, Copy, From, Recipe, Run, SecretMount, Stage, Step, StepKind};
use crate::word::{Word, is_name};

/// Steps of a file.
const MAX_STEPS: usize = 4096;
/// What a step can do; each has exactly one of them.
const ACTIONS: [&str; 5] = ["run", "copy", "env", "user", "workdir"];

type Value<'t> = Spanned<DeValue<'t>>;
type Key<'t> = Spanned<DeString<'t>>;

/// Reads the TOML form. What it gives means something only when no problem was added.
pub(crate) fn parse(
    source: &Source<'_>,
    args: &BTreeMap<String, String>,
    target: Option<&str>,
    problems: &mut Problems,
) -> Option<Recipe> {
    let mut reader = Reader {
        lines: Lines::new(source.text),
        text: source.text,
        problems,
    };
    if target.is_some() {
        reader
            .problems
            .request("a recipe in TOML has no stages", "leave the target out");
    }
    let (table, errors) = DeTable::parse_recoverable(source.text);
    for error in &errors {
        let place = error
            .span()
            .map_or(Place::line(1), |span| reader.lines.place(&span));
        reader
            .problems
            .add(place, error.message().trim().replace('\n', ", "));
    }
    if !errors.is_empty() {
        // What is left of the table is guesswork.
        return None;
    }
    reader.recipe(table.get_ref(), source.base, args)
}

/// Where lines begin.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let starts = [0]
            .into_iter()
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { starts }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let line = self.starts.partition_point(|start| *start <= span.start).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let before = span.start.saturating_sub(start);
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Place {
            line: narrow(line),
            column: narrow(before).saturating_add(1),
        }
    }
}

struct Reader<'t, 'p> {
    lines: Lines,
    text: &'t str,
    problems: &'p mut Problems,
}

impl Reader<'_, '_> {
    fn recipe(
        &mut self,
        table: &DeTable<'_>,
        base: Option<&str>,
        given: &BTreeMap<String, String>,
    ) -> Option<Recipe> {
        self.only(table, "recipe", &["from", "args", "step", "config"]);
        let args = self.args(table, given);
        let mut steps = Vec::new();
        if !args.is_empty() {
            let line = table
                .get_key_value("args")
                .map_or(1, |(key, _)| self.lines.place(&key.span()).line);
            steps.push(Step {
                line,
                text: "args".to_owned(),
                kind: StepKind::Arg(args.clone()),
            });
        }
        let from = self.from(table, base, &args);
        if let Some(value) = table.get("step") {
            match value.get_ref().as_array() {
                Some(array) => {
                    for value in array.iter().take(MAX_STEPS) {
                        steps.extend(self.step(value));
                    }
                    if array.len() > MAX_STEPS {
                        self.wrong(value, format!("more than {MAX_STEPS} steps"), None);
                    }
                }
                None => self.wrong(
                    value,
                    "`step` is not a list of tables".to_owned(),
                    Some("write `[[step]]` before each"),
                ),
            }
        }
        if let Some(config) = table.get("config") {
            self.config(config, &mut steps);
        }
        Some(Recipe {
            stages: vec![Stage {
                name: None,
                line: 1,
                base: from?,
                steps,
            }],
            proxies: proxies(given, &args),
        })
    }

    fn from(&mut self, table: &DeTable<'_>, base: Option<&str>, args: &[Arg]) -> Option<Base> {
        if let Some(base) = base {
            return Some(Base::Image(base.to_owned()));
        }
        let Some(value) = table.get("from") else {
            let hint = "write `from = \"IMAGE\"` at the top";
            self.problems
                .add_with(Place::line(1), "the recipe does not say what it builds on", hint);
            return None;
        };
        let word = self.word(value, "from")?;
        let mut values: BTreeMap<&str, String> = BTreeMap::new();
        for arg in args {
            let default = arg
                .default
                .as_ref()
                .map(|word| word.expand(&|name| values.get(name).map(String::as_str)));
            if let Some(value) = arg.given.clone().or_else(|| default?.ok()) {
                values.insert(&arg.name, value);
            }
        }
        let image = match word.expand(&|name| values.get(name).map(String::as_str)) {
            Ok(image) => image,
            Err(error) => {
                self.wrong(value, error.to_string(), None);
                return None;
            }
        };
        match image.as_str() {
            "" => {
                self.wrong(
                    value,
                    "`from` is empty".to_owned(),
                    Some("`[args]` can give variables a value"),
                );
                None
            }
            "scratch" => Some(Base::Scratch),
            _ => Some(Base::Image(image)),
        }
    }

    fn args(&mut self, table: &DeTable<'_>, given: &BTreeMap<String, String>) -> Vec<Arg> {
        let mut args = Vec::new();
        if let Some(value) = table.get("args") {
            for (key, name, default) in self.table(value, "args").into_iter().flatten() {
                if !is_name(name) {
                    self.wrong_key(key, format!("{} cannot be an argument's name", quote(name)), None);
                    continue;
                }
                args.push(Arg {
                    name: name.to_owned(),
                    default: self.word(default, name),
                    given: given.get(name).cloned(),
                });
            }
        }
        let declared: BTreeSet<String> = args.iter().map(|arg| arg.name.clone()).collect();
        report_unknown(given, &declared, self.problems);
        args
    }

    fn step(&mut self, value: &Value<'_>) -> Option<Step> {
        let table = self.tables(value, "step")?;
        let has: Vec<&str> = ACTIONS
            .into_iter()
            .filter(|action| table.contains_key(*action))
            .collect();
        let [action] = has.as_slice() else {
            let what = match has.is_empty() {
                true => "the step does nothing".to_owned(),
                false => format!("the step does several things: {}", has.join(", ")),
            };
            // Keys that nobody knows are why, more often than not.
            self.only(
                table,
                "step",
                &[
                    "run", "secrets", "copy", "to", "owner", "mode", "extract", "env", "user", "workdir",
                ],
            );
            self.wrong(
                value,
                what,
                Some("each `[[step]]` has one of `run`, `copy`, `env`, `user`, `workdir`"),
            );
            return None;
        };
        let allowed: &[&str] = match *action {
            "run" => &["run", "secrets"],
            "copy" => &["copy", "to", "owner", "mode", "extract"],
            "env" => &["env"],
            "user" => &["user"],
            _ => &["workdir"],
        };
        self.only(table, &format!("step with `{action}`"), allowed);
        let (key, value) = table.get_key_value(*action)?;
        let kind = match *action {
            "run" => self.run(table, value),
            "copy" => self.copy(table, value),
            "env" => self.env(value).map(StepKind::Env),
            "user" => self.word(value, "user").map(StepKind::User),
            _ => self.word(value, "workdir").map(StepKind::Workdir),
        };
        Some(Step {
            line: self.lines.place(&key.span()).line,
            text: self.shown(key, value),
            kind: kind?,
        })
    }

    /// A key and its value as written, on one line.
    fn shown(&self, key: &Key<'_>, value: &Value<'_>) -> String {
        let written = self.text.get(value.span()).unwrap_or_default();
        let words: Vec<&str> = written.split_whitespace().collect();
        format!("{} = {}", key.get_ref(), words.join(" "))
    }

    fn run(&mut self, table: &DeTable<'_>, value: &Value<'_>) -> Option<StepKind> {
        let command = self.command(value, "run")?;
        let mut secrets = Vec::new();
        if let Some(value) = table.get("secrets") {
            for value in self.list(value, "secrets")? {
                secrets.extend(self.secret(value));
            }
        }
        match command {
            Command::Exec(argv) if argv.is_empty() => {
                self.wrong(value, "`run` has no program".to_owned(), None);
                None
            }
            command @ (Command::Shell(_) | Command::Exec(_) | Command::Script(_)) => {
                Some(StepKind::Run(Run { command, secrets }))
            }
        }
    }

    fn secret(&mut self, value: &Value<'_>) -> Option<SecretMount> {
        let mut secret = SecretMount {
            id: String::new(),
            target: Word::literal(""),
            required: true,
            mode: 0o400,
        };
        let mut target = None;
        let id = match value.get_ref().as_table() {
            Some(table) => {
                self.only(table, "secret", &["id", "target", "required", "mode"]);
                target = table.get("target").and_then(|value| self.word(value, "target"));
                if let Some(value) = table.get("required") {
                    secret.required = self.flag(value, "required")?;
                }
                if let Some(value) = table.get("mode") {
                    secret.mode = self.mode(value)?;
                }
                match table.get("id") {
                    Some(id) => self.string(id, "id")?,
                    None => String::new(),
                }
            }
            None => self.string(value, "a secret")?,
        };
        if let Err(message) = check_secret_id(&id) {
            self.wrong(value, message, None);
            return None;
        }
        secret.target = target.unwrap_or_else(|| Word::literal(format!("/run/secrets/{id}")));
        secret.id = id;
        Some(secret)
    }

    fn copy(&mut self, table: &DeTable<'_>, value: &Value<'_>) -> Option<StepKind> {
        let mut sources = Vec::new();
        for value in self.list(value, "copy")? {
            let word = self.word(value, "a source")?;
            if is_remote(word.raw()) {
                self.wrong(
                    value,
                    "downloads are not supported".to_owned(),
                    Some("a step with `run` can do them"),
                );
            }
            sources.push(word);
        }
        if sources.is_empty() {
            self.wrong(value, "`copy` has no source".to_owned(), None);
            return None;
        }
        let Some(to) = table.get("to") else {
            self.wrong(
                value,
                "`copy` without `to`".to_owned(),
                Some("`to` is the destination in the image"),
            );
            return None;
        };
        let to = self.word(to, "to")?;
        let owner = table.get("owner").and_then(|value| self.word(value, "owner"));
        let mode = table.get("mode").and_then(|value| self.mode(value));
        let extract = match table.get("extract") {
            Some(value) => self.flag(value, "extract")?,
            None => false,
        };
        Some(StepKind::Copy(Copy {
            from: From::Context,
            sources,
            to,
            owner,
            mode,
            extract,
            inline: Vec::new(),
        }))
    }

    /// What the image is run with: steps after all others.
    fn config(&mut self, value: &Value<'_>, steps: &mut Vec<Step>) {
        let Some(table) = self.tables(value, "config") else {
            return;
        };
        let known = [
            "env",
            "user",
            "workdir",
            "entrypoint",
            "cmd",
            "expose",
            "labels",
            "volumes",
            "stop_signal",
        ];
        self.only(table, "config", &known);
        // In this order: an entrypoint does away with the arguments of the base, and may come with its own.
        for name in known {
            let Some((key, value)) = table.get_key_value(name) else {
                continue;
            };
            let kind = match name {
                "env" => self.env(value).map(StepKind::Env),
                "user" => self.word(value, name).map(StepKind::User),
                "workdir" => self.word(value, name).map(StepKind::Workdir),
                "entrypoint" => self.command(value, name).map(StepKind::Entrypoint),
                "cmd" => self.command(value, name).map(StepKind::Cmd),
                "expose" => self.expose(value).map(StepKind::Expose),
                "labels" => self.labels(value).map(StepKind::Label),
                "volumes" => self.words(value, name).map(StepKind::Volume),
                _ => self.word(value, name).map(StepKind::StopSignal),
            };
            steps.extend(kind.map(|kind| Step {
                line: self.lines.place(&key.span()).line,
                text: self.shown(key, value),
                kind,
            }));
        }
    }

    fn expose(&mut self, value: &Value<'_>) -> Option<Vec<Word>> {
        let mut ports = Vec::new();
        for value in self.list(value, "expose")? {
            ports.push(match value.get_ref().as_integer() {
                Some(number) => Word::literal(number.as_str()),
                None => self.word(value, "a port")?,
            });
        }
        Some(ports)
    }

    fn env(&mut self, value: &Value<'_>) -> Option<Vec<(Word, Word)>> {
        let mut pairs = Vec::new();
        for (key, name, value) in self.table(value, "env")? {
            if name.is_empty() || name.contains(['=', '\0']) {
                self.wrong_key(key, format!("{} cannot be a variable's name", quote(name)), None);
            }
            pairs.push((Word::literal(name), self.word(value, name)?));
        }
        Some(pairs)
    }

    fn labels(&mut self, value: &Value<'_>) -> Option<Vec<(Word, Word)>> {
        let mut pairs = Vec::new();
        for (_, name, value) in self.table(value, "labels")? {
            pairs.push((Word::literal(name), self.word(value, name)?));
        }
        Some(pairs)
    }

    /// A string is for the shell, a list is a program and its arguments.
    fn command(&mut self, value: &Value<'_>, what: &str) -> Option<Command> {
        let command = match value.get_ref().as_array() {
            Some(_) => {
                let mut argv = Vec::new();
                for value in self.list(value, what)? {
                    argv.push(self.string(value, what)?);
                }
                Command::Exec(argv)
            }
            None => Command::Shell(self.string(value, what)?),
        };
        let bad = match &command {
            Command::Exec(argv) => {
                argv.first().is_some_and(String::is_empty) || argv.iter().any(|word| word.contains('\0'))
            }
            Command::Shell(line) | Command::Script(line) => line.trim().is_empty() || line.contains('\0'),
        };
        if bad {
            self.wrong(value, format!("`{what}` is not a command that can be run"), None);
            return None;
        }
        Some(command)
    }

    /// Permissions: `"0644"` or `0o644`.
    fn mode(&mut self, value: &Value<'_>) -> Option<u32> {
        let text = value.get_ref().as_str().and_then(octal);
        let number = || {
            let number = value
                .get_ref()
                .as_integer()
                .filter(|number| number.radix() == 8)?;
            octal(number.as_str())
        };
        let mode = text.or_else(number);
        if mode.is_none() {
            self.wrong(
                value,
                "`mode` is not a mode".to_owned(),
                Some("write it in octal: \"0644\" or 0o644"),
            );
        }
        mode
    }

    fn flag(&mut self, value: &Value<'_>, what: &str) -> Option<bool> {
        match value.get_ref().as_bool() {
            Some(flag) => Some(flag),
            None => {
                self.wrong(value, format!("`{what}` is neither true nor false"), None);
                None
            }
        }
    }

    fn words(&mut self, value: &Value<'_>, what: &str) -> Option<Vec<Word>> {
        let mut words = Vec::new();
        for value in self.list(value, what)? {
            words.push(self.word(value, what)?);
        }
        Some(words)
    }

    /// A string with variables in it.
    fn word(&mut self, value: &Value<'_>, what: &str) -> Option<Word> {
        let word = Word::plain(self.string(value, what)?);
        if let Err(error) = word.check() {
            self.wrong(
                value,
                error.to_string(),
                Some("`\\$` is a dollar, written '\\$' or \"\\\\$\" in TOML"),
            );
            return None;
        }
        Some(word)
    }

    fn string(&mut self, value: &Value<'_>, what: &str) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.wrong(value, format!("{} is not a string", quote(what)), None);
                None
            }
        }
    }

    /// A list, or the one value that could be in it.
    fn list<'v, 't>(&mut self, value: &'v Value<'t>, what: &str) -> Option<Vec<&'v Value<'t>>> {
        if value.get_ref().is_table() {
            self.wrong(value, format!("{} is not a list", quote(what)), None);
            return None;
        }
        match value.get_ref().as_array() {
            Some(array) => Some(array.iter().collect()),
            None => Some(vec![value]),
        }
    }

    /// A table's entries in the order of their lines.
    fn table<'v, 't>(
        &mut self,
        value: &'v Value<'t>,
        what: &str,
    ) -> Option<Vec<(&'v Key<'t>, &'v str, &'v Value<'t>)>> {
        let table = self.tables(value, what)?;
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| (key, key.get_ref().as_ref(), value))
            .collect();
        entries.sort_by_key(|(key, _, _)| key.span().start);
        Some(entries)
    }

    fn tables<'v, 't>(&mut self, value: &'v Value<'t>, what: &str) -> Option<&'v DeTable<'t>> {
        match value.get_ref().as_table() {
            Some(table) => Some(table),
            None => {
                self.wrong(value, format!("`{what}` is not a table"), None);
                None
            }
        }
    }

    /// Reports the keys that nobody reads.
    fn only(&mut self, table: &DeTable<'_>, what: &str, known: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let hint = format!("it has {}", known.join(", "));
                self.wrong_key(key, format!("a {what} has no {}", quote(name)), Some(&hint));
            }
        }
    }

    fn wrong(&mut self, value: &Value<'_>, message: String, hint: Option<&str>) {
        self.report(&value.span(), message, hint);
    }

    fn wrong_key(&mut self, key: &Key<'_>, message: String, hint: Option<&str>) {
        self.report(&key.span(), message, hint);
    }

    fn report(&mut self, span: &Range<usize>, message: String, hint: Option<&str>) {
        let place = self.lines.place(span);
        match hint {
            Some(hint) => self.problems.add_with(place, message, hint),
            None => self.problems.add(place, message),
        }
    }
}

fn proxies(given: &BTreeMap<String, String>, args: &[Arg]) -> Vec<(String, String)> {
    let undeclared = given
        .iter()
        .filter(|(name, _)| !args.iter().any(|arg| arg.name == **name));
    // Anything else that is not declared is an error.
    undeclared
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
