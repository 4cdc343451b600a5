//! Word of links, and of the host's networks, that come, go or change: groups of rtnetlink(7), by their numbers in
//! `linux/rtnetlink.h`.

use super::LinkError;
use super::message::{self, kind};
use crate::netlink::{Heard, Listener};

/// `RTNLGRP_LINK`.
const LINK: u32 = 1;
/// `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`.
const NETWORKS: [u32; 2] = [5, 7];

/// Hears of changes to links, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Watch(Listener);

impl Watch {
    /// Begins to listen. Needs no privileges. To be called where a Tokio runtime is.
    pub fn open() -> Result<Self, LinkError> {
        let opened = Listener::join(None, &[LINK]);
        opened.map(Self).map_err(|source| LinkError::Socket { source })
    }

    /// Waits until a link of which `wanted` says so by its name has come, gone or changed in any way, its carrier included;
    /// several changes are one. What has changed is for the caller to look at. Dropping it loses what it has heard of
    /// others only.
    pub async fn changed(&mut self, wanted: impl Fn(&str) -> bool) -> Result<(), LinkError> {
        let mut hit = false;
        while !hit {
            let mut each = |heard: Heard<'_>| hit |= concerns(heard, &wanted);
            let heard = match self.0.hear(&mut each).await {
                Ok(()) => self.0.hear_waiting(&mut each),
                Err(e) => Err(e),
            };
            heard.map_err(|source| LinkError::Socket { source })?;
        }
        Ok(())
    }
}

fn concerns(heard: Heard<'_>, wanted: impl Fn(&str) -> bool) -> bool {
    match heard {
        // Of what was missed, a change is the safe guess.
        Heard::Lost => true,
        Heard::Message(message) => {
            let of_link = matches!(message.kind, kind::NEW_LINK | kind::DELETE_LINK);
            let mut attributes = message::attributes_after(message::LINK_HEADER, message.body);
            of_link
                && attributes
                    .any(|(kind, contents)| kind == message::link::NAME && wanted(&message::text(contents)))
        }
    }
}

/// Hears of changes to IPv4 addresses and routes, in the network namespace of the thread that opened it: a VPN, a WLAN.
#[derive(Debug)]
pub struct NetworkWatch(Listener);

impl NetworkWatch {
    /// Begins to listen. Needs no privileges. To be called where a Tokio runtime is.
    pub fn open() -> Result<Self, LinkError> {
        let opened = Listener::join(None, &NETWORKS);
        opened.map(Self).map_err(|source| LinkError::Socket { source })
    }

    /// Waits until an address or a route of whatever link has come, gone or changed; several changes are one. Dropping it
    /// loses nothing.
    pub async fn changed(&mut self) -> Result<(), LinkError> {
        let heard = match self.0.hear(|_| ()).await {
            Ok(()) => self.0.hear_waiting(|_| ()),
            Err(e) => Err(e),
        };
        heard.map_err(|source| LinkError::Socket { source })
    }
}
