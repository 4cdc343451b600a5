//! The real agent's server, on a Unix socket of this machine: what commands and copies do, and what they leave.

mod common;
mod copy;
mod exec;
mod figures;
mod forward;
mod session;
