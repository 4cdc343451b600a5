//! Banger's daemon: wiring, RPC entry points, signals.

fn main() {}
