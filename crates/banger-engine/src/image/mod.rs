//! Images and kernels: what machines are made of.

pub mod busybox;
pub mod debian;
pub mod initramfs;
pub mod kernel;
pub mod os_release;
pub mod registry;
pub mod rootfs;
pub mod work;

pub(crate) use registry::{initramfs_dir, kernel_files, rootfs_path};
