//! The bridge and its rules against frames: real taps in a network namespace, and cards at their ends that send what a
//! hostile guest's kernel would.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use hostkit::link::Links;
use hostkit::nft::Nft;
use ipnet::Ipv4Net;
use testkit::Card;

use super::filter::{Port, State, render};
use super::subnet::Subnet;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 209, 0, 1);
/// For what is to come: ends a test that has failed.
const SOON: Duration = Duration::from_secs(60);

/// A guest's addresses, by number.
fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 209, 0, number)
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

/// A bridge with its rules and two guests that may reach nothing: 2 and 3.
fn with_two_guests(test: impl FnOnce([u8; 6], Card, Card) + Send) {
    testkit::in_network_namespace_async(async || {
        let Ok(nft) = Nft::find(None) else {
            testkit::missing::<()>("nft is missing: apt-get install nftables");
            return;
        };
        let links = Links::connect().expect("netlink");
        let index = links.make_bridge("bgr0", "test").await.expect("a bridge");
        let net = Ipv4Net::new(HOST, 20).expect("a network");
        links.add_address(index, net.into()).await.expect("its address");
        links.set_up(index).await.expect("up");
        let mut ports = Vec::new();
        for number in [2, 3] {
            let tap = format!("bgr0t{number}");
            hostkit::tap::make(&tap, None).expect("a tap");
            let port = links.get(&tap).await.expect("links").expect("the tap");
            links.enslave(port.index, index, true).await.expect("a port");
            links.set_up(port.index).await.expect("up");
            ports.push(Port {
                tap,
                mac: mac(number),
                address: address(number),
                nat: false,
                allow: "none".parse().expect("nothing"),
            });
        }
        let rules = render(&State {
            bridge: "bgr0".to_owned(),
            owner: "test".to_owned(),
            subnet: Subnet::DEFAULT,
            ports,
            on_link: Vec::new(),
        });
        nft.apply(&rules).await.expect("rules");
        let bridge = links.get("bgr0").await.expect("links").expect("the bridge");
        let bridge = bridge.mac.expect("its hardware address");
        let (two, three) = (Card::open("bgr0t2"), Card::open("bgr0t3"));
        test(bridge, two, three);
    });
}

/// An Ethernet frame with a UDP datagram (RFC 768, RFC 791). Without a UDP checksum, which means that there is none.
fn datagram(from: ([u8; 6], Ipv4Addr), to: ([u8; 6], Ipv4Addr), port: u16, payload: &[u8]) -> Vec<u8> {
    let length = |extra: usize| {
        u16::try_from(payload.len() + extra)
            .expect("a short one")
            .to_be_bytes()
    };
    let mut header = vec![0x45, 0];
    header.extend(length(28));
    // No fragments, 64 hops, UDP, a checksum to be filled in.
    header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    header.extend(from.1.octets());
    header.extend(to.1.octets());
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).expect("it is folded");
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    let mut frame = [to.0, from.0].concat();
    frame.extend(0x0800_u16.to_be_bytes());
    frame.extend(header);
    frame.extend(4000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(length(8));
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn heard(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}

/// A socket of the host's that takes what is meant for it, from anybody.
fn host(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a port");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    socket
}

fn neighbour(number: u8) {
    let hardware = mac(number).map(|byte| format!("{byte:02x}")).join(":");
    let arguments = format!("neigh replace {} lladdr {hardware} dev bgr0", address(number));
    let status = std::process::Command::new("ip")
        .args(arguments.split(' '))
        .status();
    assert!(status.expect("ip").success(), "{arguments}");
}

/// Frames to the addresses that bridges keep to themselves are no way past the rules.
#[test]
fn the_host_hears_dns_and_nothing_else_whatever_the_frame_is_addressed_to() {
    with_two_guests(|bridge, mut two, _three| {
        let (dns, service) = (host(53), host(9999));
        for last in 0..=15 {
            let group = [0x01, 0x80, 0xc2, 0, 0, last];
            for to in [bridge, group, [0xff; 6]] {
                for source in [
                    (mac(2), address(2)),
                    (mac(2), Ipv4Addr::new(192, 168, 1, 99)),
                    (mac(3), address(3)),
                ] {
                    two.send(&datagram(source, (to, HOST), 9999, b"not this"));
                }
            }
        }
        // What is sent last is heard, so what was sent before has been dropped.
        two.send(&datagram((mac(2), address(2)), (bridge, HOST), 53, b"a question"));
        assert_eq!(heard(&dns).as_deref(), Some(&b"a question"[..]));
        service.set_nonblocking(true).expect("no waiting");
        assert_eq!(heard(&service), None);
    });
}

/// What the host sends to one guest no other hears: not while the bridge has yet to learn where the guest is, and not by
/// pretending to be it.
#[test]
fn what_is_for_one_guest_is_heard_by_no_other() {
    with_two_guests(|bridge, mut two, mut three| {
        neighbour(3);
        let host = host(4000);
        host.send_to(b"before it is learned", (address(3), 7))
            .expect("sent");
        assert!(three.hears(b"before it is learned", SOON));
        assert!(!two.hears(b"before it is learned", Duration::ZERO));

        for last in [0, 2, 0x0e, 0x0f] {
            let group = [0x01, 0x80, 0xc2, 0, 0, last];
            two.send(&datagram((mac(3), address(3)), (group, HOST), 53, b"it is me"));
        }
        two.send(&datagram((mac(3), address(3)), (bridge, HOST), 53, b"it is me"));
        host.send_to(b"after a lie", (address(3), 7)).expect("sent");
        assert!(three.hears(b"after a lie", SOON));
        assert!(!two.hears(b"after a lie", Duration::ZERO));

        // Nor does the one hear the other: what follows has come, and this has not.
        two.send(&datagram(
            (mac(2), address(2)),
            (mac(3), address(3)),
            7,
            b"neighbour",
        ));
        host.send_to(b"the last", (address(3), 7)).expect("sent");
        assert_eq!(three.hears_first(&[b"neighbour", b"the last"], SOON), Some(1));
    });
}
