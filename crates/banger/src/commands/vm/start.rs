//! `banger vm start`: boots machines, or says whether it could.

use std::sync::Arc;

use banger_api::client::Client;
use banger_api::types::{VmPreflight, VmRef, VmStart};
use clap::Args;

use super::many::{Following, Machines, Target};
use crate::args::parse_seconds;
use crate::checks;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::output::Format;
use crate::parallel;

/// Start machines
///
/// Waits until the guest answers. A machine that runs already is a success. With --dry-run nothing is touched: all that
/// a start would check is printed with its outcome, and the exit code is 6 where a machine could not start.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm start dev
  banger vm start dev ci --timeout 300
  banger vm start --label team=infra
  banger vm start --dry-run dev
  banger vm start --dry-run --all -o json
")]
pub(crate) struct Start {
    #[command(flatten)]
    machines: Machines,
    /// Seconds, or a time such as 5m, to wait for the guest [default: the configuration's]
    #[arg(short, long, value_name = "SECS", value_parser = parse_wait)]
    timeout: Option<u32>,
    /// Only check whether they could be started
    #[arg(long, conflicts_with_all = ["timeout", "detach", "quiet"])]
    dry_run: bool,
    /// Format of the checks: for people, or the daemon's own types
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        requires = "dry_run",
        default_value_t
    )]
    output: Format,
    #[command(flatten)]
    following: Following,
}

/// A guest needs a while.
fn parse_wait(text: &str) -> Result<u32, String> {
    match parse_seconds(text) {
        Ok(0) => Err("a guest needs a second at least".to_owned()),
        Ok(seconds) => Ok(seconds),
        Err(error) => Err(error.to_string()),
    }
}

impl Start {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let targets = self.machines.targets(&client).await?;
        if self.dry_run {
            return preflight(client, targets, self.output).await;
        }
        let timeout_seconds = self.timeout;
        let start = move |client: Arc<Client>, vm| async move {
            client.vm_start(VmStart { vm, timeout_seconds }).await
        };
        self.following.run(client, targets, false, start).await
    }
}

async fn preflight(client: Client, targets: Vec<Target>, output: Format) -> Result<u8, CliError> {
    let client = Arc::new(client);
    let asked = parallel::ordered(targets, |target| {
        let (client, vm) = (client.clone(), target.reference);
        async move { client.vm_preflight(VmRef { vm }).await }
    });
    let mut all = Vec::new();
    for preflight in asked.await? {
        all.push(preflight?);
    }
    output.print(&all, |all| render(all))?;
    let ready = all.iter().all(|preflight| preflight.ready);
    Ok(if ready { 0 } else { Kind::Prerequisite.code() })
}

fn render(all: &[VmPreflight]) -> String {
    let mut text = String::new();
    for preflight in all {
        let ready = if preflight.ready { "ready" } else { "not ready" };
        text.push_str(&checks::section(
            &format!("{}: {ready}", preflight.vm),
            &preflight.checks,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_start_would_check() {
        let checks = checks::examples();
        let preflight = |vm: &str, ready, count| VmPreflight {
            vm: vm.into(),
            ready,
            checks: checks[..count].to_vec(),
        };
        insta::assert_snapshot!(render(&[preflight("dev", false, 3), preflight("ci", true, 1)]), @r"
        dev: not ready
          ✓ ok       image  debian, 370MiB
          ! warning  space  2.1GiB left of 40GiB
                            fix: free space in /var/lib/banger
          ✗ failure  qemu   qemu-system-x86_64 was not found
                            fix: apt install qemu-system-x86
        ci: ready
          ✓ ok       image  debian, 370MiB
        ");
    }
}
