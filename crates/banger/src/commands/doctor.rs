//! `banger doctor`: what this host can do, and how to mend what it cannot.

use std::fmt::Write as _;

use banger_api::types::{Check, CheckState, DoctorReport, Empty};
use clap::Args;

use crate::checks;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Format;

/// Check the host, and say how to mend what is wrong
///
/// Each check is fine, a warning (works, with a limit) or a failure. The exit code is 1 where there is a failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger doctor
  banger doctor -o json
")]
pub(crate) struct Doctor {
    /// Format of the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl Doctor {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let report = match context.client().await {
            Ok(client) => {
                let mut report = client.doctor_run(Empty {}).await?;
                report
                    .checks
                    .insert(0, daemon_check(CheckState::Ok, "answers", None));
                report
            }
            // A daemon that cannot start is the first thing to mend; its own checks cannot be asked.
            Err(error) => {
                let mut reason = error.message;
                for detail in error.details {
                    reason = format!("{reason}; {detail}");
                }
                DoctorReport {
                    checks: vec![daemon_check(CheckState::Failure, &reason, error.hint)],
                }
            }
        };
        self.output.print(&report, render)?;
        Ok(u8::from(
            report
                .checks
                .iter()
                .any(|check| check.state == CheckState::Failure),
        ))
    }
}

fn daemon_check(state: CheckState, reason: &str, fix: Option<String>) -> Check {
    Check {
        group: "daemon".into(),
        name: "daemon".into(),
        state,
        reason: reason.into(),
        fix,
    }
}

/// The checks, then what it comes to.
fn render(report: &DoctorReport) -> String {
    let mut text = checks::by_group(&report.checks);
    let count = |state: CheckState| report.checks.iter().filter(|check| check.state == state).count();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{} ok, {}, {}",
        count(CheckState::Ok),
        plural(count(CheckState::Warning), "warning"),
        plural(count(CheckState::Failure), "failure")
    );
    text
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use crate::checks::example as check;

    use super::*;

    #[test]
    fn grouped_with_fixes() {
        let report = DoctorReport {
            checks: vec![
                check("host", "cpu", CheckState::Ok, "x86_64", None),
                check(
                    "vmm",
                    "firecracker",
                    CheckState::Warning,
                    "not found",
                    Some("install it"),
                ),
                check(
                    "host",
                    "kvm",
                    CheckState::Failure,
                    "/dev/kvm: permission denied",
                    Some("join group kvm"),
                ),
            ],
        };
        insta::assert_snapshot!(render(&report), @r"
        host
          ✓ ok       cpu          x86_64
          ✗ failure  kvm          /dev/kvm: permission denied
                                  fix: join group kvm
        vmm
          ! warning  firecracker  not found
                                  fix: install it
        1 ok, 1 warning, 1 failure
        ");
    }
}
