//! The Listening call: sockets that wait for callers, from proc_net(5), and whose they are, from `/proc/PID/fd`.
//!
//! All of it is the kernel's own memory, so nothing here waits for a file system; but a guest with very many processes
//! takes a while, so it is done on a thread, one at a time. What a process says of itself (its name, its arguments) is cut
//! here and checked again on the host.

use banger_agent_api::MAX_LISTENERS;
use banger_agent_api::proto::{Listener, ListeningReply, Transport};
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// Of each table, in bytes: some ten thousand sockets. Those that listen come first.
const MAX_TABLE: u64 = 2 * 1024 * 1024;

/// Descriptors that are looked at, of all processes together.
const MAX_DESCRIPTORS: usize = 100_000;

/// Longest command that is reported, in bytes.
const MAX_COMMAND: usize = 256;

/// Milliseconds of a clock tick as `/proc` counts them: `USER_HZ` is 100 on every architecture that guests have.
const TICK: u64 = 10;

/// States of proc_net_tcp(5): a TCP socket that listens, a UDP socket that is not connected.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// Lets one call at a time look.
#[derive(Debug)]
pub(super) struct Listening {
    turn: Arc<Semaphore>,
}

impl Default for Listening {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Listening {
    /// All that listen, by port.
    pub(super) async fn read(&self) -> Result<ListeningReply, JoinError> {
        // Never closed. Given back by the thread, so that callers who do not wait make no more of them.
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            look(Path::new("/proc"))
        })
        .await
    }
}

/// A socket, before it is known whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    transport: Transport,
    address: SocketAddr,
    inode: u64,
}

/// Who has a socket open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    pid: u32,
    started_ms: u64,
}

fn look(proc: &Path) -> ListeningReply {
    let mut sockets = Vec::new();
    for (transport, table) in [
        (Transport::Tcp, "net/tcp"),
        (Transport::Tcp, "net/tcp6"),
        (Transport::Udp, "net/udp"),
        (Transport::Udp, "net/udp6"),
    ] {
        // A kernel without IPv6 has no such file.
        if let Ok(file) = File::open(proc.join(table)) {
            let lines = BufReader::new(file.take(MAX_TABLE)).lines();
            sockets.extend(
                lines
                    .map_while(Result::ok)
                    .filter_map(|line| parse(transport, &line)),
            );
        }
    }
    let owners = owners(proc, &sockets);
    let now = clock_gettime(ClockId::Boottime);
    let mut reply = collect(sockets, &owners);
    reply.uptime_ms = now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000;
    for listener in &mut reply.listeners {
        if listener.pid != 0 {
            let process = proc.join(listener.pid.to_string());
            listener.process = text(&process.join("comm"), 64).trim_end().to_owned();
            listener.command = command(&text(&process.join("cmdline"), 4096));
        }
    }
    reply
}

/// Each address and port once: sockets that share one (`SO_REUSEPORT`) have one owner, mostly.
fn collect(sockets: Vec<Socket>, owners: &HashMap<u64, Owner>) -> ListeningReply {
    let mut found = BTreeMap::new();
    for socket in sockets {
        let key = (
            socket.address.port(),
            socket.transport as i32,
            socket.address.ip(),
        );
        let owner = owners.get(&socket.inode);
        let before = found.entry(key).or_insert(owner);
        let longer = |a: &Owner, b: &Owner| (a.started_ms, a.pid) < (b.started_ms, b.pid);
        if before.is_none() || owner.zip(*before).is_some_and(|(new, old)| longer(new, old)) {
            *before = owner;
        }
    }
    let incomplete = found.len() > MAX_LISTENERS;
    let listeners = found
        .into_iter()
        .take(MAX_LISTENERS)
        .map(|((port, transport, address), owner)| Listener {
            transport,
            address: address.to_string(),
            port: port.into(),
            pid: owner.map_or(0, |owner| owner.pid),
            started_ms: owner.map_or(0, |owner| owner.started_ms),
            ..Listener::default()
        })
        .collect();
    ListeningReply {
        listeners,
        incomplete,
        uptime_ms: 0,
    }
}

/// One line of proc_net_tcp(5): `sl local remote state queues timer retransmits uid timeout inode …`.
fn parse(transport: Transport, line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode: u64 = fields.nth(5)?.parse().ok()?;
    let wanted = match transport {
        Transport::Tcp => TCP_LISTEN,
        Transport::Udp => UDP_UNCONNECTED,
        Transport::Unspecified => return None,
    };
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if state != wanted || port == 0 {
        return None;
    }
    let address = SocketAddr::new(parse_address(address)?, port);
    Some(Socket {
        transport,
        address,
        inode,
    })
}

/// Words of 32 bits, each in the byte order of the machine; one of them or four.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match text.len() {
        8 => word(0).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// Which process has each socket open: the one that has run longest, whose children have it from it.
fn owners(proc: &Path, sockets: &[Socket]) -> HashMap<u64, Owner> {
    let mut owners = HashMap::new();
    let wanted: std::collections::HashSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let Ok(processes) = std::fs::read_dir(proc) else {
        return owners;
    };
    let mut left = MAX_DESCRIPTORS;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Gone meanwhile.
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let mut started = None;
        for descriptor in descriptors.flatten() {
            left = left.saturating_sub(1);
            if left == 0 {
                return owners;
            }
            let Some(inode) = socket_of(&descriptor.path()).filter(|inode| wanted.contains(inode)) else {
                continue;
            };
            let started_ms =
                *started.get_or_insert_with(|| started_ms(&text(&process.path().join("stat"), 4096)));
            let owner = Owner { pid, started_ms };
            let before = owners.entry(inode).or_insert_with(|| owner.clone());
            if (owner.started_ms, owner.pid) < (before.started_ms, before.pid) {
                *before = owner;
            }
        }
    }
    owners
}

/// The inode that a descriptor's link names, `socket:[123]`, where it is a socket's.
fn socket_of(descriptor: &Path) -> Option<u64> {
    let target = std::fs::read_link(descriptor).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
}

/// Field 22 of proc_pid_stat(5), in milliseconds. The name in the second may hold anything, blanks and parentheses too.
fn started_ms(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_ascii_whitespace().nth(19);
    let ticks: u64 = ticks.and_then(|ticks| ticks.parse().ok()).unwrap_or_default();
    ticks.saturating_mul(TICK)
}

/// Arguments, each ended by a NUL, as one line.
fn command(arguments: &str) -> String {
    let mut line = arguments.trim_end_matches('\0').replace('\0', " ");
    line.truncate(line.floor_char_boundary(MAX_COMMAND));
    line
}

fn text(path: &Path, limit: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // As far as it could be read.
        let _error = file.take(limit).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 4243 1 0000000000000000 20 4 30 10 -1
";

    #[test]
    #[cfg(target_endian = "little")]
    fn what_listens_is_told_from_what_is_connected() {
        let found: Vec<_> = TCP
            .lines()
            .filter_map(|line| parse(Transport::Tcp, line))
            .collect();
        let listening = Socket {
            transport: Transport::Tcp,
            address: "127.0.0.1:8080".parse().expect("an address"),
            inode: 4242,
        };
        assert_eq!(found, [listening]);

        let udp = "  5: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 \
                   00000000:00000000 00:00000000 00000000     0        0 77 2 0000000000000000 0";
        let socket = parse(Transport::Udp, udp).expect("bound");
        assert_eq!(
            (socket.address.to_string().as_str(), socket.inode),
            ("[::1]:53", 77)
        );
        assert_eq!(parse(Transport::Tcp, udp), None);
        // Connected: an answer is waited for there, not a caller.
        assert_eq!(parse(Transport::Udp, &udp.replace(" 07 ", " 01 ")), None);
    }

    #[test]
    fn an_address_is_told_once_and_has_its_eldest_owner() {
        let socket = |port, inode| Socket {
            transport: Transport::Tcp,
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            inode,
        };
        let owner = |pid, started_ms| Owner { pid, started_ms };
        let owners = HashMap::from([(1, owner(70, 500)), (2, owner(80, 400))]);
        let reply = collect(vec![socket(80, 1), socket(80, 2), socket(22, 3)], &owners);
        let found: Vec<_> = reply
            .listeners
            .iter()
            .map(|found| (found.port, found.pid))
            .collect();
        assert_eq!(found, [(22, 0), (80, 80)]);
        assert!(!reply.incomplete);
    }

    #[test]
    fn a_guest_with_very_many_is_cut_short() {
        let sockets = (1..=200).map(|port| Socket {
            transport: Transport::Udp,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            inode: port.into(),
        });
        let reply = collect(sockets.collect(), &HashMap::new());
        assert_eq!((reply.listeners.len(), reply.incomplete), (MAX_LISTENERS, true));
    }

    #[test]
    fn processes_are_read_whatever_their_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 1234 5 6 7";
        assert_eq!(started_ms(stat), 12_340);
        assert_eq!(started_ms(""), 0);
        assert_eq!(command("httpd\0-p\0\u{1F600}\0"), "httpd -p \u{1F600}");
        assert_eq!(command(&"\u{1F600}".repeat(100)).len(), MAX_COMMAND);
    }

    #[test]
    fn our_own_listener_is_found() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let reply = look(Path::new("/proc"));
        let found = reply
            .listeners
            .iter()
            .find(|found| found.port == u32::from(port))
            .unwrap_or_else(|| panic!("{port} is not in {reply:?}"));
        assert_eq!(found.pid, std::process::id());
        assert_eq!(found.address, "127.0.0.1");
        assert!(found.started_ms > 0 && found.started_ms <= reply.uptime_ms);
        assert!(
            !found.process.is_empty() && !found.command.is_empty(),
            "{found:?}"
        );
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "[ -~]{0,120}") {
            let _socket = parse(Transport::Tcp, &line);
        }

        #[test]
        #[cfg(target_endian = "little")]
        fn addresses_are_as_the_kernel_writes_them(address: u32, port in 1u16.., inode: u64) {
            let line = format!(
                "0: {:08X}:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {inode} 1",
                u32::from_le_bytes(address.to_be_bytes())
            );
            let socket = parse(Transport::Tcp, &line).expect("whole");
            prop_assert_eq!(socket.address, SocketAddr::from((Ipv4Addr::from(address), port)));
            prop_assert_eq!(socket.inode, inode);
        }
    }
}
