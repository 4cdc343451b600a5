//! Pulls, imports and exports against real tools: a registry (`docker-registry`), images made by `umoci`, carried by
//! `skopeo`; and against servers that do what no decent registry does.
//!
//! Everything listens on the loopback interface, on ports that the kernel chose, and ends with its test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod archives;
mod downloads;
mod hostile;
mod pulling;
mod raw;
mod support;
