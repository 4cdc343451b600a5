//! What every part of the engine stands on: settings, store, ledger, operations, VMMs, companion files.

use std::sync::Arc;

use crate::assets::Assets;
use crate::guest::ssh::Keys;
use crate::image::blobs::BlobStore;
use crate::image::seed::Seeds;
use crate::ledger::Ledger;
use crate::net::Network;
use crate::operation::Operations;
use crate::ports::Ports;
use crate::rows::Rows;
use crate::session::Sessions;
use crate::settings::Settings;
use crate::vmms::Vmms;

/// Shared by all tasks; nothing in it is locked across an await, but keys while one is being made.
pub(crate) struct Host {
    pub(crate) settings: Settings,
    pub(crate) store: Rows,
    pub(crate) ledger: Ledger,
    pub(crate) operations: Operations,
    pub(crate) assets: Assets,
    pub(crate) vmms: Vmms,
    pub(crate) network: Arc<Network>,
    pub(crate) ports: Ports,
    pub(crate) keys: Keys,
    pub(crate) blobs: BlobStore,
    pub(crate) seeds: Seeds,
    pub(crate) sessions: Sessions,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;
    use std::time::Duration;

    use banger_vmm::Preference;

    use super::*;
    use crate::net::hands::Hands;
    use crate::net::subnet::Subnet;
    use crate::settings::{NetworkMode, NetworkSettings, VmDefaults, VmmSettings};
    use crate::vm::change::tests::row;

    /// Of a state directory with the one machine of [`row`].
    pub(crate) async fn host(directory: &Path) -> Host {
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
            network: NetworkSettings {
                passt: crate::settings::PasstChoice::Off,
                mode: NetworkMode::User,
                bridge: "bgr0".to_owned(),
                subnet: Subnet::DEFAULT,
                pool: 0,
            },
            default_kernel: "debian".to_owned(),
            seed_template: None,
            registries: banger_oci::Registries::default(),
        };
        let store = banger_store::Store::open(&directory.join("banger.db")).unwrap();
        let machine = row();
        let rows = Rows::new(store.clone());
        store
        .write(move |tx| {
            tx.execute_batch(
                "INSERT INTO kernels VALUES ('debian', '6.1', 'elf', '', 1, 1, 1, '', '2026-01-01T00:00:00Z');
                 INSERT INTO images VALUES ('image', 'debian', '', 1, 1, '', '2026-01-01T00:00:00Z', NULL, NULL, NULL, NULL, NULL, NULL);
                 INSERT INTO image_names VALUES ('debian', 'image');",
            )?;
            banger_store::vms::insert(tx, &machine)
        })
        .await
        .unwrap();
        let hands = Hands::for_tests();
        let ledger = Ledger::new(store, hands.clone());
        let network = Network::open(settings.network.clone(), hands, ledger.clone(), rows.clone());
        Host {
            assets: Assets::new(&settings),
            network: network.await.unwrap(),
            ledger,
            keys: Keys::open(&settings),
            blobs: BlobStore::open(directory).unwrap(),
            seeds: Seeds::default(),
            sessions: Sessions::default(),
            ports: Ports::default(),
            vmms: Vmms::new(&settings),
            operations: Operations::open(rows.clone()).await.unwrap(),
            store: rows,
            settings,
        }
    }
}
