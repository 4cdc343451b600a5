//! `banger vm ping`: does the guest answer, and how fast.

use std::time::Duration;

use banger_api::types::{VmPing, VmRef};
use clap::Args;

use crate::args::parse_duration;
use crate::context::Context;
use crate::error::CliError;
use crate::{human, stdio};

/// Ask a guest for an answer, and measure the round trip
///
/// Asked several times, the last line has the shortest, the mean and the longest.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm ping dev
  banger vm ping -c 5 dev
  banger vm ping -c 100 --interval 10ms dev
")]
pub(crate) struct Ping {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// How often
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How far apart
    #[arg(short, long, value_name = "DURATION", value_parser = parse_duration, default_value = "1s")]
    interval: Duration,
}

impl Ping {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut times = Times::default();
        for number in 0..self.count {
            if number > 0 {
                tokio::time::sleep(self.interval).await;
            }
            let answer = client.vm_ping(VmRef { vm: self.vm.clone() }).await?;
            stdio::print(&render(&answer))?;
            times.add(answer.latency_microseconds);
        }
        if self.count > 1 {
            stdio::print(&times.render())?;
        }
        Ok(0)
    }
}

fn render(answer: &VmPing) -> String {
    format!(
        "{}: {}, up {}, agent {}\n",
        answer.vm,
        milliseconds(answer.latency_microseconds),
        human::format_seconds(answer.guest_uptime_seconds),
        crate::error::printable(&answer.agent_version),
    )
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

/// Round trips so far, in microseconds.
#[derive(Debug, Default)]
struct Times {
    count: u64,
    sum: u64,
    shortest: Option<u64>,
    longest: u64,
}

impl Times {
    fn add(&mut self, micros: u64) {
        self.count += 1;
        self.sum = self.sum.saturating_add(micros);
        self.shortest = Some(self.shortest.map_or(micros, |shortest| shortest.min(micros)));
        self.longest = self.longest.max(micros);
    }

    fn render(&self) -> String {
        format!(
            "{} answers: min {}, avg {}, max {}\n",
            self.count,
            milliseconds(self.shortest.unwrap_or_default()),
            milliseconds(self.sum.checked_div(self.count).unwrap_or_default()),
            milliseconds(self.longest),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let answer = VmPing {
            vm: "dev".into(),
            latency_microseconds: 1_057,
            agent_version: "0.1.0".into(),
            guest_uptime_seconds: 185,
        };
        assert_eq!(render(&answer), "dev: 1.05 ms, up 3m, agent 0.1.0\n");
        let mut times = Times::default();
        for micros in [1_500, 1_000, 2_100] {
            times.add(micros);
        }
        assert_eq!(
            times.render(),
            "3 answers: min 1.00 ms, avg 1.53 ms, max 2.10 ms\n"
        );
    }
}
