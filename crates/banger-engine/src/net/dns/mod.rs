//! Names on the bridge: `NAME.vm`, and the rest of the world for guests.
//!
//! ```text
//!   guest, host --UDP, TCP port 53--> server --> answer (from the zone)
//!                                       |
//!                                       +------> forward (to the host's own servers)
//! ```
//!
//! How the host comes to ask here is `routing`'s; `desk` begins and ends it all with the bridge.

mod answer;
mod checks;
mod desk;
mod forward;
mod limit;
mod lookup;
mod routing;
mod server;
#[cfg(test)]
mod server_tests;
mod upstreams;

pub(crate) use checks::{checks, resolves_on_host};
pub(crate) use desk::{Desk, Standing};
pub(crate) use lookup::ZONE;
pub(crate) use routing::State as HostNamesState;
