//! `banger vm wait`: until a guest has come up with all its services.

use std::sync::Arc;
use std::time::Duration;

use banger_api::types::{BootState, VmWait, VmWaited};
use clap::Args;

use crate::args::parse_duration;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::output::Format;
use crate::{human, parallel, table};

/// Wait until guests have started all their services
///
/// A machine is running as soon as its guest answers; its init may still be at work then. The exit code is 0 where
/// everything has been started, 1 where some of it has failed, 7 where the time was over before.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm wait dev
  banger vm wait dev ci --timeout 5m
  banger vm wait --timeout 30s -o json dev
")]
pub(crate) struct Wait {
    /// Machines that run, by name or id
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,
    /// How long to wait, in whole seconds and at most an hour
    #[arg(short, long, value_name = "DURATION", value_parser = parse_duration, default_value = "2m")]
    timeout: Duration,
    /// Format of the result: for people, or the daemon's own types
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl Wait {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = Arc::new(context.client().await?);
        let seconds = self.timeout.as_secs() + u64::from(self.timeout.subsec_nanos() > 0);
        let timeout_seconds = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        let asked = parallel::ordered(self.vms, |vm| {
            let client = client.clone();
            async move { client.vm_wait(VmWait { vm, timeout_seconds }).await }
        });
        let mut all = Vec::new();
        for waited in asked.await? {
            all.push(waited?);
        }
        self.output.print(&all, |all| render(all))?;
        Ok(all
            .iter()
            .map(|waited| code(waited.boot))
            .find(|code| *code != 0)
            .unwrap_or(0))
    }
}

fn code(boot: BootState) -> u8 {
    match boot {
        // An init that does not tell is done as far as anybody can know.
        BootState::Running | BootState::Unknown => 0,
        BootState::Degraded | BootState::Maintenance | BootState::Stopping => Kind::General.code(),
        BootState::Starting => Kind::Timeout.code(),
    }
}

fn render(all: &[VmWaited]) -> String {
    let row = |waited: &VmWaited| [waited.vm.clone(), human::boot_state(waited.boot).to_owned()];
    table::render(["NAME", "BOOT"], all.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        for (boot, expected) in [
            (BootState::Unknown, 0),
            (BootState::Running, 0),
            (BootState::Degraded, 1),
            (BootState::Maintenance, 1),
            (BootState::Stopping, 1),
            (BootState::Starting, 7),
        ] {
            assert_eq!(code(boot), expected, "{boot:?}");
        }
    }
}
