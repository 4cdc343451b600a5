//! The serial console's file: a new one for each run.

use banger_vmm::MachineSpec;

use super::{Capability, Start};
use crate::doctor::Check;
use crate::error::{Error, io};

pub(crate) struct Console;

#[async_trait::async_trait]
impl Capability for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    async fn check(&self, _start: &Start<'_>) -> Vec<Check> {
        Vec::new()
    }

    async fn prepare(&self, start: &Start<'_>) -> Result<(), Error> {
        // In the machine's own directory, which is in the ledger for as long as the machine lives.
        let path = start.paths.console();
        crate::vm::console::begin_run(&path).map_err(io("begin", path))
    }

    fn contribute(&self, start: &Start<'_>, spec: &mut MachineSpec) {
        spec.console = start.paths.console();
    }
}
