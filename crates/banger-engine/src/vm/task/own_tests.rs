//! A start that the daemon makes by itself and a removal, while the state file cannot be written.

use std::sync::Arc;

use tokio::sync::watch;

use super::*;
use crate::host::{Host, tests::host};
use crate::vm::change::tests::row;
use crate::vm::machines::Machines;
use crate::vm::state::{Due, Paths, View};
use crate::vm::task::outcome_of;

/// Of a machine whose run has ended and that is to be started again, which its row does not say.
fn task(host: Host) -> Task {
    let (row, paths) = (
        row(),
        Paths::new("/nowhere".as_ref(), "/nowhere".as_ref(), &row().id),
    );
    let phase = Phase::Due(Due::default());
    let view = View {
        row: row.clone(),
        phase: phase.clone(),
        generation: 0,
        guest: None,
        machine: None,
        restarts_at: None,
    };
    Task {
        host: Arc::new(host),
        machines: Machines::default(),
        row,
        paths,
        phase,
        kept: Phase::Stopped,
        unkept: true,
        view: watch::channel(view).0,
        machine: None,
        guest: None,
        up_since: Instant::now(),
        work: None,
        before: Phase::Stopped,
        undoing: None,
        waiting: std::collections::VecDeque::new(),
        due: None,
        turn: None,
        expiry_tried: None,
        removed: false,
    }
}

async fn on_turn(task: &mut Task) {
    let turn = task.machines.restarts.clone().acquire_owned().await.unwrap();
    task.on_turn(turn).await;
}

#[tokio::test]
async fn a_start_that_cannot_be_kept_is_made_later_and_gives_its_turn_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut task = task(host(directory.path()).await);
    let turns = task.machines.restarts.available_permits();
    let store = task.host.store.clone();
    let change = async |sql: &'static str| {
        let changed = store.read(move |tx| Ok(tx.execute_batch(sql)?));
        changed.await.unwrap();
    };
    // Of all that is written, the phase alone cannot be.
    change("CREATE TRIGGER full BEFORE UPDATE OF phase ON vms BEGIN SELECT RAISE(ABORT, 'full'); END").await;
    on_turn(&mut task).await;
    assert!(task.due.is_some() && task.work.is_none());
    assert_eq!(task.machines.restarts.available_permits(), turns);

    change("DROP TRIGGER full").await;
    on_turn(&mut task).await;
    assert!(task.work.is_some());
    // The row says until the start has its outcome that it is due: the daemon may die in the middle.
    assert!(matches!(task.kept, Phase::Due(_)), "{:?}", task.kept);
    let (rows, _) = store.read(banger_store::vms::list).await.unwrap();
    assert!(rows[0].phase.contains("due"), "{}", rows[0].phase);
}

#[tokio::test]
async fn what_was_removed_by_half_is_shown_and_not_started_and_goes_on_to_be_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut task = task(host(directory.path()).await);
    (task.phase, task.unkept) = (Phase::Stopped, false);
    let store = task.host.store.clone();
    let change = async |sql: &'static str| {
        let changed = store.read(move |tx| Ok(tx.execute_batch(sql)?));
        changed.await.unwrap();
    };
    change("CREATE TRIGGER full BEFORE DELETE ON vms BEGIN SELECT RAISE(ABORT, 'full'); END").await;
    task.begin_remove(None, Terms::default());
    let outcome = outcome_of(&mut task.work).await;
    let work = task.work.take().unwrap();
    task.on_outcome(outcome, work).await;
    assert!(matches!(task.phase, Phase::Failed(_)), "{:?}", task.phase);
    task.rotate().await;
    let (rows, _) = store.read(banger_store::vms::list).await.unwrap();
    assert!(rows[0].phase.contains("removing"), "{}", rows[0].phase);
    assert!(matches!(
        decide(task.state_for(Request::Start), Request::Start),
        Decision::Refuse(_)
    ));
    let remove = Request::Remove { force: false };
    assert_eq!(decide(task.state_for(remove), remove), Decision::Run);
}
