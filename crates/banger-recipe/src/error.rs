//! What is wrong with a recipe: every problem found, each with its place and what to do instead.

use std::fmt;

/// Problems that are kept; a file with more of them is no recipe, and nobody reads on.
const MAX_PROBLEMS: usize = 64;
/// Bytes of a recipe's own text that a message quotes.
const MAX_QUOTE: usize = 80;

/// A place in a recipe's text. Lines and columns count from 1; columns are of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Place {
    /// The first column of a line.
    #[must_use]
    pub fn line(line: u32) -> Self {
        Self { line, column: 1 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; none for what is wrong with the request (a build argument, the target) and not with a line.
    pub place: Option<Place>,
    /// What is wrong: a lowercase fragment without a full stop.
    pub message: String,
    /// What to do instead, where that is not said by the message.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a recipe, in the order of its lines. Shown as one line per problem, each beginning with
/// the file's name and place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Errors {
    /// The file's name, as it was given.
    pub name: String,
    /// At least one; the first 64.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            match problem.place {
                Some(place) => write!(f, "{}:{place}: {problem}", self.name)?,
                None => write!(f, "{}: {problem}", self.name)?,
            }
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\n{}: {more} more problems", self.name),
        }
    }
}

/// Collects problems while a front end reads on.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, place: Place, message: impl Into<String>) {
        self.push(Some(place), message.into(), None);
    }

    pub(crate) fn add_with(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.push(Some(place), message.into(), Some(hint.into()));
    }

    pub(crate) fn request(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.push(None, message.into(), Some(hint.into()));
    }

    /// Adds what was found elsewhere.
    pub(crate) fn append(&mut self, other: Problems) {
        self.more += other.more;
        for problem in other.found {
            self.push(problem.place, problem.message, problem.hint);
        }
    }

    fn push(&mut self, place: Option<Place>, message: String, hint: Option<String>) {
        if self.found.len() == MAX_PROBLEMS {
            self.more += 1;
            return;
        }
        self.found.push(Problem { place, message, hint });
    }

    /// The value, if nothing is wrong.
    pub(crate) fn finish<T>(mut self, name: &str, value: Option<T>) -> Result<T, Errors> {
        // By line, so that what is noticed at the end stands where it belongs; the sort is stable.
        self.found.sort_by_key(|problem| problem.place);
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            Some(_) | None => {
                if self.found.is_empty() {
                    self.push(None, "nothing to build".to_owned(), None);
                }
                Err(Errors {
                    name: name.to_owned(),
                    problems: self.found,
                    more: self.more,
                })
            }
        }
    }
}

/// A piece of the recipe's text as a message quotes it: in backquotes, on one line, cut where it is long.
pub(crate) fn quote(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX_QUOTE)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MAX_QUOTE).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}
