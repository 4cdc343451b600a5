//! `banger vm ping`: does the guest answer, and how fast.

use std::time::Duration;

use banger_api::types::{VmPing, VmRef};
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::{human, stdio};

/// Ask a guest for an answer, and measure the round trip
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm ping dev
  banger vm ping -c 5 dev
")]
pub(crate) struct Ping {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// How often, a second apart
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

impl Ping {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        for number in 0..self.count {
            if number > 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let answer = client.vm_ping(VmRef { vm: self.vm.clone() }).await?;
            stdio::print(&render(&answer))?;
        }
        Ok(0)
    }
}

fn render(answer: &VmPing) -> String {
    let micros = answer.latency_microseconds;
    format!(
        "{}: {}.{:02} ms, up {}, agent {}\n",
        answer.vm,
        micros / 1000,
        micros % 1000 / 10,
        human::format_seconds(answer.guest_uptime_seconds),
        crate::error::printable(&answer.agent_version),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line() {
        let answer = VmPing {
            vm: "dev".into(),
            latency_microseconds: 1_057,
            agent_version: "0.1.0".into(),
            guest_uptime_seconds: 185,
        };
        assert_eq!(render(&answer), "dev: 1.05 ms, up 3m, agent 0.1.0\n");
    }
}
