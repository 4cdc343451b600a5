//! Machines.
//!
//! - [`policy`]: what is done with a request in a state; plain and synchronous.
//! - [`state`]: a machine's durable phase, its published view, its paths.
//! - `task`: the one task that owns a machine.
//! - `lifecycle`: the work a task does: start, stop, remove. `reset`: a new system disk.
//! - [`change`]: what settings become, and which of them a run does not have yet.
//! - [`restart`], `clock`: the arithmetic of starting again and of expiring.
//! - `capability`: the pieces of a start, one file each.
//! - `preflight`: what a start looks at before it touches anything.
//! - `machines`: the table of tasks, by id and name.
//! - `console`: the serial console's file.

pub(crate) mod capability;
pub mod change;
pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod lifecycle;
pub(crate) mod machines;
pub mod policy;
pub(crate) mod preflight;
pub(crate) mod reset;
pub mod restart;
pub mod state;
pub(crate) mod task;
