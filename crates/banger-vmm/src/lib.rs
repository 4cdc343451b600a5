//! From a machine specification to a running microVM: Firecracker and QEMU behind one trait.
