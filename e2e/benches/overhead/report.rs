//! The figures: medians, their budgets, a table, a file.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// What a row is held to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// Ours by the raw one, at most. The samples are pairs, taken in turn: the median of the pairs' ratios, because a
    /// machine's speed drifts by more in a minute than what is measured, and both of a pair see the same moment of it.
    Ratio(f64),
    /// Ours by the raw one, at least: for what is better the more there is of it. Pairs as well.
    Share(f64),
    /// Ours by the raw one in pairs, only to be known.
    Compared,
    /// Ours minus the raw one, at most, in the row's unit; medians.
    Over(f64),
    /// Ours minus the raw one, at most, in the row's unit: the median of the pairs' differences.
    Apart(f64),
    /// Ours, at most, in the row's unit.
    AtMost(f64),
    /// Only to be known.
    None,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    ours: Vec<f64>,
    raw: Vec<f64>,
    budget: Budget,
}

/// All rows so far, and what there is no row of.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    left_out: Vec<(String, String)>,
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The median of what each pair comes to.
fn of_pairs(ours: &[f64], raw: &[f64], of_one: impl Fn(f64, f64) -> f64) -> f64 {
    assert_eq!(ours.len(), raw.len(), "pairs have two");
    let each: Vec<f64> = ours
        .iter()
        .zip(raw)
        .map(|(ours, raw)| of_one(*ours, *raw))
        .collect();
    median(&each)
}

impl Row {
    /// What is compared with the budget, as people read it, and whether it keeps it.
    fn verdict(&self) -> (String, String, Option<bool>) {
        let (ours, raw) = (median(&self.ours), median(&self.raw));
        let ratio = || of_pairs(&self.ours, &self.raw, |ours, raw| ours / raw);
        let over = |over: f64, most: f64| {
            (
                format!("{over:+.2} {}", self.unit),
                format!("+{most} {}", self.unit),
                Some(over <= most),
            )
        };
        match self.budget {
            Budget::Ratio(most) => {
                let ratio = ratio();
                (
                    format!("{ratio:.3} ×"),
                    format!("{most:.2} ×"),
                    Some(ratio <= most),
                )
            }
            Budget::Share(least) => {
                let ratio = ratio();
                (
                    format!("{ratio:.3} ×"),
                    format!("≥ {least:.2} ×"),
                    Some(ratio >= least),
                )
            }
            Budget::Compared => (format!("{:.3} ×", ratio()), String::from("-"), None),
            Budget::Over(most) => over(ours - raw, most),
            Budget::Apart(most) => over(of_pairs(&self.ours, &self.raw, |ours, raw| ours - raw), most),
            Budget::AtMost(most) => (
                format!("{ours:.2} {}", self.unit),
                format!("{most} {}", self.unit),
                Some(ours <= most),
            ),
            Budget::None => (format!("{ours:.2} {}", self.unit), String::from("-"), None),
        }
    }
}

impl Report {
    /// Adds a row. `raw` is empty where nothing is compared.
    pub(crate) fn add(
        &mut self,
        name: &str,
        unit: &'static str,
        ours: Vec<f64>,
        raw: Vec<f64>,
        budget: Budget,
    ) {
        self.rows.push(Row {
            name: name.to_owned(),
            unit,
            ours,
            raw,
            budget,
        });
    }

    /// Rows that this host or this user cannot have: which, and why.
    pub(crate) fn left_out(&mut self, what: &str, why: &str) {
        self.left_out.push((what.to_owned(), why.to_owned()));
    }

    /// Prints the table and keeps everything.
    pub(crate) fn finish(&self, directory: &Path) {
        println!();
        println!(
            "{:<44} {:>4} {:>14} {:>14} {:>14} {:>12}",
            "figure (medians)", "runs", "banger", "raw", "compared", "budget"
        );
        for row in &self.rows {
            let (compared, budget, kept) = row.verdict();
            let value = |samples: &[f64]| match samples {
                [] => String::new(),
                some => format!("{:.2} {}", median(some), row.unit),
            };
            println!(
                "{:<44} {:>4} {:>14} {:>14} {:>14} {:>12}  {}",
                row.name,
                row.ours.len(),
                value(&row.ours),
                value(&row.raw),
                compared,
                budget,
                match kept {
                    Some(true) => "ok",
                    Some(false) => "OVER",
                    None => "",
                }
            );
        }
        for (what, why) in &self.left_out {
            println!("left out: {what}: {why}");
        }
        let now = jiff::Timestamp::now();
        let left_out = self
            .left_out
            .iter()
            .map(|(what, why)| json!({"what": what, "why": why}));
        let left_out: Vec<Value> = left_out.collect();
        let document = json!({
            "time": now.to_string(),
            "host": host(),
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "left_out": left_out,
        });
        std::fs::create_dir_all(directory).expect("make the directory of benchmarks");
        let path = directory.join(format!("{}.json", now.strftime("%Y-%m-%dT%H-%M-%S")));
        std::fs::write(&path, format!("{document:#}\n")).expect("keep the figures");
        println!("\nkept in {}", path.display());
    }
}

impl Row {
    fn json(&self) -> Value {
        let (compared, budget, kept) = self.verdict();
        json!({
            "name": self.name, "unit": self.unit, "ours": self.ours, "raw": self.raw,
            "compared": compared, "budget": budget, "kept": kept,
        })
    }
}

fn host() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": model.trim_start_matches([' ', '\t', ':']),
    })
}
