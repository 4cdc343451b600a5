//! `banger ls`, `banger ps`, `banger vm ls`: all machines.

use banger_api::types::{Vm, VmList};
use clap::Args;
use jiff::Timestamp;

use crate::args::{Selector, format_size};
use crate::context::Context;
use crate::error::CliError;
use crate::human;
use crate::output::OutputArgs;
use crate::table::{self, Column};

/// List machines
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger ls
  banger ls --label team=infra --label stage
  banger ls -o json
  banger ls -q
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

/// What few machines have gets a column only where one has it.
fn render(vms: &[Vm], now: Timestamp) -> String {
    let any = |has: &dyn Fn(&Vm) -> bool| vms.iter().any(has);
    let vmm = |vm: &Vm| match (&vm.running, vm.vmm) {
        (Some(running), _) => format!("{} ({})", human::vmm(running.vmm), running.acceleration),
        (None, Some(pinned)) => human::vmm(pinned).to_owned(),
        (None, None) => "-".to_owned(),
    };
    let work_disk = |vm: &Vm| match vm.work_disk {
        0 => "-".to_owned(),
        size => format!("{} / {}", format_size(vm.work_disk_used), format_size(size)),
    };
    let restarts = |vm: &Vm| match vm.restarts_at {
        Some(at) => format!("{}, next {}", vm.restarts, human::format_until(at, now)),
        None => vm.restarts.to_string(),
    };
    let expires = |vm: &Vm| {
        vm.expires
            .map_or_else(|| "-".to_owned(), |at| human::format_until(at, now))
    };
    let columns = [
        Column::new("NAME", |vm: &Vm| vm.name.clone()),
        Column::new("STATE", |vm: &Vm| human::vm_state(vm.state).to_owned()),
        Column::new("IMAGE", |vm: &Vm| vm.image.clone()),
        Column::new("VCPUS", |vm: &Vm| vm.vcpus.to_string()),
        Column::new("MEMORY", |vm: &Vm| format_size(vm.memory)),
        Column::new("DISK", |vm: &Vm| {
            format!("{} / {}", format_size(vm.disk_used), format_size(vm.disk))
        }),
        Column::new("WORK DISK", work_disk).shown_if(any(&|vm| vm.work_disk > 0)),
        Column::new("VMM", vmm),
        Column::new("RESTARTS", restarts).shown_if(any(&|vm| vm.restarts > 0 || vm.restarts_at.is_some())),
        Column::new("EXPIRES", expires).shown_if(any(&|vm| vm.expires.is_some())),
        Column::new("AGE", |vm: &Vm| human::format_age(vm.created, now)),
    ];
    table::render_columns(&columns, vms)
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
        let mut rare = super::super::show::example(true);
        rare.work_disk = 20 << 30;
        rare.restarts = 3;
        rare.restarts_at = "2026-02-03T04:05:22Z".parse().ok();
        rare.expires = "2026-02-04T04:05:06Z".parse().ok();
        insta::assert_snapshot!(render(&[rare, super::super::show::example(false)], now), @r"
        NAME   STATE     IMAGE    VCPUS   MEMORY   DISK            WORK DISK    VMM          RESTARTS         EXPIRES   AGE
        dev    running   debian   2       1GiB     70MiB / 10GiB   0B / 20GiB   qemu (tcg)   3, next in 16s   in 1d     2d
        dev    failed    debian   2       1GiB     70MiB / 10GiB   -            -            0                -         2d
        ");
        insta::assert_snapshot!(render(&[], now), @"NAME   STATE   IMAGE   VCPUS   MEMORY   DISK   VMM   AGE");
    }
}
