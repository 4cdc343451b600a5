//! Machines.
//!
//! - [`policy`]: what is done with a request in a state; plain and synchronous.
//! - [`state`]: a machine's durable phase, its published view, its paths.
//! - `task`: the one task that owns a machine.
//! - `lifecycle`: the work a task does: create, start, stop, remove.
//! - `capability`: the pieces of a start, one file each.
//! - `preflight`: what a start looks at before it touches anything.
//! - `machines`: the table of tasks, by id and name.
//! - `console`: the serial console's file.

pub(crate) mod capability;
pub(crate) mod console;
pub(crate) mod lifecycle;
pub(crate) mod machines;
pub mod policy;
pub(crate) mod preflight;
pub mod state;
pub(crate) mod task;
