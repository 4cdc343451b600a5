//! The guest agent: init of the initramfs, then a gRPC server on vsock.

fn main() {}
