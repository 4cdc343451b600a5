//! Words and the substitution of variables in them, as Dockerfiles have it: `$V`, `${V}`, `${V:-w}`, `${V-w}`, `${V:+w}`,
//! `${V+w}`, `${V:?w}`, `${V?w}`; single quotes literal, double quotes with substitution, an escape character.
//!
//! The rules: <https://docs.docker.com/reference/dockerfile/#environment-replacement>.

use std::iter::Peekable;
use std::str::Chars;

/// How deep `${A:-${B:-…}}` may be nested.
const MAX_DEPTH: u32 = 32;
/// Bytes that one word may become.
const MAX_VALUE: usize = 128 << 10;

/// A word as the recipe has it, with the rules that it is written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    raw: String,
    style: Style,
}

/// What is special in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Variables, quotes, and this escape character.
    Docker { escape: char },
    /// Variables and the escape character `\`; quotes are text. Here-documents.
    Document,
    /// Variables, and `\$` for a dollar; everything else is text. The TOML form.
    Plain,
    /// Nothing.
    Literal,
}

/// Why a word cannot be substituted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// A quote without its other end.
    #[error("the quote {0} is not closed")]
    Quote(char),
    /// `${` without `}`.
    #[error("a `${{` is not closed")]
    Brace,
    /// `${}`, `${!x}` …
    #[error("a `${{…}}` does not begin with a variable's name")]
    Name,
    /// An operator of shells that Banger does not know.
    #[error("`${{{name}{operator}…}}` is not supported")]
    Operator {
        /// The variable.
        name: String,
        /// What comes after the name.
        operator: char,
    },
    /// `${V:?message}` of a variable without value.
    #[error("the variable {name} has no value: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the recipe says about it.
        message: String,
    },
    /// Nested too deeply.
    #[error("`${{…}}` is nested more than {MAX_DEPTH} deep")]
    Depth,
    /// Grown too long.
    #[error("a value has more than {MAX_VALUE} bytes")]
    Long,
}

impl Word {
    pub(crate) fn docker(raw: impl Into<String>, escape: char) -> Self {
        let raw = raw.into();
        let style = Style::Docker { escape };
        Self { raw, style }
    }

    pub(crate) fn document(raw: impl Into<String>) -> Self {
        let raw = raw.into();
        let style = Style::Document;
        Self { raw, style }
    }

    pub(crate) fn plain(raw: impl Into<String>) -> Self {
        let raw = raw.into();
        let style = Style::Plain;
        Self { raw, style }
    }

    pub(crate) fn literal(raw: impl Into<String>) -> Self {
        let raw = raw.into();
        let style = Style::Literal;
        Self { raw, style }
    }

    /// As written.
    #[must_use]
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// How it is to be read; none where it stands for itself.
    fn rules(&self) -> Option<Rules> {
        let (escape, quotes, plain) = match self.style {
            Style::Docker { escape } => (escape, true, false),
            Style::Document => ('\\', false, false),
            Style::Plain => ('\\', false, true),
            Style::Literal => return None,
        };
        Some(Rules {
            escape,
            quotes,
            plain,
        })
    }

    /// The word with its variables substituted and its quotes removed. A variable without value is worth nothing.
    pub fn expand<'v>(&self, lookup: &dyn Fn(&str) -> Option<&'v str>) -> Result<String, WordError> {
        let Some(rules) = self.rules() else {
            return Ok(self.raw.clone());
        };
        let mut expander = Expander {
            chars: self.raw.chars().peekable(),
            rules,
            lookup,
            check: false,
        };
        expander.until(None, 0)
    }

    /// Whether the word can be substituted at all, whatever its variables are worth.
    pub fn check(&self) -> Result<(), WordError> {
        let Some(rules) = self.rules() else {
            return Ok(());
        };
        let lookup = |_: &str| None;
        let mut expander = Expander {
            chars: self.raw.chars().peekable(),
            rules,
            lookup: &lookup,
            check: true,
        };
        expander.until(None, 0).map(|_| ())
    }
}

#[derive(Clone, Copy)]
struct Rules {
    escape: char,
    quotes: bool,
    /// The escape character escapes the dollar only.
    plain: bool,
}

struct Expander<'a, 'v> {
    chars: Peekable<Chars<'a>>,
    rules: Rules,
    lookup: &'a dyn Fn(&str) -> Option<&'v str>,
    /// Only the form counts: a required variable may be without value.
    check: bool,
}

impl Expander<'_, '_> {
    /// Reads to `stop`, which is consumed, or to the end.
    fn until(&mut self, stop: Option<char>, depth: u32) -> Result<String, WordError> {
        if depth > MAX_DEPTH {
            return Err(WordError::Depth);
        }
        let mut out = String::new();
        while let Some(c) = self.chars.next() {
            if Some(c) == stop {
                return Ok(out);
            }
            match c {
                '\'' if self.rules.quotes => self.single(&mut out)?,
                '"' if self.rules.quotes => self.double(&mut out, depth)?,
                '$' => self.dollar(&mut out, depth)?,
                c if c == self.rules.escape => self.escaped(&mut out),
                c => out.push(c),
            }
            if out.len() > MAX_VALUE {
                return Err(WordError::Long);
            }
        }
        match stop {
            Some(_) => Err(WordError::Brace),
            None => Ok(out),
        }
    }

    fn escaped(&mut self, out: &mut String) {
        if self.rules.plain {
            match self.chars.next_if_eq(&'$') {
                Some(dollar) => out.push(dollar),
                None => out.push(self.rules.escape),
            }
            return;
        }
        // An escape character at the very end is nothing.
        out.extend(self.chars.next());
    }

    fn single(&mut self, out: &mut String) -> Result<(), WordError> {
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(());
            }
            out.push(c);
        }
        Err(WordError::Quote('\''))
    }

    fn double(&mut self, out: &mut String, depth: u32) -> Result<(), WordError> {
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(()),
                '$' => self.dollar(out, depth)?,
                c if c == self.rules.escape => match self.chars.next() {
                    None => return Err(WordError::Quote('"')),
                    Some(next) if next == '"' || next == '$' || next == self.rules.escape => out.push(next),
                    Some(next) => {
                        out.push(c);
                        out.push(next);
                    }
                },
                c => out.push(c),
            }
            if out.len() > MAX_VALUE {
                return Err(WordError::Long);
            }
        }
        Err(WordError::Quote('"'))
    }

    /// What comes after a dollar.
    fn dollar(&mut self, out: &mut String, depth: u32) -> Result<(), WordError> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            match name.is_empty() {
                true => out.push('$'),
                false => out.push_str((self.lookup)(&name).unwrap_or_default()),
            }
            return Ok(());
        }
        let name = self.name();
        if name.is_empty() {
            return match self.chars.peek() {
                Some(_) => Err(WordError::Name),
                None => Err(WordError::Brace),
            };
        }
        let value = (self.lookup)(&name);
        let operator = match self.chars.next() {
            None => return Err(WordError::Brace),
            Some('}') => {
                out.push_str(value.unwrap_or_default());
                return Ok(());
            }
            Some(':') => match self.chars.next() {
                None => return Err(WordError::Brace),
                Some(operator) => (operator, value.filter(|value| !value.is_empty())),
            },
            Some(operator) => (operator, value),
        };
        match operator {
            ('-', value) => {
                let word = self.until(Some('}'), depth + 1)?;
                out.push_str(value.unwrap_or(&word));
            }
            ('+', value) => {
                let word = self.until(Some('}'), depth + 1)?;
                out.push_str(value.map_or("", |_| &word));
            }
            ('?', value) => {
                let message = self.until(Some('}'), depth + 1)?;
                match value {
                    Some(value) => out.push_str(value),
                    None if self.check => {}
                    None => return Err(WordError::Required { name, message }),
                }
            }
            (operator, _) => return Err(WordError::Operator { name, operator }),
        }
        Ok(())
    }

    /// A variable's name: letters, digits and `_`; or the digits of a shell's positional parameter; or the one character of
    /// a shell's special parameter. The latter two are never set here, so they are worth nothing.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek() {
            Some(c) if c.is_ascii_digit() => {
                while let Some(c) = self.chars.next_if(char::is_ascii_digit) {
                    name.push(c);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') if !self.rules.plain => {
                name.extend(self.chars.next());
            }
            Some(_) | None => {
                while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }
}

/// Whether this can be a variable's name.
pub(crate) fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}
