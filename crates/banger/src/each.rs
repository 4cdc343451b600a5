//! The same call for several things named on the command line, one after the other.
//!
//! One that fails stops no other. The exit code is that of the first failure. What is slow, or done to machines, goes
//! through `commands::vm::many` instead, which works on many at once.

use crate::error::{CliError, Kind};
use crate::{cli, stdio};

/// Does it to each, printing what it gives and telling why it failed.
pub(crate) async fn in_turn(
    names: Vec<String>,
    call: impl AsyncFn(String) -> Result<String, CliError>,
) -> Result<u8, CliError> {
    let several = names.len() > 1;
    let mut first_failure = None;
    for name in names {
        match call(name.clone()).await {
            Ok(done) => stdio::print(&format!("{done}\n"))?,
            Err(mut error) => {
                first_failure.get_or_insert(error.kind);
                if several && !error.message.contains(&name) {
                    error.message = format!("{name}: {}", error.message);
                }
                cli::report(&error);
            }
        }
    }
    Ok(first_failure.map_or(0, Kind::code))
}
