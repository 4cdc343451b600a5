//! Running programs: one place that says what was run and what it answered when it did not go well.
//!
//! Not `hostkit::exec`: the chores must compile in a second or two on a machine that has nothing built yet.

use std::io;
use std::process::{Command, ExitStatus, Stdio};

/// A chore's failure: a message for the person who ran it.
pub(crate) type Error = Box<dyn std::error::Error>;

/// Result of a chore.
pub(crate) type Result<T = ()> = std::result::Result<T, Error>;

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn not_run(command: &Command, error: &io::Error) -> Error {
    format!("failed to run {}: {error}", shown(command)).into()
}

/// Runs a command on our own terminal and waits for it, whatever its end.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().map_err(|e| not_run(command, &e))
}

/// Runs a command on our own terminal; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result {
    let status = status(command)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} ended with {status}", shown(command)).into())
    }
}

/// Runs a command, its standard error on our own terminal, and returns its standard output.
pub(crate) fn read_aloud(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|e| not_run(command, &e))?;
    if !output.status.success() {
        return Err(format!("{} ended with {}", shown(command), output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command and returns its standard output without the last newline; its standard error belongs to the message
/// of a failure.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|e| not_run(command, &e))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{} ended with {}: {}",
            shown(command),
            output.status,
            stderr.trim_end()
        )
        .into());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end_matches('\n')
        .to_owned())
}
