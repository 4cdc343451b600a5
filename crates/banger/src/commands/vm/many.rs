//! The same operation on several machines: all are begun, then each is followed. One that fails stops no other.

use std::future::Future;

use banger_api::client::{Client, ClientError};
use banger_api::types::Operation;
use clap::Args;

use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::interrupt::Interrupts;
use crate::operation::Follow;
use crate::stdio;

/// Machines to work on.
#[derive(Debug, Args)]
pub(crate) struct Many {
    /// Machines, by name or id
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Many {
    /// Begins and follows an operation on each machine; prints the names of those that succeeded. The first failure's
    /// exit code is the command's.
    pub(crate) async fn run<B>(
        self,
        context: &Context,
        begin: impl Fn(std::sync::Arc<Client>, String) -> B,
    ) -> Result<u8, CliError>
    where
        B: Future<Output = Result<Operation, ClientError>>,
    {
        let client = std::sync::Arc::new(context.client().await?);
        let mut interrupts = Interrupts::listen()?;
        let mut begun = Vec::with_capacity(self.vms.len());
        for vm in self.vms {
            let operation = begin(client.clone(), vm.clone()).await;
            begun.push((vm, operation));
        }
        let mut first: Option<CliError> = None;
        let mut interrupted = false;
        for (vm, operation) in begun {
            let result = match operation {
                Ok(operation) if interrupted => cancel(&client, operation).await,
                Ok(operation) => {
                    Follow::cancelling(self.quiet)
                        .run(&client, &mut interrupts, async { Ok(operation) })
                        .await
                }
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(_) => stdio::print(&format!("{vm}\n"))?,
                Err(error) => {
                    interrupted |= error.kind == Kind::Interrupted;
                    if let Some(earlier) = first.replace(error) {
                        // Told now; the last one is told by the caller, and the code is the first one's.
                        crate::cli::report(&earlier);
                        let kind = earlier.kind;
                        first = first.map(|latest| CliError { kind, ..latest });
                    }
                }
            }
        }
        first.map_or(Ok(0), Err)
    }
}

/// Undoes what was begun before Ctrl-C came.
async fn cancel(client: &Client, operation: Operation) -> Result<Operation, CliError> {
    use banger_api::types::OperationRef;
    let ended = client
        .op_cancel(OperationRef {
            operation: operation.id,
        })
        .await?;
    match ended.error {
        Some(error) => Err(error.into()),
        None => Err(CliError::interrupted(format!(
            "cancelled: {} of {}",
            ended.kind, ended.subject
        ))),
    }
}
