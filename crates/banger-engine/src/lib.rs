//! What Banger does: machines, images, guests, and the state of the host they need.
//!
//! Place: between the daemon's entry points, which validate and convert, and the crates that keep rows (`banger-store`),
//! run machines (`banger-vmm`), talk to guests (`banger-agent-api`) and know the host (`hostkit`). It knows neither JSON-RPC
//! nor terminals nor the environment: everything comes in through [`Settings`] and the [`Engine`]'s functions.
//!
//! Long-lived tasks and what joins them:
//! - one per machine (`vm::task`), bounded mailbox in, `watch` of its view out; ends when the machine is removed or the
//!   engine closes;
//! - two per operation at work (`operation`), `watch` of the operation out; end with it;
//! - one per published port of a machine that runs (`ports`), ends with its run or its publication;
//! - the store's thread and each running machine's supervisor belong to their crates.
//!
//! Order of what may wait for what: a machine's task → a store transaction → a subsystem's own lock, which is a leaf. A
//! machine's task never waits for another's.

mod assets;
mod collect;
pub mod crash;
pub mod doctor;
mod engine;
mod error;
pub mod fetch;
pub mod figures;
pub mod guest;
mod held;
mod host;
mod id;
pub mod image;
mod ledger;
mod limits;
mod name;
mod net;
#[cfg(test)]
mod older_agent;
pub mod operation;
pub mod ports;
mod reconcile;
mod rows;
pub mod runtime;
pub mod session;
mod settings;
mod space;
pub mod vm;
pub mod vmms;

pub use banger_oci::{Proxies, Registries, Registry, SettingError};
pub use banger_vmm::{Carrier, UserNetwork};
pub use collect::{Garbage, GarbageKind};
pub use engine::{
    Direct, Done, Engine, HostPort, HostResolver, Names, NetworkMachine, NetworkStatus, NewVm, OpenError,
    Preflight, Status, Unpublish, VmPorts,
};
pub use error::{Error, Kind, Problem, Report};
pub use net::allow::{Allow, UnknownAllow};
pub use net::subnet::{Subnet, SubnetError};
pub use settings::{NetworkMode, NetworkSettings, PasstChoice, Settings, VmDefaults, VmmSettings};
pub use vm::capability::system_disk::{Availability, Obstacle, SystemDiskKind};
pub use vm::change::{Applies, Change, SetVm};
pub use vm::restart::Restart;
