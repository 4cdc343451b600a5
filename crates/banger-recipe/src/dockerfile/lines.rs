//! From a Dockerfile's text to its instructions: directives, comments, continued lines, here-documents.
//!
//! Each instruction keeps where its characters come from, so that a problem in the third line of a `RUN` is reported there.

use super::words::{MAX_DOCUMENTS, document_marks};
use crate::error::{Place, Problems, quote};

/// Lines of a file.
const MAX_LINES: usize = 50_000;
/// Bytes of one instruction, its continuations joined, without here-documents.
const MAX_INSTRUCTION: usize = 256 << 10;
/// Here-documents that nothing closes: each is looked for through the whole file.
const MAX_UNCLOSED: u32 = 8;

/// One instruction.
#[derive(Debug)]
pub(super) struct Instruction {
    /// Its keyword in upper case.
    pub(super) keyword: String,
    /// What comes after the keyword and white space, continuations joined.
    pub(super) rest: String,
    pub(super) documents: Vec<Document>,
    pub(super) map: Map,
    /// The keyword as it was written.
    written: String,
}

impl Instruction {
    /// Where it begins.
    pub(super) fn place(&self) -> Place {
        self.map.place(0)
    }

    /// Where a byte of `rest` is.
    pub(super) fn at(&self, offset: usize) -> Place {
        self.map.place(self.map.rest + offset)
    }

    /// As written, on one line.
    pub(super) fn text(&self) -> String {
        format!("{} {}", self.written, self.rest.trim_end())
    }
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    /// What ends it; a file's name as well.
    pub(super) name: String,
    /// Variables are substituted in it: the delimiter is not quoted.
    pub(super) expand: bool,
    /// As in the file; leading tabs are gone with `<<-`.
    pub(super) content: String,
    /// The content and the line that ends it, as in the file.
    pub(super) raw: String,
}

/// Where the pieces of an instruction come from.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// In the order of the joined text.
    pieces: Vec<Piece>,
    /// Where `rest` begins in the joined text.
    rest: usize,
}

#[derive(Debug)]
struct Piece {
    /// Where it begins in the joined text.
    offset: usize,
    line: u32,
    /// Bytes before the piece in its line.
    before: usize,
    /// Bytes of the piece. Columns count bytes, which are characters in most recipes.
    length: usize,
}

impl Map {
    fn place(&self, offset: usize) -> Place {
        let after = self.pieces.partition_point(|piece| piece.offset <= offset);
        match after.checked_sub(1).and_then(|index| self.pieces.get(index)) {
            Some(piece) => Place {
                line: piece.line,
                column: narrow(piece.before + (offset - piece.offset).min(piece.length)).saturating_add(1),
            },
            None => Place::line(1),
        }
    }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The instructions of a file, and its escape character.
pub(super) fn read(text: &str, problems: &mut Problems) -> (Vec<Instruction>, char) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split_inclusive('\n').take(MAX_LINES + 1).collect();
    if lines.len() > MAX_LINES {
        problems.request("the recipe is too long", format!("{MAX_LINES} lines are allowed"));
        return (Vec::new(), '\\');
    }
    let (escape, first) = directives(&lines, problems);
    let mut reader = Reader {
        lines: &lines,
        next: first,
        escape,
        unclosed: 0,
    };
    let mut instructions = Vec::new();
    while let Some(instruction) = reader.instruction(problems) {
        instructions.push(instruction);
    }
    (instructions, escape)
}

/// Directives: comments of the form `# name=value` before anything else. The escape character, and the line after them.
fn directives(lines: &[&str], problems: &mut Problems) -> (char, usize) {
    let mut escape = None;
    let mut seen: Vec<String> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let comment = line.trim().strip_prefix('#').map(str::trim);
        let pair = comment.and_then(|comment| comment.split_once('='));
        let Some((name, value)) = pair.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
        else {
            return (escape.unwrap_or('\\'), index);
        };
        let place = Place::line(narrow(index + 1));
        match name.as_str() {
            // The syntax names a program that would read the file in our place; what the file needs of it shows below.
            "syntax" | "check" => {}
            "escape" => match value {
                "\\" => escape = Some('\\'),
                "`" => escape = Some('`'),
                other => problems.add_with(
                    place,
                    format!("{} cannot be the escape character", quote(other)),
                    "it is `\\` or a backquote",
                ),
            },
            // Any other comment ends the directives.
            _ => return (escape.unwrap_or('\\'), index),
        }
        if seen.contains(&name) {
            problems.add(place, format!("the directive `{name}` is given twice"));
        }
        seen.push(name);
    }
    (escape.unwrap_or('\\'), lines.len())
}

struct Reader<'a> {
    lines: &'a [&'a str],
    /// The next line's index.
    next: usize,
    escape: char,
    /// Here-documents that were not closed so far.
    unclosed: u32,
}

impl<'a> Reader<'a> {
    fn line(&mut self) -> Option<(u32, &'a str)> {
        let line = self.lines.get(self.next)?;
        self.next += 1;
        Some((narrow(self.next), line))
    }

    fn instruction(&mut self, problems: &mut Problems) -> Option<Instruction> {
        let mut joined = String::new();
        let mut map = Map::default();
        let mut too_long = false;
        loop {
            let Some((number, line)) = self.line() else {
                match joined.is_empty() && !too_long {
                    true => return None,
                    false => break,
                }
            };
            let body = line.trim_end_matches(['\n', '\r']);
            let bare = body.trim_start();
            if bare.is_empty() || bare.starts_with('#') {
                // Also between continued lines, where Docker warns of empty ones.
                continue;
            }
            // Indentation counts within an instruction, not before it.
            let piece = if joined.is_empty() { bare } else { body };
            let (piece, more) = self.continued(piece);
            if !(joined.is_empty() && piece.is_empty()) {
                let before = body.len() - body.trim_start().len();
                map.pieces.push(Piece {
                    offset: joined.len(),
                    line: number,
                    before: if joined.is_empty() { before } else { 0 },
                    length: piece.len(),
                });
                too_long |= joined.len() + piece.len() > MAX_INSTRUCTION;
                if !too_long {
                    joined.push_str(piece);
                }
            }
            if !more && (too_long || !joined.is_empty()) {
                break;
            }
        }
        if too_long {
            let place = map.place(0);
            problems.add_with(
                place,
                "the instruction is too long",
                format!("{MAX_INSTRUCTION} bytes are allowed"),
            );
            // As many times as such instructions fit into a recipe: less than a handful.
            return self.instruction(problems);
        }
        let keyword_end = joined.find(char::is_whitespace).unwrap_or(joined.len());
        let (written, after) = joined.split_at(keyword_end);
        let rest = after.trim_start();
        map.rest = joined.len() - rest.len();
        let mut instruction = Instruction {
            keyword: written.to_ascii_uppercase(),
            rest: rest.trim_end().to_owned(),
            documents: Vec::new(),
            map,
            written: written.to_owned(),
        };
        self.documents(&mut instruction, problems);
        Some(instruction)
    }

    /// A line without the escape character that continues it, and whether there was one.
    fn continued<'l>(&self, line: &'l str) -> (&'l str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            // A doubled one is an escaped one.
            Some(rest) if !rest.ends_with(self.escape) => (rest, true),
            Some(_) | None => (line, false),
        }
    }

    /// Takes the here-documents that an instruction announces from the lines after it.
    fn documents(&mut self, instruction: &mut Instruction, problems: &mut Problems) {
        if !matches!(instruction.keyword.as_str(), "RUN" | "COPY" | "ADD") || !instruction.rest.contains("<<")
        {
            return;
        }
        for mark in document_marks(&instruction.rest, self.escape) {
            let place = instruction.at(mark.offset);
            if instruction.documents.len() == MAX_DOCUMENTS {
                problems.add(
                    place,
                    format!("more than {MAX_DOCUMENTS} here-documents in one instruction"),
                );
                return;
            }
            let mut document = Document {
                name: mark.name,
                expand: mark.expand,
                content: String::new(),
                raw: String::new(),
            };
            let begin = self.next;
            let mut closed = false;
            while let Some((_, line)) = self.line() {
                let body = if mark.chomp {
                    line.trim_start_matches('\t')
                } else {
                    line
                };
                document.raw.push_str(line);
                if body
                    .strip_suffix('\n')
                    .map_or(body, |body| body.strip_suffix('\r').unwrap_or(body))
                    == document.name
                {
                    closed = true;
                    break;
                }
                document.content.push_str(body);
            }
            if !closed {
                problems.add_with(
                    place,
                    format!("the here-document {} is not closed", quote(&document.name)),
                    format!("a line with nothing but {} ends it", quote(&document.name)),
                );
                // What follows is the recipe, more likely than the document: its own problems are worth reading.
                self.unclosed += 1;
                if self.unclosed < MAX_UNCLOSED {
                    self.next = begin;
                }
                return;
            }
            instruction.documents.push(document);
        }
    }
}
