//! `banger vm logs`: the serial console.

use banger_api::frame::Frame;
use banger_api::types::LogsOpen;
use clap::Args;

use crate::context::Context;
use crate::error::{CliError, Kind, chain};
use crate::stdio::{self, WriteError, say};

/// Print a machine's serial console
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm logs dev
  banger vm logs -n 50 dev
  banger vm logs -f dev
")]
pub(crate) struct Logs {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// Go on as the console grows, until the machine stops
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u32>,
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let open = LogsOpen {
            vm: self.vm,
            follow: self.follow,
            tail: self.tail,
        };
        let nothing_wanted = open.tail == Some(0);
        let mut stream = client.vm_logs(open).await?;
        let mut empty = true;
        // No signal is caught: there is nothing to put back, so Ctrl-C may simply end it.
        loop {
            match stream.next().await {
                Ok(Some(Frame::Data(bytes))) => match stdio::write_out(&bytes) {
                    Ok(()) => empty &= bytes.is_empty(),
                    Err(WriteError::Closed) => return Ok(stdio::BROKEN_PIPE),
                    Err(WriteError::Failed(error)) => return Err(error),
                },
                Ok(Some(Frame::End)) => {
                    if empty && !nothing_wanted {
                        say!("the console is empty so far");
                    }
                    return Ok(0);
                }
                Ok(Some(Frame::Error(error))) => return Err(error.into()),
                Ok(Some(
                    Frame::Stdin(_)
                    | Frame::Stdout(_)
                    | Frame::Stderr(_)
                    | Frame::StdinEof
                    | Frame::Resize { .. }
                    | Frame::Signal(_)
                    | Frame::DataEof
                    | Frame::Exit(_),
                )) => return Err(broken("the daemon sent a frame that does not belong here")),
                Ok(None) => return Err(broken("the daemon closed the stream")),
                Err(error) => return Err(broken(&format!("failed to {}", chain(&error)))),
            }
        }
    }
}

fn broken(reason: &str) -> CliError {
    CliError::new(Kind::Unreachable, format!("lost the console: {reason}"))
}
