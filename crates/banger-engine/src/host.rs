//! What every part of the engine stands on: settings, store, ledger, operations, VMMs, companion files.

use crate::assets::Assets;
use crate::ledger::Ledger;
use crate::operation::Operations;
use crate::settings::Settings;
use crate::vmms::Vmms;
use banger_store::Store;

/// Shared by all tasks; nothing in it is locked across an await.
pub(crate) struct Host {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    pub(crate) operations: Operations,
    pub(crate) assets: Assets,
    pub(crate) vmms: Vmms,
}
