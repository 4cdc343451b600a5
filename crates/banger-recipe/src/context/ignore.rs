//! `.dockerignore`: <https://docs.docker.com/build/concepts/context/#dockerignore-files>. The last line that matches a path,
//! or a directory that it is in, decides.

use super::ContextError;
use super::pattern::Pattern;

/// Lines that say something.
const MAX_RULES: usize = 4096;

/// The rules of one file.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    /// `!`: what is matched is not left out after all.
    keep: bool,
}

/// Which rules match a directory, so that what is in it need not ask again.
#[derive(Debug, Clone, Default)]
pub(super) struct Matched(Vec<bool>);

impl Ignore {
    pub(super) fn parse(file: &str, text: &str) -> Result<Self, ContextError> {
        let mut rules = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (keep, written) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let bad = || ContextError::IgnorePattern {
                file: file.to_owned(),
                line: u32::try_from(number + 1).unwrap_or(u32::MAX),
                pattern: line.chars().take(80).collect(),
            };
            if written.is_empty() {
                match keep {
                    true => return Err(bad()),
                    false => continue,
                }
            }
            let cleaned = clean(written);
            // The context itself is never left out, nor is anything above it in it.
            if cleaned.is_empty() {
                continue;
            }
            if rules.len() == MAX_RULES {
                return Err(bad());
            }
            let pattern = Pattern::ignore(&cleaned).map_err(|_| bad())?;
            rules.push(Rule { pattern, keep });
        }
        Ok(Self { rules })
    }

    /// Whether a path is left out, given which rules match the directory that it is in (the default for the context itself);
    /// and which rules match it.
    pub(super) fn excludes(&self, path: &str, parent: &Matched) -> (bool, Matched) {
        let mut excluded = false;
        let mut matched = Vec::with_capacity(self.rules.len());
        for (index, rule) in self.rules.iter().enumerate() {
            let matches = parent.0.get(index).copied().unwrap_or_default() || rule.pattern.matches(path);
            if matches {
                excluded = !rule.keep;
            }
            matched.push(matches);
        }
        (excluded, Matched(matched))
    }

    /// Whether nothing in a directory that is left out can be kept by a `!` rule.
    pub(super) fn hides_all(&self, directory: &str) -> bool {
        self.rules
            .iter()
            .filter(|rule| rule.keep)
            .all(|rule| rule.pattern.never_below(directory))
    }
}

/// Go's `filepath.Clean`, and without a slash at the beginning.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
