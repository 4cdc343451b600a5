//! `passt`: the user-mode network of machines where it is installed, in the place of QEMU's own (libslirp).
//!
//! ```text
//!   guest --virtio-net--> QEMU --socket pair: frames, each after its length--> passt --sockets of the host's--> outside
//! ```
//!
//! Each machine has a passt of its own. The socket pair is made by the driver and inherited by both, so that there is no
//! path that somebody else could connect to, no permission to get right when passt changes its user, and no orphan: passt
//! ends when the other end is closed, be that QEMU's end or the daemon's before QEMU has it. The price is that a passt
//! that died cannot be replaced while its machine runs.
//!
//! No version is compared. passt puts itself into namespaces of its own, changes its user and looks for the host's default
//! route, any of which a host may make impossible, so it is asked for what it is there for: [`greet`] looks for the gateway
//! as a guest would, before QEMU is started.
//!
//! Sources: passt(1); the framing is that of QEMU's `-netdev stream`, four bytes of length in network order before each
//! Ethernet frame (net/stream.c).

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use hostkit::exec::{ExecError, Tool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UdpSocket, UnixStream};

use crate::files::tail;

/// The program's name.
const PROGRAM: &str = "passt";
/// The addresses of QEMU's user-mode network, so that a guest is told the same whoever carries its packets.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The gateway's hardware address; libslirp's as well. By itself passt takes that of the host's interface, which may have
/// none.
const GATEWAY_MAC: &str = "52:55:0a:00:02:02";
/// Most bytes of its log: a guest has a part in what is in there.
const LOG_LIMIT: u32 = 64 << 10;
/// The largest packet, in bytes, that the guest's card takes: what passt offers by itself. It ends the guest's connections
/// on this host, so large packets save work and never see a network.
pub(super) const MTU: u32 = 65520;
/// Frames are no longer: the largest packet and its Ethernet header, with room.
const LONGEST_FRAME: u32 = 66 << 10;

/// Where passt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passt {
    /// It is not to be used.
    Off,
    /// There, and nowhere else.
    At(PathBuf),
    /// In the first of these directories that has it. Looked for at each use, so that installing it suffices.
    In(Vec<PathBuf>),
}

impl Passt {
    /// The program, or why there is none, for people.
    pub(super) fn find(&self) -> Result<PathBuf, String> {
        let found = match self {
            Self::Off => return Err("passt is off in the configuration".to_owned()),
            Self::At(path) => Tool::at(path),
            Self::In(directories) => Tool::find(PROGRAM, directories),
        };
        found
            .map(|tool| tool.path().to_owned())
            .map_err(|e| match (self, e) {
                (Self::At(path), _) => format!("{} is no program", path.display()),
                (Self::Off | Self::In(_), ExecError::NotFound { .. }) => "passt is not installed".to_owned(),
                // `Tool` only looks.
                (Self::Off | Self::In(_), other) => other.to_string(),
            })
    }
}

/// The log in the runtime directory, which goes with the run.
pub(super) fn log(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("passt.log")
}

/// Its arguments. `socket` is the number of its end of the pair.
///
/// - `--search` carries the token and nothing else: the list of search domains is not told to anybody.
/// - By default the gateway's address is the host's loopback (`--no-map-gw` is against that), and no port of the host is
///   forwarded unless asked for; said all the same.
/// - DHCP and router advertisements stay on, as QEMU's network has them: they are how a guest gets IPv6 where the host
///   has it.
pub(super) fn arguments(token: &str, socket: RawFd, log: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    add(&["--foreground", "--quiet"]);
    add(&["--fd", &socket.to_string()]);
    add(&["--search", token, "--no-dhcp-search"]);
    add(&["--address", &GUEST.to_string(), "--netmask", "24"]);
    add(&["--gateway", &GATEWAY.to_string(), "--mac-addr", GATEWAY_MAC]);
    add(&["--dns-forward", &DNS.to_string(), "--no-dhcp-dns"]);
    add(&["--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none"]);
    add(&["--log-size", &LOG_LIMIT.to_string(), "--log-file"]);
    args.push(log.into());
    args
}

/// What a greeting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Greeted {
    /// It passes on what a guest addresses to 127.0.0.1, so that a guest that makes such packets reaches services which
    /// listen on the host's loopback only. Debian 12's does (0.0~git20230309); what newer ones do, this tells.
    pub(super) loopback_open: bool,
}

/// Asks for the gateway's hardware address over the end of the pair that is to be QEMU's, with the guest's own `mac`. The
/// answer proves that passt is through with all that may fail. Waits without limit; the caller bounds it and watches the
/// process. Reads whole frames only, so that QEMU begins with one.
pub(super) async fn greet(wire: &mut UnixStream, mac: [u8; 6]) -> io::Result<Greeted> {
    ask(wire, mac).await?;
    let service = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    send(wire, &datagram(mac, service.local_addr()?.port())).await?;
    // passt may answer the first question before it passes on a datagram that it read together with it. With the second
    // answer it is through with what it read before.
    ask(wire, mac).await?;
    ask(wire, mac).await?;
    let mut heard = [0];
    Ok(Greeted {
        // Within one host a datagram has arrived once it was sent.
        loopback_open: service.try_recv(&mut heard).is_ok() || arrives(&service).await,
    })
}

/// Whether a datagram is there, where the runtime has not yet been told.
async fn arrives(service: &UdpSocket) -> bool {
    tokio::time::timeout(std::time::Duration::from_millis(1), service.readable())
        .await
        .is_ok_and(|ready| ready.is_ok())
}

/// Sends the question and waits for its answer.
async fn ask(wire: &mut UnixStream, mac: [u8; 6]) -> io::Result<()> {
    send(wire, &question(mac)).await?;
    loop {
        if is_answer(&receive(wire).await?) {
            return Ok(());
        }
    }
}

async fn send(wire: &mut UnixStream, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    wire.write_all(&bytes).await
}

async fn receive(wire: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = wire.read_u32().await?;
    if length > LONGEST_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no frame is that long",
        ));
    }
    let mut frame = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    wire.read_exact(&mut frame).await?;
    Ok(frame)
}

/// EtherType of ARP; then for Ethernet and IPv4, lengths 6 and 4 (RFC 826).
const ARP: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4];
/// ARP's operations.
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// Who has the gateway's address?
fn question(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend(ARP);
    frame.extend(REQUEST);
    frame.extend(mac);
    frame.extend(GUEST.octets());
    frame.extend([0; 6]);
    frame.extend(GATEWAY.octets());
    frame
}

/// The gateway has it.
fn is_answer(frame: &[u8]) -> bool {
    frame.get(12..20) == Some(&ARP)
        && frame.get(20..22) == Some(&REPLY)
        && frame.get(28..32) == Some(&GATEWAY.octets())
}

/// A datagram of one byte from the guest to a port of 127.0.0.1: Ethernet, IPv4 (RFC 791), UDP without a checksum (RFC 768).
fn datagram(mac: [u8; 6], port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(GUEST.octets());
    packet.extend(Ipv4Addr::LOCALHOST.octets());
    let sum: u32 = packet
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    // To the discard port's neighbour: nothing answers there, and nobody is asked.
    packet.extend(9u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(9u16.to_be_bytes());
    packet.extend([0, 0, b'?']);
    // The gateway's address is not looked at: a frame to everybody is one to the gateway.
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame
}

/// Why it ended, in its own words, where it left any: its own log, or before it has one, `stderr` from `begin` on.
pub(super) fn last_words(log: &Path, stderr: &Path, begin: u64) -> Option<String> {
    let last = |path: &Path, from| {
        let lines = tail(path, from).0;
        // In its log after the time and the kind of message, on standard error bare.
        let message = lines
            .iter()
            .rev()
            .find_map(|line| Some(line.split_once("ERROR:")?.1.trim().to_owned()));
        message.or_else(|| lines.last().map(|line| line.trim().to_owned()))
    };
    last(log, 0)
        .filter(|words| !words.starts_with("passt "))
        .or_else(|| last(stderr, begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];

    #[test]
    fn the_whole_command_line() {
        let args = arguments(
            "bgrabc0123456",
            7,
            Path::new("/run/banger/bgrabc0123456/passt.log"),
        );
        let text: Vec<_> = args.iter().map(|word| word.to_str().unwrap()).collect();
        let expected = "--foreground --quiet --fd 7 --search bgrabc0123456 --no-dhcp-search --address 10.0.2.15 \
                        --netmask 24 --gateway 10.0.2.2 --mac-addr 52:55:0a:00:02:02 --dns-forward 10.0.2.3 \
                        --no-dhcp-dns --no-map-gw --tcp-ports none --udp-ports none --log-size 65536 --log-file \
                        /run/banger/bgrabc0123456/passt.log";
        assert_eq!(text.join(" "), expected);
    }

    #[test]
    fn frames_as_the_protocols_have_them() {
        let question = question(MAC);
        assert_eq!(question.len(), 42);
        assert!(!is_answer(&question));
        let mut answer = question;
        answer[21] = 2;
        answer[28..32].copy_from_slice(&GATEWAY.octets());
        assert!(is_answer(&answer));
        for cut in 0..32 {
            assert!(!is_answer(&answer[..cut]), "{cut}");
        }

        let frame = datagram(MAC, 0x1234);
        assert_eq!(
            usize::from(u16::from_be_bytes([frame[16], frame[17]])),
            frame.len() - 14
        );
        // A header's sum with its checksum is all ones (RFC 791).
        let sum: u32 = frame[14..34]
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(frame[36..38], [0x12, 0x34]);
    }

    /// Answers questions; sends datagrams on where it is open.
    async fn passt(mut wire: UnixStream, open: bool) {
        while let Ok(mut frame) = receive(&mut wire).await {
            if frame[12..14] == [0x08, 0x06] {
                // Something else first: it is not taken for the answer.
                send(&mut wire, &[0; 60]).await.unwrap();
                frame[21] = 2;
                frame[28..32].copy_from_slice(&GATEWAY.octets());
                send(&mut wire, &frame).await.unwrap();
            } else if open {
                let port = u16::from_be_bytes([frame[36], frame[37]]);
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                socket.send_to(b"?", (Ipv4Addr::LOCALHOST, port)).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_greeting_tells_whether_the_hosts_loopback_is_reached() {
        for open in [false, true] {
            let (mut ours, its) = UnixStream::pair().unwrap();
            let other = tokio::spawn(passt(its, open));
            let greeted = greet(&mut ours, MAC).await.unwrap();
            assert_eq!(greeted, Greeted { loopback_open: open });
            drop(ours);
            other.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_greeting_ends_with_passt_and_believes_no_length() {
        let (mut ours, its) = UnixStream::pair().unwrap();
        drop(its);
        assert!(greet(&mut ours, MAC).await.is_err());
        let (mut ours, mut its) = UnixStream::pair().unwrap();
        its.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let error = greet(&mut ours, MAC).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn its_last_words_are_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let (log, stderr) = (dir.path().join("log"), dir.path().join("stderr"));
        assert_eq!(last_words(&log, &stderr, 0), None);
        std::fs::write(
            &stderr,
            "older\nCouldn't create user namespace: No space left on device\n",
        )
        .unwrap();
        let words = last_words(&log, &stderr, 6).unwrap();
        assert_eq!(words, "Couldn't create user namespace: No space left on device");
        let text = "passt unknown version: /usr/bin/passt (7)\n0.4: WARNING: no route\n0.4: ERROR:   External interface \
                    not usable\n";
        std::fs::write(&log, text).unwrap();
        assert_eq!(
            last_words(&log, &stderr, 0).unwrap(),
            "External interface not usable"
        );
    }
}
