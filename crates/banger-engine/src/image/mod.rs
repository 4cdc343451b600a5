//! Images and kernels: what machines are made of.

pub mod busybox;
pub mod config;
pub mod debian;
pub mod initramfs;
pub mod kernel;
pub mod kernels;
pub mod make;
pub mod os_release;
pub(crate) mod places;
pub mod registry;
pub mod rootfs;
pub mod work;

pub(crate) use places::{initramfs_dir, kernel_files, rootfs_path};
