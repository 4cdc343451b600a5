//! Stages: what begins one, who may name it, and which ones a target needs.

use super::globals::{self, Globals};
use super::instructions;
use super::lines::Instruction;
use super::words;
use crate::error::{Place, Problems, quote};
use crate::recipe::{Base, From, Recipe, Stage, Step, StepKind};
use crate::word::Word;

/// The stages of a file, in its order; what they refer to is counted in that order as well.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    escape: char,
    /// Takes the place of the first stage's image.
    base: Option<&'a str>,
    stages: Vec<ReadStage>,
}

#[derive(Debug)]
struct ReadStage {
    stage: Stage,
    /// What Banger does not do: of no interest if the stage is not needed.
    unsupported: Problems,
}

/// Stages that come before a certain one, for `FROM` and `--from`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Earlier<'s> {
    names: &'s [ReadStage],
}

impl Earlier<'_> {
    /// The last one of a name.
    pub(super) fn named(self, name: &str) -> Option<usize> {
        self.names.iter().rposition(|read| {
            let known = read.stage.name.as_deref();
            known.is_some_and(|known| known.eq_ignore_ascii_case(name))
        })
    }

    pub(super) fn len(self) -> usize {
        self.names.len()
    }
}

impl<'a> Stages<'a> {
    pub(super) fn new(escape: char, base: Option<&'a str>) -> Self {
        Self {
            escape,
            base,
            stages: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.stages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// A `FROM`.
    pub(super) fn begin(
        &mut self,
        instruction: &Instruction,
        globals: &Globals<'_>,
        problems: &mut Problems,
    ) {
        let mut unsupported = Problems::default();
        let (name, base) = self.from(instruction, globals, problems, &mut unsupported);
        self.push(instruction, name, base, unsupported);
    }

    /// Something that should have been a `FROM`.
    pub(super) fn begin_anyway(&mut self, instruction: &Instruction) {
        self.push(instruction, None, Base::Scratch, Problems::default());
    }

    fn push(&mut self, instruction: &Instruction, name: Option<String>, base: Base, unsupported: Problems) {
        let stage = Stage {
            name,
            line: instruction.place().line,
            base,
            steps: Vec::new(),
        };
        self.stages.push(ReadStage { stage, unsupported });
    }

    fn from(
        &self,
        instruction: &Instruction,
        globals: &Globals<'_>,
        problems: &mut Problems,
        unsupported: &mut Problems,
    ) -> (Option<String>, Base) {
        let expand = |word: &str| Word::docker(word, self.escape).expand(&|name| globals.get(name));
        let (flags, begin) = words::flags(&instruction.rest, self.escape);
        for flag in flags {
            let place = instruction.at(flag.offset);
            match (flag.name.as_str(), flag.value.as_deref().map(expand)) {
                ("platform", Some(Ok(value))) if value == globals::platform().0 => {}
                ("platform", Some(Ok(value))) => unsupported.add_with(
                    place,
                    format!("cannot build for the platform {}", quote(&value)),
                    format!("this host is {}", globals::platform().0),
                ),
                ("platform", Some(Err(error))) => problems.add(place, error.to_string()),
                ("platform", None) => problems.add(place, "`--platform` needs a value"),
                (other, _) => problems.add(
                    place,
                    format!("FROM has no flag {}", quote(&format!("--{other}"))),
                ),
            }
        }
        let rest = instruction.rest.get(begin..).unwrap_or_default();
        let pieces = words::bare(rest).unwrap_or_default();
        let (image, name) = match pieces.as_slice() {
            [image] => (image, None),
            [image, by, name] if by.text.eq_ignore_ascii_case("as") => (image, Some(name)),
            _ => {
                problems.add_with(
                    instruction.place(),
                    "FROM does not name one image",
                    "write `FROM IMAGE` or `FROM IMAGE AS NAME`",
                );
                return (None, Base::Scratch);
            }
        };
        let name = name.and_then(|piece| {
            let mut chars = piece.text.chars();
            let good = chars.next().is_some_and(|c| c.is_ascii_alphabetic())
                && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
            if !good {
                problems.add_with(
                    instruction.at(begin + piece.offset),
                    format!("{} cannot be a stage's name", quote(&piece.text)),
                    "a letter, then letters, digits, `-`, `_`, `.`",
                );
            }
            good.then(|| piece.text.clone())
        });
        if let (Some(base), true) = (self.base, self.stages.is_empty()) {
            return (name, Base::Image(base.to_owned()));
        }
        let place = instruction.at(begin + image.offset);
        let base = match expand(&image.text) {
            Ok(image) if image.eq_ignore_ascii_case("scratch") => Base::Scratch,
            Ok(value) if value.is_empty() => {
                problems.add_with(
                    place,
                    format!("{} is worth nothing here", quote(&image.text)),
                    "an `ARG` before the first `FROM` can give it a value; those of stages do not count",
                );
                Base::Scratch
            }
            Ok(image) => match self.earlier().named(&image) {
                Some(stage) => Base::Stage(stage),
                None => Base::Image(image),
            },
            Err(error) => {
                problems.add(place, error.to_string());
                Base::Scratch
            }
        };
        (name, base)
    }

    fn earlier(&self) -> Earlier<'_> {
        Earlier { names: &self.stages }
    }

    /// An instruction of the last stage.
    pub(super) fn step(
        &mut self,
        instruction: &Instruction,
        globals: &mut Globals<'_>,
        problems: &mut Problems,
    ) {
        let Some((last, earlier)) = self.stages.split_last_mut() else {
            return;
        };
        let mut reader = instructions::Reader {
            instruction,
            escape: self.escape,
            earlier: Earlier { names: earlier },
            own_name: last.stage.name.as_deref(),
            globals,
            problems,
            unsupported: &mut last.unsupported,
        };
        if let Some(kind) = reader.step() {
            last.stage.steps.push(Step {
                line: instruction.place().line,
                text: instruction.text(),
                kind,
            });
        }
    }

    /// The recipe for a target: the stages that it needs, counted anew.
    pub(super) fn target(
        self,
        target: Option<&str>,
        proxies: Vec<(String, String)>,
        problems: &mut Problems,
    ) -> Option<Recipe> {
        let Some(last) = self.stages.len().checked_sub(1) else {
            problems.add_with(
                Place::line(1),
                "the recipe has no `FROM`",
                "begin with `FROM IMAGE`",
            );
            return None;
        };
        let number = |text: &str| text.parse().ok().filter(|number| *number <= last);
        let target = match target {
            None => Some(last),
            Some(target) => self.earlier().named(target).or_else(|| number(target)),
        };
        let Some(target) = target else {
            let names: Vec<&str> = self
                .stages
                .iter()
                .filter_map(|read| read.stage.name.as_deref())
                .collect();
            let hint = match names.is_empty() {
                true => format!("its stages have no names, only numbers from 0 to {last}"),
                false => format!("it has {}", names.join(", ")),
            };
            problems.request("the recipe has no such stage as the target", hint);
            // With a wrong target, what the whole file needs of us is worth knowing as well.
            for read in self.stages {
                problems.append(read.unsupported);
            }
            return None;
        };
        Some(keep(self.stages, target, proxies, problems))
    }
}

/// Only what `target` needs. References go back only, so one pass from the end finds all, and order is kept.
fn keep(
    stages: Vec<ReadStage>,
    target: usize,
    proxies: Vec<(String, String)>,
    problems: &mut Problems,
) -> Recipe {
    let mut needed = vec![false; stages.len()];
    for (index, read) in stages.iter().enumerate().take(target + 1).rev() {
        if index != target && needed.get(index) != Some(&true) {
            continue;
        }
        let mut need = |index: usize| {
            if let Some(flag) = needed.get_mut(index) {
                *flag = true;
            }
        };
        need(index);
        if let Base::Stage(base) = read.stage.base {
            need(base);
        }
        for step in &read.stage.steps {
            if let Some(From::Stage(from)) = copies_from(&step.kind) {
                need(*from);
            }
        }
    }
    let mut renumbered = vec![0; stages.len()];
    let mut kept: Vec<Stage> = Vec::new();
    for (index, mut read) in stages.into_iter().enumerate() {
        if needed.get(index) != Some(&true) {
            continue;
        }
        problems.append(read.unsupported);
        if let Base::Stage(base) = &mut read.stage.base {
            *base = renumbered.get(*base).copied().unwrap_or_default();
        }
        for step in &mut read.stage.steps {
            if let StepKind::Copy(copy) = &mut step.kind
                && let From::Stage(from) = &mut copy.from
            {
                *from = renumbered.get(*from).copied().unwrap_or_default();
            }
        }
        if let Some(number) = renumbered.get_mut(index) {
            *number = kept.len();
        }
        kept.push(read.stage);
    }
    Recipe {
        stages: kept,
        proxies,
    }
}

fn copies_from(kind: &StepKind) -> Option<&From> {
    if let StepKind::Copy(copy) = kind {
        Some(&copy.from)
    } else {
        None
    }
}
