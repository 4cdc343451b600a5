//! The signals that ask a command to end. From the moment an [`Interrupts`] exists they no longer kill the process, so
//! whoever holds it must listen.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::CliError;

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT. Signals that were ignored when the process started stay ignored: `nohup` and
/// a shell's background jobs rely on it.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Option<Signal>,
    term: Option<Signal>,
    hup: Option<Signal>,
    quit: Option<Signal>,
}

impl Interrupts {
    /// Begins to listen.
    pub(crate) fn listen() -> Result<Self, CliError> {
        Ok(Self {
            int: listen(libc::SIGINT)?,
            term: listen(libc::SIGTERM)?,
            hup: listen(libc::SIGHUP)?,
            quit: listen(libc::SIGQUIT)?,
        })
    }

    /// The next signal's number. Cancel-safe: a signal stays pending until it is returned.
    pub(crate) async fn next(&mut self) -> i32 {
        // Every arm is `Signal::recv`, which is cancel-safe.
        tokio::select! {
            () = next(&mut self.int) => libc::SIGINT,
            () = next(&mut self.term) => libc::SIGTERM,
            () = next(&mut self.hup) => libc::SIGHUP,
            () = next(&mut self.quit) => libc::SIGQUIT,
        }
    }
}

/// The exit code of a command that a signal ended.
pub(crate) fn exit_code(signal: i32) -> u8 {
    u8::try_from(signal).map_or(u8::MAX, |signal| 128_u8.saturating_add(signal))
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        // `None` would mean that the runtime is going down; then nothing matters any more.
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn listen(number: i32) -> Result<Option<Signal>, CliError> {
    if is_ignored(number) {
        return Ok(None);
    }
    signal(SignalKind::from_raw(number))
        .map(Some)
        .map_err(|error| CliError::general(format!("failed to listen for signal {number}: {error}")))
}

fn is_ignored(number: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action, sigaction(2) only writes the old one through a valid pointer; all-zero bytes are a
    // valid `sigaction` where it fails.
    let action = unsafe {
        libc::sigaction(number, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        assert_eq!(exit_code(libc::SIGINT), 130);
        assert_eq!(exit_code(libc::SIGTERM), 143);
        assert_eq!(exit_code(-1), 255);
        assert_eq!(exit_code(1000), 255);
    }

    #[test]
    fn sigpipe_is_ignored_by_the_runtime_and_sigwinch_is_not() {
        assert!(is_ignored(libc::SIGPIPE));
        assert!(!is_ignored(libc::SIGWINCH));
    }
}
