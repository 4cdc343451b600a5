//! Disposable Linux machines on your own host.

fn main() {}
