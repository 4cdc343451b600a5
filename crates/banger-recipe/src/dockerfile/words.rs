//! How an instruction's text is taken apart: words, JSON arrays, `name=value` pairs, flags, marks of here-documents.
//!
//! Docker has three ways to split, and which one an instruction uses shows: `COPY "a b" c` has three words, `ENV A="a b"` one.

use crate::error::quote;

/// Here-documents of one instruction.
pub(super) const MAX_DOCUMENTS: usize = 32;
/// Words of one instruction.
const MAX_WORDS: usize = 4096;

/// A word and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) offset: usize,
}

/// A word that makes the whole instruction unreadable: where, and why.
pub(super) type Wrong = (usize, String);

/// Words between white space, quotes being text.
pub(super) fn bare(text: &str) -> Result<Vec<Piece>, Wrong> {
    let mut pieces = Vec::new();
    let mut begin = None;
    for (offset, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (c.is_whitespace(), begin) {
            (true, Some(from)) => {
                let word = text.get(from..offset).unwrap_or_default();
                push(&mut pieces, word.to_owned(), from, MAX_WORDS)?;
                begin = None;
            }
            (false, None) => begin = Some(offset),
            (true, None) | (false, Some(_)) => {}
        }
    }
    Ok(pieces)
}

/// Words between white space that is neither quoted nor escaped; quotes and escapes stay in them.
pub(super) fn quoted(text: &str, escape: char) -> Result<Vec<Piece>, Wrong> {
    quoted_words(text, escape, MAX_WORDS)
}

fn quoted_words(text: &str, escape: char, max: usize) -> Result<Vec<Piece>, Wrong> {
    let mut pieces = Vec::new();
    let mut word = String::new();
    let mut begin = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((offset, c)) = chars.next() {
        if begin.is_none() {
            if c.is_whitespace() {
                continue;
            }
            begin = Some(offset);
        }
        match quote {
            None if c.is_whitespace() => {
                push(
                    &mut pieces,
                    std::mem::take(&mut word),
                    begin.take().unwrap_or(offset),
                    max,
                )?;
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            Some(_) | None => {}
        }
        word.push(c);
        if c == escape {
            word.extend(chars.next().map(|(_, next)| next));
        }
    }
    if let Some(begin) = begin {
        push(&mut pieces, word, begin, max)?;
    }
    Ok(pieces)
}

fn push(pieces: &mut Vec<Piece>, text: String, offset: usize, max: usize) -> Result<(), Wrong> {
    if pieces.len() >= max {
        return Err((offset, format!("more than {MAX_WORDS} words in one instruction")));
    }
    pieces.push(Piece { text, offset });
    Ok(())
}

/// An array of strings in JSON's form; none if this is something else.
pub(super) fn json(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if !text.starts_with('[') {
        return None;
    }
    serde_json::from_str::<Vec<String>>(text)
        .ok()
        .filter(|words| words.len() <= MAX_WORDS)
}

/// Whether this is an array in JSON's form whose elements are not all strings, which Docker refuses instead of giving it to
/// a shell.
pub(super) fn is_other_json(text: &str) -> bool {
    text.trim().starts_with('[')
        && serde_json::from_str::<Vec<serde_json::Value>>(text.trim())
            .is_ok_and(|elements| elements.iter().any(|element| !element.is_string()))
}

/// `name=value` pairs; or, of `ENV` and `LABEL`, one name and the rest of the line. With where each begins.
pub(super) fn pairs(text: &str, escape: char) -> Result<Vec<(String, String, usize)>, Wrong> {
    let words = quoted(text, escape)?;
    if words.first().is_some_and(|first| !first.text.contains('=')) {
        let trimmed = text.trim_start();
        let offset = text.len() - trimmed.len();
        return match trimmed.split_once(char::is_whitespace) {
            Some((name, value)) => Ok(vec![(name.to_owned(), value.trim_start().to_owned(), offset)]),
            None => Err((
                offset,
                format!("{} has no value: write `name=value`", quote(trimmed)),
            )),
        };
    }
    let pair = |word: Piece| match word.text.split_once('=') {
        Some(("", _)) => Err((
            word.offset,
            format!("{} has no name before `=`", quote(&word.text)),
        )),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned(), word.offset)),
        None => Err((
            word.offset,
            format!(
                "{} has no `=`: write `name=value`, quoted where there are spaces",
                quote(&word.text)
            ),
        )),
    };
    words.into_iter().map(pair).collect()
}

/// A flag: `--name` or `--name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flag {
    pub(super) name: String,
    /// None: no `=`.
    pub(super) value: Option<String>,
    pub(super) offset: usize,
}

/// The flags at the beginning of an instruction, and where what follows them begins. Quotes and escapes are taken away.
pub(super) fn flags(text: &str, escape: char) -> (Vec<Flag>, usize) {
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let bare = rest.trim_start();
        let begin = at + (rest.len() - bare.len());
        if !bare.starts_with("--") || flags.len() == MAX_WORDS {
            return (flags, begin);
        }
        let (word, length) = flag_word(bare, escape);
        at = begin + length;
        if word == "--" {
            let rest = text.get(at..).unwrap_or_default();
            return (flags, at + (rest.len() - rest.trim_start().len()));
        }
        let word = word.strip_prefix("--").unwrap_or(&word);
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        flags.push(Flag {
            name: name.to_owned(),
            value,
            offset: begin,
        });
    }
}

/// The word at the beginning, without its quotes and escapes, and its length as written.
fn flag_word(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((offset, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, offset),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            Some(_) | None if c == escape => word.extend(chars.next().map(|(_, next)| next)),
            Some(_) | None => word.push(c),
        }
    }
    (word, text.len())
}

/// The announcement of a here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) name: String,
    pub(super) chomp: bool,
    pub(super) expand: bool,
    pub(super) offset: usize,
    /// Bytes of the mark.
    pub(super) length: usize,
}

/// The here-documents that an instruction announces: words `<<NAME`, `<<-NAME`, `<<"NAME"`, with a descriptor's number
/// before them or not.
pub(super) fn document_marks(text: &str, escape: char) -> Vec<Mark> {
    let (_, begin) = flags(text, escape);
    if json(text.get(begin..).unwrap_or_default()).is_some() {
        return Vec::new();
    }
    let words = quoted_words(text, escape, usize::MAX).unwrap_or_default();
    let marks = words.into_iter().filter_map(|word| mark(&word, escape));
    // One more than there may be shows that there are too many.
    marks.take(MAX_DOCUMENTS + 1).collect()
}

fn mark(word: &Piece, escape: char) -> Option<Mark> {
    let number = word.text.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = number.strip_prefix("<<")?;
    let (rest, chomp) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let (name, _) = flag_word(rest, escape);
    (!name.is_empty()).then(|| Mark {
        expand: name == rest,
        name,
        chomp,
        offset: word.offset,
        length: word.text.len(),
    })
}
