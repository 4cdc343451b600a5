//! Messages of rtnetlink(7) as bytes: what Banger asks for, and what it reads of the answers.
//!
//! What is the same for all of netlink is in [`crate::netlink`]. Numbers are in the host's byte order, but for addresses.
//! Attributes that are not known here are passed over: kernels and drivers add new ones all the time. Source: the kernel's
//! `include/uapi/linux/{rtnetlink,if_link,if_addr}.h`.

use std::net::IpAddr;

pub(super) use crate::netlink::{
    HEADER, Message, attributes, attributes_after, take, text, u16_at, u32_at, u64_at,
};

/// `struct ifinfomsg`, `struct ifaddrmsg`, `struct rtmsg`.
pub(super) const LINK_HEADER: usize = 16;
pub(super) const ADDRESS_HEADER: usize = 8;
pub(super) const ROUTE_HEADER: usize = 12;

/// Message types.
pub(super) mod kind {
    pub(in super::super) const ERROR: u16 = 2;
    pub(in super::super) const DONE: u16 = 3;
    pub(in super::super) const NEW_LINK: u16 = 16;
    pub(in super::super) const DELETE_LINK: u16 = 17;
    pub(in super::super) const GET_LINK: u16 = 18;
    pub(in super::super) const SET_LINK: u16 = 19;
    pub(in super::super) const NEW_ADDRESS: u16 = 20;
    pub(in super::super) const GET_ADDRESS: u16 = 22;
    pub(in super::super) const NEW_ROUTE: u16 = 24;
    pub(in super::super) const GET_ROUTE: u16 = 26;
}

/// Flags of messages, `NLM_F_`.
pub(super) mod flags {
    pub(in super::super) const REQUEST: u16 = 0x1;
    pub(in super::super) const ACK: u16 = 0x4;
    /// In answers: the list changed while it was being told.
    pub(in super::super) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(in super::super) const DUMP: u16 = 0x300;
    /// In errors: the request is not repeated, and attributes that explain the error follow.
    pub(in super::super) const CAPPED: u16 = 0x100;
    pub(in super::super) const EXPLAINED: u16 = 0x200;
    /// In requests for something new: it must not be there yet.
    pub(in super::super) const EXCLUSIVE: u16 = 0x200;
    pub(in super::super) const CREATE: u16 = 0x400;
}

/// Attributes of links, `IFLA_`, and of what is nested in them.
pub(super) mod link {
    pub(in super::super) const ADDRESS: u16 = 1;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const MTU: u16 = 4;
    pub(in super::super) const MASTER: u16 = 10;
    pub(in super::super) const PROTOCOL_INFO: u16 = 12;
    pub(in super::super) const INFO: u16 = 18;
    pub(in super::super) const ALIAS: u16 = 20;
    pub(in super::super) const STATISTICS: u16 = 23;
    pub(in super::super) const FAMILIES: u16 = 26;
    pub(in super::super) const CARRIER: u16 = 33;
    /// In `INFO`.
    pub(in super::super) const INFO_KIND: u16 = 1;
    pub(in super::super) const INFO_DATA: u16 = 2;
    pub(in super::super) const INFO_PORT_KIND: u16 = 4;
    pub(in super::super) const INFO_PORT_DATA: u16 = 5;
    /// In `INFO_DATA` of a bridge.
    pub(in super::super) const BRIDGE_FORWARD_DELAY: u16 = 1;
    pub(in super::super) const BRIDGE_STP: u16 = 5;
    /// In `PROTOCOL_INFO` of a bridge's port, as in `INFO_PORT_DATA`.
    pub(in super::super) const PORT_STATE: u16 = 1;
    /// Values of `PORT_STATE`, `BR_STATE_` (`linux/if_bridge.h`).
    pub(in super::super) const DISABLED: u8 = 0;
    pub(in super::super) const FORWARDING: u8 = 3;
    /// In `INFO_PORT_DATA` of a bridge's port.
    pub(in super::super) const PORT_GROUP_FORWARD_MASK: u16 = 31;
    pub(in super::super) const PORT_ISOLATED: u16 = 33;
    /// In `FAMILIES`: `AF_INET6`, and in that how addresses come about.
    pub(in super::super) const INET6: u16 = 10;
    pub(in super::super) const INET6_ADDRESSES: u16 = 8;
    /// `IN6_ADDR_GEN_MODE_NONE`: no address by itself.
    pub(in super::super) const INET6_NO_ADDRESS: u8 = 1;
    /// Where a `struct rtnl_link_stats64` has the bytes received; those sent follow.
    pub(in super::super) const STATISTICS_BYTES: usize = 16;
}

/// Attributes of addresses, `IFA_`.
pub(super) mod address {
    pub(in super::super) const ADDRESS: u16 = 1;
    pub(in super::super) const LOCAL: u16 = 2;
    pub(in super::super) const BROADCAST: u16 = 4;
}

/// Attributes of routes, `RTA_`.
pub(super) mod route {
    pub(in super::super) const DESTINATION: u16 = 1;
    pub(in super::super) const INTERFACE: u16 = 4;
    pub(in super::super) const GATEWAY: u16 = 5;
    pub(in super::super) const MULTIPATH: u16 = 9;
    pub(in super::super) const TABLE: u16 = 15;
    pub(in super::super) const VIA: u16 = 18;
    /// `struct rtnexthop`.
    pub(in super::super) const NEXT_HOP: usize = 8;
    /// `RTM_F_CLONED`: a cache's entry, no route.
    pub(in super::super) const CLONED: u32 = 0x200;
    /// `RTN_UNICAST`.
    pub(in super::super) const UNICAST: u8 = 1;
}

/// Attribute of errors: the kernel's words.
pub(super) const ERROR_MESSAGE: u16 = 1;
/// In an attribute's type: its contents are attributes.
const NESTED: u16 = 0x8000;

/// A request under construction.
#[derive(Debug, Clone)]
pub(super) struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(header);
        Self(bytes)
    }

    /// A request about a link; `index` 0 where it is named by an attribute, or all are meant.
    pub(super) fn link(kind: u16, flags: u16, index: u32) -> Self {
        let mut header = [0; LINK_HEADER];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        Self::new(kind, flags, &header)
    }

    /// A request to bring a link up or down.
    pub(super) fn link_up(index: u32, up: bool) -> Self {
        const UP: u32 = libc::IFF_UP.cast_unsigned();
        let mut request = Self::link(kind::NEW_LINK, flags::REQUEST | flags::ACK, index);
        let header = &mut request.0[HEADER..];
        header[8..12].copy_from_slice(&if up { UP } else { 0 }.to_ne_bytes());
        header[12..16].copy_from_slice(&UP.to_ne_bytes());
        request
    }

    /// A request of the bridge's own about a port of it, unlike one about the link it tells nobody that the link has changed.
    pub(super) fn bridge_port(index: u32) -> Self {
        let mut header = [0; LINK_HEADER];
        header[0] = u8::try_from(libc::AF_BRIDGE).unwrap_or_default();
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        Self::new(kind::SET_LINK, flags::REQUEST | flags::ACK, &header)
    }

    /// A request about the addresses of a link; of all, where `index` is 0.
    pub(super) fn address(kind: u16, flags: u16, family: u8, prefix: u8, index: u32) -> Self {
        let mut header = [0; ADDRESS_HEADER];
        header[0] = family;
        header[1] = prefix;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        Self::new(kind, flags, &header)
    }

    /// A request for all routes of a family.
    pub(super) fn routes(family: u8) -> Self {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family;
        Self::new(kind::GET_ROUTE, flags::REQUEST | flags::DUMP, &header)
    }

    /// A question for the way to one address.
    pub(super) fn way_to(destination: IpAddr) -> Self {
        let mut header = [0; ROUTE_HEADER];
        let (family, bits) = match destination {
            IpAddr::V4(_) => (libc::AF_INET, 32),
            IpAddr::V6(_) => (libc::AF_INET6, 128),
        };
        header[0] = u8::try_from(family).unwrap_or_default();
        header[1] = bits;
        let request = Self::new(kind::GET_ROUTE, flags::REQUEST | flags::ACK, &header);
        match destination {
            IpAddr::V4(address) => request.attribute(route::DESTINATION, &address.octets()),
            IpAddr::V6(address) => request.attribute(route::DESTINATION, &address.octets()),
        }
    }

    pub(super) fn attribute(mut self, kind: u16, contents: &[u8]) -> Self {
        self.push(kind, contents);
        self
    }

    /// A text with the zero byte at its end that the kernel wants.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut contents = text.as_bytes().to_vec();
        contents.push(0);
        self.attribute(kind, &contents)
    }

    pub(super) fn number(self, kind: u16, number: u32) -> Self {
        self.attribute(kind, &number.to_ne_bytes())
    }

    /// An attribute made of attributes.
    pub(super) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.push(kind | NESTED, &[]);
        let mut filled = fill(self);
        filled.set_length(start);
        filled
    }

    fn push(&mut self, kind: u16, contents: &[u8]) {
        let start = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(contents);
        self.set_length(start);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn set_length(&mut self, start: usize) {
        // Callers bound what they put in: names, aliases and numbers, some hundred bytes in all.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The request's bytes, under this number.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_reads_back() {
        let bytes = Request::link(kind::NEW_LINK, flags::REQUEST | flags::CREATE, 7)
            .text(link::NAME, "bgr0")
            .nested(link::INFO, |request| {
                request
                    .text(link::INFO_KIND, "bridge")
                    .nested(link::INFO_DATA, |request| request.number(link::BRIDGE_STP, 3))
            })
            .number(link::MTU, 1400)
            .finish(42);
        let mut rest = bytes.as_slice();
        let message = take(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert_eq!(
            (message.kind, message.flags, message.sequence),
            (kind::NEW_LINK, flags::REQUEST | flags::CREATE, 42)
        );
        assert_eq!(u32_at(message.body, 4), Some(7));
        let found: Vec<_> = attributes_after(LINK_HEADER, message.body).collect();
        let kinds: Vec<_> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [link::NAME, link::INFO, link::MTU]);
        assert_eq!(found[0].1, b"bgr0\0");
        let info: Vec<_> = attributes(found[1].1).collect();
        assert_eq!(text(info[0].1), "bridge");
        let data: Vec<_> = attributes(info[1].1).collect();
        assert_eq!(data, [(link::BRIDGE_STP, 3_u32.to_ne_bytes().as_slice())]);
        assert_eq!(u32_at(found[2].1, 0), Some(1400));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            let mut count = 0;
            while let Some(message) = take(&mut rest) {
                count += 1;
                prop_assert!(attributes_after(LINK_HEADER, message.body).count() <= bytes.len() / 4);
            }
            prop_assert!(count <= bytes.len() / HEADER);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
