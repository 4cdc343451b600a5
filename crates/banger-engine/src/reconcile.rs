//! At start: adopt what runs, reap what died, collect what is orphaned. Says what it did in one line of the log.
//!
//! It never refuses to start: what cannot be cleaned is said and left in the ledger for the next time.

use std::collections::HashSet;
use std::sync::Arc;

use banger_store::vms::VmRow;
use jiff::Timestamp;

use crate::collect;
use crate::crash::Write;
use crate::error::{Error, chain, io};
use crate::host::Host;
use crate::image::{build, registered};
use crate::ledger::Owner;
use crate::vm::change::RanWith;
use crate::vm::console::{self, Ending};
use crate::vm::machines::{Machines, phase_of};
use crate::vm::restart::Restart;
use crate::vm::state::{Due, Failure, Paths, Phase, Running};
use crate::vm::task::{self, Begin};
use crate::vm::{clock, lifecycle};

#[derive(Default)]
struct Tally {
    adopted: u32,
    ended: u32,
    undone: u32,
    due: u32,
    orphans: u32,
    failed: u32,
}

/// What is known of the host and of all machines while each is taken up.
struct Scene<'a> {
    host: &'a Arc<Host>,
    machines: &'a Machines,
    /// Owners of which the ledger has something; `None`: it could not be read.
    runs: Option<HashSet<Owner>>,
    /// The host has booted since a daemon was here.
    booted: bool,
}

/// The fact that says which boot of the host the last daemon knew.
const BOOT: &str = "boot_id";

/// Brings rows, ledger and host into agreement and starts every machine's task.
pub(crate) async fn run(host: &Arc<Host>, machines: &Machines) -> Result<(), Error> {
    let mut tally = Tally::default();
    // First, while nothing is at work that could be mistaken for an orphan.
    let (orphans, stay) = collect::sweep(host).await;
    tally.orphans += orphans;
    tally.failed += stay;
    if let Err(e) = registered::settle(host).await {
        tally.failed += 1;
        tracing::error!(error = chain(&e), "promotions of images not looked at");
    }
    let (rows, unreadable) = host.store.read(banger_store::vms::list).await?;
    for row in unreadable {
        tally.failed += 1;
        tracing::error!(
            id = row.id,
            error = chain(&row.error),
            "unreadable machine, left alone"
        );
    }
    let owners = match host.ledger.owners().await {
        Ok(owners) => Some(owners.into_iter().collect()),
        Err(e) => {
            tracing::error!(error = chain(&e), "ledger not read");
            None
        }
    };
    let boot = booted(host).await;
    let scene = Scene {
        host,
        machines,
        runs: owners,
        booted: boot.is_some(),
    };
    for row in rows {
        take_up(&scene, row, &mut tally).await;
    }
    // Last: each machine that is to be started says so in its row by now, so none is forgotten should we die here.
    if let Some(boot) = boot {
        let kept = host.store.write(Write::Booted, move |tx| {
            banger_store::facts::replace(tx, BOOT, &boot).map(drop)
        });
        if let Err(e) = kept.await {
            tracing::error!(error = chain(&e), "the host's boot not kept");
        }
    }
    tracing::info!(
        adopted = tally.adopted,
        ended = tally.ended,
        undone = tally.undone,
        autostarts = tally.due,
        orphans = tally.orphans,
        failed = tally.failed,
        "took up what was there"
    );
    Ok(())
}

async fn take_up(scene: &Scene<'_>, row: VmRow, tally: &mut Tally) {
    let Scene { host, machines, .. } = *scene;
    let phase = match phase_of(&row.phase) {
        Ok(phase) => phase,
        // Of a newer release, say: whether it runs is not known, so nothing of it is ended until somebody asks for it.
        Err(e) => {
            tally.failed += 1;
            tracing::error!(vm = row.name, error = chain(&e), "unreadable phase, left alone");
            let phase = Phase::Failed(Failure::of(&e));
            task::spawn(host.clone(), machines, row, Begin::Resting(phase));
            return;
        }
    };
    if row.labels.contains_key(build::LABEL) {
        // Its build ended with the daemon that was at it.
        tally.undone += 1;
        task::spawn(host.clone(), machines, row, Begin::Remove);
        return;
    }
    let next = match phase.clone() {
        // Nobody was told that it exists.
        Phase::Creating => {
            tally.undone += 1;
            match lifecycle::remove(host, &row.id).await {
                Ok(()) => return,
                Err(e) => failed(&row, &e, tally),
            }
        }
        Phase::Starting | Phase::Resetting => {
            tally.undone += 1;
            scene.collected(&row, Phase::Stopped, tally).await
        }
        Phase::Removing => {
            tally.undone += 1;
            task::spawn(host.clone(), machines, row, Begin::Remove);
            return;
        }
        Phase::Running(running) | Phase::Stopping(running) => match adopt(host, &row, &running).await {
            // Not the run that was being stopped but a start that followed it, of an ephemeral machine: broken off.
            Ok((machine, _))
                if matches!(phase, Phase::Stopping(_))
                    && lifecycle::machine_pid(machine.as_ref()) != running.pid =>
            {
                tally.undone += 1;
                task::spawn(host.clone(), machines, row, Begin::Remove);
                return;
            }
            Ok((machine, guest)) => {
                tally.adopted += 1;
                let with = running.with.clone().or_else(|| Some(RanWith::of(&row)));
                let run = Running { with, ..running };
                // Of one that was being stopped, the task goes on with that.
                let stopping = matches!(phase, Phase::Stopping(_));
                let next = if stopping { Phase::Stopping } else { Phase::Running }(run);
                scene.keep(&row, &phase, &next).await;
                task::spawn(host.clone(), machines, row, Begin::Adopted(next, machine, guest));
                return;
            }
            Err(NotAdopted::Ended(ending)) => {
                tally.ended += 1;
                // Where it was being stopped, that is what has happened.
                let asked = matches!(phase, Phase::Stopping(_));
                match after(&row, &running, ending, asked, scene.booted) {
                    Some(next) => scene.collected(&row, next, tally).await,
                    None => {
                        task::spawn(host.clone(), machines, row, Begin::Remove);
                        return;
                    }
                }
            }
            // It may well run: left as it is, to be stopped, killed or adopted by the next start.
            Err(NotAdopted::Unknown) => {
                tally.failed += 1;
                let phase = Phase::Running(running);
                task::spawn(host.clone(), machines, row, Begin::Resting(phase));
                return;
            }
        },
        // Normally nothing; a teardown that was broken off goes on, and so does a start that the daemon made by itself.
        rests @ (Phase::Stopped | Phase::Failed(_) | Phase::Due(_)) => {
            scene.collected(&row, rests, tally).await
        }
    };
    let rests = matches!(next, Phase::Stopped | Phase::Failed(_));
    let next = if rests && row.autostart && scene.booted {
        tally.due += 1;
        Phase::Due(Due {
            failure: next.failure().cloned(),
            autostart: true,
            ..Due::default()
        })
    } else {
        next
    };
    scene.keep(&row, &phase, &next).await;
    task::spawn(host.clone(), machines, row, Begin::Resting(next));
}

/// What a run leads to that ended while no daemon watched; `None`: the machine goes with it.
fn after(row: &VmRow, run: &Running, ending: Ending, asked: bool, booted: bool) -> Option<Phase> {
    let bad = !asked && ending != Ending::Orderly;
    let failure = match ending {
        // What went down with its host did not fail, though it did not shut down either.
        Ending::Bad(failure) if !asked && !booted => Some(failure),
        Ending::Bad(_) | Ending::Orderly => None,
    };
    let due = Due {
        failure,
        autostart: booted,
        restarts: run.restarts,
        streak: run.streak,
    };
    if !asked && Restart::of(&row.restart).wants(bad) {
        // When it ended is not known; that it began long ago is what counts.
        return Some(Phase::Due(due.after(clock::since(Timestamp::now(), run.since))));
    }
    (!row.ephemeral).then(|| due.off())
}

impl Scene<'_> {
    /// Collects what a run has left; gives the phase, or the failure to do so.
    async fn collected(&self, row: &VmRow, phase: Phase, tally: &mut Tally) -> Phase {
        let run = Owner::Run(row.id.clone());
        if self.runs.as_ref().is_some_and(|runs| !runs.contains(&run)) {
            return phase;
        }
        match self.host.ledger.collect(&run).await {
            Ok(()) => phase,
            Err(e) => failed(row, &e, tally),
        }
    }

    /// Keeps a phase that is another than the row's.
    async fn keep(&self, row: &VmRow, before: &Phase, phase: &Phase) {
        if before == phase {
            return;
        }
        if let Err(e) = task::keep(self.host, &row.id, phase, false).await {
            tracing::error!(vm = row.name, error = chain(&e), "phase not kept");
        }
    }
}

type Adopted = (Arc<dyn banger_vmm::Machine>, banger_agent_api::AgentClient);

/// Why a run was not taken up.
enum NotAdopted {
    /// It has ended.
    Ended(Ending),
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
            // Nobody saw its exit status.
            Err(NotAdopted::Ended(console::unseen_ending(&paths.console())))
        }
    }
}

/// The host's boot, if it is another than the last daemon's. Where that cannot be known nothing is started: it is better
/// to be told what is down than to have started what somebody stopped.
async fn booted(host: &Host) -> Option<String> {
    let known = async {
        let now = boot_id()?;
        let before = host.store.read(|tx| banger_store::facts::find(tx, BOOT)).await?;
        Ok((before.as_ref() != Some(&now)).then_some(now))
    };
    match known.await {
        Ok(boot) => boot,
        Err::<_, Error>(e) => {
            tracing::error!(error = chain(&e), "the host's boot is not known");
            None
        }
    }
}

/// The host's boot (`/proc/sys/kernel/random/boot_id`, random(4)): another one each time.
pub(crate) fn boot_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(path).map_err(io("read", path))?;
    Ok(id.trim().to_owned())
}

fn failed(row: &VmRow, e: &Error, tally: &mut Tally) -> Phase {
    tally.failed += 1;
    tracing::error!(
        vm = row.name,
        error = chain(e),
        "could not be cleaned; the next start tries again"
    );
    Phase::Failed(Failure::of(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Object;

    fn row(restart: Restart, ephemeral: bool) -> VmRow {
        VmRow {
            restart: restart.as_str().to_owned(),
            ephemeral,
            ..crate::vm::change::tests::row()
        }
    }

    fn run(began: Timestamp) -> Running {
        Running {
            since: began,
            restarts: 3,
            streak: 4,
            ..crate::vm::change::tests::run()
        }
    }

    fn bad() -> Ending {
        Ending::Bad(Failure {
            reason: "died".to_owned(),
            console: Vec::new(),
        })
    }

    #[tokio::test]
    async fn what_runs_under_a_phase_that_cannot_be_read_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let host = Arc::new(crate::host::tests::host(directory.path()).await);
        let machines = Machines::default();
        let row = VmRow {
            phase: "\"paused\"".to_owned(),
            ..row(Restart::No, false)
        };
        let token = crate::id::token(&row.id);
        let mut vmm = hostkit::process::Detached::new("/bin/sh");
        vmm.args = ["-c", "kill -STOP $$", "sh", "-name", &token, "-qmp", "fd=3"]
            .map(Into::into)
            .to_vec();
        let vmm = hostkit::process::spawn_detached(vmm).unwrap();
        let (run, id) = (Owner::Run(row.id.clone()), vmm.id());
        let object = Object::Process {
            role: "vmm".to_owned(),
            pid: id.pid,
            start_time: id.start_time,
        };
        host.ledger.enter(&run, &object).await.unwrap().nothing_to_make();
        let scene = Scene {
            host: &host,
            machines: &machines,
            runs: Some([run].into()),
            booted: true,
        };
        let (name, mut tally) = (row.name.clone(), Tally::default());
        take_up(&scene, row, &mut tally).await;
        let ended = vmm.try_exited();
        vmm.kill(hostkit::process::Signal::KILL).unwrap();
        vmm.exited().await;
        assert!(ended.is_none(), "{ended:?}");
        assert_eq!((tally.failed, tally.due), (1, 0));
        let view = machines.find(&name).unwrap().view.borrow().clone();
        let reason = &view.phase.failure().unwrap().reason;
        assert!(reason.contains("phase"), "{reason}");
    }

    #[test]
    fn what_ended_unseen_is_started_again_where_its_policy_says_so() {
        let now = Timestamp::now();
        let due = |restart, ending| match after(&row(restart, false), &run(now), ending, false, false) {
            Some(Phase::Due(due)) => Some(due),
            Some(_) | None => None,
        };
        assert_eq!(due(Restart::No, bad()), None);
        assert_eq!(due(Restart::OnFailure, Ending::Orderly), None);
        let again = due(Restart::OnFailure, bad()).unwrap();
        assert_eq!((again.restarts, again.streak, again.autostart), (3, 4, false));
        assert_eq!(again.failure.unwrap().reason, "died");
        assert_eq!(due(Restart::Always, Ending::Orderly).unwrap().failure, None);
        // One that began long ago was sound.
        let long_ago = run(now - jiff::SignedDuration::from_hours(1));
        let phase = after(&row(Restart::Always, false), &long_ago, bad(), false, false);
        assert!(
            matches!(phase, Some(Phase::Due(Due { streak: 0, .. }))),
            "{phase:?}"
        );
    }

    #[test]
    fn what_was_being_stopped_is_stopped() {
        let run = run(Timestamp::now());
        let stopped = after(&row(Restart::Always, false), &run, bad(), true, false);
        assert_eq!(stopped, Some(Phase::Stopped));
        // What went down with its host is stopped too, unless it is to be up: then it takes its turn with the others.
        let policy = |restart| after(&row(restart, false), &run, bad(), false, true);
        assert_eq!(policy(Restart::No), Some(Phase::Stopped));
        for restart in [Restart::OnFailure, Restart::Always] {
            let due = policy(restart);
            assert!(
                matches!(&due, Some(Phase::Due(due)) if due.autostart && due.failure.is_none()),
                "{due:?}"
            );
        }
        // And what goes with its run is gone.
        assert_eq!(
            after(&row(Restart::No, true), &run, Ending::Orderly, false, false),
            None
        );
        assert_eq!(after(&row(Restart::No, true), &run, bad(), true, false), None);
    }
}
