//! The same operation on many machines: which, and how it goes.
//!
//! ```text
//! names ───────────────┐
//! --all, --label ─ ls ─┴─ targets ─► begin + follow, PARALLEL at a time ─► told in the order named
//! ```
//!
//! One that fails stops no other. The exit code is that of the first failure in the order named, so that it does not
//! depend on which machine was faster.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use banger_api::client::{Client, ClientError};
use banger_api::types::{Operation, VmList};
use clap::Args;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::args::Selector;
use crate::ask;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::interrupt::Interrupts;
use crate::operation::{End, OnInterrupt, Wish, follow, steer, too_late};
use crate::progress::{Progress, Screen};
use crate::stdio::{self, say};

/// How many operations are at work at once; each takes two connections at most.
const PARALLEL: usize = 16;

/// Most names that a question lists.
const LISTED: usize = 10;

/// Machines to work on.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Machines {
    /// Machines, by name or id
    #[arg(value_name = "VM")]
    vms: Vec<String>,
    /// All machines
    #[arg(short, long)]
    pub(crate) all: bool,
    /// All machines with this label; can be given several times, KEY alone matches any value
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<Selector>,
}

/// A machine to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// What the user calls it.
    pub(crate) name: String,
    /// What the daemon is asked for: a machine that a filter found is meant by its id, whoever takes its name.
    pub(crate) reference: String,
    /// A filter found it.
    found: bool,
}

impl Machines {
    /// The machines meant, each once, in the order named. None at all: said, and an empty list.
    pub(crate) async fn targets(self, client: &Client) -> Result<Vec<Target>, CliError> {
        if !self.all && self.label.is_empty() {
            return Ok(named(self.vms));
        }
        let labels: BTreeMap<String, String> = self
            .label
            .into_iter()
            .map(|label| (label.key, label.value))
            .collect();
        let words: Vec<String> = labels
            .iter()
            .map(|(key, value)| match value.as_str() {
                "" => key.clone(),
                _ => format!("{key}={value}"),
            })
            .collect();
        let vms = client.vm_list(VmList { labels }).await?;
        if vms.is_empty() {
            match words.as_slice() {
                [] => say!("there are no machines"),
                words => say!("no machine is labelled {}", words.join(" and ")),
            }
        }
        let found = |vm: banger_api::types::Vm| Target {
            name: vm.name,
            reference: vm.id,
            found: true,
        };
        Ok(vms.into_iter().map(found).collect())
    }
}

fn named(vms: Vec<String>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::with_capacity(vms.len());
    for name in vms {
        if targets.iter().all(|target| target.name != name) {
            targets.push(Target {
                reference: name.clone(),
                name,
                found: false,
            });
        }
    }
    targets
}

/// Asks whether to do it to all of them.
pub(crate) async fn confirm(verb: &str, targets: &[Target], yes: bool) -> Result<(), CliError> {
    if targets.is_empty() {
        return Ok(());
    }
    ask::confirm(&question(verb, targets), yes).await
}

fn question(verb: &str, targets: &[Target]) -> String {
    let mut names: Vec<&str> = targets
        .iter()
        .take(LISTED)
        .map(|target| target.name.as_str())
        .collect();
    if targets.len() > LISTED {
        names.push("…");
    }
    let count = match targets.len() {
        1 => "1 machine".to_owned(),
        count => format!("{count} machines"),
    };
    format!("{verb} {count} ({})", names.join(", "))
}

/// How to follow the operations.
#[derive(Debug, Args)]
pub(crate) struct Following {
    /// Do not wait: print the operations' ids and return at once
    #[arg(short, long)]
    detach: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What became of one machine.
type Outcome = Result<End, CliError>;

impl Following {
    /// Begins and follows an operation on each machine. Prints the name of each that it succeeded for, and why it
    /// failed for the others; `gone_is_done` where a machine that a filter found and that has gone meanwhile is as it
    /// should be.
    pub(crate) async fn run<B>(
        self,
        client: Client,
        targets: Vec<Target>,
        gone_is_done: bool,
        begin: impl Fn(Arc<Client>, String) -> B + Clone + Send + 'static,
    ) -> Result<u8, CliError>
    where
        B: Future<Output = Result<Operation, ClientError>> + Send + 'static,
    {
        let mut interrupts = Interrupts::listen()?;
        let client = Arc::new(client);
        let screen = Screen::new(self.quiet);
        let (wishes, wish) = watch::channel(Wish::Follow);
        let places = Arc::new(Semaphore::new(PARALLEL));
        let mut tasks = JoinSet::new();
        for (index, target) in targets.iter().enumerate() {
            let (client, wish, screen, places) =
                (client.clone(), wish.clone(), screen.clone(), places.clone());
            let (begin, reference) = (begin.clone(), target.reference.clone());
            tasks.spawn(async move {
                // The semaphore is never closed; a place is held until the end.
                let _place = places.acquire().await;
                // Not to have been begun is best for an operation that is to be cancelled.
                let outcome = match *wish.borrow() {
                    Wish::Follow => None,
                    Wish::Cancel | Wish::Detach | Wish::Leave | Wish::Abandon => {
                        Some(Err(CliError::interrupted("not begun: interrupted")))
                    }
                };
                let outcome = match outcome {
                    Some(outcome) => outcome,
                    None => {
                        let begin = begin(client.clone(), reference);
                        follow(&client, begin, self.detach, wish, Progress::new(&screen)).await
                    }
                };
                (index, outcome)
            });
        }
        let mut report = Report::new(targets, gone_is_done);
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                let (index, outcome) = ended.map_err(|error| CliError::general(error.to_string()))?;
                screen.suspend(|| report.add(index, outcome))?;
            }
            Ok(report.code())
        };
        // Dropping `all` would drop the tasks with it; that happens only when `steer` ended, which it does not.
        tokio::select! {
            biased;
            code = all => code,
            never = steer(&mut interrupts, OnInterrupt::Cancel, &wishes, &screen) => match never {},
        }
    }
}

/// Tells outcomes in the order named, each as soon as those before it are known.
struct Report {
    targets: Vec<Target>,
    outcomes: Vec<Option<Outcome>>,
    told: usize,
    gone_is_done: bool,
    first_failure: Option<Kind>,
}

impl Report {
    fn new(targets: Vec<Target>, gone_is_done: bool) -> Self {
        Self {
            outcomes: targets.iter().map(|_| None).collect(),
            targets,
            told: 0,
            gone_is_done,
            first_failure: None,
        }
    }

    fn add(&mut self, index: usize, outcome: Outcome) -> Result<(), CliError> {
        if let Some(place) = self.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
        while let Some(outcome) = self.outcomes.get_mut(self.told).and_then(Option::take) {
            let target = &self.targets[self.told];
            self.told += 1;
            match line(outcome, target, self.gone_is_done) {
                Ok(line) => stdio::print(&format!("{line}\n"))?,
                Err(mut error) => {
                    self.first_failure.get_or_insert(error.kind);
                    if self.targets.len() > 1 && !error.message.contains(&target.name) {
                        error.message = format!("{}: {}", target.name, error.message);
                    }
                    crate::cli::report(&error);
                }
            }
        }
        Ok(())
    }

    fn code(&self) -> u8 {
        self.first_failure.map_or(0, Kind::code)
    }
}

/// What is printed of an outcome: the machine's name, or the id of an operation that goes on by itself.
fn line(outcome: Outcome, target: &Target, gone_is_done: bool) -> Result<String, CliError> {
    match outcome {
        Ok(End::Done(_)) => Ok(target.name.clone()),
        Ok(End::Detached(operation)) => Ok(operation.id),
        Ok(End::TooLate(operation)) => Err(too_late(&operation)),
        // One that removed itself as it stopped, or that somebody else has removed.
        Err(error) if error.kind == Kind::NotFound && target.found && gone_is_done => Ok(target.name.clone()),
        Err(error) => Err(error),
    }
}

/// What the commands without options of their own do.
pub(crate) async fn each<B>(
    context: &Context,
    machines: Machines,
    following: Following,
    gone_is_done: bool,
    begin: impl Fn(Arc<Client>, String) -> B + Clone + Send + 'static,
) -> Result<u8, CliError>
where
    B: Future<Output = Result<Operation, ClientError>> + Send + 'static,
{
    let client = context.client().await?;
    let targets = machines.targets(&client).await?;
    following.run(client, targets, gone_is_done, begin).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_named_twice_is_meant_once() {
        let names = |words: &[&str]| -> Vec<String> {
            named(words.iter().map(|word| (*word).to_owned()).collect())
                .into_iter()
                .map(|target| target.name)
                .collect()
        };
        assert_eq!(names(&["b", "a", "b"]), ["b", "a"]);
    }

    #[test]
    fn questions_name_what_they_are_about() {
        let targets = |count: usize| named((1..=count).map(|n| format!("m{n}")).collect());
        assert_eq!(question("remove", &targets(1)), "remove 1 machine (m1)");
        assert_eq!(
            question("remove", &targets(12)),
            "remove 12 machines (m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, …)"
        );
    }

    #[test]
    fn the_first_failure_in_the_order_named_counts() {
        let mut report = Report::new(named(vec!["a".into(), "b".into()]), false);
        let failed = |kind| Err(CliError::new(kind, "no"));
        report.add(1, failed(Kind::Guest)).unwrap();
        assert_eq!(report.told, 0, "what comes after waits");
        report.add(0, failed(Kind::Conflict)).unwrap();
        assert_eq!((report.told, report.code()), (2, Kind::Conflict.code()));
    }

    #[test]
    fn what_a_filter_found_and_is_gone_is_as_it_should_be() {
        let gone = || Err(CliError::new(Kind::NotFound, "no machine"));
        let mut target = named(vec!["a".into()]).remove(0);
        assert!(line(gone(), &target, true).is_err());
        target.found = true;
        assert_eq!(line(gone(), &target, true).unwrap(), "a");
        assert!(line(gone(), &target, false).is_err());
    }
}
