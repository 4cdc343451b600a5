//! `banger version`: the versions of everything that takes part.

use banger_api::types::{Component, DaemonStatus, Empty, VmmKind};
use clap::Args;
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;
use crate::output::Format;
use crate::{human, table};

/// Show the versions of client, daemon, agent and VMM
///
/// Works without the daemon, and never starts it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger version
  banger version -o json
")]
pub(crate) struct Version {
    /// Format of the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Versions {
    client: String,
    /// Absent: no daemon answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<String>,
    /// Why no daemon answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon_problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<Component>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vmms: Vec<banger_api::types::Vmm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_vmm: Option<VmmKind>,
}

impl Version {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let status = async { Ok(context.running_client().await?.daemon_status(Empty {}).await?) };
        self.output.print(&Versions::new(status.await), render)
    }
}

impl Versions {
    fn new(status: Result<DaemonStatus, CliError>) -> Self {
        let client = env!("CARGO_PKG_VERSION").to_owned();
        match status {
            Ok(status) => Self {
                client,
                daemon: Some(status.version),
                daemon_problem: None,
                agent: Some(status.agent),
                vmms: status.vmms,
                chosen_vmm: status.chosen_vmm,
            },
            Err(error) => Self {
                client,
                daemon: None,
                daemon_problem: Some(error.message),
                agent: None,
                vmms: Vec::new(),
                chosen_vmm: None,
            },
        }
    }
}

/// What the daemon says of a program that is nowhere, before the list of places.
const NOT_FOUND: &str = "not found";

/// A reason without the places that were looked in.
pub(crate) fn gist(reason: &str) -> &str {
    match reason.find(NOT_FOUND) {
        Some(at) => &reason[..at + NOT_FOUND.len()],
        None => reason,
    }
}

/// A component's version, or what is wrong with it. Where it was looked for is a matter for `doctor`, and for programs.
pub(crate) fn component(component: &Component) -> String {
    match (&component.version, &component.problem) {
        (Some(version), None) => version.clone(),
        (Some(version), Some(problem)) => format!("{version} ({problem})"),
        (None, Some(problem)) if problem.contains(NOT_FOUND) => NOT_FOUND.to_owned(),
        (None, Some(problem)) => problem.clone(),
        (None, None) => component
            .path
            .as_ref()
            .map_or_else(|| "unknown".to_owned(), |path| format!("at {path}")),
    }
}

fn render(versions: &Versions) -> String {
    let mut rows = vec![("client", versions.client.clone())];
    match (&versions.daemon, &versions.daemon_problem) {
        (Some(version), _) => rows.push(("daemon", version.clone())),
        (None, problem) => rows.push(("daemon", problem.clone().unwrap_or_default())),
    }
    rows.extend(versions.agent.iter().map(|agent| ("agent", component(agent))));
    for vmm in &versions.vmms {
        let mut text = component(&vmm.component);
        if let Some(acceleration) = &vmm.acceleration {
            text = format!("{text}, {acceleration}");
        }
        if let Some(origin) = &vmm.origin {
            let digits: String = origin.sha256.chars().take(12).collect();
            text = format!("{text}, installed from {} (sha256:{digits}…)", origin.source);
        }
        if versions.chosen_vmm == Some(vmm.kind) {
            text.push_str(" (chosen)");
        }
        rows.push((human::vmm(vmm.kind), text));
    }
    table::fields(rows)
}

#[cfg(test)]
mod tests {
    use banger_api::types::Vmm;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn without_a_daemon() {
        let mut versions = Versions::new(Err(CliError::new(Kind::Unreachable, "the daemon is not running")));
        versions.client = "1.2.3".into();
        insta::assert_snapshot!(render(&versions), @r"
        client:  1.2.3
        daemon:  the daemon is not running
        ");
    }

    #[test]
    fn places_are_left_out() {
        assert_eq!(
            gist("Firecracker: firecracker was not found in /usr/local/bin, /usr/bin"),
            "Firecracker: firecracker was not found"
        );
        assert_eq!(gist("/dev/kvm is usable"), "/dev/kvm is usable");
    }

    #[test]
    fn with_a_daemon() {
        let found = |version: &str| Component {
            path: Some("/x".into()),
            version: Some(version.into()),
            problem: None,
        };
        let versions = Versions {
            client: "1.2.3".into(),
            daemon: Some("1.2.2".into()),
            daemon_problem: None,
            agent: Some(found("1.2.2")),
            vmms: vec![
                Vmm {
                    kind: VmmKind::Firecracker,
                    component: Component {
                        path: None,
                        version: None,
                        problem: Some("firecracker was not found in /usr/local/bin, /usr/bin".into()),
                    },
                    acceleration: None,
                    origin: None,
                },
                Vmm {
                    kind: VmmKind::Qemu,
                    component: found("7.2.0"),
                    acceleration: Some("tcg".into()),
                    origin: Some(banger_api::types::Origin {
                        source: "/tmp/qemu".into(),
                        sha256: "ab".repeat(32),
                    }),
                },
            ],
            chosen_vmm: Some(VmmKind::Qemu),
        };
        insta::assert_snapshot!(render(&versions), @r"
        client:       1.2.3
        daemon:       1.2.2
        agent:        1.2.2
        firecracker:  not found
        qemu:         7.2.0, tcg, installed from /tmp/qemu (sha256:abababababab…) (chosen)
        ");
    }
}
