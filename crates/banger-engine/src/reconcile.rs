//! At start: adopt what runs, reap what died, collect what is orphaned. Says what it did in one line of the log.
//!
//! It never refuses to start: what cannot be cleaned is said and left in the ledger for the next time.

use std::sync::Arc;

use banger_store::vms::VmRow;

use crate::collect;
use crate::error::{Error, chain};
use crate::host::Host;
use crate::ledger::Owner;
use crate::vm::console;
use crate::vm::lifecycle;
use crate::vm::machines::{Machines, phase_of};
use crate::vm::state::{Paths, Phase, Running};
use crate::vm::task::{self, Begin};

#[derive(Default)]
struct Tally {
    adopted: u32,
    ended: u32,
    undone: u32,
    orphans: u32,
    failed: u32,
}

/// Brings rows, ledger and host into agreement and starts every machine's task.
pub(crate) async fn run(host: &Arc<Host>, machines: &Machines) -> Result<(), Error> {
    let mut tally = Tally::default();
    // First, while nothing is at work that could be mistaken for an orphan.
    let (orphans, stay) = collect::sweep(host).await;
    tally.orphans += orphans;
    tally.failed += stay;
    let (rows, unreadable) = host.store.read(banger_store::vms::list).await?;
    for row in unreadable {
        tally.failed += 1;
        tracing::error!(
            id = row.id,
            error = chain(&row.error),
            "unreadable machine, left alone"
        );
    }
    for row in rows {
        take_up(host, machines, row, &mut tally).await;
    }
    tracing::info!(
        adopted = tally.adopted,
        ended = tally.ended,
        undone = tally.undone,
        orphans = tally.orphans,
        failed = tally.failed,
        "took up what was there"
    );
    Ok(())
}

async fn take_up(host: &Arc<Host>, machines: &Machines, row: VmRow, tally: &mut Tally) {
    let run = Owner::Run(row.id.clone());
    let phase = match phase_of(&row.phase) {
        Ok(phase) => phase,
        Err(e) => {
            tracing::error!(vm = row.name, error = chain(&e), "unreadable phase");
            Phase::Failed { reason: chain(&e) }
        }
    };
    let next = match phase {
        // Nobody was told that it exists.
        Phase::Creating => {
            tally.undone += 1;
            match lifecycle::remove(host, &row.id).await {
                Ok(()) => return,
                Err(e) => failed(&row, &e, tally),
            }
        }
        Phase::Starting => {
            tally.undone += 1;
            match host.ledger.collect(&run).await {
                Ok(()) => Phase::Stopped,
                Err(e) => failed(&row, &e, tally),
            }
        }
        Phase::Removing => {
            tally.undone += 1;
            task::spawn(host.clone(), machines, row, Begin::Remove);
            return;
        }
        Phase::Running(running) | Phase::Stopping(running) => match adopt(host, &row, &running).await {
            Ok((machine, guest)) => {
                tally.adopted += 1;
                let phase = Phase::Running(running);
                if let Err(e) = task::keep(host, &row.id, &phase, false).await {
                    tracing::error!(vm = row.name, error = chain(&e), "phase not kept");
                }
                task::spawn(host.clone(), machines, row, Begin::Adopted(phase, machine, guest));
                return;
            }
            Err(NotAdopted::Ended(phase)) => {
                tally.ended += 1;
                match host.ledger.collect(&run).await {
                    Ok(()) => phase,
                    Err(e) => failed(&row, &e, tally),
                }
            }
            // It may well run: left as it is, to be stopped, killed or adopted by the next start.
            Err(NotAdopted::Unknown) => {
                tally.failed += 1;
                task::spawn(
                    host.clone(),
                    machines,
                    row,
                    Begin::Resting(Phase::Running(running)),
                );
                return;
            }
        },
        rests @ (Phase::Stopped | Phase::Failed { .. }) => {
            // Normally nothing; a teardown that was broken off goes on.
            if let Err(e) = host.ledger.collect(&run).await {
                failed(&row, &e, tally);
            }
            rests
        }
    };
    if let Err(e) = task::keep(host, &row.id, &next, false).await {
        tracing::error!(vm = row.name, error = chain(&e), "phase not kept");
    }
    let begin = if row.ephemeral {
        Begin::Remove
    } else {
        Begin::Resting(next)
    };
    task::spawn(host.clone(), machines, row, begin);
}

type Adopted = (Arc<dyn banger_vmm::Machine>, banger_agent_api::AgentClient);

/// Why a run was not taken up.
enum NotAdopted {
    /// It has ended, which leaves this phase.
    Ended(Phase),
    /// It cannot be told: a VMM's program is missing, the host refuses to look.
    Unknown,
}

async fn adopt(host: &Arc<Host>, row: &VmRow, running: &Running) -> Result<Adopted, NotAdopted> {
    let paths = Paths::new(&host.settings.state_dir, &host.settings.runtime_dir, &row.id);
    match lifecycle::adopt(host, row, &paths, running).await {
        Ok(adopted) => Ok(adopted),
        Err(e) => {
            tracing::warn!(vm = row.name, error = chain(&e), "not adopted");
            if !lifecycle::has_ended(&e) {
                return Err(NotAdopted::Unknown);
            }
            // Nobody saw its exit status; the console is the only witness.
            Err(NotAdopted::Ended(match console::testimony(&paths.console()) {
                Some(reason) => Phase::Failed { reason },
                None => Phase::Stopped,
            }))
        }
    }
}

fn failed(row: &VmRow, e: &Error, tally: &mut Tally) -> Phase {
    tally.failed += 1;
    tracing::error!(
        vm = row.name,
        error = chain(e),
        "could not be cleaned; the next start tries again"
    );
    Phase::Failed {
        reason: e.report().message,
    }
}
