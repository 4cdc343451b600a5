//! `banger gc`: collects what nothing needs any more.

use banger_api::types::{Garbage, GcReport, GcRun};
use clap::Args;

use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::stdio::say;
use crate::table;

/// Collect what nothing needs any more
///
/// The daemon collects by itself what a crash left behind; this finds the rest, such as caches of kernels that are gone.
/// The exit code is 1 where something could not be collected.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger gc --dry-run
  banger gc
  banger gc --dry-run -o json | jq 'map(.size) | add'
")]
pub(crate) struct Gc {
    /// Only say what would be collected, and why
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Gc {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let dry_run = self.dry_run;
        let GcReport { garbage } = context.client().await?.gc_run(GcRun { dry_run }).await?;
        print(&self.output, &garbage, dry_run)
    }
}

/// Prints what was found, and what it comes to.
pub(super) fn print(output: &OutputArgs, garbage: &Vec<Garbage>, dry_run: bool) -> Result<u8, CliError> {
    output.print(
        garbage,
        |garbage| garbage.iter().map(|one| one.what.as_str()).collect(),
        |garbage| render(garbage, dry_run),
    )?;
    say!("{}", sum(garbage, dry_run));
    Ok(u8::from(garbage.iter().any(|one| one.problem.is_some())))
}

/// What it comes to.
fn sum(garbage: &[Garbage], dry_run: bool) -> String {
    let counted = garbage
        .iter()
        .filter(|one| dry_run || one.collected == Some(true));
    let (count, size) = counted.fold((0_usize, 0_u64), |(count, size), one| {
        (count + 1, size.saturating_add(one.size))
    });
    let (size, left) = (format_size(size), garbage.len() - count);
    match (garbage.len(), dry_run, left) {
        (0, _, _) => "there is nothing to collect".to_owned(),
        (_, true, _) => format!("{count} to collect, {size}"),
        (_, false, 0) => format!("{count} collected, {size}"),
        (_, false, left) => format!("{count} collected, {size}; {left} could not be"),
    }
}

fn render(garbage: &[Garbage], dry_run: bool) -> String {
    if dry_run {
        let row = |one: &Garbage| {
            [
                one.kind.clone(),
                one.what.clone(),
                format_size(one.size),
                one.why.clone(),
            ]
        };
        return table::render(["KIND", "WHAT", "SIZE", "WHY"], garbage.iter().map(row));
    }
    let row = |one: &Garbage| {
        let result = match (&one.problem, one.collected) {
            (Some(problem), _) => format!("failed: {problem}"),
            (None, Some(true)) => "collected".to_owned(),
            (None, Some(false) | None) => "left".to_owned(),
        };
        [
            one.kind.clone(),
            one.what.clone(),
            format_size(one.size),
            result,
            one.why.clone(),
        ]
    };
    table::render(["KIND", "WHAT", "SIZE", "RESULT", "WHY"], garbage.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn garbage(collected: Option<bool>) -> Vec<Garbage> {
        let one = |kind: &str, what: &str, why: &str, size, problem: bool| Garbage {
            kind: kind.into(),
            what: what.into(),
            why: why.into(),
            size,
            collected: collected.map(|collected| collected && !problem),
            problem: (problem && collected.is_some()).then(|| "it is in use".into()),
        };
        vec![
            one(
                "directory",
                "/var/lib/banger/vms/bgrk3v9x0q2ab",
                "no machine has this id",
                70 << 20,
                false,
            ),
            one("device", "bgrk3v9x0q2ab", "no machine has this id", 0, true),
        ]
    }

    #[test]
    fn tables() {
        insta::assert_snapshot!(render(&garbage(None), true), @r"
        KIND        WHAT                                SIZE    WHY
        directory   /var/lib/banger/vms/bgrk3v9x0q2ab   70MiB   no machine has this id
        device      bgrk3v9x0q2ab                       0B      no machine has this id
        ");
        insta::assert_snapshot!(render(&garbage(Some(true)), false), @r"
        KIND        WHAT                                SIZE    RESULT                 WHY
        directory   /var/lib/banger/vms/bgrk3v9x0q2ab   70MiB   collected              no machine has this id
        device      bgrk3v9x0q2ab                       0B      failed: it is in use   no machine has this id
        ");
    }

    #[test]
    fn sums() {
        assert_eq!(sum(&[], true), "there is nothing to collect");
        assert_eq!(sum(&garbage(None), true), "2 to collect, 70MiB");
        assert_eq!(
            sum(&garbage(Some(true)), false),
            "1 collected, 70MiB; 1 could not be"
        );
    }
}
