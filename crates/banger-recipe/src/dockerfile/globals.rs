//! Build arguments: those given, those that `ARG` before the first `FROM` declares, and those known beforehand.

use std::collections::{BTreeMap, BTreeSet};

use super::lines::Instruction;
use super::words;
use crate::error::{Problems, quote};
use crate::recipe::Arg;
use crate::word::{Word, is_name};

/// Arguments that need no declaration, in capitals; both spellings are known.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Whether an argument needs no declaration.
pub(crate) fn is_proxy(name: &str) -> bool {
    PROXIES
        .iter()
        .any(|proxy| name == *proxy || name == proxy.to_ascii_lowercase())
}

/// The platform that everything is built on and for, as OCI spells it.
pub(super) fn platform() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("linux/amd64", "amd64"),
        "aarch64" => ("linux/arm64", "arm64"),
        other => (other, other),
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Globals<'a> {
    given: &'a BTreeMap<String, String>,
    /// With a value or without.
    values: BTreeMap<String, Option<String>>,
    /// By any `ARG` of the file.
    declared: BTreeSet<String>,
}

impl<'a> Globals<'a> {
    pub(super) fn new(given: &'a BTreeMap<String, String>) -> Self {
        let (platform, architecture) = platform();
        let mut values = BTreeMap::new();
        for side in ["TARGET", "BUILD"] {
            for (name, value) in [
                ("PLATFORM", platform),
                ("OS", "linux"),
                ("ARCH", architecture),
                ("VARIANT", ""),
            ] {
                values.insert(format!("{side}{name}"), Some(value.to_owned()));
            }
        }
        Self {
            given,
            values,
            declared: BTreeSet::new(),
        }
    }

    /// An `ARG` before the first `FROM`.
    pub(super) fn declare(&mut self, instruction: &Instruction, escape: char, problems: &mut Problems) {
        for arg in self.read(instruction, escape, problems) {
            let value = match (self.given.get(&arg.name), &arg.default) {
                (Some(given), _) => Some(given.clone()),
                (None, None) => self.get(&arg.name).map(str::to_owned),
                (None, Some(default)) => match default.expand(&|name| self.get(name)) {
                    Ok(value) => Some(value),
                    Err(error) => {
                        problems.add(instruction.place(), format!("`ARG {}`: {error}", arg.name));
                        None
                    }
                },
            };
            self.values.insert(arg.name, value);
        }
    }

    /// An `ARG` of a stage.
    pub(super) fn stage(
        &mut self,
        instruction: &Instruction,
        escape: char,
        problems: &mut Problems,
    ) -> Vec<Arg> {
        let mut args = self.read(instruction, escape, problems);
        for arg in &mut args {
            let global = || match arg.default {
                None => self.get(&arg.name).map(str::to_owned),
                Some(_) => None,
            };
            arg.given = self.given.get(&arg.name).cloned().or_else(global);
        }
        args
    }

    fn read(&mut self, instruction: &Instruction, escape: char, problems: &mut Problems) -> Vec<Arg> {
        let words = match words::quoted(&instruction.rest, escape) {
            Ok(words) => words,
            Err((offset, message)) => {
                problems.add(instruction.at(offset), message);
                return Vec::new();
            }
        };
        if words.is_empty() {
            problems.add_with(
                instruction.place(),
                "ARG without a name",
                "write `ARG NAME` or `ARG NAME=default`",
            );
        }
        let mut args = Vec::with_capacity(words.len());
        for word in words {
            let (name, default) = match word.text.split_once('=') {
                Some((name, default)) => (name.to_owned(), Some(Word::docker(default, escape))),
                None => (word.text, None),
            };
            let place = instruction.at(word.offset);
            if !is_name(&name) {
                problems.add(place, format!("{} cannot be an argument's name", quote(&name)));
                continue;
            }
            if let Some(Err(error)) = default.as_ref().map(Word::check) {
                problems.add(place, error.to_string());
                continue;
            }
            self.declared.insert(name.clone());
            args.push(Arg {
                name,
                default,
                given: None,
            });
        }
        args
    }

    /// What an argument is worth outside of stages.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.as_deref()
    }

    /// Reports given arguments that nothing declares.
    pub(super) fn unknown(&self, problems: &mut Problems) {
        report_unknown(self.given, &self.declared, problems);
    }

    /// Given proxies that nothing declares.
    pub(super) fn proxies(&self) -> Vec<(String, String)> {
        let undeclared = self
            .given
            .iter()
            .filter(|(name, _)| is_proxy(name) && !self.declared.contains(*name));
        undeclared
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

/// Reports arguments that are neither declared nor a proxy's.
pub(crate) fn report_unknown(
    given: &BTreeMap<String, String>,
    declared: &BTreeSet<String>,
    problems: &mut Problems,
) {
    for name in given
        .keys()
        .filter(|name| !declared.contains(*name) && !is_proxy(name))
    {
        let names: Vec<&str> = declared.iter().map(String::as_str).take(32).collect();
        let hint = match names.is_empty() {
            true => "it declares none".to_owned(),
            false => format!("it declares {}", names.join(", ")),
        };
        problems.request(format!("the recipe has no build argument {}", quote(name)), hint);
    }
}
