//! `[HOST_ADDRESS:]HOST_PORT:GUEST_PORT[/PROTOCOL]`: published ports, in Docker's notation.

use std::net::IpAddr;

use banger_api::types::{HostPort, Protocol, PublishPort};

/// Why a port was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    #[error("`{0}` is not a port: they go from 1 to 65535")]
    Port(String),
    #[error("`{0}` is a range: name each port by itself")]
    Range(String),
    #[error("`{0}` is not an IP address of this host, such as 127.0.0.1, 0.0.0.0 or [::1]")]
    Address(String),
    #[error("`{0}` is no protocol: tcp or udp")]
    Protocol(String),
    #[error(
        "write it as HOST:GUEST, such as 8080:80, 127.0.0.1:8080:80, 53:53/udp, or 80 for any free port of the host"
    )]
    Form,
    #[error("an IPv6 address goes into brackets: [::1]:8080:80")]
    Brackets,
}

/// A port to be published: `8080:80`, `127.0.0.1:8080:80`, `[::1]::80`, `80`, each with `/tcp` or `/udp`.
pub(crate) fn parse_publish(text: &str) -> Result<PublishPort, PortError> {
    let (rest, protocol) = protocol(text)?;
    let (host_address, rest) = address(rest)?;
    let (host, guest) = match rest.split_once(':') {
        Some((host, guest)) => (host, guest),
        None if host_address.is_none() => ("", rest),
        // An address and one port: which of the two would it be?
        None => return Err(PortError::Form),
    };
    Ok(PublishPort {
        protocol,
        host_address,
        host_port: match host {
            "" | "0" => 0,
            host => port(host)?,
        },
        guest_port: port(guest)?,
    })
}

/// A published port by its place at the host: `8080`, `127.0.0.1:8080`, or the whole as it was published.
pub(crate) fn parse_host_port(text: &str) -> Result<HostPort, PortError> {
    let (rest, protocol) = protocol(text)?;
    let (host_address, rest) = address(rest)?;
    let (host, guest_port) = match rest.split_once(':') {
        Some((host, guest)) => (host, Some(port(guest)?)),
        None => (rest, None),
    };
    Ok(HostPort {
        protocol,
        host_address,
        host_port: port(host)?,
        guest_port,
    })
}

fn protocol(text: &str) -> Result<(&str, Protocol), PortError> {
    match text.split_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((rest, "tcp")) => Ok((rest, Protocol::Tcp)),
        Some((rest, "udp")) => Ok((rest, Protocol::Udp)),
        Some((_, other)) => Err(PortError::Protocol(other.to_owned())),
    }
}

/// The address in front, where there is one, and what follows its colon.
fn address(text: &str) -> Result<(Option<IpAddr>, &str), PortError> {
    let (address, rest) = if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or(PortError::Form)?;
        (address, rest.strip_prefix(':').ok_or(PortError::Form)?)
    } else if text.matches(':').count() > 2 {
        return Err(PortError::Brackets);
    } else {
        match text.split_once(':') {
            // Ports have neither dots nor letters.
            Some((front, rest)) if rest.contains(':') || !front.bytes().all(|b| b.is_ascii_digit()) => {
                (front, rest)
            }
            Some(_) | None => return Ok((None, text)),
        }
    };
    let parsed = address.parse().map_err(|_| match is_range(address) {
        true => PortError::Range(address.to_owned()),
        false => PortError::Address(address.to_owned()),
    })?;
    Ok((Some(parsed), rest))
}

fn port(text: &str) -> Result<u16, PortError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port @ 1..) if digits => Ok(port),
        Err(_) if is_range(text) => Err(PortError::Range(text.to_owned())),
        Ok(_) | Err(_) => Err(PortError::Port(text.to_owned())),
    }
}

/// Docker has these, we do not.
fn is_range(text: &str) -> bool {
    let number = |text: &str| text.parse::<u16>().is_ok();
    text.split_once('-')
        .is_some_and(|(first, last)| number(first) && number(last))
}

/// The place of a port at the host, as it is written here.
pub(crate) fn format_host(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn publish(protocol: Protocol, host: Option<&str>, host_port: u16, guest_port: u16) -> PublishPort {
        PublishPort {
            protocol,
            host_address: host.map(|text| text.parse().unwrap()),
            host_port,
            guest_port,
        }
    }

    #[test]
    fn docker_s_notation() {
        let tcp = Protocol::Tcp;
        for (text, expected) in [
            ("8080:80", publish(tcp, None, 8080, 80)),
            ("127.0.0.1:8080:80", publish(tcp, Some("127.0.0.1"), 8080, 80)),
            ("[::1]:8080:80/tcp", publish(tcp, Some("::1"), 8080, 80)),
            ("0.0.0.0::80", publish(tcp, Some("0.0.0.0"), 0, 80)),
            ("80", publish(tcp, None, 0, 80)),
            ("0:80", publish(tcp, None, 0, 80)),
            ("53:53/udp", publish(Protocol::Udp, None, 53, 53)),
        ] {
            assert_eq!(parse_publish(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn mistakes() {
        let port = |text: &str| PortError::Port(text.into());
        for (text, expected) in [
            ("", port("")),
            ("0", port("0")),
            ("80:0", port("0")),
            ("70000:80", port("70000")),
            ("80:70000", port("70000")),
            ("80:http", port("http")),
            ("+80:80", PortError::Address("+80".into())),
            ("80:+80", port("+80")),
            ("80:", port("")),
            ("localhost:80:80", PortError::Address("localhost".into())),
            ("localhost:80", PortError::Address("localhost".into())),
            ("127.0.0.1:80", PortError::Form),
            ("::1:80:80", PortError::Brackets),
            ("[::1]", PortError::Form),
            ("[::1:80:80", PortError::Form),
            ("80:80/sctp", PortError::Protocol("sctp".into())),
            ("80-90:80-90", PortError::Range("80-90".into())),
            ("80-90", PortError::Range("80-90".into())),
        ] {
            assert_eq!(parse_publish(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn places_at_the_host() {
        let leading = |protocol, address: Option<&str>, host_port, guest_port| HostPort {
            protocol,
            host_address: address.map(|text| text.parse().unwrap()),
            host_port,
            guest_port,
        };
        let place = |protocol, address, host_port| leading(protocol, address, host_port, None);
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        assert_eq!(parse_host_port("8080"), Ok(place(tcp, None, 8080)));
        assert_eq!(parse_host_port("53/udp"), Ok(place(udp, None, 53)));
        assert_eq!(parse_host_port("8080:80"), Ok(leading(tcp, None, 8080, Some(80))));
        assert_eq!(
            parse_host_port("127.0.0.1:8080"),
            Ok(place(tcp, Some("127.0.0.1"), 8080))
        );
        assert_eq!(
            parse_host_port("[::1]:8080:80"),
            Ok(leading(tcp, Some("::1"), 8080, Some(80)))
        );
        assert_eq!(parse_host_port("0"), Err(PortError::Port("0".into())));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(address: Option<IpAddr>, host: u16, guest in 1u16.., udp: bool) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let front = address.map_or_else(String::new, |address| match address {
                IpAddr::V4(address) => format!("{address}:"),
                IpAddr::V6(address) => format!("[{address}]:"),
            });
            let text = format!("{front}{host}:{guest}/{}", if udp { "udp" } else { "tcp" });
            let expected = PublishPort { protocol, host_address: address, host_port: host, guest_port: guest };
            prop_assert_eq!(parse_publish(&text), Ok(expected));
        }

        #[test]
        fn anything_is_read_or_refused(text in "[0-9a-z.:/\\[\\]-]{0,30}") {
            let _publish = parse_publish(&text);
            let _place = parse_host_port(&text);
        }
    }
}
