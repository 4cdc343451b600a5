//! The Dockerfile front end: <https://docs.docker.com/reference/dockerfile/>.
//!
//! ```text
//! text ─ lines (instructions, here-documents) ─► globals (ARG before FROM) ─► stages ─ instructions (one step each)
//!                                                                              └─ target (those that are needed)
//! ```
//!
//! What is wrong with the text is reported wherever it is; what Banger does not do only in stages that the target needs.

mod flags;
mod globals;
mod instructions;
mod lines;
mod stages;
mod words;

use std::collections::BTreeMap;

pub(crate) use flags::{check_secret_id, octal};
pub(crate) use globals::report_unknown;

use crate::Source;
use crate::error::Problems;
use crate::recipe::Recipe;

/// Instructions of a file.
const MAX_STEPS: usize = 4096;
/// Stages of a file.
const MAX_STAGES: usize = 256;

/// Reads a Dockerfile. What it gives means something only when no problem was added.
pub(crate) fn parse(
    source: &Source<'_>,
    args: &BTreeMap<String, String>,
    target: Option<&str>,
    problems: &mut Problems,
) -> Option<Recipe> {
    let (instructions, escape) = lines::read(source.text, problems);
    let mut globals = globals::Globals::new(args);
    let mut read = stages::Stages::new(escape, source.base);
    for (number, instruction) in instructions.iter().enumerate() {
        if number == MAX_STEPS {
            problems.add_with(
                instruction.place(),
                "too many instructions",
                format!("{MAX_STEPS} are allowed"),
            );
            break;
        }
        match instruction.keyword.as_str() {
            "FROM" => {
                if read.len() == MAX_STAGES {
                    problems.add_with(
                        instruction.place(),
                        "too many stages",
                        format!("{MAX_STAGES} are allowed"),
                    );
                    break;
                }
                read.begin(instruction, &globals, problems);
            }
            "ARG" if read.is_empty() => globals.declare(instruction, escape, problems),
            _ if read.is_empty() => {
                problems.add_with(
                    instruction.place(),
                    format!("{} comes before the first `FROM`", instruction.keyword),
                    "only `ARG` may",
                );
                // Once: everything up to the first FROM would say the same.
                read.begin_anyway(instruction);
            }
            _ => read.step(instruction, &mut globals, problems),
        }
    }
    globals.unknown(problems);
    read.target(target, globals.proxies(), problems)
}
