//! One instruction to one step.

use super::flags::{self, MountError, octal};
use super::globals::Globals;
use super::lines::Instruction;
use super::stages::Earlier;
use super::words::{self, Flag, Wrong};
use crate::environment::is_remote;
use crate::error::{Problems, quote};
use crate::recipe::{Command, Copy, From, Inline, Run, StepKind};
use crate::word::Word;

/// What one instruction is read with.
pub(super) struct Reader<'r, 'g> {
    pub(super) instruction: &'r Instruction,
    pub(super) escape: char,
    pub(super) earlier: Earlier<'r>,
    /// The name of the stage that the instruction is in.
    pub(super) own_name: Option<&'r str>,
    pub(super) globals: &'r mut Globals<'g>,
    pub(super) problems: &'r mut Problems,
    pub(super) unsupported: &'r mut Problems,
}

impl Reader<'_, '_> {
    /// The step; none if there is nothing to do, or something was wrong.
    pub(super) fn step(&mut self) -> Option<StepKind> {
        let keyword = self.instruction.keyword.as_str();
        if self.instruction.rest.is_empty() && is_known(keyword) {
            self.wrong(0, format!("{keyword} has nothing after it"));
            return None;
        }
        match keyword {
            "RUN" => self.run(),
            "COPY" | "ADD" => self.copy(keyword == "ADD"),
            "ENV" => self.pairs().map(StepKind::Env),
            "LABEL" => self.pairs().map(StepKind::Label),
            "ARG" => Some(StepKind::Arg(self.globals.stage(
                self.instruction,
                self.escape,
                self.problems,
            ))),
            "USER" => self.whole().map(StepKind::User),
            "WORKDIR" => self.whole().map(StepKind::Workdir),
            "STOPSIGNAL" => self.whole().map(StepKind::StopSignal),
            "ENTRYPOINT" => self.command(0).map(StepKind::Entrypoint),
            "CMD" => self.command(0).map(StepKind::Cmd),
            "EXPOSE" => self.list(false).map(StepKind::Expose),
            "VOLUME" => self.list(true).map(StepKind::Volume),
            "SHELL" => self.shell(),
            "MAINTAINER" => {
                let name = Word::literal("maintainer");
                Some(StepKind::Label(vec![(
                    name,
                    Word::literal(self.instruction.rest.as_str()),
                )]))
            }
            "HEALTHCHECK" => {
                if !self.instruction.rest.eq_ignore_ascii_case("NONE") {
                    self.refuse(
                        0,
                        "HEALTHCHECK",
                        "remove it: a machine's health is that of its system, see `banger vm health`",
                    );
                }
                None
            }
            "ONBUILD" => {
                self.refuse(
                    0,
                    "ONBUILD",
                    "write the instruction into the recipes that build on this image",
                );
                None
            }
            other => {
                let place = self.instruction.place();
                self.problems
                    .add(place, format!("there is no instruction {}", quote(other)));
                None
            }
        }
    }

    fn run(&mut self) -> Option<StepKind> {
        let (flags, begin) = words::flags(&self.instruction.rest, self.escape);
        let mut secrets = Vec::new();
        for flag in flags {
            match (flag.name.as_str(), flag.value.as_deref()) {
                ("mount", Some(value)) => match flags::mount(value, self.escape) {
                    Ok(secret) => secrets.push(secret),
                    Err(MountError::Wrong(message)) => self.wrong(flag.offset, message),
                    Err(MountError::Unsupported(what, instead)) => self.refuse(flag.offset, &what, instead),
                },
                // What is meant when nothing is said.
                ("network", Some("default")) | ("security", Some("sandbox")) => {}
                ("network", Some(_)) => self.refuse(
                    flag.offset,
                    "`--network`",
                    "every step has the build machine's network",
                ),
                ("security", Some(_)) => self.refuse(
                    flag.offset,
                    "`--security`",
                    "drop it: steps run in a machine of their own, as root",
                ),
                ("device", _) => self.refuse(
                    flag.offset,
                    "`--device`",
                    "drop it: build machines have no devices of the host",
                ),
                ("mount" | "network" | "security", None) => {
                    self.wrong(flag.offset, format!("`--{}` needs a value", flag.name));
                }
                (other, _) => self.unknown_flag(other, flag.offset),
            }
        }
        let command = match self.instruction.documents.is_empty() {
            true => self.command(begin)?,
            false => self.documents(begin),
        };
        if command == Command::Exec(Vec::new()) {
            self.wrong(begin, "RUN has no program".to_owned());
            return None;
        }
        Some(StepKind::Run(Run { command, secrets }))
    }

    /// The command of a `RUN` with here-documents.
    fn documents(&self, begin: usize) -> Command {
        let instruction = self.instruction;
        let line = instruction.rest.get(begin..).unwrap_or_default();
        let marks = words::document_marks(&instruction.rest, self.escape);
        // Nothing but the document: it is the script.
        if let ([document], [mark]) = (instruction.documents.as_slice(), marks.as_slice())
            && mark.offset == begin
            && mark.length == line.len()
        {
            return match document.content.starts_with("#!") {
                true => Command::Script(document.content.clone()),
                false => Command::Shell(document.content.clone()),
            };
        }
        // The shell reads them, as it does in a script.
        let mut command = line.to_owned();
        for document in &instruction.documents {
            command.push('\n');
            command.push_str(document.raw.trim_end_matches(['\n', '\r']));
        }
        command.push('\n');
        Command::Shell(command)
    }

    fn copy(&mut self, add: bool) -> Option<StepKind> {
        let keyword = if add { "ADD" } else { "COPY" };
        let (flags, begin) = words::flags(&self.instruction.rest, self.escape);
        let mut copy = Copy {
            from: From::Context,
            sources: Vec::new(),
            to: Word::literal(""),
            owner: None,
            mode: None,
            extract: add,
            inline: Vec::new(),
        };
        for flag in flags {
            self.copy_flag(&flag, add, &mut copy);
        }
        let rest = self.instruction.rest.get(begin..).unwrap_or_default();
        let mut pieces: Vec<(String, usize)> = match words::json(rest) {
            Some(words) => words.into_iter().map(|word| (word, begin)).collect(),
            None => match words::bare(rest) {
                Ok(pieces) => pieces
                    .into_iter()
                    .map(|piece| (piece.text, begin + piece.offset))
                    .collect(),
                Err(wrong) => {
                    self.cannot_split(wrong, begin);
                    return None;
                }
            },
        };
        let marks = words::document_marks(&self.instruction.rest, self.escape);
        pieces.retain(|(_, offset)| {
            !marks
                .iter()
                .any(|mark| (mark.offset..mark.offset + mark.length).contains(offset))
        });
        for document in &self.instruction.documents {
            copy.inline.push(Inline {
                name: document.name.clone(),
                content: match document.expand {
                    true => Word::document(document.content.as_str()),
                    false => Word::literal(document.content.as_str()),
                },
            });
        }
        let to = pieces.pop();
        let Some((to, to_offset)) = to.filter(|_| !(pieces.is_empty() && copy.inline.is_empty())) else {
            self.wrong(begin, format!("{keyword} needs a source and a destination"));
            return None;
        };
        copy.to = self.word(to, to_offset);
        for (source, offset) in pieces {
            if add && is_remote(&source) {
                self.refuse(
                    offset,
                    "ADD from elsewhere",
                    "`RUN curl -fsSLo FILE URL` or `RUN git clone` can do it",
                );
                continue;
            }
            let word = self.word(source, offset);
            copy.sources.push(word);
        }
        for (index, inline) in copy.inline.iter().enumerate() {
            let bad_name = inline.name.contains('/') || matches!(inline.name.as_str(), "." | "..");
            if bad_name
                || copy
                    .inline
                    .iter()
                    .skip(index + 1)
                    .any(|other| other.name == inline.name)
            {
                let place = self.instruction.place();
                self.problems.add(
                    place,
                    format!("{} cannot be a file's name here", quote(&inline.name)),
                );
            }
            if let Err(error) = inline.content.check() {
                let place = self.instruction.place();
                let hint = format!("`<<\"{}\"` takes the here-document literally", inline.name);
                self.problems
                    .add_with(place, format!("the here-document: {error}"), hint);
            }
        }
        Some(StepKind::Copy(copy))
    }

    fn copy_flag(&mut self, flag: &Flag, add: bool, copy: &mut Copy) {
        let Flag { name, value, offset } = flag;
        match (name.as_str(), value.as_deref()) {
            // Layers of their own are how images of layers are made faster; here are none.
            ("link", None | Some("true" | "false")) => {}
            ("from", Some(from)) if !add => {
                if let Some(from) = self.copies_from(from, *offset) {
                    copy.from = from;
                }
            }
            ("chown", Some(owner)) if !owner.is_empty() => {
                let word = self.word(owner.to_owned(), *offset);
                copy.owner = Some(word);
            }
            ("chmod", Some(mode)) => match octal(mode) {
                Some(mode) => copy.mode = Some(mode),
                None => {
                    let place = self.instruction.at(*offset);
                    self.problems.add_with(
                        place,
                        format!("{} is not a mode", quote(mode)),
                        "write it in octal: `--chmod=0755`",
                    );
                }
            },
            ("parents", _) => self.refuse(*offset, "`--parents`", "copy the directory, or one file each"),
            ("exclude", _) => self.refuse(*offset, "`--exclude`", "`.dockerignore` can leave files out"),
            ("checksum" | "keep-git-dir", _) if add => {
                self.refuse(*offset, &format!("`--{name}`"), "sources are in the context only");
            }
            ("unpack", None | Some("true")) if add => copy.extract = true,
            ("unpack", Some("false")) if add => copy.extract = false,
            ("from", Some(_)) => self.wrong(*offset, "ADD has no `--from`: COPY has".to_owned()),
            ("from" | "chown", _) | ("chmod", None) => {
                self.wrong(*offset, format!("`--{name}` needs a value"));
            }
            (other, _) => self.unknown_flag(other, *offset),
        }
    }

    /// A stage's name or number, or an image.
    fn copies_from(&mut self, from: &str, offset: usize) -> Option<From> {
        if let Some(stage) = self.earlier.named(from) {
            return Some(From::Stage(stage));
        }
        let hint = "stages that come before this one have a name or a number";
        if from.bytes().all(|byte| byte.is_ascii_digit()) {
            if let Some(stage) = from.parse().ok().filter(|stage| *stage < self.earlier.len()) {
                return Some(From::Stage(stage));
            }
            let place = self.instruction.at(offset);
            self.problems.add_with(
                place,
                format!("there is no stage {} before this one", quote(from)),
                hint,
            );
            return None;
        }
        let own = self.own_name.is_some_and(|own| own.eq_ignore_ascii_case(from));
        let place = self.instruction.at(offset);
        if own || from.eq_ignore_ascii_case("scratch") {
            self.problems
                .add_with(place, format!("nothing can be copied from {}", quote(from)), hint);
            return None;
        }
        if from.contains('$') {
            let hint = "give it a name: `FROM IMAGE AS NAME`, and copy from NAME";
            self.problems
                .add_with(place, "`--from` does not substitute variables", hint);
            return None;
        }
        Some(From::Image(from.to_owned()))
    }

    /// Shell form or JSON form, from `begin` on.
    fn command(&mut self, begin: usize) -> Option<Command> {
        let rest = self.instruction.rest.get(begin..).unwrap_or_default();
        if rest.is_empty() {
            self.wrong(begin, format!("{} has no command", self.instruction.keyword));
            return None;
        }
        if let Some(argv) = words::json(rest) {
            if argv.iter().any(|word| word.contains('\0')) || argv.first().is_some_and(String::is_empty) {
                self.wrong(begin, "no program can be called like this".to_owned());
                return None;
            }
            return Some(Command::Exec(argv));
        }
        if words::is_other_json(rest) {
            self.wrong(
                begin,
                "an array with something that is not a string: put it in double quotes".to_owned(),
            );
            return None;
        }
        if rest.contains('\0') {
            self.wrong(begin, "a NUL byte in a command".to_owned());
            return None;
        }
        Some(Command::Shell(rest.to_owned()))
    }

    fn shell(&mut self) -> Option<StepKind> {
        match words::json(&self.instruction.rest) {
            Some(argv) if argv.first().is_some_and(|program| !program.is_empty()) => {
                Some(StepKind::Shell(argv))
            }
            Some(_) | None => {
                let place = self.instruction.at(0);
                self.problems.add_with(
                    place,
                    "SHELL is not an array of strings",
                    "write `SHELL [\"/bin/bash\", \"-c\"]`",
                );
                None
            }
        }
    }

    fn pairs(&mut self) -> Option<Vec<(Word, Word)>> {
        let pairs = match words::pairs(&self.instruction.rest, self.escape) {
            Ok(pairs) => pairs,
            Err(wrong) => {
                self.cannot_split(wrong, 0);
                return None;
            }
        };
        let pair = |(name, value, offset)| (self.word(name, offset), self.word(value, offset));
        Some(pairs.into_iter().map(pair).collect())
    }

    fn list(&mut self, or_json: bool) -> Option<Vec<Word>> {
        if or_json && let Some(words) = words::json(&self.instruction.rest) {
            return Some(words.into_iter().map(|word| self.word(word, 0)).collect());
        }
        match words::bare(&self.instruction.rest) {
            Ok(pieces) => Some(
                pieces
                    .into_iter()
                    .map(|piece| self.word(piece.text, piece.offset))
                    .collect(),
            ),
            Err(wrong) => {
                self.cannot_split(wrong, 0);
                None
            }
        }
    }

    fn whole(&mut self) -> Option<Word> {
        Some(self.word(self.instruction.rest.clone(), 0))
    }

    /// A word; one that cannot be substituted is reported.
    fn word(&mut self, raw: String, offset: usize) -> Word {
        let word = Word::docker(raw, self.escape);
        if let Err(error) = word.check() {
            self.wrong(offset, error.to_string());
        }
        word
    }

    fn wrong(&mut self, offset: usize, message: String) {
        self.problems.add(self.instruction.at(offset), message);
    }

    fn cannot_split(&mut self, (offset, message): Wrong, begin: usize) {
        self.wrong(begin + offset, message);
    }

    fn unknown_flag(&mut self, flag: &str, offset: usize) {
        let keyword = &self.instruction.keyword;
        self.wrong(
            offset,
            format!("{keyword} has no flag {}", quote(&format!("--{flag}"))),
        );
    }

    fn refuse(&mut self, offset: usize, what: &str, instead: &str) {
        let place = self.instruction.at(offset);
        self.unsupported
            .add_with(place, format!("{what} is not supported"), instead);
    }
}

fn is_known(keyword: &str) -> bool {
    let known = [
        "RUN",
        "COPY",
        "ADD",
        "ENV",
        "LABEL",
        "ARG",
        "USER",
        "WORKDIR",
        "STOPSIGNAL",
        "ENTRYPOINT",
        "CMD",
        "EXPOSE",
        "VOLUME",
        "SHELL",
        "MAINTAINER",
        "HEALTHCHECK",
        "ONBUILD",
    ];
    known.contains(&keyword)
}
