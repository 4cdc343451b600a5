//! `banger vm health`: how machines fare, and why.

use std::sync::Arc;

use banger_api::types::{HealthState, VmHealth, VmList, VmRef};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Format;
use crate::{checks, human, parallel};

/// Check how machines fare
///
/// Process, agent, disks and network, each with what was found. The exit code is 0 where every machine is healthy and 1
/// where one is not; a stopped machine counts only where it was named.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm health
  banger vm health dev
  banger vm health dev -o json | jq -r '.[].health'
")]
pub(crate) struct Health {
    /// Machines, by name or id [default: all]
    #[arg(value_name = "VM")]
    vms: Vec<String>,
    /// Format of the result: for people, or the daemon's own types
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl Health {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = Arc::new(context.client().await?);
        let named = !self.vms.is_empty();
        let vms = match named {
            true => self.vms,
            false => {
                let all = client.vm_list(VmList::default()).await?;
                all.into_iter().map(|vm| vm.name).collect()
            }
        };
        let asked = parallel::ordered(vms, |vm| {
            let client = client.clone();
            async move { client.vm_health(VmRef { vm }).await }
        });
        let mut all = Vec::new();
        for health in asked.await? {
            all.push(health?);
        }
        self.output.print(&all, |all| render(all))?;
        Ok(u8::from(all.iter().any(|vm| is_bad(vm.health, named))))
    }
}

fn is_bad(health: HealthState, named: bool) -> bool {
    match health {
        HealthState::Healthy => false,
        HealthState::Degraded | HealthState::Unhealthy => true,
        HealthState::Stopped => named,
    }
}

fn render(all: &[VmHealth]) -> String {
    let mut text = String::new();
    for vm in all {
        let heading = match vm.health {
            HealthState::Stopped => format!("{}: {}", vm.vm, human::vm_state(vm.state)),
            HealthState::Healthy | HealthState::Degraded | HealthState::Unhealthy => {
                format!(
                    "{}: {}, {}",
                    vm.vm,
                    human::vm_state(vm.state),
                    human::health(vm.health)
                )
            }
        };
        text.push_str(&checks::section(&heading, &vm.checks));
    }
    text
}

#[cfg(test)]
mod tests {
    use banger_api::types::VmState;

    use super::*;

    #[test]
    fn sections() {
        let health = |vm: &str, state, health, count| VmHealth {
            vm: vm.into(),
            state,
            health,
            checks: checks::examples()[..count].to_vec(),
        };
        insta::assert_snapshot!(
            render(&[
                health("dev", VmState::Running, HealthState::Degraded, 2),
                health("ci", VmState::Stopped, HealthState::Stopped, 0),
            ]),
            @r"
            dev: running, degraded
              ✓ ok       image  debian, 370MiB
              ! warning  space  2.1GiB left of 40GiB
                                fix: free space in /var/lib/banger
            ci: stopped
            "
        );
    }

    #[test]
    fn what_counts_as_bad() {
        for (health, named, bad) in [
            (HealthState::Healthy, true, false),
            (HealthState::Degraded, false, true),
            (HealthState::Unhealthy, false, true),
            (HealthState::Stopped, false, false),
            (HealthState::Stopped, true, true),
        ] {
            assert_eq!(is_bad(health, named), bad, "{health:?} {named}");
        }
    }
}
