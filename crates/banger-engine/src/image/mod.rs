//! Images and kernels: what machines are made of.

pub mod initramfs;
pub mod kernel;
pub mod work;
