//! `banger op logs`: what a build has said.

use std::os::fd::BorrowedFd;

use banger_api::client::Client;
use banger_api::frame::Frame;
use banger_api::types::BuildLog;
use clap::Args;

use crate::context::Context;
use crate::error::{CliError, Kind, chain};
use crate::stdio;

/// Print what the build of an image has said
///
/// Builds say what their commands print; other operations have no log. It is kept as long as the operation is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger op logs k3v9x0q2ab
  banger op logs -f k3v9x0q2ab
")]
pub(crate) struct Logs {
    /// The build's operation, by id
    #[arg(value_name = "ID")]
    operation: String,
    /// Go on as it says more, until it has ended
    #[arg(short, long)]
    follow: bool,
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let log = BuildLog {
            operation: self.operation,
            follow: self.follow,
        };
        copy(&client, log, rustix::stdio::stdout()).await?;
        Ok(0)
    }
}

/// Copies what a build says, until its end. Where nobody reads it any more, it is read on all the same.
pub(crate) async fn copy(client: &Client, log: BuildLog, to: BorrowedFd<'_>) -> Result<(), CliError> {
    let mut stream = client.image_build_log(log).await?;
    loop {
        match stream.next().await {
            Ok(Some(Frame::Data(bytes))) => drop(stdio::write_all(to, &bytes)),
            Ok(Some(Frame::Error(error))) => return Err(error.into()),
            Ok(Some(_) | None) => return Ok(()),
            Err(error) => {
                let message = format!("lost the build's log: {}", chain(&error));
                return Err(CliError::new(Kind::Unreachable, message));
            }
        }
    }
}
