//! Machines on a bridge of their host: real taps, bridge, rules and guests, in network namespaces that end with the test.
//!
//! ```text
//!   guest A, guest B -- bgr0 (10.209.0.1) -- host under test (192.0.2.2) -- router (192.0.2.1) -- 203.0.113.5, "internet"
//! ```
//! The host under test is a network namespace that the test's thread enters before it starts the daemon; the router is
//! another one. Needs root.

mod crash;
mod firecracker;
mod firewalls;
mod flood;
mod lacking;
mod life;
mod obstacles;
mod passt;
mod tamper;
mod vpn;
mod world;
