//! From a machine specification to a running microVM: Firecracker and QEMU behind one trait.

mod check;
mod error;
mod spec;
mod virtualization;
mod vmm;

pub use check::SpecProblem;
pub use error::{AdoptError, ControlError, KillError, LaunchError, LogTail, ProbeError};
pub use spec::{Boot, Disk, MachineSpec, Network, Vsock};
pub use virtualization::{HostVirtualization, host_virtualization};
pub use vmm::{
    Accelerator, Companion, Machine, MachineExit, ProcessLog, ProcessRecord, ProcessRole, RunState,
    UnknownRole, Vmm, VmmInfo, VmmKind,
};
