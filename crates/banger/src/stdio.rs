//! Standard output and error, written whole and without a panic when nobody reads.
//!
//! Standard output carries results only. A reader that has gone (`banger ls | head -1`) ends the command quietly, with
//! the code that SIGPIPE would have given. SIGPIPE itself stays ignored, as Rust has it, because a daemon that goes away
//! must be an error and not a death. Nothing here buffers: a result is one write.

use std::fmt;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::BorrowedFd;

use crate::error::CliError;

/// 128 + SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// How writing a result ended.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// Nobody reads any more.
    Closed,
    /// The write failed: the disk is full, say.
    Failed(CliError),
}

/// Writes all of `bytes` to a descriptor, past any buffer.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            // Whoever shares the descriptor has made it non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let mut wait = [rustix::event::PollFd::from_borrowed_fd(
                    fd,
                    rustix::event::PollFlags::OUT,
                )];
                match rustix::event::poll(&mut wait, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Writes a result to standard output.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), WriteError> {
    write_to(rustix::stdio::stdout(), "output", bytes)
}

/// Writes to standard error what is a result there.
pub(crate) fn write_err(bytes: &[u8]) -> Result<(), WriteError> {
    write_to(rustix::stdio::stderr(), "error", bytes)
}

fn write_to(fd: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
    write_all(fd, bytes).map_err(|error| {
        if error.kind() == ErrorKind::BrokenPipe {
            WriteError::Closed
        } else {
            WriteError::Failed(CliError::general(format!(
                "failed to write to standard {name}: {error}"
            )))
        }
    })
}

/// Writes a result to standard output and gives the exit code of a command that has nothing else to do.
pub(crate) fn finish(text: &str) -> Result<u8, CliError> {
    print(text)?;
    Ok(0)
}

/// Writes a result to standard output. When nobody reads, the process ends here: the command's work is done or is the
/// daemon's, and there is nobody to tell. Not for use while the terminal is raw.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    match write_out(text.as_bytes()) {
        Ok(()) => Ok(()),
        Err(WriteError::Closed) => std::process::exit(i32::from(BROKEN_PIPE)),
        Err(WriteError::Failed(error)) => Err(error),
    }
}

/// Writes a line to standard error. A failure is of no use to anybody.
pub(crate) fn say_line(line: fmt::Arguments<'_>) {
    writeln!(io::stderr(), "{line}").ok();
}

/// Writes to standard error without ending the line: a question.
pub(crate) fn say_part(text: &str) {
    write!(io::stderr(), "{text}").ok();
}

/// Writes a line to standard error: progress, notices, what to do next.
macro_rules! say {
    ($($argument:tt)*) => { $crate::stdio::say_line(format_args!($($argument)*)) };
}
pub(crate) use say;
