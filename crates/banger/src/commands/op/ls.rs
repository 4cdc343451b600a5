//! `banger op ls`: operations, newest first.

use banger_api::types::{Empty, Operation};
use clap::Args;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// List operations, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger op ls
  banger op ls -o json
")]
pub(crate) struct Ls {
    #[command(flatten)]
    output: OutputArgs,
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let operations = context.client().await?.op_list(Empty {}).await?;
        let now = Timestamp::now();
        self.output.print(
            &operations,
            |operations| operations.iter().map(|operation| operation.id.as_str()).collect(),
            |operations| render(operations, now),
        )
    }
}

fn render(operations: &[Operation], now: Timestamp) -> String {
    let row = |operation: &Operation| {
        let until = operation.ended.unwrap_or(now);
        [
            operation.id.clone(),
            operation.kind.clone(),
            operation.subject.clone(),
            human::operation_state(operation.state).to_owned(),
            operation.stage.clone(),
            human::format_age(operation.began, until),
            human::format_age(operation.began, now),
        ]
    };
    table::render(
        ["ID", "KIND", "SUBJECT", "STATE", "STAGE", "TOOK", "AGE"],
        operations.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let now: Timestamp = "2026-02-01T00:01:00Z".parse().unwrap();
        insta::assert_snapshot!(render(&[super::super::show::example()], now), @r"
        ID           KIND       SUBJECT   STATE    STAGE     TOOK   AGE
        k3v9x0q2ab   vm.start   dev       failed   booting   12s    1m
        ");
    }
}
