//! `banger vm create`: a machine, stopped unless asked otherwise.

use banger_api::client::Client;
use banger_api::types::{Operation, VmCreate, VmmKind};
use clap::{Args, ValueEnum};

use crate::args::{Label, parse_size};
use crate::commands::vm::rm;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::operation::Follow;
use crate::stdio;

/// Create a machine
///
/// Takes the same short time whatever the image's size. The machine is stopped unless --start is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm create dev --image debian
  banger vm create dev --image debian --vcpus 4 --memory 4GiB --disk 40GiB --start
  banger vm create ci --image busybox --label team=infra --vmm qemu
")]
pub(crate) struct Create {
    /// Name of the machine: 1 to 63 of a-z, 0-9 and -, beginning with a letter
    #[arg(value_name = "NAME")]
    name: String,
    /// Image to start from
    #[arg(long, value_name = "IMAGE")]
    image: String,
    #[command(flatten)]
    machine: MachineArgs,
    /// Start it, and remove it again when the start fails
    #[arg(long)]
    start: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What a machine is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// Virtual processors [default: the configuration's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,
    /// Memory with a unit, such as 512M or 2GiB [default: the configuration's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Writable disk with a unit, such as 10GiB; takes space as it is used [default: the configuration's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    disk: Option<u64>,
    /// Kernel, by name [default: the image's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Virtual machine monitor [default: chosen at each start by what the host can do]
    #[arg(long, value_enum, value_name = "VMM")]
    vmm: Option<VmmArg>,
    /// Label it; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Label>,
}

/// Virtual machine monitors.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum VmmArg {
    Firecracker,
    Qemu,
}

impl MachineArgs {
    /// What to ask of the daemon.
    pub(crate) fn create(self, name: Option<String>, image: String) -> VmCreate {
        VmCreate {
            name,
            image,
            vcpus: self.vcpus,
            memory: self.memory,
            disk: self.disk,
            kernel: self.kernel,
            vmm: self.vmm.map(|vmm| match vmm {
                VmmArg::Firecracker => VmmKind::Firecracker,
                VmmArg::Qemu => VmmKind::Qemu,
            }),
            labels: self
                .label
                .into_iter()
                .map(|label| (label.key, label.value))
                .collect(),
            start: false,
            ephemeral: false,
            ..VmCreate::default()
        }
    }
}

impl Create {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let mut interrupts = Interrupts::listen()?;
        let params = VmCreate {
            start: self.start,
            ..self.machine.create(Some(self.name), self.image)
        };
        let follow = Follow::cancelling(self.quiet);
        let created = follow
            .to_end(&client, &mut interrupts, client.vm_create(params))
            .await?;
        if created.interrupted {
            return discard(&client, &mut interrupts, created.operation).await;
        }
        stdio::finish(&format!("{}\n", created.operation.subject))
    }
}

/// Removes a machine that was made in spite of a signal, which came too late to cancel it: whoever interrupts a create
/// does not want the machine, and nothing can be in it yet.
pub(crate) async fn discard(
    client: &Client,
    interrupts: &mut Interrupts,
    created: Operation,
) -> Result<u8, CliError> {
    let name = created.subject;
    rm::force(client, interrupts, name.clone()).await?;
    Err(CliError::interrupted(format!("cancelled: vm.create of {name}")))
}
