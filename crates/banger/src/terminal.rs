//! The user's terminal: raw mode that is always undone, and the window's size.
//!
//! What raw mode changed is kept in one place of the process, so that every way out can undo it: dropping the guard, a
//! panic (also where panics abort) and an early `exit`. Signals that would kill are caught while a session runs (see
//! `session`), so they leave by dropping the guard as well.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal's attributes before it was made raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal of standard input is raw until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode {
    raw: Termios,
}

impl RawMode {
    /// Makes the terminal of standard input raw: every key goes to the guest, nothing is echoed here.
    pub(crate) fn enter() -> std::io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        });
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self { raw };
        guard.apply()?;
        Ok(guard)
    }

    /// Makes the terminal raw again, after a shell that stopped and continued this process has set its own mode.
    pub(crate) fn apply(&self) -> std::io::Result<()> {
        Ok(tcsetattr(
            rustix::stdio::stdin(),
            OptionalActions::Drain,
            &self.raw,
        )?)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Undoes raw mode where it is on.
fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that has gone needs no restoring. `Now`: a hung terminal must not hold up the way out.
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before).ok();
    }
}

/// Whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    isatty(rustix::stdio::stdin())
}

/// Whether standard output is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    isatty(rustix::stdio::stdout())
}

/// Whether standard error is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    isatty(rustix::stdio::stderr())
}

/// Rows and columns of the window: of the first standard stream that is a terminal, or 24 × 80.
pub(crate) fn window_size() -> (u16, u16) {
    let streams: [BorrowedFd<'_>; 3] = [
        rustix::stdio::stdout(),
        rustix::stdio::stdin(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        if let Ok(size) = tcgetwinsize(stream.as_fd())
            && size.ws_row > 0
            && size.ws_col > 0
        {
            return (size.ws_row, size.ws_col);
        }
    }
    (24, 80)
}

/// The kind of terminal, for the guest's `TERM`.
pub(crate) fn term() -> String {
    std::env::var("TERM")
        .ok()
        .filter(|term| !term.is_empty())
        .unwrap_or_else(|| "xterm".to_owned())
}
