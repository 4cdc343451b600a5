//! `banger op watch`: follows an operation that somebody began.

use banger_api::client::Client;
use banger_api::types::{Operation, OperationRef};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::{self, Follow};
use crate::output::Format;
use crate::stdio;

/// Follow an operation to its end
///
/// Prints its stages, and fails as the operation does. Ctrl-C leaves it to itself; `banger op cancel` cancels it. In
/// JSON, each state the operation passes through is a line.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger op watch k3v9x0q2ab
  banger op watch -o json k3v9x0q2ab | jq -r .stage
")]
pub(crate) struct Watch {
    /// Operation, by id
    #[arg(value_name = "ID")]
    operation: String,
    /// Format of the result: stages on standard error, or the daemon's own types on standard output
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
    /// Print no progress
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
}

impl Watch {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let reference = OperationRef {
            operation: self.operation,
        };
        if self.output != Format::Table {
            return print(&client, reference, self.output).await;
        }
        let mut interrupts = Interrupts::listen()?;
        Follow::watching(self.quiet)
            .run(&client, &mut interrupts, client.op_show(reference))
            .await?;
        Ok(0)
    }
}

/// Prints each state. No signal is caught: there is nothing to put back, so Ctrl-C may simply end it.
async fn print(client: &Client, reference: OperationRef, output: Format) -> Result<u8, CliError> {
    let mut latest = client.op_show(reference.clone()).await?;
    let mut events = client.op_watch(reference).await?;
    let mut printed = None;
    loop {
        // The watch begins with the state as it stands.
        if printed != Some(latest.generation) {
            stdio::print(&text(&latest, output)?)?;
            printed = Some(latest.generation);
        }
        if latest.state.ended() {
            operation::outcome(latest)?;
            return Ok(0);
        }
        latest = operation::next_event(&mut events, &latest).await?;
    }
}

fn text(operation: &Operation, output: Format) -> Result<String, CliError> {
    match output {
        Format::Json => crate::output::json_line(operation),
        Format::Yaml | Format::Table => Ok(format!("---\n{}", output.render(operation, |_| String::new())?)),
    }
}
