//! The daemon's contract: one definition of every method, from which the server's dispatch, the typed client
//! and the OpenRPC document are made.
//!
//! Place on a request's way: `banger` → [`client`] → Unix socket → [`server`] → [`Service`] (implemented by `bangerd`).
//! This crate knows nothing of how anything is done; the engine's types are converted at the daemon's entry points.
//!
//! - [`contract`]: the methods.
//! - [`types`]: what they carry. Every parameter type refuses unknown fields.
//! - [`error`]: stable error kinds, message and hint.
//! - [`frame`]: the byte streams of `guest.exec`, `guest.upload`, `guest.download` and `vm.logs`.

pub mod client;
pub mod contract;
pub mod error;
pub mod frame;
mod line;
pub mod places;
pub mod server;
pub mod types;

pub use contract::Service;
pub use error::{ErrorKind, RpcError};
