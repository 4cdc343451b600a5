//! The host's half of `banger cp`: host files to a tar stream, and a tar stream safely back into host files.
//!
//! ```text
//! upload    host files ──pack (thread)──► channel ──frames──► daemon ──► guest's agent unpacks
//! download  guest's agent packs ──► daemon ──frames──► channel ──unpack (thread)──► host files
//! ```
//!
//! Archives are made and unpacked by blocking code on a thread of its own; bounded channels of 64 KiB chunks join it to
//! the connection. Everything is done with the caller's own rights.

pub(crate) mod channel;
pub(crate) mod destination;
pub(crate) mod meter;
pub(crate) mod pack;
pub(crate) mod repack;
pub(crate) mod unpack;
pub(crate) mod warnings;
