//! `banger vm stats`: what machines take of the host, and what their guests say of themselves.
//!
//! The daemon gives counters; a rate is the difference of two samples by that of their clocks. So a table takes two
//! samples, and a watched one compares each sample with the last.

use std::time::Duration;

use banger_api::client::Client;
use banger_api::types::{VmStats, VmStatsOf};
use clap::Args;
use tokio::time::MissedTickBehavior;

use super::stats_table::Samples;
use crate::args::parse_duration;
use crate::context::Context;
use crate::error::{CliError, printable};
use crate::output::{Format, json_line};
use crate::stdio::{self, say};
use crate::{human, terminal};

/// Between the two samples of a table.
const APART: Duration = Duration::from_millis(500);

/// Show what machines use
///
/// Processor, memory, disk and network of the process that runs each machine; load, memory and the fullest file system
/// as the guest sees them. 100 % is one processor. The network of a machine under QEMU's user network is not counted. JSON and YAML have the counters as they are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm stats
  banger vm stats dev ci
  banger vm stats --watch --interval 5s
  banger vm stats --watch -o json | jq .host.cpu_microseconds
")]
pub(crate) struct Stats {
    /// Machines, by name or id [default: all that run]
    #[arg(value_name = "VM")]
    vms: Vec<String>,
    /// Go on until interrupted: redraws a terminal, prints one table after the other elsewhere
    #[arg(short, long)]
    watch: bool,
    /// How often, with --watch
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "2s", requires = "watch")]
    interval: Duration,
    /// Format of the result; with --watch, JSON is one line for each machine and sample
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

/// An interval that leaves the daemon time for other things.
fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(interval) if interval < Duration::from_millis(100) => Err("the shortest is 100ms".to_owned()),
        Ok(interval) => Ok(interval),
        Err(error) => Err(error.to_string()),
    }
}

impl Stats {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        if self.watch {
            return self.watch(&client).await;
        }
        let first = self.sample(&client).await?;
        if self.output != Format::Table {
            return self.output.print(&first, |_| String::new());
        }
        let mut samples = Samples::default();
        samples.render(&first);
        if first.iter().any(|stats| stats.host.is_some()) {
            tokio::time::sleep(APART).await;
        }
        let second = self.sample(&client).await?;
        stdio::print(&samples.render(&second))?;
        for stats in &second {
            match (&stats.host, &stats.guest_problem) {
                (None, _) => say!("note: {} is {}", stats.vm, human::vm_state(stats.state)),
                (Some(_), Some(problem)) => {
                    say!("note: no figures of {}'s guest: {}", stats.vm, printable(problem));
                }
                (Some(_), None) => {}
            }
        }
        Ok(0)
    }

    async fn sample(&self, client: &Client) -> Result<Vec<VmStats>, CliError> {
        let vms = self.vms.clone();
        Ok(client.vm_stats(VmStatsOf { vms }).await?)
    }

    async fn watch(self, client: &Client) -> Result<u8, CliError> {
        let mut samples = Samples::default();
        let mut screen = Redrawn::new();
        if self.output == Format::Table {
            samples.render(&self.sample(client).await?);
            tokio::time::sleep(APART).await;
        }
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // No signal is caught: there is nothing to put back, so Ctrl-C may simply end it.
        loop {
            ticks.tick().await;
            let stats = self.sample(client).await?;
            let text = match self.output {
                Format::Table => screen.frame(&samples.render(&stats)),
                Format::Json => stats.iter().map(json_line).collect::<Result<String, _>>()?,
                Format::Yaml => format!("---\n{}", Format::Yaml.render(&stats, |_| String::new())?),
            };
            stdio::print(&text)?;
        }
    }
}

/// A table that is drawn over the one before it, where standard output is a terminal.
struct Redrawn {
    terminal: bool,
    /// Lines drawn last, which the next frame goes over.
    drawn: usize,
}

impl Redrawn {
    fn new() -> Self {
        Self {
            terminal: terminal::stdout_is_terminal(),
            drawn: 0,
        }
    }

    fn frame(&mut self, table: &str) -> String {
        if !self.terminal {
            let gap = if self.drawn > 0 { "\n" } else { "" };
            self.drawn = 1;
            return format!("{gap}{table}");
        }
        let (rows, columns) = terminal::window_size();
        self.over(table, usize::from(rows), usize::from(columns))
    }

    /// A frame for a window: a line that wrapped, or one that scrolled away, could not be gone over.
    fn over(&mut self, table: &str, rows: usize, columns: usize) -> String {
        let mut text = match self.drawn {
            0 => String::new(),
            // Cursor up, then erase to the screen's end (ECMA-48: CUU, ED).
            drawn => format!("\x1b[{drawn}A\x1b[J"),
        };
        self.drawn = 0;
        for line in table.lines().take(rows.saturating_sub(1).max(1)) {
            text.extend(line.chars().take(columns));
            text.push('\n');
            self.drawn += 1;
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_covers_the_last_one_and_fits_the_window() {
        let mut screen = Redrawn {
            terminal: true,
            drawn: 0,
        };
        assert_eq!(screen.over("NAME\na\nb\nc\n", 4, 3), "NAM\na\nb\n");
        assert_eq!(screen.over("NAME\na\n", 4, 80), "\x1b[3A\x1b[JNAME\na\n");
        assert_eq!(screen.over("NAME\n", 0, 80), "\x1b[2A\x1b[JNAME\n");
    }

    #[test]
    fn blocks_stand_apart_elsewhere() {
        let mut screen = Redrawn {
            terminal: false,
            drawn: 0,
        };
        assert_eq!(screen.frame("NAME\n"), "NAME\n");
        assert_eq!(screen.frame("NAME\n"), "\nNAME\n");
    }

    #[test]
    fn intervals() {
        assert_eq!(parse_interval("100ms"), Ok(Duration::from_millis(100)));
        assert!(parse_interval("99ms").is_err());
        assert!(parse_interval("2").is_err());
    }
}
