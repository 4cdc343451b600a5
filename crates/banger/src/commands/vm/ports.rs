//! `banger vm ports`: what listens in a guest, and where it is reached.

use banger_api::types::{Protocol, Publication, VmPort, VmPorts, VmRef};
use clap::Args;
use jiff::Timestamp;

use crate::args::format_host;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{Format, OutputArgs};
use crate::stdio::{self, say};
use crate::{human, table};

/// Show what listens in a machine
///
/// Sockets of the guest that wait for callers, their processes, the URL to reach them from here, and the ports of the host
/// that lead there. With -q, the URLs alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  banger vm ports dev
  banger vm ports dev -q
  banger vm ports dev -o json | jq '.ports[] | select(.port == 80)'
")]
pub(crate) struct Ports {
    /// Machine that runs, by name or id
    #[arg(value_name = "VM")]
    vm: String,
    #[command(flatten)]
    output: OutputArgs,
}

impl Ports {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = context.client().await?;
        let ports = client.vm_ports(VmRef { vm: self.vm }).await?;
        let now = Timestamp::now();
        let code = self.output.print(
            &ports,
            |ports| {
                ports
                    .ports
                    .iter()
                    .filter_map(|port| port.url.as_deref())
                    .collect()
            },
            |ports| render(ports, now),
        )?;
        if self.output.output == Format::Table
            && !self.output.quiet
            && let Some(line) = how_to_publish(&ports)
        {
            say!("{line}");
        }
        if ports.incomplete {
            say!("note: more listens in {} than is shown", ports.vm);
        }
        Ok(code)
    }
}

/// What listens where nothing of this host leads, and what would make it so.
fn how_to_publish(ports: &VmPorts) -> Option<String> {
    let is_reached =
        |port: &VmPort| port.url.is_some() || port.reached_at.is_some() || !port.published.is_empty();
    // A publication leads to the guest's loopback.
    let could_be = |port: &&VmPort| {
        port.address
            .is_some_and(|at| at.is_loopback() || at.is_unspecified())
            && !is_reached(port)
    };
    let mut names: Vec<String> = Vec::new();
    for port in ports.ports.iter().filter(could_be) {
        let reached =
            |other: &VmPort| (other.protocol, other.port) == (port.protocol, port.port) && is_reached(other);
        let name = match port.protocol {
            Protocol::Tcp => port.port.to_string(),
            Protocol::Udp => format!("{}/udp", port.port),
        };
        if !names.contains(&name) && !ports.ports.iter().any(reached) {
            names.push(name);
        }
    }
    (!names.is_empty()).then(|| {
        format!(
            "note: nothing of this host leads to {}: banger vm publish {} {}",
            names.join(", "),
            ports.vm,
            names.join(" ")
        )
    })
}

fn render(ports: &VmPorts, now: Timestamp) -> String {
    let or_dash = |text: Option<&String>| text.cloned().unwrap_or_else(|| "-".to_owned());
    let row = |port: &VmPort| {
        let address = port.address.map(|address| format_host(address, port.port));
        let process = port.process.as_ref().map(|process| match port.pid {
            Some(pid) => format!("{process} ({pid})"),
            None => process.clone(),
        });
        let published: Vec<String> = port.published.iter().map(place_as_it_stands).collect();
        [
            protocol(port.protocol).to_owned(),
            address.unwrap_or_else(|| format!("nothing at {}", port.port)),
            or_dash(process.as_ref()),
            or_dash(port.command.as_ref()),
            or_dash(port.since.map(|since| human::format_age(since, now)).as_ref()),
            or_dash(port.url.as_ref().or(port.reached_at.as_ref())),
            or_dash(
                Some(published.join(", "))
                    .filter(|text| !text.is_empty())
                    .as_ref(),
            ),
        ]
    };
    let headers = [
        "PROTOCOL",
        "ADDRESS",
        "PROCESS",
        "COMMAND",
        "SINCE",
        "URL",
        "PUBLISHED AS",
    ];
    table::render(headers, ports.ports.iter().map(row))
}

/// What `vm publish` and `vm unpublish` print.
pub(super) fn print(output: &OutputArgs, published: &[Publication]) -> Result<u8, CliError> {
    if output.quiet {
        let places: String = published
            .iter()
            .map(|published| place(published) + "\n")
            .collect();
        return stdio::finish(&places);
    }
    let row = |published: &Publication| [place(published), published.guest_port.to_string()];
    output.output.print(&published, |published| {
        table::render(["HOST", "GUEST"], published.iter().map(row))
    })
}

/// A port of the host: `127.0.0.1:8080`, with `/udp` where it is one.
fn place(published: &Publication) -> String {
    let host = format_host(published.host_address, published.host_port);
    match published.protocol {
        Protocol::Tcp => host,
        Protocol::Udp => format!("{host}/udp"),
    }
}

/// With what keeps it from being reached.
fn place_as_it_stands(published: &Publication) -> String {
    match &published.problem {
        Some(problem) => format!("{} ({problem})", place(published)),
        None => place(published),
    }
}

/// As `vm show` says it: `127.0.0.1:8080 to 80`.
pub(super) fn line(published: &Publication) -> String {
    let to = format!("{} to {}", place(published), published.guest_port);
    match &published.problem {
        Some(problem) => format!("{to} ({problem})"),
        None => to,
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners() {
        let now: Timestamp = "2026-02-03T04:05:06Z".parse().unwrap();
        let publication = |protocol, host_port, guest_port| Publication {
            protocol,
            host_address: [127, 0, 0, 1].into(),
            host_port,
            guest_port,
            problem: None,
        };
        let port = VmPort {
            protocol: Protocol::Tcp,
            address: "::".parse().ok(),
            port: 80,
            pid: Some(123),
            process: Some("httpd".into()),
            command: Some("httpd -p 80".into()),
            since: "2026-02-03T02:05:06Z".parse().ok(),
            url: Some("http://127.0.0.1:8080".into()),
            reached_at: None,
            published: vec![publication(Protocol::Tcp, 8080, 80)],
        };
        let nothing = VmPort {
            protocol: Protocol::Udp,
            address: None,
            port: 53,
            pid: None,
            process: None,
            command: None,
            since: None,
            url: None,
            reached_at: None,
            published: vec![publication(Protocol::Udp, 5353, 53)],
        };
        let hidden = |protocol, address: &str, port| VmPort {
            protocol,
            address: address.parse().ok(),
            port,
            url: None,
            published: Vec::new(),
            ..nothing.clone()
        };
        let alone = VmPorts {
            vm: "dev".into(),
            ports: vec![
                hidden(Protocol::Udp, "0.0.0.0", 123),
                hidden(Protocol::Tcp, "127.0.0.1", 5432),
                hidden(Protocol::Tcp, "::1", 5432),
                hidden(Protocol::Tcp, "172.17.0.1", 9),
                hidden(Protocol::Tcp, "::", 80),
                port.clone(),
            ],
            incomplete: false,
        };
        assert_eq!(
            how_to_publish(&alone).as_deref(),
            Some("note: nothing of this host leads to 123/udp, 5432: banger vm publish dev 123/udp 5432")
        );
        let ports = VmPorts {
            vm: "dev".into(),
            ports: vec![nothing, port],
            incomplete: false,
        };
        insta::assert_snapshot!(render(&ports, now), @r"
        PROTOCOL   ADDRESS         PROCESS       COMMAND       SINCE   URL                     PUBLISHED AS
        udp        nothing at 53   -             -             -       -                       127.0.0.1:5353/udp
        tcp        [::]:80         httpd (123)   httpd -p 80   2h      http://127.0.0.1:8080   127.0.0.1:8080
        ");
        let taken = Publication {
            problem: Some("taken".into()),
            ..publication(Protocol::Tcp, 1, 2)
        };
        assert_eq!(line(&taken), "127.0.0.1:1 to 2 (taken)");
    }
}
