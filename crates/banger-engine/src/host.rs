//! What every part of the engine stands on: settings, store, ledger, operations, VMMs, companion files.

use std::sync::Arc;

use crate::assets::Assets;
use crate::guest::ssh::Keys;
use crate::ledger::Ledger;
use crate::net::Network;
use crate::operation::Operations;
use crate::ports::Ports;
use crate::rows::Rows;
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
}
