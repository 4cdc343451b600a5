//! Patterns of file names, in Go's two dialects that Docker has: `filepath.Match` for the sources of `COPY`
//! (<https://pkg.go.dev/path/filepath#Match>), and that of `.dockerignore`, which has `**` as well.
//!
//! Matching takes time in proportion to the pattern's length times the name's, whatever the pattern.

/// Characters of one pattern.
const MAX_PATTERN: usize = 4096;

/// A pattern that is none: a `[` without `]`, a range from high to low, an escape character at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadPattern;

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    kind: PatternKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PatternKind {
    /// `a/b`
    Exact(String),
    /// `a/b/**`, kept with its slash.
    Prefix(String),
    /// `**/a`, kept with its slash; `**.md`.
    Suffix(String),
    Tokens(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`: any character but a slash.
    One,
    /// `*`: any of them, or none.
    Many,
    /// `**` at the end: anything.
    All,
    /// `**/`: nothing, or anything that ends with a slash.
    Directories,
    /// `[a-z]`, `[^a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// One component of a `COPY` source.
    pub(super) fn component(text: &str) -> Result<Self, BadPattern> {
        let mut tokens = Vec::new();
        let mut chars = bounded(text)?.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Many,
                '?' => Token::One,
                '[' => class(&mut chars)?,
                '\\' => Token::Char(chars.next().ok_or(BadPattern)?),
                c => Token::Char(c),
            });
        }
        let kind = PatternKind::Tokens(tokens);
        Ok(Self { kind })
    }

    /// One line of `.dockerignore`, cleaned, without `!`.
    pub(super) fn ignore(text: &str) -> Result<Self, BadPattern> {
        let special = |text: &str| text.contains(['*', '?', '[', ']', '\\']);
        let text = bounded(text)?;
        let kind = match (text.strip_prefix("**"), text.strip_suffix("**")) {
            _ if !special(text) => PatternKind::Exact(text.to_owned()),
            (Some(suffix), _) if !special(suffix) => PatternKind::Suffix(suffix.to_owned()),
            (_, Some(prefix)) if !special(prefix) => PatternKind::Prefix(prefix.to_owned()),
            _ => PatternKind::Tokens(ignore_tokens(text)?),
        };
        Ok(Self { kind })
    }

    /// Whether a name or path (without slash at either end) is matched as a whole.
    pub(super) fn matches(&self, name: &str) -> bool {
        match &self.kind {
            PatternKind::Exact(exact) => name == exact,
            PatternKind::Prefix(prefix) => name.starts_with(prefix.as_str()),
            PatternKind::Suffix(suffix) => {
                name.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(name)
            }
            PatternKind::Tokens(tokens) => run(tokens, name),
        }
    }

    /// Whether nothing below this directory can be matched; if in doubt, no.
    pub(super) fn never_below(&self, directory: &str) -> bool {
        let fixed = match &self.kind {
            PatternKind::Exact(fixed) | PatternKind::Prefix(fixed) => fixed.clone(),
            PatternKind::Suffix(_) => return false,
            PatternKind::Tokens(tokens) => {
                let fixed = tokens.iter().map_while(|token| match token {
                    Token::Char(c) => Some(*c),
                    Token::One | Token::Many | Token::All | Token::Directories | Token::Class { .. } => None,
                });
                fixed.collect()
            }
        };
        let below = format!("{directory}/");
        !(fixed.starts_with(&below) || below.starts_with(&fixed))
    }
}

/// Whether a component is a pattern, rather than a name.
pub(super) fn is_pattern(component: &str) -> bool {
    let mut chars = component.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

fn bounded(text: &str) -> Result<&str, BadPattern> {
    if text.len() > MAX_PATTERN {
        Err(BadPattern)
    } else {
        Ok(text)
    }
}

fn ignore_tokens(text: &str) -> Result<Vec<Token>, BadPattern> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                let _ = chars.next_if_eq(&'/');
                match chars.peek() {
                    Some(_) => Token::Directories,
                    None => Token::All,
                }
            }
            '*' => Token::Many,
            '?' => Token::One,
            '[' => class(&mut chars)?,
            '\\' => Token::Char(chars.next().ok_or(BadPattern)?),
            c => Token::Char(c),
        });
    }
    Ok(tokens)
}

/// What comes after `[`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, BadPattern> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let low = match chars.next().ok_or(BadPattern)? {
            ']' if !ranges.is_empty() => return Ok(Token::Class { negated, ranges }),
            '\\' => chars.next().ok_or(BadPattern)?,
            '-' | ']' => return Err(BadPattern),
            c => c,
        };
        let mut high = low;
        if chars.next_if_eq(&'-').is_some() {
            high = match chars.next().ok_or(BadPattern)? {
                '\\' => chars.next().ok_or(BadPattern)?,
                '-' | ']' => return Err(BadPattern),
                c => c,
            };
        }
        if low > high {
            return Err(BadPattern);
        }
        ranges.push((low, high));
    }
}

/// Goes through the tokens, keeping all places in the name that can be reached: no way back, so no blow-up.
fn run(tokens: &[Token], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut reached = vec![false; name.len() + 1];
    let mut next = reached.clone();
    if let Some(first) = reached.first_mut() {
        *first = true;
    }
    for token in tokens {
        // Whether some place up to here is reached before, and after the token.
        let (mut any, mut after) = (false, false);
        for (place, next) in next.iter_mut().enumerate() {
            let here = reached.get(place).copied().unwrap_or_default();
            let before = place.checked_sub(1);
            let char = before.and_then(|before| name.get(before)).copied();
            let was = before
                .and_then(|before| reached.get(before))
                .copied()
                .unwrap_or_default();
            *next = match token {
                Token::Char(c) => was && char == Some(*c),
                Token::One => was && char != Some('/'),
                Token::Many => here || (after && char != Some('/')),
                Token::All => here || after,
                Token::Directories => here || (any && char == Some('/')),
                Token::Class { negated, ranges } => {
                    was && char.is_some_and(|c| {
                        ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
                    })
                }
            };
            any |= here;
            after = *next;
        }
        std::mem::swap(&mut reached, &mut next);
    }
    reached.last().copied().unwrap_or_default()
}
