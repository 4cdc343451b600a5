//! `banger daemon status`: the daemon's version, directories and counts.

use banger_api::types::{DaemonStatus, Empty};
use clap::Args;

use crate::args::format_size;
use crate::commands::version::component;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Format;
use crate::{human, table};

/// Show the daemon's state; exit code 9 where it is not running
///
/// Never starts it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger daemon status
  banger daemon status -o json
")]
pub(crate) struct Status {
    /// Format of the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

impl Status {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let status = context.running_client().await?.daemon_status(Empty {}).await?;
        self.output.print(&status, render)
    }
}

fn render(status: &DaemonStatus) -> String {
    let mut rows = vec![
        ("version", status.version.clone()),
        (
            "process",
            format!(
                "{}, up {}",
                status.pid,
                human::format_seconds(status.uptime_seconds)
            ),
        ),
        ("memory", format_size(status.memory)),
        ("socket", status.socket.clone()),
        ("state", status.state_directory.clone()),
        (
            "configuration",
            status
                .config_file
                .clone()
                .unwrap_or_else(|| "none, all defaults".to_owned()),
        ),
        ("agent", component(&status.agent)),
    ];
    for vmm in &status.vmms {
        let acceleration = vmm
            .acceleration
            .as_ref()
            .map(|how| format!(", {how}"))
            .unwrap_or_default();
        rows.push((
            human::vmm(vmm.kind),
            format!("{}{acceleration}", component(&vmm.component)),
        ));
    }
    let chosen = status.chosen_vmm.map_or("none", human::vmm);
    rows.push(("chosen vmm", format!("{chosen}: {}", status.chosen_vmm_reason)));
    let machines: Vec<String> = status
        .machines
        .iter()
        .map(|(state, count)| format!("{count} {}", human::vm_state(*state)))
        .collect();
    rows.push((
        "machines",
        if machines.is_empty() {
            "none".to_owned()
        } else {
            machines.join(", ")
        },
    ));
    rows.push(("images", status.images.to_string()));
    rows.push(("operations", format!("{} at work", status.operations)));
    table::fields(rows)
}

#[cfg(test)]
mod tests {
    use banger_api::types::{Component, VmState, Vmm, VmmKind};

    use super::*;

    #[test]
    fn fields() {
        let found = |version: &str| Component {
            path: Some("/x".into()),
            version: Some(version.into()),
            problem: None,
        };
        let status = DaemonStatus {
            version: "0.1.0".into(),
            pid: 77,
            uptime_seconds: 7300,
            socket: "/run/banger/bangerd.sock".into(),
            state_directory: "/var/lib/banger".into(),
            config_file: None,
            memory: 19 << 20,
            agent: found("0.1.0"),
            vmms: vec![Vmm {
                kind: VmmKind::Qemu,
                component: found("7.2.0"),
                acceleration: Some("tcg".into()),
            }],
            chosen_vmm: Some(VmmKind::Qemu),
            chosen_vmm_reason: "firecracker was not found".into(),
            machines: [(VmState::Stopped, 1), (VmState::Running, 2)].into(),
            images: 2,
            operations: 0,
        };
        insta::assert_snapshot!("daemon_status", render(&status));
    }
}
