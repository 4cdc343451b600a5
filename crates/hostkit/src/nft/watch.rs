//! Word of changes to rules: what the kernel tells of each transaction of nftables, whoever made it (the group
//! `NFNLGRP_NFTABLES` of nfnetlink; `linux/netfilter/{nfnetlink,nf_tables}.h`).
//!
//! The kernel tells before the program that made the transaction hears that it is done. So whoever has just applied rules
//! knows that one of the transactions told until then was their own.

use rustix::net::netlink;

use super::{Family, NftError};
use crate::netlink::{Heard, Listener, Message, attributes_after, text};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type; the lower says what happened.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: the end of a transaction.
const GENERATION: u8 = 15;
/// `struct nfgenmsg`, the header of all messages of netfilter. Its first byte is the family.
const HEADER: usize = 4;
/// `NFTA_TABLE_NAME`, and what has the table's name in messages of chains, rules, sets, elements and objects.
const TABLE: u16 = 1;

impl Family {
    /// `NFPROTO_INET`, `NFPROTO_BRIDGE` (`linux/netfilter.h`).
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Bridge => 7,
        }
    }
}

/// Hears of changes to tables of one name, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Watch {
    listener: Listener,
    seen: Seen,
}

#[derive(Debug)]
struct Seen {
    table: String,
    /// The transaction that is being told concerns the tables.
    concerned: bool,
    /// Transactions that did, of which nobody has asked yet.
    count: u32,
}

impl Watch {
    /// Begins to listen. Takes `CAP_NET_ADMIN`. To be called where a Tokio runtime is.
    pub fn open(table: &str) -> Result<Self, NftError> {
        let opened = Listener::join(Some(netlink::NETFILTER), &[GROUP]);
        Ok(Self {
            listener: opened.map_err(|source| NftError::Watch { source })?,
            seen: Seen {
                table: table.to_owned(),
                concerned: false,
                count: 0,
            },
        })
    }

    /// Whether [`Self::changed`] would return at once.
    pub fn has_changed(&mut self) -> Result<bool, NftError> {
        self.hear_waiting()?;
        Ok(self.seen.count > 0)
    }

    /// Waits for a transaction that has made, changed or removed one of the tables or something in it; several are one
    /// change. What packets add to sets by themselves is none. Dropping it loses nothing.
    pub async fn changed(&mut self) -> Result<(), NftError> {
        while self.seen.count == 0 {
            let heard = self.listener.hear(|heard| self.seen.hear(heard)).await;
            heard.map_err(|source| NftError::Watch { source })?;
        }
        self.hear_waiting()?;
        self.seen.count = 0;
        Ok(())
    }

    /// One of the transactions that were told until now was the caller's own, and is no change.
    pub fn was_mine(&mut self) -> Result<(), NftError> {
        self.hear_waiting()?;
        self.seen.count = self.seen.count.saturating_sub(1);
        Ok(())
    }

    fn hear_waiting(&mut self) -> Result<(), NftError> {
        let heard = self.listener.hear_waiting(|heard| self.seen.hear(heard));
        heard.map_err(|source| NftError::Watch { source })
    }
}

impl Seen {
    fn hear(&mut self, heard: Heard<'_>) {
        match heard {
            // Of what was missed, a change is the safe guess.
            Heard::Lost => self.count = self.count.max(1),
            Heard::Message(message) => match message.kind.to_be_bytes() {
                [SUBSYSTEM, GENERATION] => {
                    self.count += u32::from(std::mem::take(&mut self.concerned));
                }
                [SUBSYSTEM, _] => self.concerned |= self.concerns(message),
                _ => {}
            },
        }
    }

    fn concerns(&self, message: Message<'_>) -> bool {
        let family = message.body.first().copied();
        let ours = [Family::Inet, Family::Bridge].map(|family| Some(family.number()));
        let mut attributes = attributes_after(HEADER, message.body);
        ours.contains(&family)
            && attributes.any(|(kind, contents)| kind == TABLE && text(contents) == self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{RULES, in_namespace};
    use super::*;

    #[test]
    fn others_changes_are_told_and_ones_own_are_known() {
        in_namespace(async |nft| {
            let mut watch = Watch::open("banger").unwrap();
            let quiet = |watch: &mut Watch| {
                // What was told is there to be heard: nothing is waited for.
                assert!(!watch.has_changed().unwrap());
            };
            nft.apply(RULES).await.unwrap();
            watch.was_mine().unwrap();
            quiet(&mut watch);
            // Of another name, of another family.
            nft.apply("table inet bangers { }\ntable ip banger { }\n")
                .await
                .unwrap();
            quiet(&mut watch);
            for script in [
                "add element inet banger s { 7 }",
                "add rule inet banger input accept",
                "flush ruleset",
                "table bridge banger { }",
            ] {
                if script.contains("element") {
                    nft.apply("add set inet banger s { type inet_service; }")
                        .await
                        .unwrap();
                    watch.changed().await.unwrap();
                }
                nft.apply(script).await.unwrap();
                watch.changed().await.unwrap();
                quiet(&mut watch);
            }
            // Somebody else's between two of ours, or before one: it is told all the same.
            for _ in 0..2 {
                nft.apply(RULES).await.unwrap();
            }
            watch.was_mine().unwrap();
            assert!(watch.has_changed().unwrap());
            watch.changed().await.unwrap();
            quiet(&mut watch);
        });
    }
}
