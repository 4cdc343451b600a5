//! What every part of the engine stands on: settings, store, ledger, operations, VMMs, companion files.

use crate::assets::Assets;
use crate::ledger::Ledger;
use crate::operation::Operations;
use crate::rows::Rows;
use crate::settings::Settings;
use crate::vmms::Vmms;

/// Shared by all tasks; nothing in it is locked across an await.
pub(crate) struct Host {
    pub(crate) settings: Settings,
    pub(crate) store: Rows,
    pub(crate) ledger: Ledger,
    pub(crate) operations: Operations,
    pub(crate) assets: Assets,
    pub(crate) vmms: Vmms,
}
