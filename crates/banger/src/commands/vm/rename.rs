//! `banger vm rename`: another name for a machine.

use banger_api::types::VmRename;
use clap::Args;

use crate::context::Context;
use crate::error::CliError;
use crate::stdio::{self, say};

/// Give a machine another name
///
/// Its id stays. The host name inside a machine that runs follows when it is started next.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm rename dev old-dev
")]
pub(crate) struct Rename {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    /// The new name: 1 to 63 of a-z, 0-9 and -, beginning with a letter
    #[arg(value_name = "NAME")]
    name: String,
}

impl Rename {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let (vm, name) = (self.vm, self.name);
        let same = vm == name;
        let vm = client.vm_rename(VmRename { vm, name }).await?;
        if same {
            say!("note: {} has that name already; nothing is changed", vm.name);
        } else if vm.running.is_some() {
            say!(
                "note: {} takes the name for its own when it is started next",
                vm.name
            );
        }
        stdio::finish(&format!("{}\n", vm.name))
    }
}
