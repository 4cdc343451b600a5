//! `banger vm ls`, `banger ps`, `banger ls`: all machines.

use banger_api::types::{Vm, VmList};
use clap::Args;
use jiff::Timestamp;

use crate::args::{Selector, format_size};
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// List machines
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger ps
  banger vm ls --label team=infra --label stage
  banger vm ls -o json
  banger vm ls -q
")]
pub(crate) struct Ls {
    #[command(flatten)]
    output: OutputArgs,
    /// Only machines with this label; can be given several times, KEY alone matches any value
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<Selector>,
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let labels = self
            .label
            .into_iter()
            .map(|label| (label.key, label.value))
            .collect();
        let vms = client.vm_list(VmList { labels }).await?;
        let now = Timestamp::now();
        self.output.print(
            &vms,
            |vms| vms.iter().map(|vm| vm.name.as_str()).collect(),
            |vms| render(vms, now),
        )
    }
}

fn render(vms: &[Vm], now: Timestamp) -> String {
    let headers = ["NAME", "STATE", "IMAGE", "VCPUS", "MEMORY", "DISK", "VMM", "AGE"];
    let row = |vm: &Vm| {
        let vmm = match (&vm.running, vm.vmm) {
            (Some(running), _) => format!("{} ({})", human::vmm(running.vmm), running.acceleration),
            (None, Some(pinned)) => human::vmm(pinned).to_owned(),
            (None, None) => "-".to_owned(),
        };
        [
            vm.name.clone(),
            human::vm_state(vm.state).to_owned(),
            vm.image.clone(),
            vm.vcpus.to_string(),
            format_size(vm.memory),
            format!("{} / {}", format_size(vm.disk_used), format_size(vm.disk)),
            vmm,
            human::format_age(vm.created, now),
        ]
    };
    table::render(headers, vms.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let now: Timestamp = "2026-02-03T04:05:06Z".parse().unwrap();
        let vms = [
            super::super::show::example(true),
            super::super::show::example(false),
        ];
        insta::assert_snapshot!(render(&vms, now), @r"
        NAME   STATE     IMAGE    VCPUS   MEMORY   DISK            VMM          AGE
        dev    running   debian   2       1GiB     70MiB / 10GiB   qemu (tcg)   2d
        dev    failed    debian   2       1GiB     70MiB / 10GiB   -            2d
        ");
        insta::assert_snapshot!(render(&[], now), @"NAME   STATE   IMAGE   VCPUS   MEMORY   DISK   VMM   AGE");
    }
}
