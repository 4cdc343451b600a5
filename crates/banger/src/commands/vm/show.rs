//! `banger vm show`: one machine.

use banger_api::types::{Vm, VmRef};
use clap::Args;
use jiff::Timestamp;

use crate::args::format_size;
use crate::context::Context;
use crate::error::CliError;
use crate::output::OutputArgs;
use crate::{human, table};

/// Show a machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm show dev
  banger vm show dev -o json | jq -r .running.vsock
")]
pub(crate) struct Show {
    /// Machine, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    #[command(flatten)]
    output: OutputArgs,
}

impl Show {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let vm = context.client().await?.vm_show(VmRef { vm: self.vm }).await?;
        let now = Timestamp::now();
        self.output.print(&vm, |vm| vec![&vm.name], |vm| render(vm, now))
    }
}

fn render(vm: &Vm, now: Timestamp) -> String {
    let ago = |time| {
        format!(
            "{} ({} ago)",
            human::format_time(time),
            human::format_age(time, now)
        )
    };
    let mut rows = vec![
        ("name", vm.name.clone()),
        ("id", vm.id.clone()),
        ("state", human::vm_state(vm.state).to_owned()),
    ];
    rows.extend(vm.failure.iter().map(|failure| ("failure", failure.clone())));
    if !vm.last_lines.is_empty() {
        rows.push(("last lines", vm.last_lines.join("\n")));
    }
    rows.extend([
        ("image", format!("{} ({})", vm.image, vm.image_id)),
        ("kernel", vm.kernel.clone()),
        ("vcpus", vm.vcpus.to_string()),
        ("memory", format_size(vm.memory)),
        (
            "disk",
            format!(
                "{}, {} used on the host, {}",
                format_size(vm.disk),
                format_size(vm.disk_used),
                human::system_disk(vm.system_disk)
            ),
        ),
        (
            "work disk",
            match vm.work_disk {
                0 => "none".to_owned(),
                size => format!(
                    "{}, {} used on the host",
                    format_size(size),
                    format_size(vm.work_disk_used)
                ),
            },
        ),
        ("nat", human::yes_no(vm.nat).to_owned()),
        ("allow", human::allow(&vm.allow)),
        (
            "address",
            vm.address
                .map_or_else(|| "none".to_owned(), |address| address.to_string()),
        ),
        ("mac", vm.mac.clone()),
        ("pinned vmm", vm.vmm.map_or("none", human::vmm).to_owned()),
    ]);
    let labels: Vec<String> = vm
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    rows.push((
        "labels",
        if labels.is_empty() {
            "none".to_owned()
        } else {
            labels.join(", ")
        },
    ));
    rows.push((
        "when it stops",
        if vm.ephemeral { "removed" } else { "kept" }.to_owned(),
    ));
    rows.extend([
        ("autostart", human::yes_no(vm.autostart).to_owned()),
        ("restart", restart(vm, now)),
        (
            "expires",
            vm.expires.map_or_else(
                || "never".to_owned(),
                |at| format!("{} ({})", human::format_time(at), human::format_until(at, now)),
            ),
        ),
    ]);
    if !vm.published.is_empty() {
        let lines: Vec<String> = vm.published.iter().map(super::ports::line).collect();
        rows.push(("published", lines.join(", ")));
    }
    if !vm.pending.is_empty() {
        rows.push(("at next start", vm.pending.join(", ")));
    }
    rows.push(("created", ago(vm.created)));
    if let Some(running) = &vm.running {
        let (seconds, millis) = (
            running.start_milliseconds / 1000,
            running.start_milliseconds % 1000,
        );
        rows.extend([
            (
                "vmm",
                format!(
                    "{} ({}), process {}",
                    human::vmm(running.vmm),
                    running.acceleration,
                    running.pid
                ),
            ),
            (
                "started",
                format!("{}, in {seconds}.{:01} s", ago(running.since), millis / 100),
            ),
            ("guest kernel", running.kernel_release.clone()),
            ("agent", running.agent_version.clone()),
            ("vsock", running.vsock.clone()),
        ]);
        rows.extend(running.tap.iter().map(|tap| ("tap", tap.clone())));
        let user = running.user_network.iter();
        rows.extend(user.map(|network| ("user network", human::user_network(network))));
    }
    table::fields(rows)
}

/// The policy, and what it has done so far.
fn restart(vm: &Vm, now: Timestamp) -> String {
    let mut text = human::restart(vm.restart).to_owned();
    match vm.restarts {
        0 => {}
        1 => text.push_str(", once so far"),
        count => text.push_str(&format!(", {count} times so far")),
    }
    if let Some(at) = vm.restarts_at {
        text.push_str(&format!(", next {}", human::format_until(at, now)));
    }
    text
}

/// A machine for tests of how machines are printed.
#[cfg(test)]
pub(super) fn example(running: bool) -> Vm {
    use banger_api::types::{VmRunning, VmState, VmmKind};
    let created: Timestamp = "2026-02-01T00:00:00Z".parse().unwrap();
    Vm {
        id: "k3v9x0q2ab".into(),
        name: "dev".into(),
        state: if running {
            VmState::Running
        } else {
            VmState::Failed
        },
        failure: (!running).then(|| "the VMM died:\nsignal 9".into()),
        last_lines: Vec::new(),
        image: "debian".into(),
        image_id: "a1b2c3d4e5".into(),
        kernel: "debian".into(),
        vcpus: 2,
        memory: 1 << 30,
        disk: 10 << 30,
        disk_used: 70 << 20,
        vmm: None,
        labels: running
            .then(|| ("team".into(), "infra".into()))
            .into_iter()
            .collect(),
        ephemeral: !running,
        system_disk: banger_api::types::SystemDisk::Overlay,
        work_disk: 0,
        work_disk_used: 0,
        nat: true,
        allow: running
            .then_some(banger_api::types::Reach::Guests)
            .into_iter()
            .collect(),
        address: running.then_some([10, 209, 0, 2].into()),
        mac: "02:00:5e:10:00:07".into(),
        autostart: false,
        restart: banger_api::types::RestartPolicy::No,
        expires: None,
        restarts: 0,
        restarts_at: None,
        pending: Vec::new(),
        created,
        published: Vec::new(),
        running: running.then(|| VmRunning {
            vmm: VmmKind::Qemu,
            acceleration: "tcg".into(),
            pid: 4242,
            since: created,
            start_milliseconds: 11_873,
            agent_version: "0.1.0".into(),
            kernel_release: "6.1.0-42-cloud-amd64".into(),
            vsock: "/run/banger/bgrk3v9x0q2ab/vsock.sock".into(),
            tap: Some("bgr0t0".into()),
            user_network: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let now: Timestamp = "2026-02-03T04:05:06Z".parse().unwrap();
        insta::assert_snapshot!("show_running", render(&example(true), now));
        insta::assert_snapshot!("show_failed", render(&example(false), now));
        let all = Vm {
            system_disk: banger_api::types::SystemDisk::Dm,
            work_disk: 20 << 30,
            work_disk_used: 3 << 20,
            nat: false,
            autostart: true,
            restart: banger_api::types::RestartPolicy::OnFailure,
            expires: "2026-02-05T04:05:06Z".parse().ok(),
            restarts: 3,
            restarts_at: "2026-02-03T04:05:14Z".parse().ok(),
            pending: vec!["memory".into(), "vcpus".into()],
            ..example(true)
        };
        insta::assert_snapshot!("show_everything", render(&all, now));
    }
}
