//! Parsers of single arguments: text in, value out, with errors that say what would have been right.
//!
//! They know the command line's notation only; whether a name exists or a size is in range is the daemon's answer.

mod duration;
mod location;
mod moment;
mod pair;
mod path;
mod port;
mod signal;
mod size;

pub(crate) use duration::{parse_duration, parse_seconds};
pub(crate) use location::Location;
pub(crate) use moment::parse_moment;
pub(crate) use pair::{EnvVar, Label, LabelKey, Selector};
pub(crate) use path::absolute;
pub(crate) use port::{format_host, parse_host_port, parse_publish};
pub(crate) use signal::parse_signal;
pub(crate) use size::{SizeError, format_size, parse_size};
