//! A small framework for end-to-end tests: the real command line, the real daemon, real guests.
//!
//! ```text
//! Testbed   where the staged programs, kernels and tools are; what is absent makes a test skip aloud
//!   └ Daemon    one `bangerd` with directories of its own; at its end nothing of it may be left on the machine
//!       ├ Banger     one run of the command line: exit code, stdout, stderr, a deadline
//!       ├ Guest      a machine, made and started through the command line
//!       ├ Host       a whole host as a guest, with a Banger of its own in it
//!       ├ Snapshot   processes, files, sockets and rows before something goes wrong, to compare with after
//!       └ Wire       a raw connection to the daemon's socket
//! ```
//!
//! Bootstrapping the images takes a minute, so it is done once for a build of the product, by the product itself, into
//! the test bed ([`state`]); each daemon then starts on a copy whose large files are hard links.
//!
//! The suites are modules of one test binary, `tests/guests`, so that they link once; `tests/host` is the one test that
//! boots a host, in a binary of its own because its order and its patience are others. It runs under cargo-nextest and
//! under `cargo test` alike; `cargo xtask test` sets the variables that [`Testbed`] reads.

pub mod command;
pub mod daemon;
pub mod guest;
pub mod host;
pub mod images;
mod network;
pub mod processes;
pub mod pty;
pub mod random;
pub mod snapshot;
pub mod state;
pub mod testbed;
pub mod truth;
pub mod wire;

pub use command::{Banger, Finished, Running};
pub use daemon::{Daemon, Settings};
pub use guest::Guest;
pub use host::Host;
pub use pty::Pty;
pub use random::Random;
pub use snapshot::Snapshot;
pub use testbed::Testbed;
pub use wire::Wire;

use std::time::{Duration, Instant};

/// Waits until `done` gives something, asking every 20 milliseconds; `None` after the deadline.
///
/// For what the system has no event for: a process of another parent that ends, a file that another process removes.
pub fn wait_for<T>(deadline: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = done() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
