//! From a machine specification to a running microVM: Firecracker and QEMU behind one trait.
//!
//! The engine fills in a [`MachineSpec`], the [`Vmm`] chosen at start ([`choose`]) checks it completely
//! ([`Vmm::check`]), starts it ([`Vmm::launch`]) and hands back a [`Machine`]: the handle on the processes that are
//! the running guest. After a restart of the daemon the same handle comes from [`Vmm::adopt`], given the same
//! specification and the process records that the ledger kept.
//!
//! ```text
//!   MachineSpec --check--> problems (nothing touched)
//!        |
//!      launch --> spawn, report to ProcessLog, wait until the VMM answers --> Machine
//!        |              any failure, or the future dropped: what was spawned is killed
//!      adopt  <-- ProcessRecords from the ledger
//!
//!   Machine: one supervising task (supervise.rs); it ends when every process has ended and been reaped.
//! ```
//!
//! Long-lived tasks: one per machine, waiting on the pidfds of its processes and publishing [`MachineExit`] on a
//! watch channel; under QEMU one more that reads the QMP connection until it closes.
//!
//! This crate knows nothing about images, bridges and addresses, the store or the guest's agent: it gets paths and numbers.

mod check;
mod choice;
mod error;
mod figures;
mod files;
mod firecracker;
mod identify;
mod kernel;
mod probe;
mod qemu;
mod spec;
mod supervise;
mod virtualization;
mod vmm;

pub use check::{SpecProblem, least_memory};
pub use choice::{Choice, Facts, NoChoice, Preference, choose};
pub use error::{AdoptError, ControlError, KillError, LaunchError, LogTail, ProbeError};
pub use figures::{MachineFigures, Moved};
pub use firecracker::Firecracker;
pub use identify::{find_processes, identify, kill_processes};
pub use qemu::{Passt, Qemu, QemuPaths};
pub use spec::{Boot, Disk, MachineSpec, Network, Vsock};
pub use virtualization::{HostVirtualization, host_virtualization};
pub use vmm::{
    Accelerator, Carrier, Companion, Machine, MachineExit, ProcessLog, ProcessRecord, ProcessRole, RunState,
    UnknownRole, UserNetwork, Vmm, VmmInfo, VmmKind,
};
