//! Parsers of single arguments: text in, value out, with errors that say what would have been right.
//!
//! They know the command line's notation only; whether a name exists or a size is in range is the daemon's answer.

mod location;
mod pair;
mod path;
mod size;

pub(crate) use location::Location;
pub(crate) use pair::{EnvVar, Label, Selector};
pub(crate) use path::absolute;
pub(crate) use size::{format_size, parse_size};
