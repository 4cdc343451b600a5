//! `banger op show`: one operation.

use banger_api::types::{Operation, OperationCancel, OperationRef, OperationState};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// Show an operation
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger op show k3v9x0q2ab
")]
pub(crate) struct Show {
    /// Operation, by id
    #[arg(value_name = "ID")]
    operation: String,
    #[command(flatten)]
    output: OutputArgs,
}

impl Show {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let operation = context
            .client()
            .await?
            .op_show(OperationRef {
                operation: self.operation,
            })
            .await?;
        self.output
            .print(&operation, |operation| vec![&operation.id], render)
    }
}

fn render(operation: &Operation) -> String {
    let mut rows = vec![
        ("id", operation.id.clone()),
        ("kind", operation.kind.clone()),
        ("subject", operation.subject.clone()),
        ("state", human::operation_state(operation.state).to_owned()),
        ("stage", operation.stage.clone()),
    ];
    rows.extend(
        operation
            .message
            .iter()
            .map(|message| ("message", message.clone())),
    );
    if let (Some(done), Some(total)) = (operation.done, operation.total) {
        rows.push(("done", format!("{done} of {total}")));
    }
    rows.extend(operation.notices.iter().map(|notice| ("note", notice.clone())));
    rows.push(("began", human::format_time(operation.began)));
    if let Some(ended) = operation.ended {
        let took = human::format_age(operation.began, ended);
        rows.push(("ended", format!("{}, after {took}", human::format_time(ended))));
    }
    if let Some(OperationCancel { by, at, stage }) = &operation.cancel {
        rows.push((
            "cancelled",
            format!("{}, by {by}, while {stage}", human::format_time(*at)),
        ));
        rows.push(("", outcome_of_cancelling(operation).to_owned()));
    }
    // Of one that was cancelled the error says that and no more.
    if let Some(error) = operation
        .error
        .as_ref()
        .filter(|_| operation.cancel.is_none() || operation.state != OperationState::Cancelled)
    {
        rows.push(("error", error.message.clone()));
        rows.extend(error.details.iter().map(|detail| ("", detail.clone())));
        rows.extend(error.hint.iter().map(|hint| ("hint", hint.clone())));
    }
    table::fields(rows)
}

/// What came of the wish to have it cancelled. An operation is cancelled when what it had made is removed.
fn outcome_of_cancelling(operation: &Operation) -> &'static str {
    match operation.state {
        OperationState::Running | OperationState::Cancelling => "what it has made is being removed",
        OperationState::Cancelled => "what it had made is removed",
        OperationState::Succeeded => "too late: it was done before that",
        OperationState::Failed => "too late: it failed before that",
    }
}

/// An operation for tests of how operations are printed.
#[cfg(test)]
pub(super) fn example() -> Operation {
    use banger_api::{ErrorKind, RpcError};
    Operation {
        id: "k3v9x0q2ab".into(),
        kind: "vm.start".into(),
        subject: "dev".into(),
        state: OperationState::Failed,
        generation: 7,
        stage: "booting".into(),
        message: Some("waiting for the agent".into()),
        done: None,
        total: None,
        cancel: None,
        notices: vec!["no hardware virtualization: /dev/kvm is missing".into()],
        error: Some(RpcError {
            kind: ErrorKind::StartFailed,
            message: "the guest's kernel panicked".into(),
            hint: Some("see `banger vm logs dev`".into()),
            details: vec![
                "[    1.0] Kernel panic - not syncing".into(),
                "[    1.1] ---[ end".into(),
            ],
        }),
        began: "2026-02-01T00:00:00Z".parse().unwrap(),
        ended: Some("2026-02-01T00:00:12Z".parse().unwrap()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        insta::assert_snapshot!("op_show", render(&example()));
    }

    #[test]
    fn a_cancelled_one_says_who_when_and_what_was_undone() {
        let cancelled = Operation {
            state: OperationState::Cancelled,
            notices: Vec::new(),
            cancel: Some(OperationCancel {
                by: "user 1000 (process 1234)".into(),
                at: "2026-02-01T00:00:09Z".parse().unwrap(),
                stage: "booting".into(),
            }),
            ..example()
        };
        let shown = render(&cancelled);
        let line = format!(
            "{}, by user 1000 (process 1234), while booting",
            human::format_time(cancelled.cancel.as_ref().unwrap().at)
        );
        assert!(
            shown.contains(&line) && shown.contains("what it had made is removed"),
            "{shown}"
        );
        assert!(!shown.contains("error"), "{shown}");
        let late = render(&Operation {
            state: OperationState::Succeeded,
            error: None,
            ..cancelled
        });
        assert!(late.contains("too late: it was done"), "{late}");
    }
}
