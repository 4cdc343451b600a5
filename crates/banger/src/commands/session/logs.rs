//! `banger session logs`: what a session wrote.

use banger_api::frame::Frame;
use banger_api::types::SessionLogs;
use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::Which;
use crate::args::{parse_duration, parse_moment};
use crate::context::Context;
use crate::error::{CliError, Kind, chain};
use crate::stdio::{self, WriteError};

/// Print what a session wrote: its standard output and standard error, each to its own
///
/// The daemon keeps the last 16 MiB of each session, also when the machine is stopped. What was written while no daemon
/// ran is fetched from the guest afterwards, up to 1 MiB of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger session logs dev make
  banger session logs -f -n 20 dev make
  banger session logs --since 10m dev make
")]
pub(crate) struct Logs {
    #[command(flatten)]
    which: Which,
    /// Go on until the session ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u32>,
    /// Only what was written since: a duration ago (10m), or a time (2026-12-24 18:00), by the guest's clock
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
}

fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        let ago = SignedDuration::try_from(ago).map_err(|error| error.to_string())?;
        return Timestamp::now()
            .checked_sub(ago)
            .map_err(|error| error.to_string());
    }
    parse_moment(text).map_err(|error| format!("{error}; or a duration ago, such as 10m"))
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Which { vm, session } = self.which;
        let open = SessionLogs {
            vm,
            session,
            follow: self.follow,
            tail: self.tail,
            since: self.since,
        };
        let mut stream = context.client().await?.session_logs(open).await?;
        // No signal is caught: there is nothing to put back, so Ctrl-C may simply end it.
        loop {
            let written = match stream.next().await {
                Ok(Some(Frame::Stdout(bytes))) => stdio::write_out(&bytes),
                Ok(Some(Frame::Stderr(bytes))) => stdio::write_err(&bytes),
                Ok(Some(Frame::End)) => return Ok(0),
                Ok(Some(Frame::Error(error))) => return Err(error.into()),
                Ok(Some(_)) => return Err(broken("the daemon sent a frame that does not belong here")),
                Ok(None) => return Err(broken("the daemon closed the stream")),
                Err(error) => return Err(broken(&format!("failed to {}", chain(&error)))),
            };
            match written {
                Ok(()) => {}
                Err(WriteError::Closed) => return Ok(stdio::BROKEN_PIPE),
                Err(WriteError::Failed(error)) => return Err(error),
            }
        }
    }
}

fn broken(reason: &str) -> CliError {
    CliError::new(Kind::Unreachable, format!("lost the session's log: {reason}"))
}
