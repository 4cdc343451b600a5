//! `banger daemon status`: the daemon's version, directories and counts.

use banger_api::types::{DaemonStatus, Empty};
use clap::Args;
use serde::Serialize;

use crate::args::format_size;
use crate::commands::version::{component, gist};
use crate::context::Context;
use crate::error::CliError;
use crate::output::Format;
use crate::service::{self, Activity, Systemctl};
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

/// The daemon's own answer, and what the service manager says of it.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    daemon: DaemonStatus,
    /// Absent: it is not installed as a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceStatus>,
}

/// The service that is installed.
#[derive(Debug, Serialize)]
struct ServiceStatus {
    /// Its unit file.
    unit: String,
    /// The daemon that answers is the service's.
    runs_this: bool,
    #[serde(flatten)]
    activity: Activity,
}

impl Status {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client =
            context
                .running_client()
                .await
                .map_err(|error| match service::in_charge(context.paths()) {
                    Some(_) => {
                        error.hint("it is installed as a service: `banger daemon logs` has what it said")
                    }
                    None => error,
                })?;
        let daemon = client.daemon_status(Empty {}).await?;
        let service = match service::in_charge(context.paths()) {
            Some(installed) => {
                let activity = Systemctl::new(installed.scope).activity().await?;
                Some(ServiceStatus {
                    unit: installed.unit.display().to_string(),
                    runs_this: activity.pid == Some(daemon.pid),
                    activity,
                })
            }
            None => None,
        };
        self.output.print(&Report { daemon, service }, render)
    }
}

fn service_row(service: Option<&ServiceStatus>) -> String {
    let Some(service) = service else {
        return "none; `banger daemon install` makes it one".to_owned();
    };
    let enabled = if service.activity.enabled {
        "enabled"
    } else {
        "not enabled"
    };
    let other = if service.runs_this {
        ""
    } else {
        "; this daemon is not the service's"
    };
    format!("{} ({}, {enabled}){other}", service.unit, service.activity.state)
}

fn render(report: &Report) -> String {
    let status = &report.daemon;
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
        ("service", service_row(report.service.as_ref())),
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
    ];
    if !status.config_unknown_keys.is_empty() {
        let keys = status.config_unknown_keys.join(", ");
        rows.push((
            "unknown keys",
            format!("{keys} (in the configuration, without effect)"),
        ));
    }
    rows.push(("agent", component(&status.agent)));
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
    rows.push((
        "chosen vmm",
        format!("{chosen}: {}", gist(&status.chosen_vmm_reason)),
    ));
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
            config_unknown_keys: Vec::new(),
            memory: 19 << 20,
            agent: found("0.1.0"),
            vmms: vec![Vmm {
                kind: VmmKind::Qemu,
                component: found("7.2.0"),
                acceleration: Some("tcg".into()),
                origin: None,
            }],
            chosen_vmm: Some(VmmKind::Qemu),
            chosen_vmm_reason: "firecracker was not found".into(),
            machines: [(VmState::Stopped, 1), (VmState::Running, 2)].into(),
            images: 2,
            operations: 0,
        };
        let mut report = Report {
            daemon: status,
            service: None,
        };
        insta::assert_snapshot!("daemon_status", render(&report));
        report.daemon.config_unknown_keys = vec!["vm.memroy".into(), "colour".into()];
        assert!(render(&report).contains("vm.memroy, colour (in the configuration, without effect)"));
        let mut service = ServiceStatus {
            unit: "/etc/systemd/system/bangerd.service".into(),
            runs_this: true,
            activity: Activity {
                state: "active".into(),
                enabled: true,
                pid: Some(77),
            },
        };
        assert_eq!(
            service_row(Some(&service)),
            "/etc/systemd/system/bangerd.service (active, enabled)"
        );
        let json = |report: &Report| serde_json::to_value(report).unwrap();
        assert_eq!(json(&report).get("service"), None);
        service.runs_this = false;
        assert!(service_row(Some(&service)).ends_with("not the service's"));
        report.service = Some(service);
        let json = json(&report);
        assert_eq!((&json["pid"], &json["service"]["pid"]), (&77.into(), &77.into()));
    }
}
