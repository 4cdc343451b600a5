//! End-to-end tests. Each suite is a module; what they share is the crate `e2e`.

mod bad_input;
mod cp;
mod crash_points;
mod disk_full;
mod exec;
mod exec_bulk;
mod expiry;
mod failed_start;
mod figures;
mod firecracker_busybox;
mod gc;
mod hardship;
mod interrupt;
mod lifecycle;
mod many;
mod output;
mod protocol;
mod qemu_busybox;
mod qemu_debian;
mod races;
mod random_kills;
mod requests;
mod reset;
mod restart_policy;
mod set;
mod system_disks;
