//! What a running machine takes of its host.
//!
//! Time and memory come from the kernel, for all the machine's processes together. Bytes moved for the guest come from
//! the VMM where it counts them, since the kernel's count of a VMM's reads and writes has its sockets and logs in it.

use std::time::Duration;

/// What a machine has used since it was started. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineFigures {
    /// Processor time, user and system, of all its processes.
    pub cpu: Duration,
    /// Resident memory of all its processes, in bytes. Memory that two of them share counts twice: QEMU's guest memory is
    /// also mapped by `vhost-device-vsock`, which touches little of it.
    pub resident: u64,
    /// What its disks have moved. A VMM that does not answer moves nothing, so its last answer stands.
    pub disk: Moved,
    /// What its network card has moved; `None` where nobody counts: QEMU's user-mode network. Firecracker counts itself;
    /// QEMU's tap is counted by the kernel.
    pub network: Option<Moved>,
}

/// Bytes moved, seen from the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Read from disks, or received.
    pub in_bytes: u64,
    /// Written to disks, or sent.
    pub out_bytes: u64,
}

impl Moved {
    /// Both counters, each no smaller than it was.
    pub(crate) fn at_least(self, earlier: Self) -> Self {
        Self {
            in_bytes: self.in_bytes.max(earlier.in_bytes),
            out_bytes: self.out_bytes.max(earlier.out_bytes),
        }
    }

    pub(crate) fn add(&mut self, in_bytes: u64, out_bytes: u64) {
        self.in_bytes = self.in_bytes.saturating_add(in_bytes);
        self.out_bytes = self.out_bytes.saturating_add(out_bytes);
    }
}
