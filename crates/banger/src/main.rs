//! `banger`, the command line: presentation and wiring only. It turns arguments into calls of the daemon's contract
//! (`banger-api`), and the answers into tables, streams and exit codes; how anything is done is the daemon's matter.
//!
//! The way of a command:
//!
//! ```text
//! cli (clap) → commands/* → context (socket, daemon on demand) → banger-api client → bangerd
//!                  ├─ operation + progress   everything slow: watch, draw, cancel on Ctrl-C
//!                  ├─ session + terminal     exec: stdin, stdout, stderr, signals, window size
//!                  ├─ ssh/*                 what Banger gives to the host's ssh
//!                  ├─ copy/*                 cp: tar out of the host, and safely back into it
//!                  └─ output + table         results on stdout; everything else goes to stderr
//! ```
//!
//! Nothing runs before it is needed: `--version`, `--help` and `completions` start neither runtime nor daemon.

mod args;
mod ask;
mod checks;
mod cli;
mod commands;
mod context;
mod copy;
mod each;
mod error;
mod human;
mod interrupt;
mod operation;
mod output;
mod parallel;
mod paths;
mod progress;
mod service;
mod session;
mod spawn;
mod ssh;
mod stdio;
mod table;
mod terminal;
mod told;

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(cli::run(std::env::args_os()))
}
