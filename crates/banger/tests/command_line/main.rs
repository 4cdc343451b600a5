//! The command line as a process, joined to the server of `banger-api` with a local service behind it: exit codes,
//! streams, signals, terminals. What a guest adds is the end-to-end suite's matter.

#![expect(clippy::unwrap_used, reason = "in tests a panic is the report")]
#![expect(
    clippy::disallowed_methods,
    reason = "what the process prints is what these tests look at"
)]

mod copy;
mod machines;
mod many;
mod operations;
mod service;
mod ssh;
mod streams;
mod support;
mod terminal;
