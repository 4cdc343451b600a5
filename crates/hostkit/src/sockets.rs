//! Who has a port of this host: sockets from proc_net(5), and their processes from `/proc/PID/fd`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// What carries bytes to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A stream of bytes.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A process that has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name (proc_pid_comm(5)).
    pub name: String,
}

/// Of each table, in bytes. TCP sockets that listen come first in theirs.
const MAX_TABLE: u64 = 4 * 1024 * 1024;

/// The process that keeps others from listening at an address and port, where it can be seen: those of other users show
/// their descriptors to root alone. Reads all of `/proc`, so it is for a thread that may take its time.
#[must_use]
pub fn holder(protocol: Protocol, wanted: SocketAddr) -> Option<Holder> {
    let proc = Path::new("/proc");
    let tables = match protocol {
        Protocol::Tcp => ["net/tcp", "net/tcp6"],
        Protocol::Udp => ["net/udp", "net/udp6"],
    };
    let mut inodes = HashSet::new();
    for table in tables {
        if let Ok(file) = File::open(proc.join(table)) {
            let lines = BufReader::new(file.take(MAX_TABLE)).lines();
            let held = lines
                .map_while(Result::ok)
                .filter_map(|line| parse(protocol, &line));
            inodes.extend(held.filter(|(at, _)| meets(*at, wanted)).map(|(_, inode)| inode));
        }
    }
    if inodes.is_empty() {
        return None;
    }
    let processes = std::fs::read_dir(proc).ok()?;
    processes.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let has = descriptors
            .any(|descriptor| socket_of(&descriptor.path()).is_some_and(|inode| inodes.contains(&inode)));
        has.then(|| {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            Holder {
                pid,
                name: name.trim_end().to_owned(),
            }
        })
    })
}

/// The same port, and an address that one of them has for all. A socket at `::` may have IPv4's as well.
fn meets(held: SocketAddr, wanted: SocketAddr) -> bool {
    let (a, b) = (held.ip(), wanted.ip());
    held.port() == wanted.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// Address and inode of one line of proc_net_tcp(5), `sl local remote state queues timer retransmits uid timeout inode …`,
/// where the socket listens (TCP's state `0A`); a UDP socket that is bound keeps others off whatever its state.
fn parse(protocol: Protocol, line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    if protocol == Protocol::Tcp && state != "0A" {
        return None;
    }
    // Words of 32 bits in the machine's byte order.
    let mut bytes = [0; 16];
    for (at, part) in bytes.chunks_exact_mut(4).enumerate().take(address.len() / 8) {
        let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
        part.copy_from_slice(&word.to_ne_bytes());
    }
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        32 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return None,
    };
    Some((
        SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?),
        inode,
    ))
}

/// The inode that a descriptor's link names, `socket:[123]`.
fn socket_of(descriptor: &Path) -> Option<u64> {
    let target = std::fs::read_link(descriptor).ok()?;
    target
        .to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn our_own_ports_are_ours() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let tcp: SocketAddr = (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()).into();
        for (protocol, at) in [
            (Protocol::Tcp, tcp),
            (Protocol::Udp, socket.local_addr().unwrap()),
        ] {
            let found = holder(protocol, at).unwrap();
            assert_eq!(found.pid, std::process::id(), "{protocol:?} {at}");
            assert!(!found.name.is_empty());
        }
        drop(listener);
        assert_eq!(holder(Protocol::Tcp, tcp), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel() {
        let line = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 42 1";
        let at = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(parse(Protocol::Tcp, line), Some((at, 42)));
        assert_eq!(parse(Protocol::Tcp, &line.replace(" 0A ", " 01 ")), None);
        assert_eq!(
            parse(Protocol::Udp, &line.replace(" 0A ", " 01 ")),
            Some((at, 42))
        );
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "[ -~]{0,120}") {
            let _found = parse(Protocol::Tcp, &line);
        }
    }
}
