//! Requests that change links: a bridge made whole or not at all, a port put into it, an address.

use std::io;

use ipnet::IpNet;

use super::message::{self, Request, flags, kind};
use super::socket::{Refusal, Socket};
use super::{lacks_family, look};
use crate::digest::Digest;

/// The start of a request that changes a link.
pub(super) fn of(index: u32) -> Request {
    Request::link(kind::NEW_LINK, flags::REQUEST | flags::ACK, index)
}

pub(super) fn make_bridge(socket: &mut Socket, name: &str, alias: &str) -> Result<u32, Refusal> {
    // Always the same, so that whoever has it in mind finds a bridge that was made anew. Without one that was set the bridge
    // would take its smallest port's, another with each guest that comes or goes.
    let digest = Digest::of_bytes(format!("{name} {alias}").as_bytes());
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest.as_bytes()[..6]);
    // Of one host (IEEE 802: locally administered), and no group's.
    mac[0] = mac[0] & 0xfc | 0x02;
    let create = flags::REQUEST | flags::ACK | flags::CREATE | flags::EXCLUSIVE;
    let request = Request::link(kind::NEW_LINK, create, 0)
        .text(message::link::NAME, name)
        .attribute(message::link::ADDRESS, &mac)
        .nested(message::link::INFO, |request| {
            request
                .text(message::link::INFO_KIND, "bridge")
                .nested(message::link::INFO_DATA, |request| {
                    request
                        .number(message::link::BRIDGE_STP, 0)
                        .number(message::link::BRIDGE_FORWARD_DELAY, 0)
                })
        });
    socket.tell(request)?;
    let finished = finish_bridge(socket, name, alias);
    if finished.is_err() {
        let request =
            Request::link(kind::DELETE_LINK, flags::REQUEST | flags::ACK, 0).text(message::link::NAME, name);
        // What counts is why it was not finished.
        drop(socket.tell(request));
    }
    finished
}

fn finish_bridge(socket: &mut Socket, name: &str, alias: &str) -> Result<u32, Refusal> {
    let request = Request::link(kind::NEW_LINK, flags::REQUEST | flags::ACK, 0)
        .text(message::link::NAME, name)
        .text(message::link::ALIAS, alias);
    socket.tell(request)?;
    let request =
        Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, 0).text(message::link::NAME, name);
    let made = look::one(socket, request)?;
    let index = made
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?
        .index;
    no_inet6(socket, index)?;
    Ok(index)
}

/// Keeps the kernel from giving a link an IPv6 address by itself. A kernel without IPv6 does not anyway.
fn no_inet6(socket: &mut Socket, index: u32) -> Result<(), Refusal> {
    let request = of(index).nested(message::link::FAMILIES, |request| {
        request.nested(message::link::INET6, |request| {
            request.attribute(message::link::INET6_ADDRESSES, &[message::link::INET6_NO_ADDRESS])
        })
    });
    match socket.tell(request) {
        Err(refusal) if lacks_family(&refusal) => Ok(()),
        other => other,
    }
}

pub(super) fn enslave(socket: &mut Socket, index: u32, bridge: u32, isolated: bool) -> Result<(), Refusal> {
    let found = look::one(
        socket,
        Request::link(kind::GET_LINK, flags::REQUEST | flags::ACK, index),
    )?;
    // One that is in the bridge already is not interrupted.
    let interrupt = found.is_some_and(|link| link.up && link.master != Some(bridge));
    no_inet6(socket, index)?;
    if interrupt {
        socket.tell(Request::link_up(index, false))?;
    }
    socket.tell(of(index).number(message::link::MASTER, bridge))?;
    socket.tell(isolate(index, isolated))?;
    if interrupt {
        socket.tell(Request::link_up(index, true))?;
    }
    Ok(())
}

/// Of the group addresses 01:80:C2:00:00:0X that a bridge keeps to itself (IEEE 802.1D, table 7-10), those that it treats as
/// any other on our ports: all but that of pause frames, which the kernel insists on. Otherwise such frames are handed to
/// the host as if they had come in at the port and not by the bridge, past every rule for bridges, and with them whatever
/// they carry.
const FORWARDED: u16 = 0xfffd;

pub(super) fn isolate(index: u32, isolated: bool) -> Request {
    of(index).nested(message::link::INFO, |request| {
        request.text(message::link::INFO_PORT_KIND, "bridge").nested(
            message::link::INFO_PORT_DATA,
            |request| {
                request
                    .attribute(message::link::PORT_GROUP_FORWARD_MASK, &FORWARDED.to_ne_bytes())
                    .attribute(message::link::PORT_ISOLATED, &[u8::from(isolated)])
            },
        )
    })
}

pub(super) fn add_address(index: u32, address: IpNet) -> Request {
    let create = flags::REQUEST | flags::ACK | flags::CREATE | flags::EXCLUSIVE;
    let request = |family: libc::c_int| {
        let family = u8::try_from(family).unwrap_or_default();
        Request::address(kind::NEW_ADDRESS, create, family, address.prefix_len(), index)
    };
    match address {
        IpNet::V4(net) => {
            let octets = net.addr().octets();
            request(libc::AF_INET)
                .attribute(message::address::LOCAL, &octets)
                .attribute(message::address::ADDRESS, &octets)
                .attribute(message::address::BROADCAST, &net.broadcast().octets())
        }
        IpNet::V6(net) => {
            let octets = net.addr().octets();
            request(libc::AF_INET6)
                .attribute(message::address::LOCAL, &octets)
                .attribute(message::address::ADDRESS, &octets)
        }
    }
}
