//! A start that the daemon makes by itself, while the state file cannot be written.

use std::sync::Arc;

use banger_vmm::Preference;
use tokio::sync::watch;

use super::*;
use crate::host::Host;
use crate::settings::{Settings, VmDefaults, VmmSettings};
use crate::vm::change::tests::row;
use crate::vm::machines::Machines;
use crate::vm::state::{Due, Paths, View};

async fn host(directory: &std::path::Path) -> Host {
    let settings = Settings {
        state_dir: directory.to_owned(),
        runtime_dir: directory.to_owned(),
        libexec: Vec::new(),
        path: Vec::new(),
        agent: None,
        space_floor: 0,
        vmm: VmmSettings {
            preference: Preference::Auto,
            firecracker: None,
            qemu: None,
            vhost_device_vsock: None,
        },
        vm: VmDefaults {
            vcpus: 1,
            memory: 256 << 20,
            disk: 1 << 30,
            system_disk: None,
            work_disk: 0,
            start_timeout: Duration::from_secs(1),
            stop_timeout: Duration::from_secs(1),
        },
        default_kernel: "debian".to_owned(),
    };
    let store = banger_store::Store::open(&directory.join("banger.db")).unwrap();
    let machine = row();
    let rows = crate::rows::Rows::new(store.clone());
    store
        .write(move |tx| {
            tx.execute_batch(
                "INSERT INTO kernels VALUES ('debian', '6.1', 'elf', '', 1, 1, 1, '', '2026-01-01T00:00:00Z');
                 INSERT INTO images VALUES ('image', 'debian', 'debian', '', 1, 1, '', '2026-01-01T00:00:00Z');",
            )?;
            banger_store::vms::insert(tx, &machine)
        })
        .await
        .unwrap();
    Host {
        assets: crate::assets::Assets::new(&settings),
        ledger: crate::ledger::Ledger::new(store),
        vmms: crate::vmms::Vmms::new(&settings),
        operations: crate::operation::Operations::open(rows.clone()).await.unwrap(),
        store: rows,
        settings,
    }
}

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
